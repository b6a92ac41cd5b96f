"""The learned projections of a stage's losses: linear maps that take the student's narrow states to
the teacher's width.

They lie in the train state's parameters under `projections/`, where optimizer, clipping, decay,
mesh and checkpoints treat them as any kernel; they always move, and end with their stage: no
network and no export has them, and a later stage begins with fresh ones, unless the state that it
begins with is one to choose from (`best_or_start`): then it goes on with those of the stage before. The
exception is that of a network with a `projected_size`: its own, which terms name `models.heads.PROJECTION`, moves where the
stage says so, goes on in later stages, and is what heads read. Called by state and forward."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from jaxdistill.models import Arrays, ModelConfig, Params
from jaxdistill.models.heads import PROJECTION
from jaxdistill.objectives.terms import Term

NAME = "projections"


def start(widths: Mapping[str, int], student: ModelConfig, key: jax.Array) -> Params:
    """{name: {kernel float32[D of the student, D of the teacher], bias float32[D of the teacher]}},
    the teachers' widths by name: kernels as small and random as the student's own, biases 0."""
    names = sorted(widths)
    return {
        name: {
            "kernel": student.initializer_range
            * jax.random.normal(k, (student.hidden_size, widths[name])),
            "bias": jnp.zeros(widths[name]),
        }
        for name, k in zip(names, jax.random.split(key, len(names)))
    }


def drop(params: Params) -> Params:
    """A network's own parameters."""
    return {name: tree for name, tree in params.items() if name != NAME}


def in_dtype(params: Params, dtype: str) -> Params:
    """The projections among `params`, as their products want them; {} if there are none."""
    own = {name: tree["dense"] for name, tree in params.items() if name == PROJECTION}
    return jax.tree.map(lambda x: x.astype(dtype), {**params.get(NAME, {}), **own})


def project(projections: Mapping[str, Params], name: str, x_BxLxD: jax.Array) -> jax.Array:
    """x W + b in the projection's dtype, float32[..., D of the teacher]."""
    kernel, bias = projections[name]["kernel"], projections[name]["bias"]
    return jnp.dot(x_BxLxD.astype(kernel.dtype), kernel, preferred_element_type=jnp.float32) + bias


def projected(projections: Mapping[str, Params], terms: Mapping[str, Term], taps: Arrays) -> Arrays:
    """The student's `taps` and, under the name that a loss reads it by, each of them that goes
    through a projection."""
    return {
        **taps,
        **{
            term.reads: project(projections, term.projection, taps[term.row.student])
            for term in terms.values()
            if term.projection and term.row.student in taps
        },
    }
