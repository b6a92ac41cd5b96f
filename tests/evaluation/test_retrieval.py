"""Similarities and rankings against slow references, SciPy and scikit-learn; ties, blocks, memory."""

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import label_ranking_average_precision_score, top_k_accuracy_score
from sklearn.metrics.pairwise import cosine_similarity, paired_cosine_distances

from jaxdistill.errors import BadInput
from jaxdistill.evaluation import retrieval

QUICK = settings(max_examples=40, deadline=None)
pytestmark = pytest.mark.filterwarnings("error")


@st.composite
def searches(draw):
    """(queries, documents, relevant): embeddings on a coarse grid, so that ties and zero rows occur."""
    row = st.lists(st.integers(-1, 1), min_size=2, max_size=2)
    documents = draw(st.lists(row, min_size=1, max_size=15))
    queries = draw(st.lists(row, min_size=1, max_size=5))
    some = st.sets(st.integers(0, len(documents) - 1), min_size=1)
    relevant = draw(st.lists(some, min_size=len(queries), max_size=len(queries)))
    return np.array(queries, np.float32), np.array(documents, np.float32), relevant


def slow_cosine(a, b):
    lengths = math.hypot(*a) * math.hypot(*b)
    return sum(x * y for x, y in zip(a.tolist(), b.tolist())) / lengths if lengths else 0.0


def slow_ranking(queries, documents, relevant, ks=(1, 5, 10)):
    found = {name: [] for name in (*(f"recall@{k}" for k in ks), "mrr@10", "mrr")}
    for query, wanted in zip(queries, relevant):
        cosines = [round(slow_cosine(query, document), 6) for document in documents]
        order = sorted(range(len(documents)), key=lambda number: (-cosines[number], number))
        for k in ks:
            found[f"recall@{k}"].append(len(wanted & set(order[:k])) / len(wanted))
        rank = 1 + min(order.index(number) for number in wanted)
        found["mrr"].append(1 / rank)
        found["mrr@10"].append(1 / rank if rank <= 10 else 0)
    return {name: sum(values) / len(values) for name, values in found.items()}


def random_search(queries=30, documents=200, width=8, seed=0):
    rng = np.random.default_rng(seed)
    documents = rng.normal(size=(documents, width)).astype(np.float32)
    queries = documents[:queries] + rng.normal(size=(queries, width)).astype(np.float32)
    return queries, documents


def test_similarities_are_those_of_scikit_learn():
    first, second = random_search(30, 30)
    found = retrieval.similarities(first, second)
    assert found.shape == (30,) and found.dtype == np.float32
    np.testing.assert_allclose(found, 1 - paired_cosine_distances(first, second), atol=2e-7)
    np.testing.assert_allclose(found, [slow_cosine(a, b) for a, b in zip(first, second)], atol=2e-7)


def test_length_does_not_matter_and_a_zero_row_is_like_nothing():
    first, second = random_search(30, 30)
    scaled = retrieval.similarities(first * 3, second * 0.01)
    np.testing.assert_allclose(scaled, retrieval.similarities(first, second), atol=2e-7)
    assert retrieval.similarities(first, first).tolist() == [1.0] * 30
    assert retrieval.similarities(first, -first).tolist() == [-1.0] * 30
    assert retrieval.similarities(first * 0, second).tolist() == [0.0] * 30


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
    found = retrieval.ranking_scores(*search, ks)
    assert found == pytest.approx(slow_ranking(*search, ks))
    assert all(type(value) is float for value in found.values())


def test_ranking_of_random_embeddings():
    queries, documents = random_search()
    rng = np.random.default_rng(3)
    relevant = [set(rng.integers(0, 200, rng.integers(1, 40)).tolist()) for _ in queries]
    found = retrieval.ranking_scores(queries, documents, relevant)
    assert found == pytest.approx(slow_ranking(queries, documents, relevant))
    assert list(found) == ["recall@1", "recall@5", "recall@10", "mrr@10", "mrr"]


def test_with_one_relevant_document_recall_is_the_hit_rate_and_mrr_scikit_learns():
    queries, documents = random_search()
    cosines = cosine_similarity(queries.astype(np.float64), documents)
    found = retrieval.ranking_scores(queries, documents, [[i] for i in range(30)])
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
    expected = retrieval.ranking_scores(queries, documents, relevant)
    for form in (list, lambda of: sorted(of) * 2, lambda of: np.array(list(of))):
        same = [form(of) for of in relevant]
        assert retrieval.ranking_scores(queries, documents, same) == expected


@QUICK
@given(searches(), st.randoms())
def test_neither_order_nor_repetition_of_queries_changes_a_score(search, random):
    queries, documents, relevant = search
    order = random.sample(range(len(queries)), len(queries))
    expected = retrieval.ranking_scores(queries, documents, relevant)
    for rows in (order, order * 2):
        again = retrieval.ranking_scores(queries[rows], documents, [relevant[i] for i in rows])
        assert again == pytest.approx(expected)


def test_the_order_of_documents_does_not_matter_without_ties():
    queries, documents = random_search()
    order = np.random.default_rng(0).permutation(200)
    place = np.argsort(order)
    found = retrieval.ranking_scores(queries, documents, [{i, i + 7} for i in range(30)])
    moved = [{int(place[i]), int(place[i + 7])} for i in range(30)]
    assert retrieval.ranking_scores(queries, documents[order], moved) == pytest.approx(found)


def test_equal_documents_rank_in_their_order_wherever_they_stand():
    """Columns of a matrix product may differ in the last bit by their place."""
    rng = np.random.default_rng(0)
    query = rng.normal(size=(3, 384)).astype(np.float32)
    documents = np.tile(rng.normal(size=(1, 384)), (9001, 1)).astype(np.float32)
    documents[::2] *= 3  # the direction is the same
    for number in (0, 3, 4095, 4096, 8999, 9000):
        found = retrieval.ranking_scores(query, documents, [{number}] * 3)
        assert 1 / found["mrr"] == pytest.approx(number + 1)


def test_perfect_and_worst_rankings():
    documents = np.eye(20)
    relevant = [{i} for i in range(20)]
    found = retrieval.ranking_scores(documents, documents, relevant)
    assert found == dict.fromkeys(found, 1.0)
    found = retrieval.ranking_scores(-documents, documents, relevant)
    expected = {"recall@1": 0, "recall@5": 0, "recall@10": 0, "mrr@10": 0, "mrr": 1 / 20}
    assert found == pytest.approx(expected)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_documents_without_a_finite_similarity_rank_last(bad):
    documents = np.eye(4)
    documents[1] = bad
    found = retrieval.ranking_per_query(np.eye(4)[:3], documents, [{1}, {1}, {2}])
    assert found["mrr"].tolist() == [1 / 4, 1 / 4, 1]


@QUICK
@given(searches(), st.sampled_from([1, 7, 40]), st.sampled_from([1, 2, 4]))
def test_blocks_change_nothing(search, block, documents):
    expected = retrieval.ranking_per_query(*search)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retrieval, "_BLOCK", block)
        patch.setattr(retrieval, "_MOST_DOCUMENTS", documents)
        found = retrieval.ranking_per_query(*search)
    assert {name: x.tolist() for name, x in found.items()} == {
        name: x.tolist() for name, x in expected.items()
    }


def test_all_similarities_never_exist_at_once(monkeypatch):
    monkeypatch.setattr(retrieval, "_BLOCK", 2**18)
    queries, documents = random_search(2000, 5000, width=4)  # 40 MB of similarities
    relevant = [[i] for i in range(2000)]
    tracemalloc.start()
    try:
        retrieval.ranking_scores(queries, documents, relevant)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8e6


@pytest.mark.parametrize(
    "relevant, said",
    [
        ([{0}, set()], "query 1 has no relevant document"),
        ([{0}], "2 queries and relevant documents of 1"),
        ([{0}, {1, 3}], "query 1 names document 3"),
        ([{-1}, {1}], "query 0 names document -1"),
    ],
)
def test_relevant_documents_that_do_not_fit_are_refused(relevant, said):
    with pytest.raises(BadInput, match=said):
        retrieval.ranking_scores(np.eye(3)[:2], np.eye(3), relevant)


def test_embeddings_that_do_not_fit_are_refused():
    with pytest.raises(BadInput, match="one width"):
        retrieval.ranking_scores(np.eye(3), np.eye(4), [{0}] * 3)
    with pytest.raises(BadInput, match="at least one"):
        retrieval.ranking_scores(np.zeros((0, 3)), np.eye(3), [])
    with pytest.raises(BadInput, match="k of at least 1"):
        retrieval.ranking_scores(np.eye(3), np.eye(3), [{0}] * 3, ks=(0,))
    with pytest.raises(BadInput, match="one shape"):
        retrieval.similarities(np.eye(3), np.eye(3)[:2])
