"""The rows of a table's lines: cells between separators, in quotation marks or not, or the values of
JSON objects. Called by columns."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from jaxdistill.data.labels import as_number
from jaxdistill.data.table_text import BOM, Lines, Text, plain
from jaxdistill.errors import BadInput, nearest, shortened

QUOTINGS = ("auto", "none", "quoted")
_QUOTED = re.compile(r'[^"]*(?:""[^"]*)*')
_MOST_SCANS = (
    20  # times that each line is read, about, where marks that no other closes are skipped
)
_NUL = "holds a NUL character"


class Row(NamedTuple):
    """A row that begins in `line`, from 1; or that cannot be read, and `fault` says why ("line 3
    ...")."""

    line: int
    cells: list[str]
    fault: str = ""

    @property
    def full(self) -> bool:
        """Whether any cell holds more than blanks."""
        return any(map(str.strip, self.cells))


def table_rows(text: Text, separator: str, quoting: str) -> tuple[list[Row], str]:
    """The rows that are not blank, those with faults too; and a notice, or "".

    Args:
        quoting: "none", "quoted", or "auto", which takes cells as quoted where the file shows it.

    Raises:
        BadInput: with "auto" the file can be read in both ways.
    """
    quoted, notice = quoting == "quoted", ""
    if quoting == "auto" and any('"' in line for line in text.lines):
        quoted, notice = is_quoted(text, separator)
    return [row for row in read_rows(text, separator, quoted) if row.fault or row.full], notice


def read_rows(text: Text | Lines, separator: str, quoted: bool) -> Iterator[Row]:
    """Every row, blank ones too, as its lines are read. After a fault goes on in the next line."""
    if quoted:
        for row in _raw(text, separator):
            yield row._replace(cells=[*map(_unwrapped, row.cells)])
    else:
        for number, line in enumerate(text.lines, start=1):
            yield Row(number, plain(line).split(separator), _NUL if "\0" in line else "")


class _Ahead:
    """The lines from the one on where a row begins, read when its cells go on in them."""

    def __init__(self, lines: Iterable[str]) -> None:
        self._rest = iter(lines)
        self._held: list[str] = []
        self._begin = self.read = 0

    def at(self, place: int) -> str | None:
        """The line so many lines after the first one; None after the end."""
        while self._begin + place >= len(self._held):
            line = next(self._rest, None)
            if line is None:
                return None
            self._held.append(line)
            self.read += 1
        return self._held[self._begin + place]

    @property
    def left(self) -> int:
        """How many lines are held."""
        return len(self._held) - self._begin

    def drop(self, count: int) -> None:
        self._begin += count
        if 2 * self._begin >= len(self._held):  # half of them: each line is moved about once
            del self._held[: self._begin]
            self._begin = 0


def _raw(text: Text | Lines, separator: str) -> Iterator[Row]:
    """Every row with quoted cells; these still have their marks."""
    ahead = _Ahead(text.lines)
    number, scanned = 1, 0
    while (line := ahead.at(0)) is not None:
        cells: list[str]
        taken, fault = 1, ""
        if '"' in line:
            cells, taken, fault = _raw_cells(ahead, text.end, separator)
        else:
            cells = plain(line).split(separator)
        if not fault and any("\0" in (ahead.at(place) or "") for place in range(taken)):
            fault = _NUL
        yield Row(number, cells, fault)
        scanned += taken
        if scanned > _MOST_SCANS * ahead.read:
            raise BadInput(
                f"{text.shown!r} line {number}: too many quotation marks open a cell and none closes it; "
                "give quoting=none if cells are not quoted, or mend the file"
            )
        taken = 1 if fault else taken
        ahead.drop(taken)
        number += taken


def _raw_cells(ahead: _Ahead, end: str, separator: str) -> tuple[list[str], int, str]:
    """The cells of the row that begins with the first line, how many lines it has, and what is wrong
    with it."""
    line = (ahead.at(0) or "").removeprefix(BOM)
    cells: list[str] = []
    position = at = 0
    while True:
        if line.startswith('"', position):
            found = _wrapped_cell(ahead, end, line, position, at)
            if found is None:
                return [], ahead.left, "opens a cell with a quotation mark that none closes"
            cell, line, position, at = found
            cells.append(cell)
            stop = len(line.rstrip("\r"))
            if position < stop and line[position] != separator:
                return [], at + 1, "has text after the quotation mark that closes a cell"
        else:
            stop = len(line.rstrip("\r"))
            mark = line.find(separator, position, stop)
            mark = stop if mark < 0 else mark
            cells.append(line[position:mark])
            position = mark
        if position >= stop:
            return cells, at + 1, ""
        position += 1


def _wrapped_cell(
    ahead: _Ahead, end: str, line: str, begin: int, at: int
) -> tuple[str, str, int, int] | None:
    """The cell with its marks; the line where it ends, the position after it there, the place of the
    line. None if no mark closes the cell."""
    parts = ['"']
    position = begin + 1
    while True:
        match = _QUOTED.match(line, position)
        assert match  # it also matches nothing
        parts.append(match[0])
        position = match.end()
        if position < len(line):
            return "".join(parts) + '"', line, position + 1, at
        at += 1
        following = ahead.at(at)
        if following is None:
            return None
        parts.append(end)
        line, position = following, 0


def _unwrapped(cell: str) -> str:
    return cell[1:-1].replace('""', '"') if cell.startswith('"') else cell


def is_quoted(text: Text | Lines, separator: str) -> tuple[bool, str]:
    """Whether the file's cells are quoted; and a notice, or "".

    As quoted counts a file whose quotation marks all wrap cells, doubled inside, into rows of one
    width. If it has one width without quoting too, some mark must be doubled, some cell hold a
    separator, or all words be wrapped: a sentence may be no more than a quotation.

    Raises:
        BadInput: it can be read in both ways."""
    plain_widths: set[int] = set()

    def watched() -> Iterator[str]:
        for line in text.lines:
            cells = plain(line).split(separator)
            if any(map(str.strip, cells)):
                plain_widths.add(len(cells))
            yield line

    widths: set[int] = set()
    first = ""  # wrapped cell
    two_lines = 0  # the first row that has them
    surely, bare = False, False  # a mark doubled or a separator wrapped; a word that is not wrapped
    for row in _raw(Lines(text.shown, watched(), text.end), separator):
        if row.fault and row.fault != _NUL:
            return False, ""
        if not any(_unwrapped(cell).strip() for cell in row.cells):
            continue
        widths.add(len(row.cells))
        for cell in row.cells:
            if not cell.startswith('"'):
                if '"' in cell:
                    return False, ""
                bare = bare or bool(cell.strip()) and as_number(cell) is None
                continue
            first = first or cell
            surely = surely or '""' in cell[1:-1] or separator in cell
            two_lines = two_lines or (row.line if text.end in cell else 0)
    if not first or len(widths) > 1:
        return False, ""
    if len(plain_widths) > 1:
        return True, ""
    if two_lines:
        raise BadInput(
            f"{text.shown!r} line {two_lines} begins a row of several lines if its cells are quoted, else one of one "
            "line, and both may be meant: give quoting=quoted or quoting=none"
        )
    if surely or not bare:
        return True, ""
    kept = f"cells of {text.shown!r} in quotation marks keep them, as {shortened(first, 40)}"
    return False, f"{kept}; quoting=quoted takes the marks off"


def usual_width(rows: Sequence[Row]) -> int:
    """The most common number of cells, the first of several."""
    return Counter(len(row.cells) for row in rows).most_common(1)[0][0]


def refuse_single(shown: str, rows: Sequence[Row], separator: str) -> None:
    """Raises BadInput for a table of one column where more are needed."""
    first = rows[0].cells[0]
    other = next((mark for mark in "\t,;|" if mark != separator and mark in first), "")
    hint = f"give separator={other!r}" if other else "give another separator, or mend the file"
    if first.lstrip().startswith("{"):
        hint = "name it .jsonl if each line is a JSON object"
    raise BadInput(
        f"{shown!r} has a single column where its cells are separated by {separator!r}; line {rows[0].line} is "
        f"{shortened(first, 60)!r}: {hint}"
    )


def wrong_width(row: Row, width: int, separator: str) -> str:
    """What is wrong with a row of another width."""
    given = len(row.cells)
    if given > width:
        marks = {"\t": "a tab inside a text", ",": "an unquoted comma"}
        why = marks.get(separator, f"{separator!r} inside a text")
        quoted = any(cell.startswith('"') for cell in row.cells) and separator == "\t"
        why += " is the usual cause" + (
            " (if cells are quoted, set quoting=quoted)" if quoted else ""
        )
    else:
        why = "a line end inside a text is the usual cause"
    return f"has {given} cell{'s' * (given != 1)}, expected {width}: {why}"


def json_rows(text: Text, keys: Sequence[str], optional: Sequence[str] = ()) -> list[Row]:
    """The values of these keys in the objects, one a line. `optional`: those of the keys that an object
    may lack, "" then.

    Raises:
        BadInput: a key that no object has.
    """
    rows: list[Row] = []
    present: dict[str, None] = {}
    for number, line in enumerate(text.plain_lines(), start=1):
        if not line.strip():
            continue
        record = _json(line)
        if isinstance(record, str):
            rows.append(Row(number, [], record))
            continue
        present.update(dict.fromkeys(record))
        rows.append(_values(record, number, keys, optional))
    for key in keys:
        if present and key not in (*present, *optional):
            raise BadInput(
                f"{text.shown!r}: no object has the key {shortened(key)!r} (a .jsonl file has no numbered columns): "
                f"{nearest(key, present)}"
            )
    return rows


def json_row(line: str, number: int, keys: Sequence[str]) -> Row:
    """The values of these keys in the object of a line."""
    record = _json(line)
    return Row(number, [], record) if isinstance(record, str) else _values(record, number, keys)


def _values(
    record: dict[str, Any], number: int, keys: Sequence[str], optional: Sequence[str] = ()
) -> Row:
    found = [
        ("", "") if key in optional and record.get(key) is None else _value(record, key)
        for key in keys
    ]
    return Row(number, [value for value, _ in found], next((why for _, why in found if why), ""))


class _Number(str):
    """A number as the file spells it."""


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _json(line: str) -> dict[str, Any] | str:
    """The object, or what is wrong with the line."""
    try:
        record = json.loads(
            line, parse_int=_Number, parse_float=_Number, parse_constant=_no_constant
        )
    except (ValueError, RecursionError) as error:
        return f"is not JSON ({shortened(error)}), expected an object a line"
    if not isinstance(record, dict):
        return "holds no JSON object, expected one a line"
    return record


def _value(record: dict[str, Any], key: str) -> tuple[str, str]:
    """A value as text, or what is wrong with it."""
    if key not in record:
        return "", f"has no key {shortened(key)!r} ({nearest(key, record)})"
    value = record[key]
    if isinstance(value, bool):
        return str(value).lower(), ""
    if not isinstance(value, str):
        kind = "null" if value is None else "a list" if isinstance(value, list) else "an object"
        return "", f"has {kind} as {shortened(key)!r}, expected text, a number, true or false"
    if "\0" in value:
        return "", _NUL
    if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
        return "", f"has half a character (a lone surrogate) in {shortened(key)!r}"
    return str(value), ""
