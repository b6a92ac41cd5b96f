"""Texts that nobody labelled, row by row: the lines of a file, or columns of a .tsv, .csv or .jsonl file.

A file is read twice: to see that all of it can be used and how many rows it has, then as its rows are
used. It may be larger than memory. Called by prediction."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator
from typing import NoReturn

from etils import epath

from jaxdistill.data import table_header, table_rows, table_text
from jaxdistill.data.columns import Layout, Wanted, find_header
from jaxdistill.data.table_rows import Row
from jaxdistill.data.table_text import JSON_ENDINGS
from jaxdistill.errors import BadInput, listed, shortened

Texts = tuple[str, ...]  # of a row: its text or, of pairs, both
_TABLES = (".tsv", ".csv")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextColumns:
    """Where the texts of a file are. Columns go by name, or by number from 0; "" is the only column of
    a table, or the key "text". `header`, `quoting`, `separator`: as in `Layout`. A file that is neither
    .tsv, .csv nor .jsonl is a table if any of these is given, else it has a text in each line.
    `only_answers`: write number and answer of each row alone, as GLUE's leader board takes them."""

    text_column: str | int = ""
    pair_column: str | int = ""
    header: str = "auto"
    quoting: str = "auto"
    separator: str = ""
    only_answers: bool = False


@dataclasses.dataclass(frozen=True)
class Unlabelled:
    """N rows of texts, which are read anew by each iteration. `notices`: what the user should know."""

    read: Callable[[], Iterator[Texts]]
    number: int
    notices: tuple[str, ...] = ()

    def __len__(self) -> int:
        return self.number

    def __iter__(self) -> Iterator[Texts]:
        return self.read()


def read_unlabelled(path: epath.PathLike, where: TextColumns = TextColumns()) -> Unlabelled:
    """The rows of a file, also packed as .xz or .gz: of lines all, blank ones too, so that row k is
    line k; of a table all but lines without any cell.

    Raises:
        BadInput: no such file or column, no rows, or one that cannot be read (file and line).
    """
    name = os.fspath(path).lower().removesuffix(".xz").removesuffix(".gz")
    notices: tuple[str, ...] = ()
    if name.endswith(JSON_ENDINGS):
        read = _objects(path, where)
    elif name.endswith(_TABLES) or where != TextColumns():
        read, notices = _table(path, where, name.endswith(".csv"))
    else:
        read = _lines(path)
    number = sum(1 for _ in read())
    if not number:
        _refuse_empty(path)
    return Unlabelled(read, number, notices)


def _refuse_empty(path: epath.PathLike) -> NoReturn:
    raise BadInput(f"{os.fspath(path)!r} has no rows: expected one or more texts")


def _usable(rows: Iterable[Row], shown: str) -> Iterator[Row]:
    for row in rows:
        if row.fault:
            raise BadInput(f"{shown!r} line {row.line} {row.fault}; mend the line")
        yield row


def _lines(path: epath.PathLike) -> Callable[[], Iterator[Texts]]:
    def read() -> Iterator[Texts]:
        with table_text.open_lines(path) as table:
            rows = table_rows.read_rows(table, "\n", quoted=False)  # one cell a line
            yield from (tuple(row.cells) for row in _usable(rows, table.shown))

    return read


def _objects(path: epath.PathLike, where: TextColumns) -> Callable[[], Iterator[Texts]]:
    layout = TextColumns(text_column=where.text_column, pair_column=where.pair_column)
    if where != layout:
        raise BadInput("header, quoting and separator do not go with JSON: leave them away")
    keys = [str(where.text_column or "text")]
    keys += [] if where.pair_column == "" else [str(where.pair_column)]

    def read() -> Iterator[Texts]:
        with table_text.open_lines(path) as table:
            numbered = enumerate(map(table_text.plain, table.lines), start=1)
            rows = (table_rows.json_row(line, n, keys) for n, line in numbered if line.strip())
            yield from (tuple(row.cells) for row in _usable(rows, table.shown))

    return read


def _table(
    path: epath.PathLike, where: TextColumns, is_csv: bool
) -> tuple[Callable[[], Iterator[Texts]], tuple[str, ...]]:
    layout = Layout(where.header, where.quoting, where.separator)
    separator = layout.separator or ("," if is_csv else "\t")
    quoted, notice = is_csv or layout.quoting == "quoted", ""
    if not is_csv and layout.quoting == "auto":
        with table_text.open_lines(path) as table:
            quoted, notice = table_rows.is_quoted(table, separator)
    shown = os.fspath(epath.Path(path).expanduser())

    def all_rows() -> Iterator[Row]:
        with table_text.open_lines(path) as table:
            yield from _usable(table_rows.read_rows(table, separator, quoted), shown)

    first = next((row for row in all_rows() if row.full), None)
    if first is None:
        _refuse_empty(path)
    width = len(first.cells)
    columns = _columns(where, first, shown)
    header, _ = find_header(shown, [first], Wanted(columns, layout, None, frozenset()), separator)
    places = table_header.find_places(columns, header, shown)
    if max(places) >= width:
        raise BadInput(
            f"{shown!r} has {width} columns, numbered from 0: it has no column {max(places)}"
        )

    def read() -> Iterator[Texts]:
        for row in all_rows():
            if header is not None and row.line <= first.line:
                continue
            if width > 1 == len(row.cells) and not row.full:
                continue  # where all rows have one cell, a blank line is one
            if len(row.cells) != width:
                wrong = table_rows.wrong_width(row, width, separator)
                raise BadInput(f"{shown!r} line {row.line} {wrong}; mend the line")
            yield tuple(row.cells[place] for place in places)

    notices = [notice] if notice else []
    if layout.header == "auto" and all(map(table_header.is_number, columns)):
        what = "a text" if header is None else "the header"
        notices.append(
            f"line {first.line} of {shown!r} is read as {what}, {shortened(first.cells[places[0]], 40)!r}; "
            "header=yes or header=no says which it is"
        )
    return read, tuple(notices)


def _columns(where: TextColumns, first: Row, shown: str) -> tuple[str | int, ...]:
    if where.text_column == "" and len(first.cells) > 1:
        raise BadInput(
            f"{shown!r} has {len(first.cells)} columns, line {first.line}: {listed(map(repr, first.cells), 5)}; say "
            "which holds the text with text_column=, by its name or its number from 0"
        )
    pair = () if where.pair_column == "" else (where.pair_column,)
    return (0 if where.text_column == "" else where.text_column, *pair)
