"""Finished rows of a table: a small JSON file beside the script that makes them, and its lines in docs/results.md.

A row is written as soon as it is finished, so that a lost machine loses the one under way."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Sequence
from typing import Any

HERE = pathlib.Path(__file__).resolve().parent
RESULTS = HERE.parent / "docs" / "results.md"
Row = dict[str, Any]


def read(path: pathlib.Path) -> list[Row]:
    """The rows so far."""
    return json.loads(path.read_text()) if path.exists() else []


def finished(path: pathlib.Path, which: Row) -> bool:
    """Whether there is a row with all that `which` says."""
    return any(which.items() <= row.items() for row in read(path))


def add(path: pathlib.Path, row: Row, names: Sequence[str]) -> list[Row]:
    """All rows with `row` among them, in the place of one that is alike in `names`. The file is read again: another
    process may have added to it."""

    def known_by(row: Row) -> list[Any]:
        return [row[name] for name in names]

    rows = [*(held for held in read(path) if known_by(held) != known_by(row)), row]
    path.write_text(json.dumps(rows, indent=1) + "\n")
    print(json.dumps(row), flush=True)
    return rows


def table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    """A table in Markdown."""
    found = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    return [*found, *(f"| {' | '.join(cells)} |" for cells in lines)]


def put(name: str, lines: Sequence[str]) -> None:
    """Puts `lines` between the marks of `name` in docs/results.md, at its end if it has none."""
    begin, end = (f"<!-- {name}: {which} -->" for which in ("begin", "end"))
    before, _, rest = RESULTS.read_text().partition(begin)
    after = rest.partition(end)[2]
    RESULTS.write_text(
        "\n".join([before.rstrip("\n"), "", begin, "", *lines, "", end + (after or "\n")])
    )
