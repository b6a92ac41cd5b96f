"""What a stage runs on the devices: its step, the state that it begins with, its losses. Each is
jitted once in a process.

Whatever differs between two runs of one recipe is an argument of these programs and not a constant
in them: parameters, text, seed. So start-up, which traces every step, and the stage itself share
one program, and so do all seeds of a recipe. Module constants (`fused.CHUNK_NUMBERS`) are read when
a step is traced: whoever changes one clears these caches. Called by loop, run, resolve and
planning."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxdistill.methods.base import Cast
from jaxdistill.models import Params
from jaxdistill.models.encoder import in_compute_dtype
from jaxdistill.models.sizes import parameter_shapes
from jaxdistill.training import sharding, state
from jaxdistill.training.state import TrainState
from jaxdistill.training.step import Given, make_losses, make_step

KEPT = 32  # programs of each kind: more than the stages of a recipe, so that the next seed finds all of them


@functools.lru_cache(KEPT)
def compile_step(cast: Cast, mesh: Mesh) -> jax.stages.Wrapped:
    """(state, given, batch) -> (state, metrics), with every array's place on the mesh; the state is
    donated."""
    where, rows = sharding.shardings(mesh, state.shapes(cast)), sharding.over_batch(mesh)
    given = sharding.shardings(mesh, given_shapes(cast))
    # Beside a teacher, the student's second forward pass costs little and saves much. A CPU has
    # memory, not operations.
    remat = "full" if cast.others and mesh.devices.flat[0].platform != "cpu" else "dots"
    here = dataclasses.replace(
        cast,
        model=dataclasses.replace(cast.model, batch_sharding=rows, remat=remat),
        others=tuple(
            (name, dataclasses.replace(other, batch_sharding=rows)) for name, other in cast.others
        ),
    )
    return jax.jit(
        make_step(here),
        donate_argnums=0,
        in_shardings=(where, given, rows),
        out_shardings=(where, sharding.replicated(mesh)),
    )


@functools.lru_cache(KEPT)
def compile_start(cast: Cast, mesh: Mesh) -> jax.stages.Wrapped:
    """(parameters, seed) -> the state at the start of the stage, made where the mesh wants it."""

    def create(params: Params, seed: Any) -> TrainState:
        return state.create(cast, params, jax.random.key(seed))

    return jax.jit(create, out_shardings=sharding.shardings(mesh, state.shapes(cast)))


@functools.lru_cache(KEPT)
def compile_losses(cast: Cast) -> jax.stages.Wrapped:
    """`make_losses`, jitted."""
    return jax.jit(make_losses(cast))


def given_shapes(cast: Cast) -> Given:
    """Shapes and dtypes of what a step is given beside state and batch: the kernels of networks that
    are only read are in their compute dtype."""
    params = {
        name: jax.eval_shape(
            functools.partial(in_compute_dtype, other.config), parameter_shapes(other.config)
        )
        for name, other in cast.others
    }
    maps = dict.fromkeys(
        cast.stage.traced_maps, jax.ShapeDtypeStruct((cast.model.config.num_layers,), np.int32)
    )
    return Given(params, jax.ShapeDtypeStruct((), np.int32), maps)


def trace(cast: Cast, mesh: Mesh, batch: Any) -> Any:
    """The abstract result of one step on a `batch` of shapes and dtypes. The stage's first step
    does not trace it again, since shapes stand here with the places that arrays will have."""
    now = sharding.placed_shapes(mesh, state.shapes(cast))
    rows = sharding.over_batch(mesh)
    batch = {
        name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows) for name, x in batch.items()
    }
    given = sharding.placed_shapes(mesh, given_shapes(cast))
    return jax.eval_shape(compile_step(cast, mesh), now, given, batch)


def abstract_batch(
    row: Mapping[str, tuple[tuple[int, ...], str]], batch_size: int
) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of a batch of such rows."""
    return {
        name: jax.ShapeDtypeStruct((batch_size, *shape), np.dtype(dtype))
        for name, (shape, dtype) in row.items()
    }
