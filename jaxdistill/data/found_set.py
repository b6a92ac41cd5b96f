"""What a library knows of a labelled set that was named: its splits and their rows. Called by data_sets,
hf_sets and tfds_sets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple


class Table(NamedTuple):
    """The rows of one split. `classes`: every column by name, and the names of its classes in the order
    of their numbers, () of one without classes; of a list of classes too. `rows(names)`: the values of
    these columns in each row, as Python's own types."""

    classes: Mapping[str, tuple[str, ...]]
    rows: Callable[[Sequence[str]], Iterator[tuple[Any, ...]]]


class Found(NamedTuple):
    """A set. `split`: that which the source names, "" if it names none; `splits`: those that there
    are; `table`: one of them, or a slice of it."""

    split: str
    splits: tuple[str, ...]
    table: Callable[[str], Table]
