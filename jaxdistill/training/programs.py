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
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxdistill.methods.base import Stage
from jaxdistill.models import Model, Params
from jaxdistill.models.encoder import in_compute_dtype
from jaxdistill.models.sizes import parameter_shapes
from jaxdistill.training import sharding, state
from jaxdistill.training.state import TrainState
from jaxdistill.training.step import Given, make_losses, make_step

KEPT = 32  # programs of each kind: more than the stages of a recipe, so that the next seed finds all of them


@functools.lru_cache(KEPT)
def compile_step(
    stage: Stage, model: Model, teacher: Model | None, mesh: Mesh
) -> jax.stages.Wrapped:
    """(state, given, batch) -> (state, metrics), with every array's place on the mesh; the state is
    donated."""
    where, rows = (
        sharding.shardings(mesh, state.shapes(stage, model, teacher)),
        sharding.over_batch(mesh),
    )
    # Beside a teacher, the student's second forward pass costs little and saves much. A CPU has
    # memory, not operations.
    remat = "full" if teacher is not None and mesh.devices.flat[0].platform != "cpu" else "dots"
    model = dataclasses.replace(model, batch_sharding=rows, remat=remat)
    teacher_there = teacher and dataclasses.replace(teacher, batch_sharding=rows)
    return jax.jit(
        make_step(stage, model, teacher_there),
        donate_argnums=0,
        in_shardings=(where, sharding.shardings(mesh, given_shapes(teacher)), rows),
        out_shardings=(where, sharding.replicated(mesh)),
    )


@functools.lru_cache(KEPT)
def compile_start(
    stage: Stage, model: Model, teacher: Model | None, mesh: Mesh
) -> jax.stages.Wrapped:
    """(parameters, seed) -> the state at the start of the stage, made where the mesh wants it."""

    def create(params: Params, seed: Any) -> TrainState:
        return state.create(stage, params, model, teacher, jax.random.key(seed))

    return jax.jit(
        create, out_shardings=sharding.shardings(mesh, state.shapes(stage, model, teacher))
    )


@functools.lru_cache(KEPT)
def compile_losses(stage: Stage, model: Model, teacher: Model | None) -> jax.stages.Wrapped:
    """`make_losses`, jitted."""
    return jax.jit(make_losses(stage, model, teacher))


def given_shapes(teacher: Model | None) -> Given:
    """Shapes and dtypes of what a step is given beside state and batch: a teacher's kernels are in
    its compute dtype."""
    params: Any = {}
    if teacher is not None:
        params = jax.eval_shape(
            functools.partial(in_compute_dtype, teacher.config), parameter_shapes(teacher.config)
        )
    return Given(params, jax.ShapeDtypeStruct((), np.int32))


def trace(stage: Stage, model: Model, teacher: Model | None, mesh: Mesh, batch: Any) -> Any:
    """The abstract result of one step on a `batch` of shapes and dtypes. The stage's first step
    does not trace it again, since shapes stand here with the places that arrays will have."""
    now = sharding.placed_shapes(mesh, state.shapes(stage, model, teacher))
    rows = sharding.over_batch(mesh)
    batch = {
        name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows) for name, x in batch.items()
    }
    given = sharding.placed_shapes(mesh, given_shapes(teacher))
    return jax.eval_shape(compile_step(stage, model, teacher, mesh), now, given, batch)
