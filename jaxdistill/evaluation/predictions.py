"""What a network answers to every row of a task. Called by run, measure and derived."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxdistill.data.feeds import Batch
from jaxdistill.models import Model, Params
from jaxdistill.models.heads import HEADS
from jaxdistill.training import hosts, sharding


def predict(
    model: Model, params: Params, batches: Iterable[Batch], head: str, mesh: Mesh
) -> dict[str, np.ndarray]:
    """The outputs of `head` for the rows that count, by name, row n of them at place n, on every host.

    `batches` are this host's part of global batches, as `rows.evaluation_batches` makes them: `row`
    says which rows a batch holds. Outputs of tokens are 0 beyond the length of their batch."""
    run = compile_outputs(model, head, mesh)
    params = sharding.place(mesh, params)
    parts: list[tuple[np.ndarray, dict[str, np.ndarray]]] = []
    for batch in batches:
        placed = sharding.put_batch(mesh, batch)
        rows, weights, outputs = hosts.to_host(
            (placed["row"], placed["example_weights"], run(params, placed))
        )
        counts = weights > 0
        parts.append((rows[counts], {name: x[counts] for name, x in outputs.items()}))
    number = sum(len(rows) for rows, _ in parts)
    found: dict[str, np.ndarray] = {}
    for name, first in parts[0][1].items():
        shape = list(first.shape[1:])
        if HEADS[head].reads == "tokens":
            shape[0] = max(outputs[name].shape[1] for _, outputs in parts)
        found[name] = np.zeros((number, *shape), first.dtype)
        for rows, outputs in parts:
            x = outputs[name]
            found[name][(rows, slice(x.shape[1])) if x.ndim > 1 else rows] = x
    return found


@functools.lru_cache(16)
def compile_outputs(model: Model, head: str, mesh: Mesh) -> jax.stages.Wrapped:
    """`outputs_of`, jitted once in a process."""
    return jax.jit(outputs_of(model, head), out_shardings=sharding.over_batch(mesh))


def outputs_of(model: Model, head: str) -> Callable[[Params, Any], dict[str, jax.Array]]:
    """(parameters, batch) -> the outputs of `head` by name."""

    def outputs(params: Params, batch: Any) -> dict[str, jax.Array]:
        found, _ = model.apply(params, batch, heads=(head,))
        return {name: found[name] for name in HEADS[head].outputs}

    return outputs
