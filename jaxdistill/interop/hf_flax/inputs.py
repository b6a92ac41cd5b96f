"""What a user may give to a Flax class as a batch, and what is refused in a line. Called by
`module`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdistill.errors import BadInput
from jaxdistill.models import ModelConfig
from jaxdistill.models.embeddings import TABLES, check_range, known


def check(
    config: ModelConfig, given: Mapping[str, Any], axes: tuple[str, ...]
) -> dict[str, jax.Array]:
    """int32 of everything in `given` that is not None, all of the shape of `input_ids`, whose axes
    are `axes`.

    Raises `BadInput` for what is no array of whole numbers, for shapes that do not fit, for a mask
    of fractions or below 0, and for numbers outside the table that they are looked up in, where
    PyTorch raises too. Under `jit` numbers are not known: there, ids outside give NaN."""
    if given.get("input_ids") is None:
        raise BadInput("input_ids is None; give what a tokenizer makes of text")
    batch: dict[str, jax.Array] = {}
    for name, value in {
        "input_ids": given["input_ids"],
        **given,
    }.items():  # first, since the others take its shape
        if value is None:
            continue
        array = value if isinstance(value, jax.Array) else _to_numpy(name, value)
        if name in TABLES:
            if not jnp.issubdtype(array.dtype, jnp.integer):
                raise BadInput(
                    f"{name} is {array.dtype}{list(array.shape)}; expected whole numbers"
                )
            field, advice = TABLES[name]
            check_range(name, array, getattr(config, field), f"below the model's {field}; {advice}")
        else:
            _check_mask(name, array)
        if name == "input_ids" and (array.ndim != len(axes) or 0 in array.shape[1:]):
            raise BadInput(f"input_ids has shape {list(array.shape)}; expected [{', '.join(axes)}]")
        shape = batch["input_ids"].shape if batch else array.shape
        try:
            batch[name] = jnp.broadcast_to(jnp.asarray(array, jnp.int32), shape)
        except ValueError as error:
            raise BadInput(
                f"{name} has shape {list(array.shape)}, but input_ids {list(shape)}; give one for each token"
            ) from error
    return batch


def _to_numpy(name: str, value: Any) -> np.ndarray:
    """An array of a list, or of what PyTorch and others call one."""
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise BadInput(
            f"{name} has rows of unlike length; pad them (padding=True of a tokenizer)"
        ) from error
    if not (np.issubdtype(array.dtype, np.number) or array.dtype == bool):
        raise BadInput(
            f"{name} holds {array.dtype.type.__name__}; expected whole numbers: give what a tokenizer makes of text"
        )
    return array


def _check_mask(name: str, array: Any) -> None:
    numbers = known(array)
    with np.errstate(invalid="ignore"):
        wrong = numbers[(numbers < 0) | (numbers.astype(np.int32) != numbers)]
    if wrong.size:
        raise BadInput(
            f"{name} holds {wrong[0]}; expected 1 for a token and 0 for padding, not what is added to scores"
        )
