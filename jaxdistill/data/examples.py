"""Labelled texts of a task: its tables read into a training and a held-out part.

Called by classification, regression and similarity."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from etils import epath

from jaxdistill.data import columns, data_sets, files
from jaxdistill.data.columns import Columns, Layout
from jaxdistill.data.documentation_task import documentation_task
from jaxdistill.data.encoded import SHORTEST
from jaxdistill.data.feeds import Order
from jaxdistill.errors import BadInput, listed
from jaxdistill.settings import LARGEST_COUNT, Count, Each, Within

Length = Annotated[int, Within(SHORTEST, LARGEST_COUNT)]
Names = Annotated[tuple[str, ...], Each(str, "names, as ('no', 'yes')")]
Fraction = Annotated[float, Within(0.001, 0.9, "a fraction of the rows, as 0.1")]
DEFAULT = "default"  # a small task made of the installed documentation


@dataclasses.dataclass(frozen=True, kw_only=True)
class Texts:
    """Where the texts of a task are, and how their tables are written.

    `source`: a table (.tsv, .csv or .jsonl, also packed as .gz or .xz), a set by name (`data_sets`),
    several of the one or the other with commas between them, or "default". `heldout`: another such
    source; "" keeps `heldout_fraction` of `source` apart. Columns go by name, those of a file also by
    number from 0. `label_source`: a file with a label in each line, for a `source` with a text in each;
    `heldout_label_source` likewise. `quoting`: of .tsv tables, GLUE has none. `separator`: "" by the
    name of the file."""

    source: str = DEFAULT
    heldout: str = ""
    heldout_fraction: Fraction = 0.1
    text_column: str = "0"
    pair_column: str = ""
    label_column: str = "1"
    label_source: str = ""
    heldout_label_source: str = ""
    header: Literal["auto", "yes", "no"] = "auto"
    quoting: Literal["auto", "none", "quoted"] = "auto"
    separator: str = ""
    skip_bad_rows: bool = False

    @property
    def layout(self) -> Layout:
        return Layout(self.header, self.quoting, self.separator, self.skip_bad_rows)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowSettings:
    """How long the rows of a task are. `sequence_length`: tokens at most; longer texts are cut.
    `buckets`: pad a batch no further than its rows need, rather than to that length. `packed`: so many texts
    share a training row on average: a batch of any texts, in so many times fewer rows."""

    sequence_length: Length = 128
    buckets: bool = True
    packed: Count = 1

    def order(self, seed: int) -> Order:
        """The order of such rows."""
        return Order(seed, self.sequence_length, self.buckets, self.packed)


@dataclasses.dataclass(frozen=True)
class Examples:
    """N labelled texts: `texts`, `pairs` (the second texts, or None), `labels` as the file spells them,
    `places` (file, line). `notices`: what the user should know."""

    texts: tuple[str, ...]
    pairs: tuple[str, ...] | None
    labels: tuple[str, ...]
    places: tuple[tuple[str, int], ...]
    notices: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, rows: Sequence[int]) -> Examples:
        """Only these rows, in this order."""

        def taken(values: Sequence) -> tuple:
            return tuple(values[row] for row in rows)

        pairs = None if self.pairs is None else taken(self.pairs)
        return Examples(
            taken(self.texts), pairs, taken(self.labels), taken(self.places), self.notices
        )

    def digest(self, labels: np.ndarray, names: Sequence[str] = ()) -> str:
        """Of all that a task makes of it."""
        return files.digest_of([self.texts, self.pairs, labels.tolist(), list(names)])


def read_parts(
    where: Texts, known_labels: Sequence[str] | None = None
) -> tuple[Examples, Examples]:
    """The training and the held-out examples. Raises `BadInput` for tables that cannot be used."""
    if where.source == DEFAULT:
        train, held = map(
            os.fspath, documentation_task(files.cache_directory() / "tasks" / "documentation")
        )
        where = dataclasses.replace(
            where, source=train, heldout=held, text_column="text", label_column="package"
        )
    whole = read(where.source, where.label_source, where, known_labels)
    if where.heldout == where.source:
        return whole, whole
    if not where.heldout:
        return split(whole, where.heldout_fraction)
    known = known_labels or tuple(dict.fromkeys(whole.labels))
    return whole, read(where.heldout, where.heldout_label_source, where, known)


def read(
    source: str, label_source: str, where: Texts, known_labels: Sequence[str] | None = None
) -> Examples:
    """The examples of a table, or of two files with a line for each."""
    wanted = [where.text_column, where.label_column]
    wanted += [where.pair_column] if where.pair_column else []
    sources = several(source)
    if any(map(data_sets.is_named, sources)):
        _check_named(sources, label_source, where)
        found = data_sets.read_columns(
            sources, wanted, label=1, known_labels=known_labels, skip_bad_rows=where.skip_bad_rows
        )
    elif label_source:
        found = columns.read_parallel(
            source, label_source, where.pair_column or None, skip_bad_rows=where.skip_bad_rows
        )
    else:
        found = columns.read_columns(
            sources, wanted, where.layout, label=1, known_labels=known_labels
        )
    return _examples(found)


def _check_named(sources: Sequence[str], label_source: str, where: Texts) -> None:
    """Raises `BadInput` for sets by name that stand among files, or with what is a file's alone."""
    if not all(map(data_sets.is_named, sources)):
        raise BadInput(f"{listed(sources)} are sets by name and files; give the one or the other")
    given = {
        "label_source": label_source,
        **{name: getattr(where, name) for name in ("header", "quoting", "separator")},
    }
    usual = {"label_source": "", "header": "auto", "quoting": "auto", "separator": ""}
    all_named = all(map(data_sets.is_named, filter(None, (where.source, where.heldout))))
    for name, value in given.items():
        if value != usual[name] and (all_named or name == "label_source"):
            raise BadInput(
                f"{name}={value!r} is for files, and {sources[0]!r} is a set by name; leave it out"
            )


def several(source: str) -> tuple[str, ...]:
    """The files that `source` names, with commas between them; a file whose own name has one is one."""
    if "," not in source or epath.Path(source).expanduser().exists():
        return (source,)
    return tuple(part.strip() for part in source.split(",") if part.strip())


def _examples(found: Columns) -> Examples:
    texts, labels, *pairs = (tuple(cell.strip() for cell in cells) for cells in found.cells)
    return Examples(texts, pairs[0] if pairs else None, labels, found.places, found.notices)


def split(examples: Examples, fraction: float = 0.1) -> tuple[Examples, Examples]:
    """A training and a held-out part of one file, by a digest of each text: equal texts stay
    together. Raises `BadInput` if one of the parts would be empty."""
    second = examples.pairs or ("",) * len(examples)
    train, held = parted([f"{a}\t{b}" for a, b in zip(examples.texts, second)], fraction)
    return examples.take(train), dataclasses.replace(examples.take(held), notices=())


def parted(texts: Sequence[str], fraction: float) -> tuple[list[int], list[int]]:
    """The numbers of the texts to learn from, and of those that are kept apart, by a digest of each.
    Raises `BadInput` if one of the parts would be empty."""
    apart = [files.is_apart(text, fraction) for text in texts]
    if all(apart) or not any(apart):
        raise BadInput(
            f"{len(apart)} examples are too few to keep {fraction:.0%} of them apart: give a second file"
        )
    train, held = (
        [row for row, is_held in enumerate(apart) if is_held == wanted] for wanted in (False, True)
    )
    return train, held
