"""Tables that a user's own file may add rows to: kinds of stages, losses, heads.

A row of ours cannot be replaced, nor one that another file has added: a name means one thing in a
process. A file that is read again replaces its own rows. Called by `kinds`, `terms` and `heads`; by
`configuration`, which reads recipes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import TypeVar

from jaxdistill.errors import BadInput, nearest

Row = TypeVar("Row")
OURS, NO_FILE = "jaxdistill", "code outside a recipe"
_reading = [NO_FILE]  # the file whose code runs now
_added: set[str] = set()  # files that have added rows


class Table(dict[str, Row]):
    """Rows by name. `what` they are, for messages."""

    def __init__(self, what: str, rows: Mapping[str, Row]) -> None:
        super().__init__(rows)
        self.what = what
        self._owners = dict.fromkeys(rows, OURS)

    def named(self, name: str, where: str = "") -> Row:
        """The row `name`. Raises `BadInput` with the nearest name if there is none; `where` says what
        was given, default what the rows are."""
        if name not in self:
            raise BadInput(f"{where or self.what + ' '}{name!r} is unknown; {nearest(name, self)}")
        return self[name]

    def register(self, name: str, row: Row) -> None:
        """Adds a row. Raises `BadInput` if the name is taken."""
        owner = self._owners.setdefault(name, _reading[-1])
        if owner != _reading[-1]:
            raise BadInput(
                f"{self.what} {name!r} is there already, from {owner}; give yours another name"
            )
        self[name] = row
        _added.add(owner)


@contextlib.contextmanager
def reading(file: str) -> Iterator[None]:
    """While the code of `file` runs: what it registers is its own."""
    _reading.append(file)
    try:
        yield
    finally:
        _reading.pop()


def adds_rows(file: str) -> bool:
    """Whether `file` has registered anything."""
    return file in _added
