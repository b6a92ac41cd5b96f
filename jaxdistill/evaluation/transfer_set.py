"""Training rows of a task and, beside them, texts that nobody labelled, of which a student learns what its
teacher says (Well-Read Students, arXiv:1908.08962: the transfer set).

A row's `label_weights` say whether it has a true answer to learn: 1 or 0. Called by derived."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
from typing import Any, Literal

import numpy as np

from jaxdistill.data import encoded, files, tokenizers
from jaxdistill.data.conll import Tagged, read_conll
from jaxdistill.data.encoded import Encoded, join
from jaxdistill.data.feeds import Batch, Feed, Parts, Reader, Rows, Shape
from jaxdistill.data.rows import reader_of
from jaxdistill.data.squad import read_squad
from jaxdistill.data.tagged import pieces
from jaxdistill.data.unlabelled import TextColumns, read_unlabelled
from jaxdistill.data.windows import windows
from jaxdistill.errors import BadInput
from jaxdistill.evaluation.derivation import Derivation, Making
from jaxdistill.models import Model

LABEL_WEIGHTS = "label_weights"
NONE = Encoded(np.zeros(0, np.int32), np.zeros(1, np.int64), np.zeros(0, np.int32), 0)
_BLANKS = re.compile(r"\s+")
_STRIDE, _QUESTION = 128, 64  # of windows, as SQuAD's are by default


def encode(path: str, columns: TextColumns, feed: Feed, tokenizer: Any) -> Encoded:
    """The texts of a file as rows for the head of `feed`: a text or a pair in each line or row; words with
    blanks between them, or in the first column of a CoNLL file (.txt, .conll); questions in SQuAD's
    form. Raises `BadInput` for a file that cannot be read."""
    pad, length = tokenizers.describe(tokenizer).special.pad, feed.length
    if feed.head == "token_classification":
        found = pieces(_sentences(path, columns), tokenizer, length, ())
        ids, begins = join(found.ids)
        firsts = np.zeros(len(ids), np.float32)
        for begin, places in zip(begins, found.firsts):
            firsts[begin + places] = 1.0
        return Encoded(
            ids,
            begins,
            np.diff(begins).astype(np.int32),
            pad,
            by_token={"tag_weights": (firsts, 0.0)},
        )
    if feed.head == "question_answering":
        question = min(_QUESTION, length // 4)
        stride = min(_STRIDE, length - question - 3)
        rows = windows(read_squad(path), tokenizer, length, stride, question)
        ids, begins = join(rows.ids)
        return Encoded(ids, begins, rows.second_begins, pad)
    texts = list(read_unlabelled(path, columns))
    pairs = [row[1] for row in texts] if columns.pair_column != "" else None
    return encoded.encode([row[0] for row in texts], pairs, tokenizer, length)


def _sentences(path: str, columns: TextColumns) -> Tagged:
    name = os.fspath(path).lower().removesuffix(".xz").removesuffix(".gz")
    if name.endswith((".txt", ".conll")) and columns == TextColumns():
        return read_conll(path, tag_column=None)
    words = [
        tuple(word for word in _BLANKS.split(row[0]) if word)
        for row in read_unlabelled(path, columns)
    ]
    kept = tuple(sentence for sentence in words if sentence)
    return Tagged(kept, None, tuple((path, line) for line in range(1, len(kept) + 1)))


def number(path: str, columns: TextColumns, feed: Feed) -> int:
    """How many texts a file holds; a long one may make several rows."""
    if feed.head == "token_classification":
        return len(_sentences(path, columns))
    if feed.head == "question_answering":
        return len(read_squad(path))
    return len(read_unlabelled(path, columns))


def joined(labelled: Rows | None, others: Rows, row: Any) -> Rows:
    """The rows of both, those with labels first; arrays of `row` that a text without a label lacks are
    zeros there. None: the others alone."""
    lengths = others.lengths
    number = 0 if labelled is None else labelled.number
    if labelled is not None:
        lengths = np.concatenate([labelled.lengths, lengths])

    def fetch(numbers: np.ndarray, length: int) -> Batch:
        of_ours = numbers < number
        parts: list[tuple[np.ndarray, Batch]] = []
        if labelled is not None and of_ours.any():
            parts.append((of_ours, labelled.fetch(numbers[of_ours], length)))
        if not of_ours.all():
            parts.append((~of_ours, others.fetch(numbers[~of_ours] - number, length)))
        batch: Batch = {LABEL_WEIGHTS: of_ours.astype(np.float32)}
        for name, (shape, dtype) in row.items():
            # A row is shorter than its feed's; so is what it has of tokens.
            like = next((part[name].shape[1:] for _, part in parts if name in part), shape)
            batch[name] = np.zeros((len(numbers), *like), dtype)
            for where, part in parts:
                if name in part:
                    batch[name][where] = part[name]
        return batch

    return Rows(lengths, fetch)


def check_head(feed: Feed) -> None:
    """Raises `BadInput` for a task whose rows nobody can follow a teacher on."""
    heads = ("sequence_classification", "token_classification", "question_answering")
    if feed.head not in heads:
        raise BadInput(f"{feed.name!r} has no head that a student could follow a teacher by")


def transfer_set(
    base: Feed,
    _: Model | None,
    *,
    unlabelled: str = "",
    text_column: str = "",
    pair_column: str = "",
    header: Literal["auto", "yes", "no"] = "auto",
    quoting: Literal["auto", "none", "quoted"] = "auto",
    labelled: bool = True,
) -> Derivation:
    """The training rows of a task, if `labelled`, and the texts of the file `unlabelled`, "" for none;
    held-out rows stay. A term on true labels counts the rows that have one, others all."""
    check_head(base)
    if not (unlabelled or labelled):
        raise BadInput(
            f"a transfer set of {base.name!r} without its rows needs unlabelled=FILE, of other texts"
        )
    columns = TextColumns(
        text_column=text_column, pair_column=pair_column, header=header, quoting=quoting
    )

    def read(rows: Reader, making: Making) -> Reader:
        assert rows.parts is not None
        if not unlabelled:
            train = joined(rows.parts.train, NONE.rows, base.row)
        else:
            found = encode(unlabelled, columns, base, making.tokenizer)
            train = joined(rows.parts.train if labelled else None, found.rows, base.row)
        heldout = joined(rows.parts.heldout, NONE.rows, base.row)
        parts = Parts(train, heldout, rows.parts.order)
        return reader_of(parts, rows.answers, rows.notices)

    more, digest = 0, ""
    if unlabelled:
        content = files.find(unlabelled, "unlabelled texts").read_bytes()
        digest = files.digest_of(
            [hashlib.sha256(content).hexdigest(), dataclasses.astuple(columns)]
        )
        more = number(unlabelled, columns, base)
    return Derivation(
        {LABEL_WEIGHTS: Shape((), "float32")},
        read,
        digest,
        (),
        lambda number: number * labelled + more,
    )
