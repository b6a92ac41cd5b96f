"""The rows of a table's lines: cells between separators, in quotation marks or not, or the values of
JSON objects. Called by columns."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from jaxdistill.data.labels import as_number
from jaxdistill.data.table_text import BOM, Text, plain
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


def table_rows(text: Text, separator: str, quoting: str) -> tuple[list[Row], str]:
    """The rows that are not blank, those with faults too; and a notice, or "".

    Args:
        quoting: "none", "quoted", or "auto", which takes cells as quoted where the file shows it.

    Raises:
        BadInput: with "auto" the file can be read in both ways.
    """
    notice = ""
    raw: Iterable[Row] | None = _raw(text, separator) if quoting == "quoted" else None
    if quoting == "auto":
        raw, notice = _recognised(text, separator)
    if raw is None:
        return list(_literal(text, separator)), notice
    return [Row(line, [*map(_unwrapped, cells)], fault) for line, cells, fault in raw], notice


def _literal(text: Text, separator: str) -> Iterator[Row]:
    for number, line in enumerate(text.plain_lines(), start=1):
        cells = line.split(separator)
        if any(cell.strip() for cell in cells):
            yield Row(number, cells, _NUL if "\0" in line else "")


def _raw(text: Text, separator: str) -> Iterator[Row]:
    """The rows with quoted cells; these still have their marks. After a fault goes on in the next line."""
    at = scanned = 0
    while at < len(text.lines):
        line = text.lines[at]
        after, fault = at + 1, ""
        if '"' in line:
            cells, after, fault = _raw_cells(text, at, separator)
        else:
            cells = plain(line).split(separator)
        if not fault and any("\0" in line for line in text.lines[at:after]):
            fault = _NUL
        if fault or any(_unwrapped(cell).strip() for cell in cells):
            yield Row(at + 1, cells, fault)
        scanned += after - at
        if scanned > _MOST_SCANS * len(text.lines):
            raise BadInput(
                f"{text.shown!r} line {at + 1}: too many quotation marks open a cell and none closes it; "
                "give quoting=none if cells are not quoted, or mend the file"
            )
        at = at + 1 if fault else after


def _raw_cells(text: Text, at: int, separator: str) -> tuple[list[str], int, str]:
    """The cells of the row that begins with a line, the line after it, and what is wrong with it."""
    line = text.lines[at].removeprefix(BOM)
    cells: list[str] = []
    position = 0
    while True:
        if line.startswith('"', position):
            cell, line, position, at = _wrapped_cell(text, line, position, at)
            if at == len(text.lines):
                return [], at, "opens a cell with a quotation mark that none closes"
            cells.append(cell)
            stop = len(line.rstrip("\r"))
            if position < stop and line[position] != separator:
                return [], at + 1, "has text after the quotation mark that closes a cell"
        else:
            stop = len(line.rstrip("\r"))
            end = line.find(separator, position, stop)
            end = stop if end < 0 else end
            cells.append(line[position:end])
            position = end
        if position >= stop:
            return cells, at + 1, ""
        position += 1


def _wrapped_cell(text: Text, line: str, begin: int, at: int) -> tuple[str, str, int, int]:
    """The cell with its marks; the line where it ends, the position after it there, the line's
    number. That is after the last line if no mark closes the cell."""
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
        if at == len(text.lines):
            return "", line, position, at
        parts.append(text.end)
        line, position = text.lines[at], 0


def _unwrapped(cell: str) -> str:
    return cell[1:-1].replace('""', '"') if cell.startswith('"') else cell


def _recognised(text: Text, separator: str) -> tuple[Iterable[Row] | None, str]:
    """The rows if the file's cells are quoted, with their marks, else None; and a notice.

    As quoted counts a file whose quotation marks all wrap cells, doubled inside, into rows of one
    width. If it has one width without quoting too, some mark must be doubled, some cell hold a
    separator, or all words be wrapped: a sentence may be no more than a quotation."""
    if not any('"' in line for line in text.lines):
        return None, ""
    rows: list[Row] = []
    for row in _raw(text, separator):
        loose = any('"' in cell and cell[0] != '"' for cell in row.cells)
        if loose or (row.fault and row.fault != _NUL):
            return None, ""
        rows.append(row)
    cells = [cell for row in rows for cell in row.cells]
    wrapped = [cell for cell in cells if cell.startswith('"')]
    if not wrapped or not _even(rows):
        return None, ""
    if not _even(_literal(text, separator)):
        return rows, ""
    if any(text.end in cell for cell in wrapped):
        line = next(row.line for row in rows if any(text.end in cell for cell in row.cells))
        raise BadInput(
            f"{text.shown!r} line {line} begins a row of several lines if its cells are quoted, else one of one line, "
            "and both may be meant: give quoting=quoted or quoting=none"
        )
    words = (cell for cell in cells if cell.strip() and as_number(cell) is None)
    if any('""' in cell[1:-1] or separator in cell for cell in wrapped) or all(
        cell[0] == '"' for cell in words
    ):
        return rows, ""
    kept = f"cells of {text.shown!r} in quotation marks keep them, as {shortened(wrapped[0], 40)}"
    return None, f"{kept}; quoting=quoted takes the marks off"


def _even(rows: Iterable[Row]) -> bool:
    """Whether all have one number of cells."""
    return len({len(row.cells) for row in rows}) < 2


def usual_width(rows: Sequence[Row]) -> int:
    """The most common number of cells, the first of several."""
    return Counter(len(row.cells) for row in rows).most_common(1)[0][0]


def refuse_single(text: Text, rows: Sequence[Row], separator: str) -> None:
    """Raises BadInput for a table of one column where more are needed."""
    first = rows[0].cells[0]
    other = next((mark for mark in "\t,;|" if mark != separator and mark in first), "")
    hint = f"give separator={other!r}" if other else "give another separator, or mend the file"
    if first.lstrip().startswith("{"):
        hint = "name it .jsonl if each line is a JSON object"
    raise BadInput(
        f"{text.shown!r} has a single column where its cells are separated by {separator!r}; line {rows[0].line} is "
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
        cells: list[str] = []
        fault = ""
        for key in keys:
            absent = key in optional and record.get(key) is None
            value, why = ("", "") if absent else _value(record, key)
            cells.append(value)
            fault = fault or why
        rows.append(Row(number, cells, fault))
    for key in keys:
        if present and key not in (*present, *optional):
            raise BadInput(
                f"{text.shown!r}: no object has the key {shortened(key)!r} (a .jsonl file has no numbered columns): "
                f"{nearest(key, present)}"
            )
    return rows


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
