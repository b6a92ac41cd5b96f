"""Labelled sentences and sentence pairs from a table (.tsv or .csv), as tokenised batches for
fine-tuning.

The training loader has the pre-training loader's semantics: example n of the run is a function of
(seed, n), so it resumes anywhere and hosts slice the global batch. Called by `run` for `jaxdistill
finetune --task_file`."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import itertools
import math
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any, SupportsIndex

import numpy as np
from etils import epath

from jaxdistill.data import files, loader, randomness, text_files, tokenizers
from jaxdistill.data.loader import Batch
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

    def take(self, rows: Sequence[int]) -> LabelledText:
        """Only these rows, in this order."""
        pairs = None if self.pairs is None else tuple(self.pairs[row] for row in rows)
        return dataclasses.replace(
            self,
            texts=tuple(self.texts[row] for row in rows),
            pairs=pairs,
            labels=self.labels[list(rows)],
        )


@dataclasses.dataclass(frozen=True)
class TokenizedTask:
    """`input_ids`, `attention_mask`, `token_type_ids` int32 [N, L]; `labels` int32 [N]."""

    input_ids: np.ndarray
    attention_mask: np.ndarray
    token_type_ids: np.ndarray
    labels: np.ndarray
    label_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self, numbers: np.ndarray) -> Batch:
        """The rows of these numbers, int64 [B], as a batch."""
        keys = ("input_ids", "attention_mask", "token_type_ids", "labels")
        batch: Batch = {key: getattr(self, key)[numbers] for key in keys}
        batch["example_weights"] = np.ones(len(numbers), np.float32)
        return batch


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


def tokenize_examples(
    examples: LabelledText, tokenizer: Any, sequence_length: int
) -> TokenizedTask:
    """Rows [CLS] A [SEP] or [CLS] A [SEP] B [SEP], cut to L = sequence_length, the longer of A and
    B first."""
    if sequence_length < 8:
        raise BadInput(f"sequence_length={sequence_length}: expected 8 or more")
    special = tokenizers.describe(tokenizer).special
    backend = tokenizers.plain_backend(tokenizer)
    first = [
        encoding.ids
        for encoding in backend.encode_batch_fast(list(examples.texts), add_special_tokens=False)
    ]
    second: Sequence[list[int] | None] = [None] * len(first)
    if examples.pairs is not None:
        second = [
            encoding.ids
            for encoding in backend.encode_batch_fast(
                list(examples.pairs), add_special_tokens=False
            )
        ]
    shape = (len(first), sequence_length)
    input_ids = np.full(shape, special.pad, np.int32)
    attention_mask, token_type_ids = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    for row, (a, b) in enumerate(zip(first, second)):
        ids, second_begins = _frame(a, b, sequence_length, special.cls, special.sep)
        input_ids[row, : len(ids)] = ids
        attention_mask[row, : len(ids)] = 1
        token_type_ids[row, second_begins : len(ids)] = 1
    return TokenizedTask(
        input_ids, attention_mask, token_type_ids, examples.labels, examples.label_names
    )


def _frame(
    a: list[int], b: list[int] | None, length: int, cls: int, sep: int
) -> tuple[list[int], int]:
    """One row's ids, and where its second segment begins."""
    if b is None:
        ids = [cls, *a[: length - 2], sep]
        return ids, len(ids)
    room = length - 3
    keep_b = min(len(b), max(room // 2, room - len(a)))
    head = [cls, *a[: room - keep_b], sep]
    return [*head, *b[:keep_b], sep], len(head)


@dataclasses.dataclass(frozen=True)
class _TaskSource:
    """Grain's view of the endless run over a task: item k is this host's part of batch k."""

    task: TokenizedTask
    seed: int
    batch_size: int
    start_example: int
    first_row: int
    num_rows: int

    def __len__(self) -> int:
        return (loader.ENDLESS - self.start_example) // self.batch_size

    def __getitem__(self, index: SupportsIndex) -> Batch:
        first = self.start_example + int(index) * self.batch_size + self.first_row
        epoch, place = np.divmod(np.arange(first, first + self.num_rows), len(self.task))
        return self.task.rows(randomness.permute(place, len(self.task), self.seed, epoch))


def classification_batches(
    task: TokenizedTask,
    *,
    batch_size: int,
    seed: int,
    start_example: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    prefetch: bool = True,
) -> Iterator[Batch]:
    """Training batches without end, shuffled each epoch; arguments as in `loader.make_loader`.

    A batch has input_ids, attention_mask, token_type_ids int32 [B, L], labels int32 [B],
    example_weights float32 [B]."""
    num_rows = loader.rows_a_host(batch_size, process_index, process_count)
    source = _TaskSource(task, seed, batch_size, start_example, process_index * num_rows, num_rows)
    return loader.read_through_grain(source, prefetch)


def classification_eval_batches(
    task: TokenizedTask, *, batch_size: int, process_index: int = 0, process_count: int = 1
) -> Iterator[Batch]:
    """Every example once, in order; the last batch filled up with copies of the last row of
    `example_weights` 0."""
    num_rows = loader.rows_a_host(batch_size, process_index, process_count)
    for begin in itertools.islice(itertools.count(0, batch_size), -(-len(task) // batch_size)):
        place = np.arange(begin, begin + num_rows) + process_index * num_rows
        batch = task.rows(np.minimum(place, len(task) - 1))
        batch["example_weights"] = (place < len(task)).astype(np.float32)
        yield batch
