"""What a teacher says of each row of a task, stored once and read beside the row. Called by derived."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from jaxdistill.data.feeds import Batch, Feed, Order, Parts, Reader, Rows, Shape
from jaxdistill.data.files import digest_of
from jaxdistill.data.rows import evaluation_batches, reader_of
from jaxdistill.errors import BadInput, listed, nearest
from jaxdistill.evaluation import stored
from jaxdistill.evaluation.derivation import Derivation, Making
from jaxdistill.evaluation.stored import Fetch, Layout, Part
from jaxdistill.models import Model, Params
from jaxdistill.models.heads import HEADS
from jaxdistill.models.sizes import parameter_shapes
from jaxdistill.objectives.terms import STORED
from jaxdistill.settings import Each, OneOf
from jaxdistill.training import hosts, sharding
from jaxdistill.training.programs import abstract_batch
from jaxdistill.training.progress import Progress

# Taps of which nothing grows with the square of the length.
TAPS = ("embeddings", "hidden", "query", "key", "value")
Taps = Annotated[tuple[str, ...], Each(str, f"names of taps: {', '.join(TAPS)}")]
Layers = Annotated[tuple[int, ...], Each(int, "whole numbers, the teacher's layers from 0")]
# (rows, batches of all of them, `Making`) -> what is said of them, some rows after the other
Make = Callable[[Rows, Iterable[Batch], Making], Iterator[Part]]


def beside(
    base: Feed, layout: Layout, make: Make, digest: str, layers: tuple[int, ...]
) -> Derivation:
    """A feed with the rows of its base and, beside each, what `make` says of it."""

    def read(rows: Reader, making: Making) -> Reader:
        assert rows.parts is not None
        order = rows.parts.order
        train, held = (
            _with(part, _fetch(name, part, order, layout, make, making))
            for name, part in (("train", rows.parts.train), ("heldout", rows.parts.heldout))
        )
        return reader_of(Parts(train, held, order), rows.answers, rows.notices)

    added = {
        STORED + name: Shape((base.length, *shape) if name in layout.by_token else shape, dtype)
        for name, (shape, dtype) in layout.row.items()
    }
    return Derivation(added, read, digest, layers)


def _fetch(
    part: str, rows: Rows, order: Order, layout: Layout, make: Make, making: Making
) -> Fetch:
    """What is said of the rows of a part: as it is stored, or made now."""
    path = making.path(part)
    held = stored.there(path, layout, rows.number, making.fingerprint)
    if hosts.largest(int(not held)):  # made by all processes, or by none
        batches = evaluation_batches(rows, order, making.batch_size, making.share)
        with Progress(rows.number, f"making {path.name}", unit="rows") as bar:
            found = _counted(make(rows, batches, making), bar)
            hosts.together(lambda: _store(path, layout, found, rows.number, making.fingerprint))
    return stored.read(path, layout, rows.lengths)


def _counted(parts: Iterator[Part], bar: Progress) -> Iterator[Part]:
    for part in parts:
        yield part
        bar.update(len(part[0]))


def _store(
    path: epath.Path, layout: Layout, parts: Iterator[Part], number: int, fingerprint: str
) -> None:
    """All processes make it, the first writes it."""
    if hosts.first():
        stored.write(path, layout, parts, number, fingerprint)
    else:
        for _ in parts:
            pass


def _with(rows: Rows, fetch: Fetch) -> Rows:
    def both(numbers: np.ndarray, length: int) -> Batch:
        found = {STORED + name: x for name, x in fetch(numbers, length).items()}
        return {**rows.fetch(numbers, length), **found}

    return rows._replace(fetch=both)


def outputs(
    base: Feed,
    model: Model | None,
    *,
    taps: Taps = (),
    layers: Layers = (),
    dtype: Annotated[str, OneOf(("float32", "bfloat16"))] = "float32",
) -> Derivation:
    """What a network gives for each row of a task: the output of the task's head, if it has that, and
    `taps` of its `layers`. A term with `teacher="batch"` learns from it, and no teacher runs beside the
    student. Dropout is off."""
    assert model is not None
    heads = (base.head,) if base.head in model.config.heads else ()
    if not heads and not taps:
        raise BadInput(
            f"what a network says of {base.name!r} is stored as the output of its head "
            f"{base.head or '(none)'!r}; its heads: {listed(model.config.heads)}"
        )
    for tap in taps:
        if tap not in TAPS:
            raise BadInput(f"taps={taps}: {tap!r} cannot be stored; {nearest(tap, TAPS)}")
    of_blocks = [tap for tap in taps if tap != "embeddings"]
    depth = model.config.num_layers
    if bool(of_blocks) != bool(layers) or not all(0 <= layer < depth for layer in layers):
        raise BadInput(
            f"layers={layers} with taps={taps}: name the layers whose taps are stored, from 0 to {depth - 1}, and "
            "none without such taps"
        )

    def run(params: Params, batch: Batch) -> dict[str, jax.Array]:
        found, tapped = model.apply(params, batch, heads=heads, taps=taps)
        arrays = {name: found[name] for head in heads for name in HEADS[head].outputs}
        for tap in taps:
            x = tapped[tap]
            arrays[tap] = x if tap == "embeddings" else jnp.moveaxis(x[np.array(layers)], 0, 2)
        return {name: x.astype(dtype) for name, x in arrays.items()}

    by_token = frozenset(taps)
    if heads and HEADS[heads[0]].reads == "tokens":
        by_token |= set(HEADS[heads[0]].outputs)
    shapes = jax.eval_shape(run, parameter_shapes(model.config), abstract_batch(base.row, 1))
    row = {
        name: Shape(x.shape[2 if name in by_token else 1 :], str(x.dtype))
        for name, x in shapes.items()
    }

    def make(rows: Rows, batches: Iterable[Batch], making: Making) -> Iterator[Part]:
        jitted = jax.jit(run, out_shardings=sharding.over_batch(making.mesh))
        placed_params = sharding.place(making.mesh, making.params)
        for batch in batches:
            placed = sharding.put_batch(making.mesh, batch)
            numbers, weights, arrays = hosts.to_host(
                (placed["row"], placed["example_weights"], jitted(placed_params, placed))
            )
            counts = weights.reshape(len(weights), -1).any(axis=1)
            yield (
                numbers[counts],
                rows.lengths[numbers[counts]],
                {name: x[counts] for name, x in arrays.items()},
            )

    digest = digest_of([model.config.dtype, list(layers)])
    return beside(base, Layout(row, by_token), make, digest, tuple(layers))
