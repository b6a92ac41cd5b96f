"""Labelled sets by name, in place of files: hf:NAME[:CONFIG][:SPLIT] of Hugging Face's `datasets`,
tfds:NAME[/CONFIG][:VERSION][:SPLIT] of TFDS. Called by examples, glue, tagging, squad and
searches.

What is read is plain Python, so the tasks do not know where their rows are from; a row's place is the
source and its number from 1."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from jaxdistill.data import columns, hf_sets, tfds_sets
from jaxdistill.data.columns import Columns
from jaxdistill.data.found_set import Found, Table
from jaxdistill.data.table_rows import Row
from jaxdistill.errors import BadInput, listed, nearest, shortened

PREFIXES = ("hf:", "tfds:")


def is_named(source: str) -> bool:
    """Whether a source is a set by name, and no file."""
    return source.startswith(PREFIXES)


def with_split(source: str, split: str) -> str:
    """The source as it is if it names a split, else that split of it. Raises as `open_table`."""
    return source if _find(source).split else f"{source}:{split}"


def open_table(source: str) -> Table:
    """The split that a source names, or the only one. The set is fetched if it is not here yet.

    Raises:
        BadInput: no such set or split; no split named where there are several; the library that reads
            it, or the network, is not there.
    """
    found = _find(source)
    if not found.split and len(found.splits) != 1:
        raise BadInput(
            f"source {source!r} has the splits {listed(found.splits)}: give one, as "
            f"{source}:{found.splits[0] if found.splits else 'train'}"
        )
    split = found.split or found.splits[0]
    if (name := split.split("[")[0]) not in found.splits:
        raise BadInput(f"source {source!r} has no split {name!r}; {nearest(name, found.splits)}")
    return found.table(split)


def read_columns(
    sources: Sequence[str],
    wanted: Sequence[str],
    *,
    label: int | None,
    known_labels: Sequence[str] | None = None,
    skip_bad_rows: bool = False,
) -> Columns:
    """As `columns.read_columns`, of sets by name. A label is the name of its class, or the class's
    number if that is how `known_labels` spell it; -1 is none.

    Raises:
        BadInput: no such column; one that holds no texts; a row without its label, or no row with one.
    """
    parts = [(source, _rows(source, wanted, label, known_labels or ())) for source in sources]
    return columns.from_rows(parts, len(wanted), label=label, skip_bad_rows=skip_bad_rows)


def _rows(source: str, wanted: Sequence[str], label: int | None, known: Sequence[str]) -> list[Row]:
    table = open_table(source)
    _check_columns(source, table, wanted)
    classes = () if label is None else _spelled(table.classes[wanted[label]], known)
    rows = []
    for number, values in enumerate(table.rows(wanted), start=1):
        cells, fault = [], ""
        for at, (name, value) in enumerate(zip(wanted, values)):
            cell = _label(value, classes) if at == label else _text(value)
            fault = fault or ("" if cell is not None else _unfit(name, value, at == label))
            cells.append(cell or "")
        rows.append(Row(number, cells, fault))
    if label is not None and rows and {row.cells[label] for row in rows} <= {"", "-1", "-1.0"}:
        raise BadInput(
            f"{source!r} has no labels: in all of its {len(rows):,} rows {wanted[label]!r} is missing or -1, as in the "
            "test splits of GLUE; give another split"
        )
    return rows


def _check_columns(source: str, table: Table, wanted: Sequence[str]) -> None:
    for name in wanted:
        if name not in table.classes:
            raise BadInput(
                f"{source!r} has no column {name!r}; columns of a set go by their names, {nearest(name, table.classes)}"
            )
    if len({*wanted}) < len(wanted):
        raise BadInput(f"{source!r}: the columns {listed(wanted)} must differ")


def _spelled(classes: Sequence[str], known: Sequence[str]) -> Sequence[str]:
    """How the classes are called: by their numbers if the labels that are known are numbers of them."""
    numbers = [str(number) for number in range(len(classes))]
    return numbers if known and not {*known} & {*classes} and {*known} <= {*numbers} else classes


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and "\0" not in value else None


def _label(value: Any, classes: Sequence[str]) -> str | None:
    """A label as a file spells it, "" for none; None for what cannot be one."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) and classes:
        return classes[value] if 0 <= value < len(classes) else ""
    if isinstance(value, float) and float(np.float32(value)) == value:
        return str(np.float32(value))  # 3.8, and not 3.799999952316284
    return str(value) if isinstance(value, str | int | float) else None


def _unfit(name: str, value: Any, is_label: bool) -> str:
    expected = "a label" if is_label else "text"
    return f"has {shortened(repr(value), 40)} in column {name!r}, expected {expected}"


def read_sentences(
    source: str, token_column: str, tag_column: str, *, skip_bad_rows: bool = False
) -> tuple[list[tuple[int, tuple[str, ...], tuple[str, ...]]], list[str]]:
    """(the number, the words and the tags of each sentence; notices) of a set with lists of both.

    Raises:
        BadInput: no such column; a row without a tag for each word, with its number.
    """
    table = open_table(source)
    wanted = (token_column, tag_column)
    _check_columns(source, table, wanted)
    classes = table.classes[tag_column]
    found, skipped = [], []
    for number, (words, tags) in enumerate(table.rows(wanted), start=1):
        lists = isinstance(words, list) and isinstance(tags, list) and len(words) == len(tags)
        spelled = [_label(tag, classes) for tag in tags] if lists else []
        if lists and all(spelled) and all(map(_text, words)):
            if words:
                found.append((number, tuple(words), tuple(map(str, spelled))))
            continue
        if not skip_bad_rows:
            raise BadInput(
                f"{source!r} row {number} has {shortened(repr(words), 60)} in column {token_column!r} and "
                f"{shortened(repr(tags), 60)} in {tag_column!r}, expected a list of words and a tag for each; give the "
                "columns by their names, or leave such rows out with skip_bad_rows=True"
            )
        skipped.append(number)
    if not found:
        raise BadInput(f"{source!r} holds no sentence; give another split")
    bad = len(skipped)
    notices = (
        [f"{source!r}: {bad:,} bad rows were left out, the first is row {skipped[0]}"]
        if bad
        else []
    )
    return found, notices


def records(source: str, wanted: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The number of each row, and its values of those of the wanted columns that there are, by name.
    Raises as `open_table`, and if none is there."""
    table = open_table(source)
    names = [name for name in wanted if name in table.classes]
    if not names:
        raise BadInput(
            f"{source!r} has none of the columns {listed(wanted)} but {listed(table.classes)}; give another set"
        )
    for number, values in enumerate(table.rows(names), start=1):
        yield number, dict(zip(names, values))


def _find(source: str) -> Found:
    return hf_sets.find(source) if source.startswith("hf:") else tfds_sets.find(source)
