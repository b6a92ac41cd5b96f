"""The settings of a stage, read from where they are declared: a kind's keywords, and the fields of `Common`.

A keyword's default is the setting's default. Its annotation says what a value may be:

    def relations(facts, *, query_relation: Weight = 1.0, relation_heads: Count = 48): ...

Kinds with settings in common name a dataclass of them as the annotation of one keyword.

Called by every method for its annotations, by `kinds` and by `defaults`."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, TypeGuard

from jaxdistill.errors import BadInput, nearest, shortened
from jaxdistill.methods.base import DecayName, OptimizerName

LARGEST_COUNT = 2**31 - 1  # a step counts in int32
_LARGEST_FLOAT = 3e38  # of float32, in which a step computes


@dataclasses.dataclass(frozen=True)
class Within:
    """A number from `least` to `most`; `expected` says so in a message."""

    least: float
    most: float
    expected: str = ""

    def wrong(self, value: Any) -> str:
        fits = self.least <= value <= self.most  # nan is neither
        return "" if fits else f"; expected {self.expected or f'{self.least} to {self.most}'}"


@dataclasses.dataclass(frozen=True)
class Each:
    """A tuple whose items are all of `type`."""

    type: type
    expected: str

    def wrong(self, value: Any) -> str:
        fits = all(isinstance(item, self.type) for item in value)
        return "" if fits else f"; expected {self.expected}"


@dataclasses.dataclass(frozen=True)
class OneOf:
    """One of some names."""

    names: tuple[str, ...]

    def wrong(self, value: Any) -> str:
        return "" if value in self.names else f" is unknown; {nearest(value, self.names)}"


@dataclasses.dataclass(frozen=True)
class OffOrAtLeast:
    """0 for off, or a finite number from `least` on."""

    least: float
    expected: str

    def wrong(self, value: Any) -> str:
        fits = not value or self.least <= value < math.inf
        return "" if fits else f"; expected {self.expected}"


Weight = Annotated[float, Within(0, _LARGEST_FLOAT, "a finite number, 0 or more")]
Count = Annotated[int, Within(1, LARGEST_COUNT)]
CountOrZero = Annotated[int, Within(0, LARGEST_COUNT)]
# `layer_map[i]` is the teacher layer that layer i follows, -1 for none; an empty one maps i to i.
LayerMap = Annotated[tuple[int, ...], Each(int, "whole numbers, the teacher's layers from 0")]
Patterns = Annotated[tuple[str, ...], Each(str, "patterns of names, as ('layers/',)")]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Common:
    """The settings of every stage, whatever its kind."""

    baseline: bool = False
    # The network that the terms compare with; a method with several names them itself.
    teacher: str = "teacher"
    # One of the three says how long the stage is.
    steps: CountOrZero = 0
    examples: int = 0
    epochs: float = 0.0
    batch_size: Count = 32
    accumulation: Count = 1
    optimizer: OptimizerName = "lamb"
    learning_rate: Weight = 1.5e-3
    warmup_steps: CountOrZero = 0
    decay: DecayName = "linear"
    end_ratio: Weight = 1e-4
    weight_decay: Weight = 0.01
    clip_norm: Weight = 1.0
    bias_correction: bool = False
    dropout: bool = False
    # Patterns of the parameters that move, in place of the kind's own.
    moves: Patterns = ()
    # Skip updates whose loss is so many standard deviations above its recent mean.
    skip_above: Annotated[
        float,
        OffOrAtLeast(
            2,
            "0 (no update is skipped) or 2 standard deviations or more: below that a usual loss is "
            "a spike",
        ),
    ] = 0.0
    # Hand on the state with the lowest held-out "loss" (or term), as measured at each step-based
    # checkpoint; "": the last.
    best: str = ""
    # End after so many of those measurements in a row that bring no better state; 0: run all steps.
    patience: CountOrZero = 0
    tf1_unmasked: bool = False


@dataclasses.dataclass(frozen=True)
class Setting:
    """One setting: its default, the type of its values, and what else must hold of them."""

    default: Any
    type: type
    checks: tuple[Any, ...] = ()

    def wrong(self, value: Any) -> str:
        """What a message says after `value`; "" if it fits."""
        return next((said for check in self.checks if (said := check.wrong(value))), "")


@functools.cache
def settings_of(declared: Callable[..., Any]) -> Mapping[str, Setting]:
    """The settings that a kind, or a group of settings, declares, by name.

    They are keyword-only arguments, or fields of a dataclass. A keyword whose annotation is a
    dataclass stands for all its fields, so that kinds can share a group of settings. Raises
    `BadInput` for a setting without a default or an annotation: a recipe must work without it, and
    a command line must know its type."""
    found: dict[str, Setting] = {}
    for name, hint in _keywords(declared).items():
        if _is_group(hint):
            found |= settings_of(hint)
            continue
        default = inspect.signature(declared).parameters[name].default
        if hint is None or default is inspect.Parameter.empty:
            raise BadInput(
                f"{declared.__name__}: its keyword {name!r} needs a default and an annotation, as "
                f"{name}: Weight = 1.0"
            )
        found[name] = _setting(default, hint)
    return found


def arguments(declared: Callable[..., Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords to call `declared` with, from `values` by setting."""
    return {
        name: hint(**arguments(hint, values)) if _is_group(hint) else values[name]
        for name, hint in _keywords(declared).items()
    }


def check(declared: Callable[..., Any], values: Mapping[str, Any], where: str) -> None:
    """Raises `BadInput` for the first of `values` that the declaration does not allow."""
    for name, setting in settings_of(declared).items():
        value = values[name]
        if said := setting.wrong(value):
            shown = shortened(repr(value) if isinstance(value, (str, tuple)) else value)
            raise BadInput(f"{where}.{name}={shown}{said}")


def _is_group(hint: Any) -> TypeGuard[type]:
    """Whether an annotation is a dataclass of settings."""
    return isinstance(hint, type) and dataclasses.is_dataclass(hint)


@functools.cache
def _keywords(declared: Callable[..., Any]) -> dict[str, Any]:
    """The annotation of every keyword-only argument, None where there is none."""
    hints = typing.get_type_hints(declared, include_extras=True)
    parameters = inspect.signature(declared).parameters.values()
    return {p.name: hints.get(p.name) for p in parameters if p.kind is p.KEYWORD_ONLY}


def _setting(default: Any, hint: Any) -> Setting:
    checks: tuple[Any, ...] = ()
    if typing.get_origin(hint) is Annotated:
        hint, *found = typing.get_args(hint)
        checks = tuple(found)
    if typing.get_origin(hint) is Literal:
        return Setting(default, str, (*checks, OneOf(typing.get_args(hint))))
    return Setting(default, typing.get_origin(hint) or hint, checks)
