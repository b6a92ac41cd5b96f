"""A student that starts from the teacher's embeddings and heads (MobileBERT, released code: every
variable whose name and shape exist in the teacher and that is not in a block; blocks stay random, a
NoNorm starts as the identity)."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxdistill.models import Model, Params
from jaxdistill.models.parameters import flatten, is_stacked, unflatten
from jaxdistill.models.sizes import parameter_shapes


def copy_embeddings_and_heads(
    student: Model, params: Params, teacher: Model, teacher_params: Params
) -> tuple[Params, set[str]]:
    """(student parameters with copies, names of what was copied).

    A norm is copied only between norms of one kind: statistics make LayerNorm's scale another thing
    than NoNorm's."""
    ours, theirs = flatten(params), flatten(teacher_params)
    copied = copied_names(student, teacher)
    # jnp.array copies: the student's buffers are donated to the step, the teacher's must outlive
    # it.
    return unflatten(
        {name: jnp.array(theirs[name]) if name in copied else ours[name] for name in ours}
    ), copied


def copied_names(student: Model, teacher: Model) -> set[str]:
    """Names of the student's parameters that a copying start takes from the teacher."""
    ours, theirs = (flatten(parameter_shapes(model.config)) for model in (student, teacher))
    same_norm = student.config.norm == teacher.config.norm
    return {
        name
        for name, value in ours.items()
        if not is_stacked(name)
        and name in theirs
        and theirs[name].shape == value.shape
        and (same_norm or not name.startswith("embeddings/norm/"))
    }


def random_start(student: Model, seed: int, shardings: Any = None) -> Params:
    """Fresh parameters, made where `shardings` (a tree like the parameters') wants them; the same
    for every student of one architecture and seed, so comparisons are paired."""
    leaves, structure = jax.tree.flatten(shardings)
    return _compile_init(student, tuple(leaves), structure)(jax.random.key(seed))


@functools.lru_cache(16)
def _compile_init(student: Model, places: tuple[Any, ...], structure: Any) -> jax.stages.Wrapped:
    return jax.jit(student.init, out_shardings=jax.tree.unflatten(structure, places))
