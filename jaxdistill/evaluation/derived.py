"""Feeds made of another feed: what a teacher says of each row, stored once.

The shapes are known at start-up, the content is made at first use and kept in the workdir under a
fingerprint of all that it is made of. Add a kind: write a function as `outputs`, whose keywords are its
settings, and a row in `DERIVED`. Called by resolve, which knows the shapes, and by readers, which make
the content."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh

from jaxdistill.data.feeds import Batch, Feed, Reader, Rows, Shape
from jaxdistill.data.files import digest_of
from jaxdistill.data.rows import reader_of
from jaxdistill.errors import BadInput, listed, nearest
from jaxdistill.evaluation import stored
from jaxdistill.evaluation.stored import Fetch, Layout, Part
from jaxdistill.evaluation.teacher_file import TeacherFile
from jaxdistill.models import Model, Params
from jaxdistill.models.heads import HEADS
from jaxdistill.models.sizes import parameter_shapes
from jaxdistill.objectives.terms import STORED
from jaxdistill.registry import Table
from jaxdistill.settings import Each, OneOf, settings_of
from jaxdistill.training import hosts, sharding
from jaxdistill.training.programs import abstract_batch

# Taps of which nothing grows with the square of the length.
TAPS = ("embeddings", "hidden", "query", "key", "value")
Taps = Annotated[tuple[str, ...], Each(str, f"names of taps: {', '.join(TAPS)}")]
Layers = Annotated[tuple[int, ...], Each(int, "whole numbers, the teacher's layers from 0")]


class Derivation(NamedTuple):
    """What a derived feed adds to the rows of another. `layout`: the arrays; `make`: (parameters, rows,
    batches of all of them, mesh) -> those arrays, some rows after the other. `digest`: of what they are
    made of beside rows and parameters. `layers`: the teacher's layers that taps are of, in their order."""

    layout: Layout
    make: Callable[[Params, Rows, Iterable[Batch], Mesh], Iterator[Part]]
    digest: str = ""
    layers: tuple[int, ...] = ()


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

    def make(params: Params, rows: Rows, batches: Iterable[Batch], mesh: Mesh) -> Iterator[Part]:
        jitted = jax.jit(run, out_shardings=sharding.over_batch(mesh))
        placed_params = sharding.place(mesh, params)
        for batch in batches:
            placed = sharding.put_batch(mesh, batch)
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
    return Derivation(Layout(row, by_token), make, digest, tuple(layers))


def teacher_outputs(base: Feed, model: Model | None, *, file: str = "") -> Derivation:
    """What a teacher of another framework gives for each row of a task, from a file as `teacher_file`
    describes it."""
    if not file:
        raise BadInput(f"a feed of teacher outputs of {base.name!r} needs file=NAME.safetensors")
    found = TeacherFile(file, base)

    def make(_: Params, rows: Rows, batches: Iterable[Batch], mesh: Mesh) -> Iterator[Part]:
        return found.parts(rows, batches)

    return Derivation(found.layout, make, found.digest, found.layers)


DERIVED: Table[Callable[..., Derivation]] = Table(
    "derived feed", {"outputs": outputs, "teacher_outputs": teacher_outputs}
)


@dataclasses.dataclass(frozen=True)
class Derived:
    """A derived feed of a recipe: `kind`, a name in `DERIVED`, `of` a feed and the network `by`, "" if
    none makes it; `settings` of its kind, by name."""

    kind: str
    of: str
    by: str
    settings: tuple[tuple[str, Any], ...] = ()

    def derivation(self, base: Feed, model: Model | None) -> Derivation:
        """What it adds to the rows of `base`."""
        return DERIVED[self.kind](base, model, **dict(self.settings))


def default_settings(kind: str) -> dict[str, Any]:
    """Every setting of a derived feed of `kind`, at its default."""
    return {name: s.default for name, s in settings_of(DERIVED.named(kind)).items()}


def outlined(name: str, derived: Derived, base: Feed, model: Model | None) -> Feed:
    """The feed as known before it is made: what its base is, with the arrays that are added."""

    def not_yet(_: Any) -> Reader:
        raise AssertionError(f"feed {name!r} is read through `reader`")

    found = derived.derivation(base, model)
    added = {
        STORED + key: Shape(((base.length,) if key in found.layout.by_token else ()) + shape, dtype)
        for key, (shape, dtype) in found.layout.row.items()
    }
    return dataclasses.replace(base, name=name, row={**base.row, **added}, read=not_yet)


def reader(base: Reader, train: Fetch, heldout: Fetch) -> Reader:
    """The reader of rows with what is stored of the training and of the held-out ones."""
    assert base.parts is not None
    parts = base.parts._replace(
        train=_with(base.parts.train, train), heldout=_with(base.parts.heldout, heldout)
    )
    return reader_of(parts, base.answers, base.notices)


def _with(rows: Rows, fetch: Fetch) -> Rows:
    def both(numbers: np.ndarray, length: int) -> Batch:
        found = {STORED + name: x for name, x in fetch(numbers, length).items()}
        return {**rows.fetch(numbers, length), **found}

    return rows._replace(fetch=both)


def store(
    path: epath.Path, made: Derivation, parts: Iterator[Part], number: int, fingerprint: str
) -> None:
    """Makes what is to be stored on all processes, and writes it on the first."""
    if hosts.first():
        stored.write(path, made.layout, parts, number, fingerprint)
    else:
        for _ in parts:
            pass
