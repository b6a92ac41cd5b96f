"""Scores of embeddings: similarity of pairs, and search for the documents that answer a query.

Similarities are cosines, computed in float64 and rounded to multiples of 2**-24, the precision of
float32 embeddings. Rounding makes ties exact: the cosines of equal embeddings would otherwise differ
in the last bit, by their place in the matrix product.

Called by scores. Letters: N pairs, Q queries, D documents, E embedding width, B queries of a block."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from jaxdistill.errors import BadInput
from jaxdistill.evaluation.numbers import Numbers, correlations

Relevant = Sequence[Collection[int]]  # for each query the numbers of its relevant documents

_GRID = 2.0**-24  # its multiples up to 1 are exact in float32
_BLOCK = 2**25  # similarities held at a time, 128 MiB
_MOST_QUERIES = 1024  # of a block
_MOST_DOCUMENTS = 4096  # held at a time in float64


def similarities(first_NxE: np.ndarray, second_NxE: np.ndarray) -> np.ndarray:
    """float32 [N]: cosine of each row of `first_NxE` to the same row of `second_NxE`; 0 for a zero
    row. Raises `BadInput` if the shapes differ."""
    if first_NxE.shape != second_NxE.shape or first_NxE.ndim != 2:
        raise BadInput(
            f"pairs of embeddings must have one shape [pairs, width]; "
            f"given: {first_NxE.shape} and {second_NxE.shape}"
        )
    found_N = np.sum(_unit_rows(first_NxE) * _unit_rows(second_NxE), axis=-1)
    return _rounded(found_N)


def pair_scores(first_NxE: np.ndarray, second_NxE: np.ndarray, targets_N: np.ndarray) -> Numbers:
    """`spearman` and `pearson` of the cosines of the pairs with `targets_N`; 0 where either side is
    constant."""
    found = correlations(similarities(first_NxE, second_NxE), targets_N)
    return {"spearman": found["spearman"], "pearson": found["pearson"]}


def ranking_scores(
    queries_QxE: np.ndarray,
    documents_DxE: np.ndarray,
    relevant: Relevant,
    ks: Sequence[int] = (1, 5, 10),
) -> Numbers:
    """`recall@k` for each of `ks`, `mrr@10` and `mrr`, averaged over queries.

    recall@k is the share of a query's relevant documents among the first k; with one relevant
    document that is hit rate. mrr is the mean of 1 / rank of the first relevant document, and mrr@10
    counts 0 where that rank is above 10. Raises `BadInput` as `ranking_per_query`."""
    found = ranking_per_query(queries_QxE, documents_DxE, relevant, ks)
    return {name: float(np.mean(values_Q)) for name, values_Q in found.items()}


def ranking_per_query(
    queries_QxE: np.ndarray,
    documents_DxE: np.ndarray,
    relevant: Relevant,
    ks: Sequence[int] = (1, 5, 10),
) -> dict[str, np.ndarray]:
    """The numbers of `ranking_scores` for each query, float64 [Q]: what a bootstrap resamples.

    Documents rank by cosine, equal ones in their order, and those without a finite cosine last.
    Raises `BadInput` without queries, for shapes that do not fit, for a query without relevant
    documents, and for a document number that does not exist."""
    _check_ranking(queries_QxE, documents_DxE, relevant, ks)
    last = max((*ks, 1))
    queries = max(1, min(_MOST_QUERIES, _BLOCK // len(documents_DxE)))
    ranks: list[list[int]] = []
    for start in range(0, len(queries_QxE), queries):
        cosines_BxD = _cosines(queries_QxE[start : start + queries], documents_DxE)
        ranks += [
            _ranks(cosines_D, documents, last)
            for cosines_D, documents in zip(cosines_BxD, relevant[start : start + queries])
        ]
    numbers_Q = [len(set(documents)) for documents in relevant]
    first_Q = np.array([of_query[0] for of_query in ranks], np.float64)
    found = {
        f"recall@{k}": np.array(
            [sum(rank <= k for rank in of) / n for of, n in zip(ranks, numbers_Q)], np.float64
        )
        for k in ks
    }
    return {**found, "mrr@10": np.where(first_Q <= 10, 1 / first_Q, 0.0), "mrr": 1 / first_Q}


def _ranks(cosines_D: np.ndarray, documents: Collection[int], last: int) -> list[int]:
    """Ranks from 1 of the given documents, best first: always the first of them, and all up to rank
    `last`."""
    ranks = []
    for number in sorted(set(documents), key=lambda number: (-cosines_D[number], number)):
        cosine = cosines_D[number]
        better = int(np.count_nonzero(cosines_D > cosine))
        equal_before = int(np.count_nonzero(cosines_D[:number] == cosine))
        ranks.append(1 + better + equal_before)
        if ranks[-1] >= last:
            break
    return ranks


def _cosines(queries_BxE: np.ndarray, documents_DxE: np.ndarray) -> np.ndarray:
    queries_BxE = _unit_rows(queries_BxE)
    cosines_BxD = np.empty((len(queries_BxE), len(documents_DxE)), np.float32)
    for start in range(0, len(documents_DxE), _MOST_DOCUMENTS):
        part = slice(start, start + _MOST_DOCUMENTS)
        cosines_BxD[:, part] = _rounded(queries_BxE @ _unit_rows(documents_DxE[part]).T)
    # NaN compares as false with everything, so that it would rank first.
    cosines_BxD[np.isnan(cosines_BxD)] = -np.inf
    return cosines_BxD


def _rounded(cosines: np.ndarray) -> np.ndarray:
    return (np.rint(cosines / _GRID) * _GRID).astype(np.float32)


def _unit_rows(x_NxE: np.ndarray) -> np.ndarray:
    x_NxE = x_NxE.astype(np.float64)
    lengths_Nx1 = np.linalg.norm(x_NxE, axis=-1, keepdims=True)
    with np.errstate(invalid="ignore"):  # infinite embeddings
        return x_NxE / np.where(lengths_Nx1 > 0, lengths_Nx1, 1.0)


def _check_ranking(
    queries_QxE: np.ndarray, documents_DxE: np.ndarray, relevant: Relevant, ks: Sequence[int]
) -> None:
    shapes = queries_QxE.shape, documents_DxE.shape
    if any(len(shape) != 2 or not shape[0] for shape in shapes) or shapes[0][1] != shapes[1][1]:
        raise BadInput(
            f"queries and documents must be embeddings of one width, of at least one text each; "
            f"given: shapes {shapes[0]} and {shapes[1]}"
        )
    if len(relevant) != len(queries_QxE):
        raise BadInput(
            f"each query needs its relevant documents; given: {len(queries_QxE):,} queries and "
            f"relevant documents of {len(relevant):,}"
        )
    if min(ks, default=1) < 1:
        raise BadInput(f"recall@k needs k of at least 1; given: {min(ks)}")
    for query, documents in enumerate(relevant):
        if not len(documents):
            raise BadInput(f"query {query:,} has no relevant document; leave it out, or give one")
        low, high = min(documents), max(documents)
        if low < 0 or high >= len(documents_DxE):
            raise BadInput(
                f"query {query:,} names document {low if low < 0 else high}; "
                f"the documents are 0 to {len(documents_DxE) - 1:,}"
            )
