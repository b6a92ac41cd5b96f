"""Weights and temperatures that change over a stage (an annealed temperature, a share of the true labels
that grows). Called by kinds of stages, through their settings, and by terms."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp

from jaxdistill.errors import BadInput

SHAPES = ("linear", "cosine")
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?"
_TEXT = re.compile(rf"\s*({_NUMBER})\s+to\s+({_NUMBER})\s*(?:,\s*(\w+)\s*)?", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Ramp:
    """A number that goes from `start`, at step 0, to `end`, at the last of `steps`: straight, or along
    half a cosine, which begins and ends slowly.

    It multiplies with numbers and is added to them, so that a method need not know that one of its
    settings is a ramp. Raises `BadInput` for another shape."""

    start: float
    end: float
    steps: int
    shape: str = "linear"

    def __post_init__(self) -> None:
        if self.shape not in SHAPES:
            raise BadInput(f"a ramp of shape {self.shape!r} is unknown; valid: {', '.join(SHAPES)}")

    @classmethod
    def read(cls, text: str, steps: int) -> Ramp | None:
        """A ramp as recipes write it, "8 to 1" or "8 to 1, cosine"; None for another text."""
        found = _TEXT.fullmatch(text)
        if found is None or (found[3] or "linear") not in SHAPES:
            return None
        return cls(float(found[1]), float(found[2]), steps, found[3] or "linear")

    def at(self, step: jax.Array) -> jax.Array:
        """float32[]: its value at `step`, int32[]."""
        done = jnp.clip(step / max(self.steps - 1, 1), 0.0, 1.0)
        if self.shape == "cosine":
            done = (1 - jnp.cos(jnp.pi * done)) / 2
        return (self.start + (self.end - self.start) * done).astype(jnp.float32)

    def __mul__(self, factor: float) -> Ramp:
        return dataclasses.replace(self, start=self.start * factor, end=self.end * factor)

    def __add__(self, number: float) -> Ramp:
        return dataclasses.replace(self, start=self.start + number, end=self.end + number)

    def __truediv__(self, number: float) -> Ramp:
        return self * (1 / number)

    def __neg__(self) -> Ramp:
        return self * -1

    def __rsub__(self, number: float) -> Ramp:
        return -self + number

    def __sub__(self, number: float) -> Ramp:
        return self + -number

    def __gt__(self, number: float) -> bool:
        """Whether it is above `number` anywhere: whether a weight has to be computed at all."""
        return max(self.start, self.end) > number

    __rmul__ = __mul__
    __radd__ = __add__


Number = float | Ramp


def at(value: Any, step: jax.Array | None) -> Any:
    """`value` at `step`; at the end of its stage if `step` is None. What is no ramp is what it is."""
    if not isinstance(value, Ramp):
        return value
    return value.end if step is None else value.at(step)
