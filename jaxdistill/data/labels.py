"""Labels as numbers: which classes a column holds, and their order. Called by classification and
tagging."""

from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal

import numpy as np
from etils import epath

from jaxdistill.data import table_text
from jaxdistill.errors import MOST_LISTED, BadInput, nearest, shortened

Place = tuple[str, int]  # a file and a line
UNSEEN = ("refuse", "wrong")
# More labels than that are looked at: a column of sentences or numbers has nearly as many values as
# rows.
MANY_LABELS, VERY_MANY_LABELS = 20, 1000
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?")


@dataclasses.dataclass(frozen=True)
class Labels:
    """`numbers`: int32 [N], numbers into `names`; -1 for a label that is not among them. `notices`:
    what the user should know, a line each."""

    numbers: np.ndarray
    names: tuple[str, ...]
    notices: tuple[str, ...] = ()


def as_number(cell: str) -> float | None:
    """The finite number that a cell spells, or None."""
    if not _NUMBER.fullmatch(cell.strip()):
        return None
    number = float(cell.strip())  # which strips more than float does
    return number if math.isfinite(number) else None


def as_integer(cell: str) -> str | None:
    """The usual spelling of a cell's integer, "1" of "1.0" or "1e0"; None if it spells none."""
    if as_number(cell) is None:
        return None
    number = Decimal(cell.strip())
    return str(int(number)) if number == number.to_integral_value() else None


def number_labels(
    cells: Sequence[str],
    places: Sequence[Place],
    what: str,
    known: Sequence[str] | None = None,
    unseen: str = "refuse",
) -> Labels:
    """Numbers the labels of a column. If all labels are integers, 1 and 1.0 are the same one.

    Args:
        cells, places: the column, and where each of its cells is.
        what: the column in words, for messages: "'train.tsv' column 'label'".
        known: the labels in the order of their numbers, e.g. those of the training file; by default
            all that occur, numbers by value before words by the alphabet.
        unseen: "refuse" a label that is not known, or number it -1, as "wrong".

    Raises:
        BadInput: a label that is not known or missing, with its line; a column that holds no classes.
    """
    if unseen not in UNSEEN:
        raise BadInput(f"unseen_labels={unseen!r}: {nearest(unseen, UNSEEN)}")
    found = [cell.strip() for cell in cells]
    if "" in found:
        file, line = places[found.index("")]
        raise BadInput(f"{file!r} line {line} has no label; mend or remove the line")
    names, are_integers = _known(known) if known is not None else _classes(Counter(found), what)
    if len(names) < 2:
        raise BadInput(
            f"{what} holds one label only, {shortened(names[0])!r}: is it the label column?"
            if names
            else f"{what} holds no label: is it the label column?"
        )
    number_of = {name: number for number, name in enumerate(names)}
    # Each spelling is looked up once: there are few of them.
    of_spelling = {
        label: number_of.get((as_integer(label) or label) if are_integers else label, -1)
        for label in set(found)
    }
    numbers = np.array([of_spelling[label] for label in found], np.int32)
    others = Counter(label for label in found if of_spelling[label] < 0)
    if others and unseen == "refuse":
        _refuse_unseen(found, places, names, of_spelling)
    return Labels(numbers, names, (_unseen_notice(others),) if others else ())


def _known(known: Sequence[str]) -> tuple[tuple[str, ...], bool]:
    """The given names, and whether they are integers."""
    names = [name.strip() for name in known]
    are_integers = all(as_integer(name) is not None for name in names)
    if are_integers:
        names = [as_integer(name) or name for name in names]
    for name, count in Counter(names).items():
        if count > 1:
            raise BadInput(f"label {shortened(name)!r} is listed {count} times; list it once")
    return tuple(names), are_integers


def _classes(counts: Counter[str], what: str) -> tuple[tuple[str, ...], bool]:
    """The names of all labels that occur, sorted, and whether they are integers."""
    are_integers = all(as_integer(label) is not None for label in counts)
    labels = {as_integer(label) or label for label in counts} if are_integers else set(counts)
    names = tuple(sorted(labels, key=_order))
    if not are_integers and all(as_number(name) is not None for name in names):
        broken = next(name for name in names if as_integer(name) is None)
        raise BadInput(
            f"{what} holds numbers that are no classes, as {shortened(broken)!r}: are they scores? Use "
            "task=regression, or list the labels with label_file=FILE"
        )
    rows = counts.total()
    least = 10 if len(names) > VERY_MANY_LABELS else 2
    if len(names) > MANY_LABELS and rows < least * len(names):
        raise BadInput(
            f"{what} holds {len(names):,} labels in {rows:,} rows, as {shortened(names[0])!r}: it is text or "
            "numbers, not classes; give the label column, or list the labels with label_file=FILE"
        )
    return names, are_integers


def _order(label: str) -> tuple[int, float, str]:
    number = as_number(label)
    return (1, 0.0, label) if number is None else (0, number, label)


def _refuse_unseen(
    found: Sequence[str], places: Sequence[Place], names: Sequence[str], of_spelling: dict[str, int]
) -> None:
    for label, (file, line) in zip(found, places):
        if of_spelling[label] < 0:
            raise BadInput(
                f"{file!r} line {line}: label {shortened(label)!r} is not known: {nearest(shortened(label), names)}; "
                "mend it, set unseen_labels=wrong to count such rows as wrong, or list all labels with label_file=FILE"
            )


def _unseen_notice(others: Counter[str]) -> str:
    ordered = sorted(others.items(), key=lambda item: (-item[1], _order(item[0])))
    shown = ", ".join(f"{shortened(name)!r} ({count:,})" for name, count in ordered[:MOST_LISTED])
    if len(ordered) > MOST_LISTED:
        shown += f" and {len(ordered) - MOST_LISTED:,} more"
    if others.total() == 1:
        return f"1 row has a label that the training file lacks: {shown}; it counts as wrong"
    return f"{others.total():,} rows have labels that the training file lacks: {shown}; they count as wrong"


def read_label_file(path: epath.PathLike) -> tuple[str, ...]:
    """The labels of a file, one a line, in the order of their numbers.

    Raises:
        BadInput: no such file; a label twice, a blank line between labels, or fewer than two labels.
    """
    text = table_text.read_text(path)
    labels = [line.strip() for line in text.plain_lines()]
    while labels and not labels[-1]:
        labels.pop()
    first: dict[str, int] = {}
    for number, label in enumerate(labels, start=1):
        where = f"label file {text.shown!r} line {number}"
        if not label or "\t" in label or "\0" in label:
            wrong = "is blank" if not label else "holds a tab or a NUL character"
            raise BadInput(f"{where} {wrong}: expected one label a line and nothing else")
        if label in first:
            raise BadInput(
                f"{where}: label {shortened(label)!r} stands in line {first[label]} already; remove one of them"
            )
        first[label] = number
    if len(labels) < 2:
        raise BadInput(
            f"label file {text.shown!r} holds {len(labels)} labels: expected two or more, one a line"
        )
    return tuple(labels)


def as_scores(cells: Sequence[str], places: Sequence[Place], what: str) -> np.ndarray:
    """The numbers of a column, float32 [N].

    Raises:
        BadInput: a cell that is no finite number (of float32), with its line.
    """
    scores = np.zeros(len(cells), np.float32)
    largest = float(np.finfo(np.float32).max)
    for row, (cell, (file, line)) in enumerate(zip(cells, places)):
        number = as_number(cell)
        if number is None or abs(number) > largest:
            raise BadInput(
                f"{file!r} line {line}: {shortened(cell)!r} is no finite number; {what} must hold one in each row, "
                "as 3.75: mend the line, or give the column of the scores"
            )
        scores[row] = number
    return scores
