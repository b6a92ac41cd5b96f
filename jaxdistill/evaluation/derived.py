"""Feeds made of another feed and a network: what a teacher says of each row, stored once.

The shapes are known at start-up, the content is made at first use and kept in the workdir under a digest
of the rows and the network it is of. Add a kind: write a function as `outputs` and a row in `DERIVED`.
Called by resolve, which knows the shapes, and by readers, which make the content."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from jaxdistill.data.feeds import Batch, Feed, Reader, Rows, Shape
from jaxdistill.data.rows import reader_of
from jaxdistill.errors import BadInput, listed
from jaxdistill.evaluation.predictions import outputs_of, predict
from jaxdistill.models import Model, Params
from jaxdistill.models.sizes import parameter_shapes
from jaxdistill.objectives.terms import STORED
from jaxdistill.registry import Table
from jaxdistill.training.programs import abstract_batch

Arrays = dict[str, np.ndarray]


class Derivation(NamedTuple):
    """What a derived feed adds to the rows of another. `row`: shapes of the arrays it adds; `make`:
    (parameters, batches, mesh) -> those arrays for all the rows that are in the batches, [N, ...] by
    name."""

    row: Mapping[str, Shape]
    make: Callable[[Params, Iterable[Batch], Mesh], Arrays]


def outputs(base: Feed, model: Model) -> Derivation:
    """What the head of a task gives for each row, float32: a term with `teacher="batch"` learns from
    it, and no teacher runs beside the student. Dropout is off."""
    head = base.head
    if not head or head not in model.config.heads:
        raise BadInput(
            f"what a network says of {base.name!r} is stored as the output of its head "
            f"{head or '(none)'!r}; its heads: {listed(model.config.heads)}"
        )

    def make(params: Params, batches: Iterable[Batch], mesh: Mesh) -> Arrays:
        return {STORED + name: x for name, x in predict(model, params, batches, head, mesh).items()}

    shapes = jax.eval_shape(
        outputs_of(model, head), parameter_shapes(model.config), abstract_batch(base.row, 1)
    )
    row = {STORED + name: Shape(x.shape[1:], str(x.dtype)) for name, x in shapes.items()}
    return Derivation(row, make)


DERIVED: Table[Callable[[Feed, Model], Derivation]] = Table("derived feed", {"outputs": outputs})


@dataclasses.dataclass(frozen=True)
class Derived:
    """A derived feed of a recipe: `kind`, a name in `DERIVED`, `of` a feed and the network `by`."""

    kind: str
    of: str
    by: str


def outlined(name: str, derived: Derived, base: Feed, model: Model) -> Feed:
    """The feed as known before it is made: what its base is, with the arrays that are added."""

    def not_yet(_: Any) -> Reader:
        raise AssertionError(f"feed {name!r} is read through `reader`")

    row = {**base.row, **DERIVED[derived.kind](base, model).row}
    return dataclasses.replace(base, name=name, row=row, read=not_yet)


def reader(base: Reader, made: tuple[Arrays, Arrays], by_token: bool) -> Reader:
    """The reader of rows with what was `made` for the training and the held-out ones; `by_token`:
    of each token."""
    assert base.parts is not None
    train, held = (
        _with(rows, arrays, by_token)
        for rows, arrays in zip((base.parts.train, base.parts.heldout), made)
    )
    parts = base.parts._replace(train=train, heldout=held)
    return reader_of(parts, base.answers, base.notices)


def _with(rows: Rows, arrays: Arrays, by_token: bool) -> Rows:
    def of_length(x: np.ndarray, length: int) -> np.ndarray:
        """[B, L, ...] cut or filled up to `length` tokens."""
        x = x[:, :length]
        missing = length - x.shape[1]
        return np.pad(x, [(0, 0), (0, missing), *[(0, 0)] * (x.ndim - 2)]) if missing else x

    def fetch(numbers: np.ndarray, length: int) -> Batch:
        found = {name: x[numbers] for name, x in arrays.items()}
        if by_token:
            found = {name: of_length(x, length) for name, x in found.items()}
        return {**rows.fetch(numbers, length), **found}

    return Rows(rows.lengths, fetch)
