"""Settings, read from where they are declared: the keywords of a function (a kind of stage, a task) or the
fields of a dataclass.

A keyword's default is the setting's default. Its annotation says what a value may be:

    def relations(facts, *, query_relation: Weight = 1.0, relation_heads: Count = 48): ...

Functions with settings in common name a dataclass of them as the annotation of one keyword.

Called by every method and task for its annotations, by `methods.kinds`, `data.tasks` and `defaults`."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, TypeGuard

from jaxdistill.errors import BadInput, nearest, shortened

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


class MayRamp:
    """Marks a setting of a stage that may change while it goes on (`methods.settings.Common.ramps`)."""

    def wrong(self, value: Any) -> str:
        return ""


Weight = Annotated[float, Within(0, _LARGEST_FLOAT, "a finite number, 0 or more"), MayRamp()]
Count = Annotated[int, Within(1, LARGEST_COUNT)]
CountOrZero = Annotated[int, Within(0, LARGEST_COUNT)]


@dataclasses.dataclass(frozen=True)
class Setting:
    """One setting: its default, the type of its values, and what else must hold of them."""

    default: Any
    type: type
    checks: tuple[Any, ...] = ()

    @property
    def may_ramp(self) -> bool:
        return any(isinstance(check, MayRamp) for check in self.checks)

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
