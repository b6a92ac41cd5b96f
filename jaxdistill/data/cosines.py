"""Embeddings compared: the cosines of pairs, and the documents that are nearest to each query.

Cosines are computed in float64 and rounded to multiples of 2**-24, the precision of float32
embeddings. Rounding makes ties exact: the cosines of equal embeddings would otherwise differ in the
last bit, by their place in the matrix product.

Called by similarity, retrieval and evaluation.retrieval. Letters: N pairs, Q queries, D documents,
E embedding width, B queries of a block, K best documents."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np

from jaxdistill.errors import BadInput

Relevant = Sequence[Collection[int]]  # for each query the numbers of its relevant documents

_GRID = 2.0**-24  # its multiples up to 1 are exact in float32
_BLOCK = 2**25  # cosines held at a time, 128 MiB
_MOST_QUERIES = 1024  # of a block
_MOST_DOCUMENTS = 4096  # held at a time in float64


class Ranking(NamedTuple):
    """The documents in their order for each of Q queries, down to rank `depth`.

    `ranks`: from 1, those of a query's relevant documents, best first: always the first of them, and
    all that are no deeper than `depth`. `relevant_Q`: int64, how many relevant documents it has, and
    `among_Q`: int64, how many of the D `documents` are ranked for it. `best_QxK`, `cosines_QxK`: int64
    and float32, the numbers and the cosines of the K = min(depth, D) best ones."""

    depth: int
    documents: int
    ranks: tuple[tuple[int, ...], ...]
    relevant_Q: np.ndarray
    among_Q: np.ndarray
    best_QxK: np.ndarray
    cosines_QxK: np.ndarray


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


def rank(
    queries_QxE: np.ndarray,
    documents_DxE: np.ndarray,
    relevant: Relevant,
    depth: int = 10,
    left_out_Q: np.ndarray | None = None,
) -> Ranking:
    """Ranks documents by cosine, equal ones in their order, and those without a finite cosine last.

    `left_out_Q`: int64, a document that is not ranked for this query, -1 for none. Raises `BadInput`
    without queries, for shapes that do not fit, for a query without relevant documents, and for a
    document number that does not exist."""
    _check(queries_QxE, documents_DxE, relevant, depth)
    queries, number = len(queries_QxE), len(documents_DxE)
    left_out_Q = np.full(queries, -1) if left_out_Q is None else left_out_Q
    ranks: list[tuple[int, ...]] = []
    best_QxK = np.empty((queries, min(depth, number)), np.int64)
    cosines_QxK = np.empty(best_QxK.shape, np.float32)
    block = max(1, min(_MOST_QUERIES, _BLOCK // number))
    for start in range(0, queries, block):
        cosines_BxD = _cosines(queries_QxE[start : start + block], documents_DxE)
        for query, cosines_D in enumerate(cosines_BxD, start):
            if left_out_Q[query] >= 0:
                cosines_D[left_out_Q[query]] = -np.inf
            ranks.append(_ranks(cosines_D, relevant[query], depth))
            best_QxK[query] = _best(cosines_D, best_QxK.shape[1])
            cosines_QxK[query] = cosines_D[best_QxK[query]]
    return Ranking(
        depth,
        number,
        tuple(ranks),
        np.array([len(set(documents)) for documents in relevant], np.int64),
        number - (left_out_Q >= 0).astype(np.int64),
        best_QxK,
        cosines_QxK,
    )


def _ranks(cosines_D: np.ndarray, documents: Collection[int], depth: int) -> tuple[int, ...]:
    ranks: list[int] = []
    for number in sorted(set(documents), key=lambda number: (-cosines_D[number], number)):
        cosine = cosines_D[number]
        better = int(np.count_nonzero(cosines_D > cosine))
        equal_before = int(np.count_nonzero(cosines_D[:number] == cosine))
        found = 1 + better + equal_before
        if ranks and found > depth:
            break
        ranks.append(found)
    return tuple(ranks)


def _best(cosines_D: np.ndarray, count: int) -> np.ndarray:
    """int64 [count]: the numbers of the best documents, in their order."""
    least = np.partition(cosines_D, -count)[-count]
    candidates = np.flatnonzero(cosines_D >= least)  # of equal ones perhaps too many
    return candidates[np.argsort(-cosines_D[candidates], kind="stable")[:count]]


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


def _check(
    queries_QxE: np.ndarray, documents_DxE: np.ndarray, relevant: Relevant, depth: int
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
    if depth < 1:
        raise BadInput(f"a ranking needs a depth of at least 1; given: {depth}")
    for query, documents in enumerate(relevant):
        if not len(documents):
            raise BadInput(f"query {query:,} has no relevant document; leave it out, or give one")
        low, high = min(documents), max(documents)
        if low < 0 or high >= len(documents_DxE):
            raise BadInput(
                f"query {query:,} names document {low if low < 0 else high}; "
                f"the documents are 0 to {len(documents_DxE) - 1:,}"
            )
