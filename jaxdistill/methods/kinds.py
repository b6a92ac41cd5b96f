"""The kinds of stages by name, and a recipe's section as the `Stage` of its kind.

A kind is a function of `Facts` whose keywords are its settings; it returns an `Objective`. Called by
defaults and resolve."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from jaxdistill.errors import BadInput, listed, nearest, shortened
from jaxdistill.methods import (
    distilbert,
    finetune,
    fitnets,
    minilm,
    mobilebert,
    pkd,
    soft_labels,
    tinybert,
    xtremedistil,
)
from jaxdistill.methods.base import Facts, Objective, Optimizer, Patience, Schedule, Stage
from jaxdistill.methods.settings import Common
from jaxdistill.models import ModelConfig
from jaxdistill.objectives.ramps import SHAPES, Ramp
from jaxdistill.registry import Table
from jaxdistill.settings import arguments, check, settings_of

Kind = Callable[..., Objective]
TEACHER = "teacher"  # of a term: the network that its stage names

KINDS: Table[Kind] = Table(
    "stage kind",
    {
        kind.__name__: kind
        for kind in (
            mobilebert.pretrain,
            mobilebert.progressive,
            mobilebert.joint,
            mobilebert.auxiliary,
            mobilebert.distill,
            finetune.finetune,
            soft_labels.soft_labels,
            distilbert.distilbert,
            pkd.patient,
            fitnets.hint,
            tinybert.intermediate,
            minilm.self_attention,
            minilm.relations,
            xtremedistil.topmost,
        )
    },
)


def register(kind: Kind) -> Kind:
    """Adds a kind of stage of one's own, under the name of the function; also a decorator. Raises
    `BadInput` if the name is taken, or a setting has the name of one that every stage has."""
    name = kind.__name__
    if taken := settings_of(kind).keys() & {"kind", "network", *settings_of(Common)}:
        raise BadInput(
            f"stage kind {name!r}: every stage has a setting {min(taken)!r}; give the keyword "
            "another name"
        )
    KINDS.register(name, kind)
    return kind


def default_settings(kind: str) -> dict[str, Any]:
    """Every setting of a stage of `kind`, at its default: those of all stages, then its own."""
    declared = (Common, KINDS.named(kind))
    return {name: s.default for made in declared for name, s in settings_of(made).items()}


def check_setting(kind: str, name: str, where: str) -> None:
    """Raises `BadInput` unless stages of `kind` have the setting `name`; it may be another kind's."""
    valid = ("kind", "network", *default_settings(kind))
    if name in valid:
        return
    if name == "start":
        raise BadInput(
            f"{where} has no field 'start': how a network begins is said by its own section, as "
            "config.networks.NAME.start='copy'"
        )
    others = [other for other, made in KINDS.items() if name in settings_of(made)]
    whose = f", a setting of {listed(others)}" if others else ""
    hint = nearest(name, valid, " ").strip()
    raise BadInput(
        f"{where} has no field {name!r}{whose}; {hint}{' ' if hint else ''}beside the fields of every "
        f"stage, one of kind {kind!r} has: {listed(sorted(settings_of(KINDS.named(kind))))}"
    )


def build(name: str, section: Any, network: ModelConfig, losses: tuple[str, ...] = ()) -> Stage:
    """The section of a recipe as a `Stage` of its kind, for the network that moves; its length in
    `steps`. `losses`: those of the task that it reads. Raises `BadInput` for settings
    outside their range, or that do not fit together."""
    where = f"config.stages.{name}"
    kind = KINDS.named(section.kind, f"{where}.kind=")
    for field in section:
        check_setting(section.kind, field, where)
    check(Common, section, where)
    check(kind, section, where)
    if section.warmup_steps and section.warmup_ratio:
        raise BadInput(
            f"{where}.warmup_steps={section.warmup_steps} and warmup_ratio={section.warmup_ratio}: give one of "
            "the two, set the other to 0"
        )
    values = {**section, **_ramps(section, where)}
    num_layers, projects = network.num_layers, network.projected_size is not None
    facts = Facts(
        name, num_layers, section.steps, losses, network.num_heads, section.teacher, projects
    )
    objective = kind(facts, **arguments(kind, values))
    layers = section.layers or objective.layers
    if layers and not (len(layers) == 2 and 0 <= layers[0] < layers[1] <= num_layers):
        raise BadInput(
            f"{where}.layers={tuple(layers)}: expected two numbers, the first layer that moves and the one "
            f"behind the last, within 0 to {num_layers}, as (0, {num_layers})"
        )
    rows = section.rows
    if rows and not (len(rows) == 2 and 0 <= rows[0] < rows[1]):
        raise BadInput(
            f"{where}.rows={tuple(rows)}: expected two numbers, the first row and the one behind the last, as "
            "(0, 100000)"
        )
    return Stage(
        name=name,
        network=section.network,
        feed=section.feed,
        steps=section.steps,
        terms=tuple(
            dataclasses.replace(term, teacher=section.teacher) if term.teacher == TEACHER else term
            for term in objective.terms
        ),
        optimizer=Optimizer(
            name=section.optimizer,
            weight_decay=section.weight_decay,
            clip_norm=section.clip_norm,
            bias_correction=section.bias_correction,
        ),
        schedule=Schedule(
            section.learning_rate,
            section.warmup_steps or int(section.warmup_ratio * section.steps),
            section.decay,
            section.end_ratio,
        ),
        batch_size=section.batch_size,
        accumulation=section.accumulation,
        moves=tuple(section.moves) or objective.moves,
        layers=(layers[0], layers[1]) if layers else None,
        rows=(rows[0], rows[1]) if rows else None,
        depth=objective.depth,
        active_multiplier=objective.active_multiplier,
        forward=objective.forward,
        dropout=section.dropout,
        tf1_unmasked=section.tf1_unmasked,
        skip_above=section.skip_above,
        until=_until(section, where),
    )


def _ramps(section: Any, where: str) -> dict[str, Ramp]:
    """The settings of a section that change while its stage goes on, by name."""
    declared = settings_of(KINDS[section.kind])
    valid = [name for name, setting in declared.items() if setting.may_ramp]
    found: dict[str, Ramp] = {}
    for text in section.ramps:
        name, _, said = (part.strip() for part in text.partition(":"))
        shown = f"{where}.ramps: {shortened(text)!r}"
        if name not in valid:
            which = nearest(name, valid) if valid else f"a stage of kind {section.kind!r} has none"
            raise BadInput(f"{shown}: {name!r} is no weight or temperature; {which}")
        if name in found:
            raise BadInput(f"{shown}: {name!r} is there twice; give it one ramp")
        if (ramp := Ramp.read(said, section.steps)) is None:
            raise BadInput(
                f"{shown}: expected NAME: NUMBER to NUMBER, and perhaps a shape ({listed(SHAPES)}), as "
                f"'{name}: 8 to 1, cosine'"
            )
        for end in (ramp.start, ramp.end):
            if wrong := declared[name].wrong(end):
                raise BadInput(f"{shown}: {end:g}{wrong}")
        if section[name] != declared[name].default:
            raise BadInput(
                f"{where}.{name}={section[name]} would do nothing beside ramps={text!r}; leave one of the "
                "two out"
            )
        found[name] = ramp
    return found


def _until(section: Any, where: str) -> Patience | None:
    """What a section says about the best state, and an early end."""
    if section.best:
        feed = section.best_on or section.feed
        return Patience(
            feed, section.best, section.best_every, section.patience, section.best_or_start
        )
    for name, value in (
        ("patience", section.patience),
        ("best_or_start", section.best_or_start),
        ("best_on", section.best_on),
        ("best_every", section.best_every),
    ):
        if value:
            raise BadInput(
                f"{where}.{name}={value!r} needs a held-out number to judge by; set {where}.best, as 'loss'"
            )
    return None
