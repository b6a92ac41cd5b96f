"""A stage's section of a recipe, checked, as a `Stage`. Called by every method."""

from __future__ import annotations

import math
from typing import Any

from jaxdistill.errors import BadInput, nearest
from jaxdistill.methods.base import DECAYS, OPTIMIZERS, Optimizer, Schedule, Stage, Term

WEIGHTS = ("feature_map", "mean", "variance", "attention", "nsp", "query_relation", "key_relation", "value_relation",
           "hidden_mse", "attention_mse", "embedding_mse")


def build(name: str, settings: Any, terms: tuple[Term, ...], **fields: Any) -> Stage:
    """The stage of these terms; `fields` are what the method decides, all else is the section's. Raises `BadInput`."""
    _check(name, settings)
    if settings.moves:
        fields["moves"] = tuple(settings.moves)
    return Stage(
        name=name, network=settings.network, steps=settings.steps, terms=terms,
        optimizer=Optimizer(name=settings.optimizer, weight_decay=settings.weight_decay, clip_norm=settings.clip_norm,
                            bias_correction=settings.bias_correction),
        schedule=Schedule(settings.learning_rate, settings.warmup_steps, settings.decay, settings.end_ratio),
        batch_size=settings.batch_size, accumulation=settings.accumulation, dropout=settings.dropout,
        active_multiplier=settings.active_multiplier, tf1_unmasked=settings.tf1_unmasked,
        skip_above=settings.skip_above, best=settings.best, **fields,
    )


def checked_layer_map(name: str, settings: Any, num_layers: int) -> tuple[int, ...] | None:
    """The section's layer map, None for i to i. Raises `BadInput` unless it names one teacher layer a student layer."""
    layer_map = tuple(settings.layer_map) or None
    if any(not isinstance(i, int) for i in layer_map or ()):
        raise BadInput(f"config.stages.{name}.layer_map={layer_map}: expected whole numbers, the teacher's layers from 0")
    if layer_map is not None and len(layer_map) != num_layers:
        raise BadInput(f"config.stages.{name}.layer_map={layer_map} names {len(layer_map)} teacher layers for {num_layers} "
                       "student layers; give one teacher layer for each student layer")
    return layer_map


def _check(name: str, settings: Any) -> None:
    for field, valid in (("optimizer", OPTIMIZERS), ("decay", DECAYS)):
        if settings[field] not in valid:
            raise BadInput(f"config.stages.{name}.{field}={settings[field]!r} is unknown; {nearest(settings[field], valid)}")
    for field in (*WEIGHTS, "learning_rate", "active_multiplier"):
        if not 0 <= settings[field] < math.inf:  # nan is neither
            raise BadInput(f"config.stages.{name}.{field}={settings[field]}; expected 0 or more")
    for field in ("steps", "batch_size", "accumulation"):
        if settings[field] < 1:
            raise BadInput(f"config.stages.{name}.{field}={settings[field]}; expected 1 or more")
    for field in ("warmup_steps", "weight_decay", "clip_norm", "end_ratio"):
        if not 0 <= settings[field] < math.inf:
            raise BadInput(f"config.stages.{name}.{field}={settings[field]}; expected 0 or more")
    if settings.skip_above and not 2 <= settings.skip_above < math.inf:
        raise BadInput(f"config.stages.{name}.skip_above={settings.skip_above}; expected 0 (no update is skipped) or 2 standard "
                       "deviations or more: below that a usual loss is a spike")
    if not 0 <= settings.alpha <= 1:
        raise BadInput(f"config.stages.{name}.alpha={settings.alpha}; expected 0 (the teacher's words alone) to 1 (the "
                       "true words alone)")
