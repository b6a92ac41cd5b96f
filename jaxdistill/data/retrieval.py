"""Search for the documents that answer a query, by the cosines of their embeddings, as a feed that is
only measured. Called by tasks."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from jaxdistill.data import cosines, encoded
from jaxdistill.data.classification import predictions_table
from jaxdistill.data.cosines import Ranking
from jaxdistill.data.examples import Length
from jaxdistill.data.feeds import About, Answers, Feed, Order, Outputs, Parts, Reader
from jaxdistill.data.rows import reader_of
from jaxdistill.data.searches import Searches, SearchFiles, read_searches

_SHOWN = 10  # documents of a query


def retrieval(
    about: About, *, where: SearchFiles, sequence_length: Length = 256, buckets: bool = True
) -> Feed:
    """Queries, documents, and which of them answer which query. Each text is a row of its own: the
    queries, then the documents. `sequence_length`: tokens at most; longer texts are cut. `buckets`: as
    in `RowSettings`. Raises `BadInput` for files that cannot be used."""
    found = read_searches(where, f"config.feeds.{about.name}")

    def read(tokenizer: Any) -> Reader:
        texts = (*found.queries, *found.documents)
        rows = encoded.encode(texts, None, tokenizer, sequence_length)
        notices: tuple[str, ...] = ()
        if rows.truncated:
            notices = (
                f"{rows.truncated:,} of {len(rows):,} texts of {about.name!r} ({rows.truncated / len(rows):.1%}) are "
                f"longer than {sequence_length} tokens, and cut",
            )
        parts = Parts(rows.rows, rows.rows, Order(about.seed, sequence_length, buckets))
        return reader_of(parts, functools.partial(_answers, found), notices)

    return Feed(
        about.name,
        encoded.shapes(sequence_length),
        read,
        rows=len(found.queries) + len(found.documents),
        heldout_rows=len(found.queries),
        digests={"train": found.digest, "heldout": found.digest},
        tables={"train": found.place, "heldout": found.place},
        head="embedding",
        score="retrieval",
        notices=found.notices,
    )


def _answers(found: Searches, outputs: Outputs) -> Answers:
    queries_QxE, documents_DxE = np.split(outputs["embedding"], [len(found.queries)])
    ranking = cosines.rank(queries_QxE, documents_DxE, found.relevant, _SHOWN, found.left_out_Q)
    return Answers(found.relevant, ranking, {"tsv": _table(found, ranking)})


def _table(found: Searches, ranking: Ranking) -> str:
    """A line for each query: its id, the rank of the first relevant document, the ids and the cosines
    of the best documents, its text."""
    table = {"query": found.query_ids, "rank": [str(ranks[0]) for ranks in ranking.ranks]}
    for place, (best_Q, cosines_Q) in enumerate(zip(ranking.best_QxK.T, ranking.cosines_QxK.T), 1):
        ranked_Q = np.isfinite(cosines_Q)
        table[f"document_{place}"] = [
            found.document_ids[number] if ranked else "" for number, ranked in zip(best_Q, ranked_Q)
        ]
        table[f"cosine_{place}"] = [
            f"{cosine:.4f}" if ranked else "" for cosine, ranked in zip(cosines_Q, ranked_Q)
        ]
    return predictions_table(table, found.queries, None)
