"""Scores of similarities and rankings against slow references, SciPy and scikit-learn."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import label_ranking_average_precision_score, top_k_accuracy_score
from sklearn.metrics.pairwise import cosine_similarity, paired_cosine_distances

from jaxdistill.data.cosines import rank
from jaxdistill.errors import BadInput
from jaxdistill.evaluation import retrieval
from tests.data.test_cosines import QUICK, random_search, searches, slow_order

pytestmark = pytest.mark.filterwarnings("error")


def slow_ranking(queries, documents, relevant, ks=(1, 5, 10)):
    found = {name: [] for name in (*(f"recall@{k}" for k in ks), "mrr@10", "mrr")}
    for query, wanted in zip(queries, relevant):
        order = slow_order(query, documents)
        for k in ks:
            found[f"recall@{k}"].append(len(wanted & set(order[:k])) / len(wanted))
        rank = 1 + min(order.index(number) for number in wanted)
        found["mrr"].append(1 / rank)
        found["mrr@10"].append(1 / rank if rank <= 10 else 0)
    return {name: sum(values) / len(values) for name, values in found.items()}


def scored(queries, documents, relevant, ks=(1, 5, 10)):
    return retrieval.ranking_scores(rank(queries, documents, relevant, max(ks)), ks)


def test_pair_scores_are_those_of_scipy():
    first, second = random_search(60, 60)
    targets = np.random.default_rng(1).integers(0, 6, 60)
    cosines = 1 - paired_cosine_distances(first.astype(np.float64), second.astype(np.float64))
    found = retrieval.pair_scores(first, second, targets)
    assert set(found) == {"spearman", "pearson"}
    assert found["spearman"] == pytest.approx(stats.spearmanr(cosines, targets).statistic, abs=1e-9)
    assert found["pearson"] == pytest.approx(stats.pearsonr(cosines, targets).statistic, abs=1e-6)


def test_pairs_of_a_network_that_says_the_same_of_all_texts_score_0():
    """In float64 the cosines would be 1 and 1 - 1e-16, and their ranks noise."""
    one = np.random.default_rng(0).normal(size=(1, 384))
    first = one * np.arange(1, 41)[:, None]
    targets = np.arange(40.0)
    assert len(set(np.sum(first * one, -1) / np.linalg.norm(first, axis=-1))) > 1
    same = np.tile(one, (40, 1))
    assert retrieval.pair_scores(first, same, targets) == {"spearman": 0.0, "pearson": 0.0}


@QUICK
@given(searches(), st.lists(st.integers(1, 20), min_size=1, max_size=4, unique=True))
def test_ranking_is_the_slow_reference(search, ks):
    found = scored(*search, ks)
    assert found == pytest.approx(slow_ranking(*search, ks))
    assert all(type(value) is float for value in found.values())


def test_ranking_of_random_embeddings():
    queries, documents = random_search()
    rng = np.random.default_rng(3)
    relevant = [set(rng.integers(0, 200, rng.integers(1, 40)).tolist()) for _ in queries]
    found = scored(queries, documents, relevant)
    assert found == pytest.approx(slow_ranking(queries, documents, relevant))
    assert list(found) == ["recall@1", "recall@5", "recall@10", "mrr@10", "mrr"]


def test_with_one_relevant_document_recall_is_the_hit_rate_and_mrr_scikit_learns():
    queries, documents = random_search()
    cosines = cosine_similarity(queries.astype(np.float64), documents)
    found = scored(queries, documents, [[i] for i in range(30)])
    for k in (1, 5, 10):
        rate = top_k_accuracy_score(np.arange(30), cosines, k=k, labels=range(200))
        assert found[f"recall@{k}"] == pytest.approx(rate)
    assert 0 < found["recall@1"] < found["recall@10"] < 1
    # With one relevant document average precision is 1 / rank.
    theirs = label_ranking_average_precision_score(np.eye(30, 200), cosines)
    assert found["mrr"] == pytest.approx(theirs)
    assert 0 < found["mrr@10"] < found["mrr"]


@QUICK
@given(searches())
def test_relevant_documents_may_be_sets_lists_or_arrays_and_name_one_twice(search):
    queries, documents, relevant = search
    expected = scored(queries, documents, relevant)
    for form in (list, lambda of: sorted(of) * 2, lambda of: np.array(list(of))):
        same = [form(of) for of in relevant]
        assert scored(queries, documents, same) == expected


@QUICK
@given(searches(), st.randoms())
def test_neither_order_nor_repetition_of_queries_changes_a_score(search, random):
    queries, documents, relevant = search
    order = random.sample(range(len(queries)), len(queries))
    expected = scored(queries, documents, relevant)
    for rows in (order, order * 2):
        again = scored(queries[rows], documents, [relevant[i] for i in rows])
        assert again == pytest.approx(expected)


def test_the_order_of_documents_does_not_matter_without_ties():
    queries, documents = random_search()
    order = np.random.default_rng(0).permutation(200)
    place = np.argsort(order)
    found = scored(queries, documents, [{i, i + 7} for i in range(30)])
    moved = [{int(place[i]), int(place[i + 7])} for i in range(30)]
    assert scored(queries, documents[order], moved) == pytest.approx(found)


def test_perfect_and_worst_rankings():
    documents = np.eye(20)
    relevant = [{i} for i in range(20)]
    found = scored(documents, documents, relevant)
    assert found == dict.fromkeys(found, 1.0)
    found = scored(-documents, documents, relevant)
    expected = {"recall@1": 0, "recall@5": 0, "recall@10": 0, "mrr@10": 0, "mrr": 1 / 20}
    assert found == pytest.approx(expected)


@QUICK
@given(st.integers(1, 6), st.integers(0, 2), st.data())
def test_a_random_order_is_the_mean_over_all_orders(documents, left_out, data):
    """Of few documents there are few orders; the one that is left out is at no place."""
    wanted = data.draw(st.integers(1, documents))
    ranking = rank(
        np.eye(7)[:1],
        np.ones((documents + bool(left_out), 7)),
        [range(wanted)],
        10,
        np.array([documents if left_out else -1]),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retrieval, "_MRR_AT", 3)
        found = retrieval.random_scores(ranking)
    firsts, hits = [], []
    for order in itertools.permutations(range(documents)):
        first = 1 + min(order.index(number) for number in range(wanted))
        firsts.append(1 / first if first <= 3 else 0)
        hits.append(len(set(order[:3]) & set(range(wanted))) / wanted)
    assert found == pytest.approx(
        {"random_mrr@3": np.mean(firsts), "random_recall@3": np.mean(hits)}
    )


def test_embeddings_that_mean_nothing_score_as_a_random_order():
    rng = np.random.default_rng(0)
    documents = rng.normal(size=(100, 8))
    relevant = [
        set(rng.choice(100, rng.integers(1, 5), replace=False).tolist()) for _ in range(4000)
    ]
    ranking = rank(rng.normal(size=(4000, 8)), documents, relevant)
    found, usual = retrieval.ranking_scores(ranking), retrieval.random_scores(ranking)
    for name in ("mrr@10", "recall@10"):
        assert found[name] == pytest.approx(usual[f"random_{name}"], abs=0.012)


def test_a_ranking_that_is_not_deep_enough_is_refused():
    ranking = rank(np.eye(3), np.eye(3), [{0}] * 3, 5)
    for k in (0, 6):
        with pytest.raises(BadInput, match="from 1 to the ranking's 5"):
            retrieval.ranking_scores(ranking, (1, k))
