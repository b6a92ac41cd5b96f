"""Tables of labelled texts, .tsv or .csv: a text, a label, and perhaps a second text in each row.
Called by `classification`."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import math
import os
import re
from collections.abc import Iterator, Sequence

import numpy as np
from etils import epath

from jaxdistill.data import files, text_files
from jaxdistill.errors import BadInput, listed, nearest, shortened

Column = str | int
LARGEST_TABLE = 2**31  # bytes of memory, about; some kilobytes of .xz may unpack to gigabytes
# More labels than that are looked at: a column of sentences or numbers has nearly as many values as
# rows.
MANY_LABELS, VERY_MANY_LABELS = 20, 1000
_ROW_OVERHEAD = 200


@dataclasses.dataclass(frozen=True)
class LabelledText:
    """N rows: `texts`, `pairs` (the second sentences, or None), `labels` int32 [N], numbers into
    `label_names`."""

    texts: tuple[str, ...]
    pairs: tuple[str, ...] | None
    labels: np.ndarray
    label_names: tuple[str, ...]

    @property
    def digest(self) -> str:
        """Of all that it holds."""
        return files.digest_of([self.texts, self.pairs, self.labels.tolist(), self.label_names])

    def take(self, rows: Sequence[int]) -> LabelledText:
        """Only these rows, in this order."""
        pairs = None if self.pairs is None else tuple(self.pairs[row] for row in rows)
        return dataclasses.replace(
            self,
            texts=tuple(self.texts[row] for row in rows),
            pairs=pairs,
            labels=self.labels[list(rows)],
        )


def read_classification_tsv(
    path: epath.PathLike,
    text_column: Column,
    label_column: Column,
    pair_column: Column | None = None,
    label_names: Sequence[str] | None = None,
) -> LabelledText:
    """Reads a table with a text, a label, and perhaps a second text in each row.

    Tab-separated without quoting (as GLUE's files are), or for names with `.csv` comma-separated
    with quoting; also packed as .xz or .gz. Columns are named by the header, or numbered from 0
    (ints or digits). With numbers a header is recognised by its label, which no other row has.

    Args:
        path: the file.
        text_column, label_column, pair_column: which columns.
        label_names: the labels in the order of their numbers, e.g. those of the training file; by default all that
            occur, sorted (numbers by value).

    Raises:
        BadInput: no such file or column; a row that is too short or a label that is not known, with its line.
    """
    file = epath.Path(path).expanduser()
    shown = os.fspath(file)
    if not file.exists() or file.is_dir():
        raise BadInput(
            f"task file {shown!r} does not exist or is a folder; {files.nearest_beside(file)}"
        )
    rows = _rows(file)
    if not rows:
        raise BadInput(
            f"task file {shown!r} is empty: expected one example a line, columns separated by tabs"
        )
    header = rows[0][1]
    columns = [text_column, label_column] + ([] if pair_column is None else [pair_column])
    if all(_is_number(column) for column in columns):
        places = [int(column) for column in columns]
        first_label = header[places[1]] if places[1] < len(header) else None
        known = label_names is not None and (first_label or "").strip() in label_names
        has_header = (
            len(rows) > 1
            and not known
            and all(row[places[1] : places[1] + 1] != [first_label] for _, row in rows[1:])
        )
    else:
        places = [_place(column, header, shown) for column in columns]
        has_header = True
    if len(set(places)) < len(places):
        raise BadInput(
            f"{shown!r}: text, label and pair are columns {listed(columns)}; they must differ"
        )
    rows = rows[1:] if has_header else rows
    for line, row in rows:
        if len(row) <= max(places):
            raise BadInput(
                f"{shown!r} line {line} has {len(row)} columns: expected at least {max(places) + 1}; mend the line"
            )
    if not rows:
        raise BadInput(f"task file {shown!r} has a header but no examples")
    given = [row[places[1]].strip() for _, row in rows]
    if "" in given:
        raise BadInput(
            f"{shown!r} line {rows[given.index('')][0]} has no label; mend or remove the line"
        )
    names = (
        tuple(label_names)
        if label_names is not None
        else tuple(sorted(set(given), key=_label_order))
    )
    if len(names) < 2:
        raise BadInput(
            f"{shown!r} column {label_column!r} holds one label only, {shortened(names[0])!r}: is it the label column?"
        )
    rows_a_label = len(given) / len(names)
    if (
        label_names is None
        and len(names) > MANY_LABELS
        and rows_a_label < (10 if len(names) > VERY_MANY_LABELS else 2)
    ):
        raise BadInput(
            f"{shown!r} column {label_column!r} holds {len(names):,} labels in {len(given):,} rows, as "
            f"{shortened(names[0])!r}: it is text or numbers, not classes; give the label column"
        )
    number_of = {name: number for number, name in enumerate(names)}
    for (line, _), label in zip(rows, given):
        if label not in number_of:
            raise BadInput(
                f"{shown!r} line {line}: label {shortened(label)!r}: {nearest(shortened(label), names)}"
            )
    return LabelledText(
        texts=tuple(row[places[0]].strip() for _, row in rows),
        pairs=None if pair_column is None else tuple(row[places[2]].strip() for _, row in rows),
        labels=np.array([number_of[label] for label in given], np.int32),
        label_names=names,
    )


def _with_limit(lines: Iterator[str], shown: str) -> Iterator[str]:
    """The lines with their ends; the table is held in memory, so raises BadInput where it gets too
    large for that."""
    size = 0
    for line in lines:
        size += len(line) + _ROW_OVERHEAD
        if size > LARGEST_TABLE:
            raise BadInput(
                f"task file {shown!r} holds more than fits into {LARGEST_TABLE:,} bytes of memory: give a part of it"
            )
        yield line + "\n"


def _rows(file: epath.Path) -> list[tuple[int, list[str]]]:
    """The rows that are not blank, each with the number of its (last) line."""
    is_csv = file.name.removesuffix(".xz").removesuffix(".gz").endswith(".csv")
    lines = _with_limit(text_files.read_lines(file), os.fspath(file))
    before = csv.field_size_limit(
        LARGEST_TABLE
    )  # 131,072 characters otherwise; texts are cut to the model's length anyway
    if is_csv:
        reader = csv.reader(lines, strict=True)
    else:
        reader = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
    try:
        return [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise BadInput(
            f"{os.fspath(file)!r} line {reader.line_num} is not a table row ({error}): mend the line"
        ) from error
    finally:
        csv.field_size_limit(before)


def _place(column: Column, header: list[str], shown: str) -> int:
    if _is_number(column) and str(column) not in header:
        return int(column)
    if column not in header:
        raise BadInput(
            f"{shown!r} has no column {shortened(column)!r}: {nearest(str(column), map(shortened, header))}"
        )
    return header.index(str(column))


def _is_number(column: Column) -> bool:
    return re.fullmatch("[0-9]{1,9}", str(column)) is not None


def _label_order(label: str) -> tuple[int, float, str]:
    """Numbers by value, then everything else by the alphabet."""
    try:
        number = float(label)
    except ValueError:
        number = math.nan
    return (
        (0, number, label) if math.isfinite(number) else (1, 0.0, label)
    )  # nan has no place among numbers


def split_examples(
    examples: LabelledText, dev_fraction: float = 0.1
) -> tuple[LabelledText, LabelledText]:
    """A training and a development part of one file, by a digest of each text: equal texts stay
    together.

    Raises:
        BadInput: one of the parts would be empty.
    """
    second = examples.pairs or ("",) * len(examples.texts)
    digests = (
        hashlib.sha256(f"{a}\t{b}".encode()).digest()[:8] for a, b in zip(examples.texts, second)
    )
    in_dev = [int.from_bytes(digest, "big") < dev_fraction * 2.0**64 for digest in digests]
    if all(in_dev) or not any(in_dev):
        raise BadInput(
            f"{len(in_dev)} examples are too few to keep {dev_fraction:.0%} of them for development: give a second file"
        )
    parts = ([row for row, dev in enumerate(in_dev) if dev == wanted] for wanted in (False, True))
    train, dev = (examples.take(rows) for rows in parts)
    return train, dev


def predictions_table(text: LabelledText, predictions: np.ndarray) -> str:
    """A line for each row: its label, the predicted one, its text."""
    lines = ["label\tprediction\ttext"]
    for label, predicted, sentence in zip(text.labels, predictions, text.texts):
        cells = (text.label_names[label], text.label_names[predicted], sentence)
        # A quoted cell may hold tabs and line ends.
        lines.append("\t".join(" ".join(cell.split()) for cell in cells))
    return "\n".join(lines) + "\n"
