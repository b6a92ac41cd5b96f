"""How alike two texts are, by the cosine of their embeddings, as a feed that is only measured: STS-B for
sentence encoders (Reimers and Gurevych 2019, arXiv:1908.10084, section 4.1). Called by tasks."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from jaxdistill.data import encoded, examples
from jaxdistill.data.classification import predictions_table, text_reader
from jaxdistill.data.cosines import similarities
from jaxdistill.data.encoded import Encoded
from jaxdistill.data.examples import Examples, Length, RowSettings, Texts
from jaxdistill.data.feeds import About, Answers, Feed, Outputs, Reader
from jaxdistill.data.labels import as_scores
from jaxdistill.errors import BadInput


def similarity(
    about: About, *, texts: Texts, sequence_length: Length = 128, buckets: bool = True
) -> Feed:
    """A pair of texts in each row of a table, and how alike they are. Each text is a row of its own: of
    N pairs the first texts, then the second ones. `sequence_length`, `buckets`: as in `RowSettings`. Raises
    `BadInput` for tables that cannot be used."""
    rows = RowSettings(sequence_length=sequence_length, buckets=buckets)
    if not texts.pair_column:
        raise BadInput(
            f"config.feeds.{about.name}.pair_column is empty: give the column of the second text, as pair_column=1"
        )
    train, held = examples.read_parts(texts)
    ours, theirs = (
        as_scores(part.labels, part.places, f"column {texts.label_column!r}")
        for part in (train, held)
    )

    def read(tokenizer: Any) -> Reader:
        kept = _encode(train, tokenizer, rows)
        apart = kept if held is train else _encode(held, tokenizer, rows)
        return text_reader(about, rows, kept, apart, functools.partial(_answers, held, theirs))

    return Feed(
        about.name,
        encoded.shapes(rows.sequence_length),
        read,
        rows=2 * len(train),
        heldout_rows=len(held),
        digests={"train": train.digest(ours), "heldout": held.digest(theirs)},
        tables={"train": texts.source, "heldout": texts.heldout or texts.source},
        head="embedding",
        score="similarity",
        notices=tuple(dict.fromkeys((*train.notices, *held.notices))),
    )


def _encode(texts: Examples, tokenizer: Any, rows: RowSettings) -> Encoded:
    both = (*texts.texts, *(texts.pairs or ()))
    return encoded.encode(both, None, tokenizer, rows.sequence_length)


def _answers(texts: Examples, targets_N: np.ndarray, outputs: Outputs) -> Answers:
    found_2xNxE = outputs["embedding"].reshape(2, len(texts), -1)
    cosines_N = similarities(*found_2xNxE)
    columns = {"score": texts.labels, "cosine": [f"{value:.4f}" for value in cosines_N]}
    table = predictions_table(columns, texts.texts, texts.pairs)
    return Answers(targets_N, found_2xNxE, {"tsv": table})
