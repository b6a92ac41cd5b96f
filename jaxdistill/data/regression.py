"""A number for a text, or for a pair of texts, as a feed: STS-B's similarity. Called by tasks and glue."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from jaxdistill.data import encoded, examples
from jaxdistill.data.classification import predictions_table, text_reader, with_columns
from jaxdistill.data.examples import Examples, RowSettings, Texts
from jaxdistill.data.feeds import About, Answers, Feed, Outputs, Reader, Shape
from jaxdistill.data.labels import as_scores


def regression(about: About, *, texts: Texts, rows: RowSettings) -> Feed:
    """One text or a pair of texts in each row, and a number. Raises `BadInput` for tables that cannot
    be used, and for a number that is none."""
    train, held = examples.read_parts(texts)
    ours = as_scores(train.labels, train.places, "the training rows")
    theirs = as_scores(held.labels, held.places, "the held-out rows")

    def read(tokenizer: Any) -> Reader:
        kept = apart = with_columns(train, tokenizer, rows, labels=ours)
        if held is not train:
            apart = with_columns(held, tokenizer, rows, labels=theirs)
        return text_reader(about, rows, kept, apart, functools.partial(_answers, held, theirs))

    return Feed(
        about.name,
        encoded.shapes(rows.sequence_length, labels=Shape((), "float32")),
        read,
        rows=len(train),
        heldout_rows=len(held),
        digests={"train": train.digest(ours), "heldout": held.digest(theirs)},
        tables={"train": texts.source, "heldout": texts.heldout or texts.source},
        head="sequence_classification",
        losses=("regression",),
        score="regression",
        usual=float(ours.mean()),
        notices=tuple(dict.fromkeys((*train.notices, *held.notices))),
        packed=rows.packed,
    )


def _answers(texts: Examples, targets_N: np.ndarray, outputs: Outputs) -> Answers:
    found_N = outputs["logits"][:, 0]
    columns = {"score": texts.labels, "prediction": [f"{value:.4f}" for value in found_N]}
    table = predictions_table(columns, texts.texts, texts.pairs)
    return Answers(targets_N, found_N, {"tsv": table})
