"""A student made of some layers of another model: the same blocks, embeddings and heads, and fewer of
the blocks (DistilBERT starts from every other one)."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from jaxdistill.errors import BadInput, listed, shortened
from jaxdistill.models import Model, Params
from jaxdistill.models.parameters import flatten, is_stacked, unflatten
from jaxdistill.models.sizes import parameter_shapes


def take_layers(model: Model, params: Params, layers: Sequence[int]) -> tuple[Model, Params]:
    """The model of the given layers alone, counted from 0, in the order given; embeddings and heads
    stay the same arrays.

    Raises `BadInput` for no layer, one that the model does not have, and one given twice."""
    there = model.config.num_layers
    if not isinstance(layers, Sequence) or not layers:
        raise BadInput(
            f"layers={shortened(layers)!r}: expected numbers of layers from 0 to {there - 1}, as 0,2,4"
        )
    asked = f"layers={listed(layers)}"
    for number, layer in enumerate(layers):
        if not isinstance(layer, int) or not 0 <= layer < there:
            raise BadInput(f"{asked}: there is no layer {layer!r}; the model has 0 to {there - 1}")
        if layer in layers[:number]:
            raise BadInput(f"{asked}: layer {layer} is there twice; give each layer once")
    rows = np.array(layers)
    taken = {
        name: value[rows] if is_stacked(name) else value for name, value in flatten(params).items()
    }
    return Model(model.config.replace(num_layers=len(rows))), unflatten(taken)


def copy_layers(params: Params, teacher_params: Params, layers: Sequence[int]) -> Params:
    """A student that begins as some layers of its teacher, with its embeddings and heads; `params` are
    where the student has a head that the teacher lacks, or one of another shape."""
    theirs, rows = flatten(teacher_params), np.array(layers)
    taken = {name: x[rows] if is_stacked(name) else x for name, x in theirs.items()}
    return taken_over(params, unflatten(taken))


def taken_over(params: Params, found: Params) -> Params:
    """`found`, and `params` where it lacks a parameter, or has one of another shape."""
    ours, taken = flatten(params), flatten(found)
    # jnp.array copies: the student's buffers are donated to the step, the teacher's must outlive it.
    return unflatten(
        {
            name: jnp.array(taken[name])
            if name in taken and taken[name].shape == value.shape
            else value
            for name, value in ours.items()
        }
    )


def shared_names(student: Model, teacher: Model) -> set[str]:
    """Names of the student's parameters that `copy_layers` takes from the teacher."""
    ours, theirs = (flatten(parameter_shapes(model.config)) for model in (student, teacher))
    return {
        name
        for name, value in ours.items()
        if is_stacked(name) or (name in theirs and theirs[name].shape == value.shape)
    }
