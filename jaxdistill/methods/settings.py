"""A stage's section of a recipe, checked, as a `Stage`. Called by every method."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from jaxdistill.errors import BadInput, listed, nearest, shortened
from jaxdistill.methods.base import DECAYS, OPTIMIZERS, Optimizer, Schedule, Stage, Term

LARGEST_COUNT = 2**31 - 1  # a step counts in int32
_LARGEST_FLOAT = 3e38  # of float32, in which a step computes
WEIGHTS = (
    "feature_map",
    "mean",
    "variance",
    "attention",
    "nsp",
    "query_relation",
    "key_relation",
    "value_relation",
    "hidden_mse",
    "attention_mse",
    "embedding_mse",
)

# The fields of a stage that only some kinds read, and their defaults; all others are read by every
# kind.
OWN_FIELDS: dict[str, Any] = {
    # Transfer: weights of the published code, layer map (empty: i to i), freezing of lower layers.
    "feature_map": 100.0,
    "mean": 5000.0,
    "variance": 5.0,
    "attention": 1.0,
    "layer_map": (0,)[:0],
    "freezing": "soft",
    "active_multiplier": 3.0,
    "tf1_statistics": False,
    # Relations: weights, how many relation heads, the teacher's layer (from 0).
    "query_relation": 1.0,
    "key_relation": 1.0,
    "value_relation": 1.0,
    "relation_heads": 48,
    "teacher_layer": -1,
    # TinyBERT's squared errors: weights, and whether hidden states pass a learned projection to the
    # teacher's width.
    "hidden_mse": 1.0,
    "attention_mse": 1.0,
    "embedding_mse": 1.0,
    "projection": True,
    # Distillation: share of the true word in the target, weight of next-sentence prediction.
    "alpha": 0.5,
    "nsp": 1.0,
}
_TRANSFER = ("feature_map", "mean", "variance", "attention", "layer_map", "tf1_statistics")
READ_BY = {
    "pretrain": ("nsp",),
    "progressive": (*_TRANSFER, "freezing", "active_multiplier"),
    "joint": _TRANSFER,
    "auxiliary": (*_TRANSFER, "alpha", "nsp"),
    "distill": ("alpha", "nsp"),
    "relations": (
        "query_relation",
        "key_relation",
        "value_relation",
        "relation_heads",
        "teacher_layer",
    ),
    "intermediate": ("hidden_mse", "attention_mse", "embedding_mse", "projection", "layer_map"),
    "classify": (),
}


def check_read(kind: str, fields: Mapping[str, Any], where: str) -> None:
    """Raises `BadInput` for a field that is not at its default although a stage of this kind does
    not read it."""
    read = READ_BY.get(kind, tuple(OWN_FIELDS))  # a kind that is not in the table may read all
    for field, default in OWN_FIELDS.items():
        given = fields.get(field, default)
        if (
            field not in read and (tuple(given) if isinstance(given, list) else given) != default
        ):  # JSON has no tuples
            raise BadInput(
                f"{where}: {field}={shortened(repr(fields[field]))} would do nothing, a stage of kind {kind!r} does "
                f"not read it; beside the fields of every stage it reads: {listed(read)}"
            )


def build(name: str, settings: Any, terms: tuple[Term, ...], **fields: Any) -> Stage:
    """The stage of these terms; `fields` are what the method decides, all else is the section's.
    Raises `BadInput`."""
    check_read(settings.kind, settings, f"config.stages.{name}")
    _check(name, settings)
    if settings.moves:
        fields["moves"] = tuple(settings.moves)
    return Stage(
        name=name,
        network=settings.network,
        steps=settings.steps,
        terms=terms,
        optimizer=Optimizer(
            name=settings.optimizer,
            weight_decay=settings.weight_decay,
            clip_norm=settings.clip_norm,
            bias_correction=settings.bias_correction,
        ),
        schedule=Schedule(
            settings.learning_rate, settings.warmup_steps, settings.decay, settings.end_ratio
        ),
        batch_size=settings.batch_size,
        accumulation=settings.accumulation,
        dropout=settings.dropout,
        active_multiplier=settings.active_multiplier,
        tf1_unmasked=settings.tf1_unmasked,
        skip_above=settings.skip_above,
        best=settings.best,
        **fields,
    )


def checked_layer_map(name: str, settings: Any, num_layers: int) -> tuple[int, ...] | None:
    """The section's layer map, None for i to i. Raises `BadInput` unless it names one teacher layer
    a student layer."""
    layer_map = tuple(settings.layer_map) or None
    if any(not isinstance(i, int) for i in layer_map or ()):
        raise BadInput(
            f"config.stages.{name}.layer_map={layer_map}: expected whole numbers, the teacher's layers from 0"
        )
    if layer_map is not None and len(layer_map) != num_layers:
        raise BadInput(
            f"config.stages.{name}.layer_map={layer_map} names {len(layer_map)} teacher layers for {num_layers} "
            "student layers; give one teacher layer for each student layer"
        )
    return layer_map


def _check(name: str, settings: Any) -> None:
    for field, valid in (("optimizer", OPTIMIZERS), ("decay", DECAYS)):
        if settings[field] not in valid:
            raise BadInput(
                f"config.stages.{name}.{field}={settings[field]!r} is unknown; {nearest(settings[field], valid)}"
            )
    for field in (
        *WEIGHTS,
        "learning_rate",
        "active_multiplier",
        "weight_decay",
        "clip_norm",
        "end_ratio",
    ):
        if not 0 <= settings[field] <= _LARGEST_FLOAT:  # nan is neither
            raise BadInput(
                f"config.stages.{name}.{field}={settings[field]}; expected a finite number, 0 or more"
            )
    for field, least in (("steps", 1), ("batch_size", 1), ("accumulation", 1), ("warmup_steps", 0)):
        if not least <= settings[field] <= LARGEST_COUNT:
            raise BadInput(
                f"config.stages.{name}.{field}={settings[field]}; expected {least} to {LARGEST_COUNT}"
            )
    for pattern in settings.moves:
        if not isinstance(pattern, str):
            raise BadInput(
                f"config.stages.{name}.moves={tuple(settings.moves)}; expected patterns of names, as ('layers/',)"
            )
    if settings.skip_above and not 2 <= settings.skip_above < math.inf:
        raise BadInput(
            f"config.stages.{name}.skip_above={settings.skip_above}; expected 0 (no update is skipped) or 2 standard "
            "deviations or more: below that a usual loss is a spike"
        )
    if not 0 <= settings.alpha <= 1:
        raise BadInput(
            f"config.stages.{name}.alpha={settings.alpha}; expected 0 (the teacher's words alone) to 1 (the "
            "true words alone)"
        )
