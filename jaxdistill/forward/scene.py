"""What a forward pass is given, one micro-batch and all networks of a stage, and what it gives.

The step makes the scene, in one place; a forward reads it and returns a `Result`. Called by every
forward, and by step."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxdistill.models import Arrays, Batch, Model, Params
from jaxdistill.models.encoder import attention_bias
from jaxdistill.objectives import fused, projections
from jaxdistill.objectives.fused import Asked
from jaxdistill.objectives.terms import Term, heads_of, taps_of, teacher_depth


class Network(NamedTuple):
    """A network that a stage reads and never changes."""

    model: Model
    params: Params


class At(NamedTuple):
    """Where a micro-batch stands, all of it traced: the active layer of a progressive stage, int32[],
    the key of dropout (None: off), layer maps that are data, int32[N] by name, and the step of its
    stage, int32[] (None: its end, for what is measured)."""

    layer: jax.Array
    key: jax.Array | None = None
    maps: Mapping[str, jax.Array] = types.MappingProxyType({})
    step: jax.Array | None = None


class Result(NamedTuple):
    """`value`: the sum over terms of raw sum x scale, which is differentiated. `sums`: every raw sum
    by the name of its term."""

    value: jax.Array
    sums: Arrays


@dataclasses.dataclass(frozen=True)
class Scene:
    """One micro-batch in front of the network that learns (`model`, `params`) and the `others`.

    `masks`: the batch as losses count it. `scales`: weight / count by the name of a term. `fused`:
    losses with their gradient taken in the forward pass. `active`: the parameters of layer
    `at.layer`, where they alone learn; `params` then holds what is frozen, the whole stack too.
    `maps`: the learned projections, in the compute dtype."""

    terms: tuple[Term, ...]
    model: Model
    params: Params
    others: Mapping[str, Network]
    batch: Batch
    masks: Batch
    scales: Arrays
    at: At
    fused: bool = True
    active: Params | None = None
    maps: Params = dataclasses.field(default_factory=dict)

    @property
    def of_layers(self) -> dict[str, Term]:
        """The terms of a layer, by name."""
        return {term.name: term for term in self.terms if term.per_layer}

    @property
    def bias(self) -> jax.Array:
        """What is added to attention scores, float32[B, 1, L or 1, L]."""
        return attention_bias(self.batch)

    def asked(self, terms: Mapping[str, Term]) -> Asked:
        """What a fused loss must know of `terms`."""
        scales = {name: self.scales[name] for name in terms}
        return Asked(
            terms, scales, self.model.config.dtype, rows_on_a_device(self.model, self.batch)
        )

    def projected(self, terms: Mapping[str, Term], taps: Arrays) -> Arrays:
        """The student's `taps`, and what the learned projections of `terms` make of them."""
        return projections.projected(self.maps, terms, taps)

    def taps(self, network: str | None = None) -> tuple[str, ...]:
        """The taps that the terms read of the network that learns, or of another by its name."""
        return taps_of(self.terms, network)

    def heads(self, network: str | None = None) -> tuple[str, ...]:
        """The heads that the terms read of it."""
        return heads_of(self.terms, network)

    def depth(self, network: str) -> int | None:
        """How many layers of another network the terms read; None: all, and heads on them."""
        return teacher_depth(self.terms, network, self.model.config.num_layers)

    def layer_map(self, terms: Mapping[str, Term]) -> tuple[int, ...] | None:
        """The layer map that `terms` share; None: layer i follows layer i."""
        return next(iter(terms.values())).layer_map


Forward = Callable[[Scene], Result]


def weighted(sums: Arrays, scales: Mapping[str, jax.Array]) -> Result:
    """Raw sums, and their scaled sum."""
    return Result(fused.weighted(sums, scales), sums)


def joined(*results: Result) -> Result:
    """Results of different terms of one scene as one."""
    value, sums = jnp.float32(0), Arrays()
    for result in results:
        value, sums = value + result.value, {**sums, **result.sums}
    return Result(value, sums)


def rows_on_a_device(model: Model, batch: Batch) -> int:
    """How many rows of a batch one device holds."""
    rows, where = batch["input_ids"].shape[0], model.batch_sharding
    return rows if where is None else where.shard_shape((rows,))[0]
