"""Feeds made of another feed: what a teacher says of each row, stored once.

The shapes are known at start-up, the content is made at first use and kept in the workdir under a
fingerprint of all that it is made of. Add a kind: write a function as `outputs`, whose keywords are its
settings, and a row in `DERIVED`. Called by resolve, which knows the shapes, and by readers, which make
the content."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh

from jaxdistill.data import files
from jaxdistill.data.encoded import Encoded
from jaxdistill.data.feeds import MANY, Batch, Feed, Order, Parts, Reader, Rows, Shape, Share
from jaxdistill.data.files import digest_of
from jaxdistill.data.rows import evaluation_batches, reader_of, sample
from jaxdistill.data.unlabelled import TextColumns, read_unlabelled
from jaxdistill.errors import BadInput, listed, nearest
from jaxdistill.evaluation import augmented as rewriting
from jaxdistill.evaluation import stored
from jaxdistill.evaluation import transfer_set as sets
from jaxdistill.evaluation.augmented import Plan, Rewritten
from jaxdistill.evaluation.stored import Fetch, Layout, Part
from jaxdistill.evaluation.teacher_file import TeacherFile
from jaxdistill.models import Model, Params
from jaxdistill.models.heads import HEADS
from jaxdistill.models.sizes import parameter_shapes
from jaxdistill.objectives.terms import STORED
from jaxdistill.registry import Table
from jaxdistill.settings import Count, CountOrZero, Each, OneOf, Within, settings_of
from jaxdistill.training import hosts, sharding
from jaxdistill.training.programs import abstract_batch
from jaxdistill.training.progress import Progress

# Taps of which nothing grows with the square of the length.
TAPS = ("embeddings", "hidden", "query", "key", "value")
NONE = Encoded(np.zeros(0, np.int32), np.zeros(1, np.int64), np.zeros(0, np.int32), 0)
Taps = Annotated[tuple[str, ...], Each(str, f"names of taps: {', '.join(TAPS)}")]
Layers = Annotated[tuple[int, ...], Each(int, "whole numbers, the teacher's layers from 0")]


class Making(NamedTuple):
    """What a derived feed may be made with: the network's parameters, the mesh, how many rows at a time, the
    tokenizer, where to keep what is made of a part by its name, and the fingerprint to keep it under."""

    params: Params
    mesh: Mesh
    batch_size: int
    share: Share
    tokenizer: Any
    path: Callable[[str], epath.Path]
    fingerprint: str


class Derivation(NamedTuple):
    """A derived feed as known at start-up. `row`: what it adds to a row of its base; `read`: the base's
    reader and a `Making` -> its own, made or found; `digest`: of what it is made of beside rows and
    parameters; `layers`: the teacher's layers that taps are of, in their order; `rows`: how many training
    rows it has, of how many of its base."""

    row: Mapping[str, Shape]
    read: Callable[[Reader, Making], Reader]
    digest: str = ""
    layers: tuple[int, ...] = ()
    rows: Callable[[int], int] = lambda rows: rows


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


def teacher_outputs(base: Feed, model: Model | None, *, file: str = "") -> Derivation:
    """What a teacher of another framework gives for each row of a task, from a file as `teacher_file`
    describes it."""
    if not file:
        raise BadInput(f"a feed of teacher outputs of {base.name!r} needs file=NAME.safetensors")
    found = TeacherFile(file, base)

    def make(rows: Rows, batches: Iterable[Batch], _: Making) -> Iterator[Part]:
        return found.parts(rows, batches)

    return beside(base, found.layout, make, found.digest, found.layers)


def augmented(
    base: Feed,
    model: Model | None,
    *,
    copies: Count = 20,
    replaced: Annotated[float, Within(0.01, 1)] = 0.4,
    candidates: Annotated[int, Within(1, 1000)] = 15,
    context: Literal["row", "word"] = "row",
    most: CountOrZero = 0,
) -> Derivation:
    """The training rows of a task, of `most` of them if that is not 0, and `copies` of each with words
    replaced as a network with an MLM head holds likely (`augmented.Plan`); held-out rows stay. Of
    questions about a text only the questions change. Published: 20 copies, and each word masked alone
    (context="word"), which takes a forward pass a word."""
    assert model is not None
    if "mlm" not in model.config.heads or not base.head:
        raise BadInput(
            f"{base.name!r} is augmented by a network with the head 'mlm'; its heads: {listed(model.config.heads)}"
        )
    first_segment = base.head == "question_answering"

    def read(rows: Reader, making: Making) -> Reader:
        assert rows.parts is not None
        order, path = rows.parts.order, making.path("train").with_suffix(".safetensors")
        plan = Plan(copies, replaced, candidates, context, first_segment, order.seed)
        train = sample(rows.parts.train, most or None, order.seed)

        def make() -> None:
            if not hosts.first() or rewriting.read(path, making.fingerprint) is not None:
                return
            with Progress(train.number * (1 + copies), f"making {path.name}", unit="rows") as bar:
                parts = rewriting.augment(
                    train, making.tokenizer, model, making.params, plan, making.batch_size
                )
                found = rewriting.joined(_ticked(parts, bar))
            rewriting.write(path, found, making.fingerprint)

        hosts.together(make)
        found = rewriting.read(path, making.fingerprint)
        if found is None:
            raise BadInput(
                f"{str(path)!r} cannot be read back; give a workdir that all processes share"
            )
        return reader_of(rows.parts._replace(train=found.rows(train)), rows.answers, rows.notices)

    return Derivation(
        {}, read, model.config.dtype, (), lambda rows: min(rows, most or rows) * (1 + copies)
    )


def transfer_set(
    base: Feed,
    _: Model | None,
    *,
    unlabelled: str = "",
    text_column: str = "",
    pair_column: str = "",
    header: Literal["auto", "yes", "no"] = "auto",
    quoting: Literal["auto", "none", "quoted"] = "auto",
    labelled: bool = True,
) -> Derivation:
    """The training rows of a task, if `labelled`, and the texts of the file `unlabelled`, "" for none;
    held-out rows stay. A term on true labels counts the rows that have one, others all."""
    sets.check_head(base)
    if not (unlabelled or labelled):
        raise BadInput(
            f"a transfer set of {base.name!r} without its rows needs unlabelled=FILE, of other texts"
        )
    columns = TextColumns(
        text_column=text_column, pair_column=pair_column, header=header, quoting=quoting
    )

    def read(rows: Reader, making: Making) -> Reader:
        assert rows.parts is not None
        if not unlabelled:
            train = sets.joined(rows.parts.train, NONE, base.row)
        else:
            found = sets.encode(unlabelled, columns, base, making.tokenizer)
            train = sets.joined(rows.parts.train if labelled else None, found, base.row)
        heldout = sets.joined(rows.parts.heldout, NONE, base.row)
        parts = Parts(train, heldout, rows.parts.order)
        return reader_of(parts, rows.answers, rows.notices)

    more, digest = 0, ""
    if unlabelled:
        content = files.find(unlabelled, "unlabelled texts").read_bytes()
        digest = digest_of([hashlib.sha256(content).hexdigest(), dataclasses.astuple(columns)])
        if base.head == "sequence_classification":
            more = len(read_unlabelled(unlabelled, columns))
    return Derivation(
        {sets.LABEL_WEIGHTS: Shape((), "float32")},
        read,
        digest,
        (),
        lambda number: number * labelled + more,
    )


def _ticked(parts: Iterator[Rewritten], bar: Progress) -> Iterator[Rewritten]:
    for part in parts:
        yield part
        bar.update(len(part.of))


DERIVED: Table[Callable[..., Derivation]] = Table(
    "derived feed",
    {
        "outputs": outputs,
        "teacher_outputs": teacher_outputs,
        "augmented": augmented,
        "transfer_set": transfer_set,
    },
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
    return dataclasses.replace(
        base,
        name=name,
        row={**base.row, **found.row},
        rows=base.rows if base.rows == MANY else found.rows(base.rows),
        read=not_yet,
    )
