"""What a network answers to every held-out row of a task. Called by run."""

from __future__ import annotations

import functools
from collections.abc import Iterable

import jax
import numpy as np
from jax.sharding import Mesh

from jaxdistill.data.feeds import Batch
from jaxdistill.evaluation.scores import Score
from jaxdistill.models import Model, Params
from jaxdistill.training import hosts, sharding


def predict(
    model: Model, params: Params, batches: Iterable[Batch], head: str, score: Score, mesh: Mesh
) -> tuple[np.ndarray, np.ndarray]:
    """(outputs, targets) of the rows that count, in their order, on every host: what `score` reads.
    `batches` are this host's part of global batches."""
    run = compile_outputs(model, head, mesh)
    params = sharding.place(mesh, params)
    outputs, targets = [], []
    for batch in batches:
        placed = sharding.put_batch(mesh, batch)
        found, target, weights = hosts.to_host(
            (run(params, placed)[score.output], placed[score.target], placed["example_weights"])
        )
        outputs.append(found[weights > 0])
        targets.append(target[weights > 0])
    return np.concatenate(outputs), np.concatenate(targets)


@functools.lru_cache(16)
def compile_outputs(model: Model, head: str, mesh: Mesh) -> jax.stages.Wrapped:
    """(parameters, batch) -> the outputs of `head`, jitted once in a process."""
    rows = sharding.over_batch(mesh)
    return jax.jit(
        lambda params, batch: model.apply(params, batch, heads=(head,))[0], out_shardings=rows
    )
