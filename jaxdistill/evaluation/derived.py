"""Feeds made of another feed and a network: what a teacher says of each row, stored once.

The shapes are known at start-up, the content is made at first use and kept in the workdir under a digest
of the rows and the network it is of. Add a kind: write a function as `outputs` and a row in `DERIVED`.
Called by resolve, which knows the shapes, and by readers, which make the content."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from jaxdistill.data.feeds import Batch, Feed, Reader, Rows, Shape, Share
from jaxdistill.data.rows import evaluation_batches, reader_of
from jaxdistill.errors import BadInput, listed
from jaxdistill.evaluation.predictions import compile_outputs
from jaxdistill.models import Model, Params
from jaxdistill.models.sizes import parameter_shapes
from jaxdistill.objectives.terms import STORED
from jaxdistill.registry import Table
from jaxdistill.training import hosts, sharding
from jaxdistill.training.programs import abstract_batch

Arrays = dict[str, np.ndarray]


class Derivation(NamedTuple):
    """What a derived feed adds to the rows of another. `row`: shapes of the arrays it adds; `make`:
    (parameters, rows, batch size, mesh) -> those arrays for all the rows, [N, ...] by name."""

    row: Mapping[str, Shape]
    make: Callable[[Params, Rows, int, Mesh], Arrays]


def outputs(base: Feed, model: Model) -> Derivation:
    """What the head of a task gives for each row, float32: a term with `teacher="batch"` learns from
    it, and no teacher runs beside the student. Dropout is off."""
    head = base.head
    if not head or head not in model.config.heads:
        raise BadInput(
            f"what a network says of {base.name!r} is stored as the output of its head "
            f"{head or '(none)'!r}; its heads: {listed(model.config.heads)}"
        )

    def make(params: Params, rows: Rows, batch_size: int, mesh: Mesh) -> Arrays:
        run, placed = compile_outputs(model, head, mesh), sharding.place(mesh, params)
        share = Share(jax.process_index(), jax.process_count())
        parts = [
            hosts.to_host(run(placed, sharding.put_batch(mesh, batch)))
            for batch in evaluation_batches(rows, batch_size, share)
        ]
        return {
            STORED + name: np.concatenate([part[name] for part in parts])[: rows.number]
            for name in parts[0]
        }

    shapes = jax.eval_shape(
        lambda params, batch: model.apply(params, batch, heads=(head,))[0],
        parameter_shapes(model.config),
        abstract_batch(base.row, 1),
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


def reader(base: Reader, made: tuple[Arrays, Arrays], seed: int) -> Reader:
    """The reader of rows with what was `made` for the training and the held-out ones."""
    assert base.parts is not None
    train, held = (_with(rows, arrays) for rows, arrays in zip(base.parts, made))
    return reader_of(train, held, seed)


def _with(rows: Rows, arrays: Arrays) -> Rows:
    def fetch(numbers: np.ndarray) -> Batch:
        return {**rows.fetch(numbers), **{name: x[numbers] for name, x in arrays.items()}}

    return Rows(rows.number, fetch)
