"""Scores of embeddings: similarity of pairs, and search for the documents that answer a query.

Called by scores and details. Letters: N pairs, Q queries, E embedding width."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxdistill.data.cosines import Ranking, similarities
from jaxdistill.errors import BadInput
from jaxdistill.evaluation.numbers import Numbers, correlations

KS = (1, 5, 10)
_MRR_AT = 10


def pair_scores(first_NxE: np.ndarray, second_NxE: np.ndarray, targets_N: np.ndarray) -> Numbers:
    """`spearman` and `pearson` of the cosines of the pairs with `targets_N`; 0 where either side is
    constant."""
    found = correlations(similarities(first_NxE, second_NxE), targets_N)
    return {"spearman": found["spearman"], "pearson": found["pearson"]}


def ranking_scores(ranking: Ranking, ks: Sequence[int] = KS) -> Numbers:
    """`recall@k` for each of `ks`, `mrr@10` and `mrr`, averaged over queries.

    recall@k is the share of a query's relevant documents among the first k; with one relevant
    document that is hit rate. mrr is the mean of 1 / rank of the first relevant document, and mrr@10
    counts 0 where that rank is above 10. Raises `BadInput` as `ranking_per_query`."""
    found = ranking_per_query(ranking, ks)
    return {name: float(np.mean(values_Q)) for name, values_Q in found.items()}


def ranking_per_query(ranking: Ranking, ks: Sequence[int] = KS) -> dict[str, np.ndarray]:
    """The numbers of `ranking_scores` for each query, float64 [Q]: what a bootstrap resamples. Raises
    `BadInput` for a k below 1, or deeper than the ranking."""
    if not all(1 <= k <= ranking.depth for k in ks):
        raise BadInput(f"recall@k needs k from 1 to the ranking's {ranking.depth}; given: {ks}")
    first_Q = np.array([of_query[0] for of_query in ranking.ranks], np.float64)
    found = {}
    for k in ks:
        hits_Q = [sum(rank <= k for rank in of_query) for of_query in ranking.ranks]
        found[f"recall@{k}"] = np.array(hits_Q, np.float64) / ranking.relevant_Q
    at_most_Q = np.where(first_Q <= _MRR_AT, 1 / first_Q, 0.0)
    return {**found, f"mrr@{_MRR_AT}": at_most_Q, "mrr": 1 / first_Q}


def random_scores(ranking: Ranking) -> Numbers:
    """`random_mrr@10` and `random_recall@10`: what the documents in a random order give on average."""
    among_Q, relevant_Q = (x.astype(np.float64) for x in (ranking.among_Q, ranking.relevant_Q))
    mrr_Q, none_yet_Q = np.zeros_like(among_Q), np.ones_like(among_Q)
    for place in range(_MRR_AT):
        left_Q = np.maximum(among_Q - place, relevant_Q)  # no fewer while none was found
        mrr_Q += none_yet_Q * relevant_Q / left_Q / (place + 1)
        none_yet_Q *= 1 - relevant_Q / left_Q
    recall_Q = np.minimum(_MRR_AT / among_Q, 1.0)
    return {
        f"random_mrr@{_MRR_AT}": float(mrr_Q.mean()),
        f"random_recall@{_MRR_AT}": float(recall_Q.mean()),
    }
