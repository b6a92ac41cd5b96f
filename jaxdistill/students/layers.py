"""A student made of some layers of another model: the same blocks, embeddings and heads, and fewer of
the blocks (DistilBERT starts from every other one)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxdistill.errors import BadInput, listed, shortened
from jaxdistill.models import Model, Params
from jaxdistill.models.parameters import flatten, is_stacked, unflatten


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
