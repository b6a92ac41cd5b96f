"""The wanted columns of tables: .tsv, .txt, .csv or .jsonl, or of files whose lines belong together.
Called by examples and searches."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence

from etils import epath

from jaxdistill.data import table_header, table_rows, table_text
from jaxdistill.data.table_header import Column
from jaxdistill.data.table_rows import Row
from jaxdistill.data.table_text import Text
from jaxdistill.errors import BadInput, listed, nearest

_SEPARATORS = {"\\t": "\t", "tab": "\t", "comma": ",", "semicolon": ";", "space": " "}
_SHOWN_BAD_ROWS = 3


@dataclasses.dataclass(frozen=True)
class Columns:
    """N rows of the wanted columns of one or several files. `cells`: for each column its N cells, as
    the file has them. `places`: the file and the (first) line of each row. `notices`: what the user
    should know, a line each."""

    cells: tuple[tuple[str, ...], ...]
    places: tuple[tuple[str, int], ...]
    notices: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a table is written.

    `header`: whether the first row holds the names of the columns, "auto", "yes" or "no".
    `quoting`: of .tsv and .txt, "auto", "none" or "quoted"; .csv is always quoted.
    `separator`: one character; "" is a comma for .csv, else a tab.
    `skip_bad_rows`: skips and counts them instead of refusing the table."""

    header: str = "auto"
    quoting: str = "auto"
    separator: str = ""
    skip_bad_rows: bool = False

    def __post_init__(self) -> None:
        for name, valid in (("header", table_header.HEADERS), ("quoting", table_rows.QUOTINGS)):
            given = getattr(self, name)
            if given not in valid:
                raise BadInput(f"{name}={given!r}: {nearest(given, valid)}")
        separator = _SEPARATORS.get(self.separator, self.separator)
        if len(separator) > 1 or separator in ('"', "\n", "\r"):
            raise BadInput(
                f"separator={self.separator!r}: expected one character, e.g. ';', or \"\" for the usual one"
            )
        object.__setattr__(self, "separator", separator)


class BadRows:
    """Refuses the first bad row of a file with `BadInput`, or counts them if they are to be skipped."""

    def __init__(self, shown: str, skip: bool) -> None:
        self._shown, self._skip = shown, skip
        self._count = 0
        self._first: list[str] = []

    def add(self, line: int, fault: str) -> None:
        if not self._skip:
            raise BadInput(
                f"{self._shown!r} line {line} {fault}; mend or remove it, or set skip_bad_rows=true"
            )
        self._count += 1
        if len(self._first) < _SHOWN_BAD_ROWS:
            self._first.append(f"line {line} {fault}")

    @property
    def example(self) -> str:
        return self._first[0] if self._first else ""

    def notices(self) -> list[str]:
        if not self._count:
            return []
        more = self._count - len(self._first)
        shown = "; ".join(self._first) + (f"; and {more:,} more" if more else "")
        rows, are = ("row", "is") if self._count == 1 else ("rows", "are")
        return [f"{self._count:,} bad {rows} of {self._shown!r} {are} skipped: {shown}"]


@dataclasses.dataclass(frozen=True)
class _Part:
    """The rows of one file, only the wanted cells of each."""

    shown: str
    rows: list[Row]
    notices: list[str]


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What is read of each file, and what is known of its labels."""

    columns: tuple[Column, ...]
    layout: Layout
    label: int | None
    known: frozenset[str]


def read_columns(
    path: epath.PathLike | Sequence[epath.PathLike],
    columns: Sequence[Column],
    layout: Layout = Layout(),
    *,
    label: int | None = None,
    known_labels: Sequence[str] | None = None,
) -> Columns:
    """Reads columns of a table, or of several after each other.

    Args:
        path: a .tsv or .txt (tab-separated), .csv or .jsonl file, also packed as .xz or .gz; or several.
        columns: which, by their names in the header, or by numbers from 0 (ints or digits).
        layout: how the tables are written.
        label: which of `columns` holds the labels; they tell a header from an example, are stripped,
            and must not be blank.
        known_labels: labels that are known from elsewhere; they tell a header, too.

    Raises:
        BadInput: no such file or column; a bad row, with its line; a first row that may be header or example.
    """
    paths = [path] if isinstance(path, (str, os.PathLike)) else list(path)
    if not paths:
        raise BadInput("no task file is given: expected one or more")
    wanted = Wanted(tuple(columns), layout, label, frozenset(known_labels or ()))
    parts: list[_Part] = []
    for one in paths:
        parts.append(_read(table_text.read_text(one), wanted))
        if label is not None:
            labels = {row.cells[label] for row in parts[-1].rows}
            wanted = dataclasses.replace(wanted, known=wanted.known | labels)
    return _joined(parts, len(columns))


def from_rows(
    parts: Sequence[tuple[str, Sequence[Row]]],
    width: int,
    *,
    label: int | None = None,
    skip_bad_rows: bool = False,
) -> Columns:
    """Rows of `width` cells that are no file's: the name and the rows of each part. Raises as
    `read_columns` for a row that has a fault, or no label."""
    read = []
    for shown, rows in parts:
        bad = BadRows(shown, skip_bad_rows)
        read.append(_labelled(shown, _readable(shown, rows, bad), label, bad))
    return _joined(read, width)


def _joined(parts: Sequence[_Part], width: int) -> Columns:
    return Columns(
        tuple(
            tuple(row.cells[column] for part in parts for row in part.rows)
            for column in range(width)
        ),
        tuple((part.shown, row.line) for part in parts for row in part.rows),
        tuple(notice for part in parts for notice in part.notices),
    )


def _read(text: Text, wanted: Wanted) -> _Part:
    bad = BadRows(text.shown, wanted.layout.skip_bad_rows)
    notices: list[str] = []
    if text.is_json:
        rows = table_rows.json_rows(text, [str(column) for column in wanted.columns])
        rows = _readable(text.shown, rows, bad)
    else:
        rows, notices = _delimited(text, wanted, bad)
    return _labelled(text.shown, rows, wanted.label, bad, notices)


def _labelled(
    shown: str, rows: Sequence[Row], label: int | None, bad: BadRows, notices: Sequence[str] = ()
) -> _Part:
    """The rows that have a label."""
    kept: list[Row] = []
    empty = 0
    for row in rows:
        cells = row.cells
        if label is not None:
            cells[label] = cells[label].strip()
            if not cells[label]:
                bad.add(row.line, "has no label")
                continue
        empty += any(not cell.strip() for cell in cells)
        kept.append(row)
    if not kept:
        raise BadInput(f"task file {shown!r} has bad rows only, e.g. {bad.example}")
    return _Part(shown, kept, [*notices, *bad.notices(), *_empty_notice(empty, shown)])


def _readable(shown: str, rows: Sequence[Row], bad: BadRows) -> list[Row]:
    """The rows without faults. Raises BadInput where there is none."""
    readable: list[Row] = []
    for row in rows:
        if row.fault:
            bad.add(row.line, row.fault)
        else:
            readable.append(row)
    if not readable:
        why = f"has bad rows only, e.g. {bad.example}" if bad.example else "is empty"
        raise BadInput(f"task file {shown!r} {why}: expected one example a line")
    return readable


def _delimited(text: Text, wanted: Wanted, bad: BadRows) -> tuple[list[Row], list[str]]:
    """The rows of a table with separators, only the wanted cells of each; and notices."""
    layout, columns = wanted.layout, wanted.columns
    separator = layout.separator or text.separator
    table_header.refuse_tagging(
        text, separator, None if wanted.label is None else columns[wanted.label]
    )
    quoting = "quoted" if text.is_csv else layout.quoting
    found, notice = table_rows.table_rows(text, separator, quoting)
    rows = _readable(text.shown, found, bad)
    header, guess = find_header(text.shown, rows, wanted, separator)
    places = table_header.find_places(columns, header, text.shown)
    notices = [line for line in (notice, guess) if line]
    if header is not None:
        again = {row.line for row in rows[1:] if table_header.is_repeated(row, header)}
        rows = [row for row in rows[1:] if row.line not in again]
        if again:
            notices.append(
                f"the header of {text.shown!r} stands again in line {min(again)}: no example "
                f"({len(again):,} such in all)"
            )
        if not rows:
            raise BadInput(f"task file {text.shown!r} has a header but no examples")
    width = len(header) if header is not None else table_rows.usual_width(rows)
    if max(places) >= width:
        raise BadInput(
            f"{text.shown!r} has {width} columns, numbered from 0: it has no column {max(places)}"
        )
    kept: list[Row] = []
    for row in rows:
        if len(row.cells) != width:
            bad.add(row.line, table_rows.wrong_width(row, width, separator))
        else:
            kept.append(row._replace(cells=[row.cells[place] for place in places]))
    return kept, notices


def find_header(
    shown: str, rows: Sequence[Row], wanted: Wanted, separator: str
) -> tuple[list[str] | None, str]:
    """The names of the columns, or None without a header; and a notice or "". Without a column of
    labels the first of the rows is enough. Raises `BadInput` where it may be both."""
    columns, given = wanted.columns, wanted.layout.header
    by_number = all(map(table_header.is_number, columns))
    needed = len(columns) > 1 or columns[0] not in (0, "0") and by_number
    if needed and table_rows.usual_width(rows) == 1:
        table_rows.refuse_single(shown, rows, separator)
    names = [cell.strip() for cell in rows[0].cells]
    if not by_number and given == "no":
        raise BadInput(
            f"header=no, but columns are given by names, {listed(columns)}: give their numbers, from 0"
        )
    if not by_number or given == "yes":
        return names, ""
    if given == "no":
        return None, ""
    places = [int(column) for column in columns]
    found, notice = table_header.has_header(shown, rows, places, wanted.label, wanted.known)
    return names if found else None, notice


def _empty_notice(count: int, shown: str) -> list[str]:
    rows = "1 row of {} has" if count == 1 else f"{count:,} rows of {{}} have"
    return [rows.format(repr(shown)) + " an empty text"] if count else []


def read_parallel(
    text_path: epath.PathLike,
    label_path: epath.PathLike,
    pair_path: epath.PathLike | None = None,
    *,
    skip_bad_rows: bool = False,
) -> Columns:
    """Reads files whose lines belong together: line k of each is a part of row k. No header.

    The cells are text, label and, with `pair_path`, the second text; places are those of the text.

    Raises:
        BadInput: no such file; different numbers of lines; a blank label, with its line.
    """
    paths = [text_path, label_path] + ([] if pair_path is None else [pair_path])
    texts = [table_text.read_text(path) for path in paths]
    lines = [text.plain_lines() for text in texts]
    # Blank lines at the end are rows only where another file has text there.
    used = [
        max((n for n, line in enumerate(column, 1) if line.strip()), default=0) for column in lines
    ]
    count = max(used)
    for text, column, own in zip(texts, lines, used):
        if len(column) < count:
            longest = texts[used.index(count)]
            raise BadInput(
                f"{text.shown!r} has {own:,} lines, {longest.shown!r} has {count:,}: line k of the one belongs to line k "
                "of the other, so give files of as many lines"
            )
    if not count:
        raise BadInput(f"task files {listed(repr(text.shown) for text in texts)} are empty")
    bad = BadRows(texts[1].shown, skip_bad_rows)
    rows: list[Row] = []
    for number, cells in enumerate(zip(*(column[:count] for column in lines)), start=1):
        if any("\0" in cell for cell in cells):
            bad.add(number, "holds a NUL character, or that of a parallel file does")
        elif not cells[1].strip():
            bad.add(number, "has no label")
        else:
            rows.append(Row(number, [cells[0], cells[1].strip(), *cells[2:]]))
    if not rows:
        raise BadInput(f"task file {texts[1].shown!r} has bad rows only, e.g. {bad.example}")
    empty = sum(not all(cell.strip() for cell in row.cells) for row in rows)
    notices = bad.notices() + _empty_notice(empty, texts[0].shown)
    return _joined([_Part(texts[0].shown, rows, notices)], len(paths))
