"""Text classification as a feed: labelled sentences and sentence pairs from a table (.tsv or .csv).

Called by `tasks`."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np

from jaxdistill.data import files, tokenizers
from jaxdistill.data.documentation_task import documentation_task
from jaxdistill.data.feeds import About, Batch, Feed, Reader, Rows, Shape
from jaxdistill.data.rows import reader_of
from jaxdistill.data.tables import (
    Column,
    LabelledText,
    predictions_table,
    read_classification_tsv,
    split_examples,
)
from jaxdistill.errors import BadInput
from jaxdistill.settings import LARGEST_COUNT, Within

Length = Annotated[int, Within(8, LARGEST_COUNT)]
Fraction = Annotated[float, Within(0.001, 0.9, "a fraction of the rows, as 0.1")]
_ARRAYS = ("input_ids", "attention_mask", "token_type_ids", "labels")


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
        batch: Batch = {key: getattr(self, key)[numbers] for key in _ARRAYS}
        batch["example_weights"] = np.ones(len(numbers), np.float32)
        return batch


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


def classification(
    about: About,
    *,
    source: str = "default",
    heldout: str = "",
    heldout_fraction: Fraction = 0.1,
    text_column: str = "0",
    pair_column: str = "",
    label_column: str = "1",
    sequence_length: Length = 128,
) -> Feed:
    """One text or a pair of texts in each row of a table, and its class.

    `source`: a table as `read_classification_tsv` reads it, or "default", a small task made of the
    installed documentation; `heldout`: another table, "" keeps `heldout_fraction` of `source` apart.
    Raises `BadInput` for tables that cannot be used."""
    train, dev = read_parts(
        source, heldout, heldout_fraction, (text_column, label_column, pair_column or None)
    )
    ids = Shape((sequence_length,), "int32")

    def read(tokenizer: Any) -> Reader:
        kept, held = (tokenize_examples(text, tokenizer, sequence_length) for text in (train, dev))
        return reader_of(Rows(len(kept), kept.rows), Rows(len(held), held.rows), about.seed)

    return Feed(
        about.name,
        {
            **dict.fromkeys(("input_ids", "attention_mask", "token_type_ids"), ids),
            "labels": Shape((), "int32"),
            "example_weights": Shape((), "float32"),
        },
        read,
        rows=len(train.texts),
        heldout_rows=len(dev.texts),
        digests={"train": train.digest, "heldout": dev.digest},
        tables={"train": source, "heldout": heldout or source},
        head="sequence_classification",
        labels=train.label_names,
        score="classification",
        usual=int(np.bincount(train.labels).argmax()),
        files=lambda logits: {"tsv": predictions_table(dev, np.argmax(logits, -1))},
    )


def read_parts(
    source: str, heldout: str, fraction: float, columns: tuple[Column, Column, Column | None]
) -> tuple[LabelledText, LabelledText]:
    """The training and the held-out rows. `columns`: of text, label and pair."""
    if source == "default":
        folder = files.cache_directory() / "tasks" / "documentation"
        source, heldout = map(os.fspath, documentation_task(folder))
        columns = ("text", "package", None)
    whole = read_classification_tsv(source, *columns)
    if not heldout:
        return split_examples(whole, fraction)
    return whole, read_classification_tsv(heldout, *columns, whole.label_names)
