"""Cosines and rankings against slow references and scikit-learn; ties, blocks, memory."""

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics.pairwise import paired_cosine_distances

from jaxdistill.data import cosines
from jaxdistill.data.cosines import rank, similarities
from jaxdistill.errors import BadInput

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


def slow_order(query, documents):
    """The numbers of the documents, best first."""
    cosines = [round(slow_cosine(query, document), 6) for document in documents]
    return sorted(range(len(documents)), key=lambda number: (-cosines[number], number))


def plain(ranking):
    return [part.tolist() if isinstance(part, np.ndarray) else part for part in ranking]


def random_search(queries=30, documents=200, width=8, seed=0):
    rng = np.random.default_rng(seed)
    documents = rng.normal(size=(documents, width)).astype(np.float32)
    queries = documents[:queries] + rng.normal(size=(queries, width)).astype(np.float32)
    return queries, documents


def test_similarities_are_those_of_scikit_learn():
    first, second = random_search(30, 30)
    found = similarities(first, second)
    assert found.shape == (30,) and found.dtype == np.float32
    np.testing.assert_allclose(found, 1 - paired_cosine_distances(first, second), atol=2e-7)
    np.testing.assert_allclose(found, [slow_cosine(a, b) for a, b in zip(first, second)], atol=2e-7)


def test_length_does_not_matter_and_a_zero_row_is_like_nothing():
    first, second = random_search(30, 30)
    scaled = similarities(first * 3, second * 0.01)
    np.testing.assert_allclose(scaled, similarities(first, second), atol=2e-7)
    assert similarities(first, first).tolist() == [1.0] * 30
    assert similarities(first, -first).tolist() == [-1.0] * 30
    assert similarities(first * 0, second).tolist() == [0.0] * 30


@QUICK
@given(searches(), st.integers(1, 20))
def test_the_best_documents_are_those_of_sorting_all(search, depth):
    queries, documents, relevant = search
    found = rank(queries, documents, relevant, depth)
    for query, wanted, ranks, best, cosines_K in zip(
        queries, relevant, found.ranks, found.best_QxK, found.cosines_QxK
    ):
        order = slow_order(query, documents)
        assert best.tolist() == order[:depth]
        expected = [slow_cosine(query, documents[number]) for number in best]
        np.testing.assert_allclose(cosines_K, expected, atol=2e-7)
        places = sorted(1 + order.index(number) for number in wanted)
        assert list(ranks) == [place for place in places if place <= max(depth, places[0])]
    assert found.relevant_Q.tolist() == [len(wanted) for wanted in relevant]
    assert found.among_Q.tolist() == [len(documents)] * len(queries) and found.depth == depth


def test_a_document_that_is_left_out_is_as_if_it_were_not_there():
    queries, documents = random_search()
    relevant = [{i + 30} for i in range(30)]
    found = rank(queries, documents, relevant, 10, np.arange(30))
    for number in range(30):
        without = rank(queries[[number]], np.delete(documents, number, 0), [{number + 29}])
        assert found.ranks[number] == without.ranks[0]
        best = without.best_QxK[0]
        assert found.best_QxK[number].tolist() == (best + (best >= number)).tolist()
    assert found.among_Q.tolist() == [199] * 30 and found.documents == 200


def test_equal_documents_rank_in_their_order_wherever_they_stand():
    """Columns of a matrix product may differ in the last bit by their place."""
    rng = np.random.default_rng(0)
    query = rng.normal(size=(3, 384)).astype(np.float32)
    documents = np.tile(rng.normal(size=(1, 384)), (9001, 1)).astype(np.float32)
    documents[::2] *= 3  # the direction is the same
    for number in (0, 3, 4095, 4096, 8999, 9000):
        found = rank(query, documents, [{number}] * 3)
        assert found.ranks == ((number + 1,),) * 3
        assert found.best_QxK.tolist() == [list(range(10))] * 3


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_documents_without_a_finite_similarity_rank_last(bad):
    documents = np.eye(4)
    documents[1] = bad
    found = rank(np.eye(4)[:3], documents, [{1}, {1}, {2}])
    assert found.ranks == ((4,), (4,), (1,))
    assert found.best_QxK[:, -1].tolist() == [1] * 3


@QUICK
@given(searches(), st.sampled_from([1, 7, 40]), st.sampled_from([1, 2, 4]))
def test_blocks_change_nothing(search, block, documents):
    expected = plain(rank(*search))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cosines, "_BLOCK", block)
        patch.setattr(cosines, "_MOST_DOCUMENTS", documents)
        found = plain(rank(*search))
    assert found == expected


def test_all_similarities_never_exist_at_once(monkeypatch):
    monkeypatch.setattr(cosines, "_BLOCK", 2**18)
    queries, documents = random_search(2000, 5000, width=4)  # 40 MB of similarities
    relevant = [[i] for i in range(2000)]
    tracemalloc.start()
    try:
        rank(queries, documents, relevant)
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
        rank(np.eye(3)[:2], np.eye(3), relevant)


def test_embeddings_that_do_not_fit_are_refused():
    with pytest.raises(BadInput, match="one width"):
        rank(np.eye(3), np.eye(4), [{0}] * 3)
    with pytest.raises(BadInput, match="at least one"):
        rank(np.zeros((0, 3)), np.eye(3), [])
    with pytest.raises(BadInput, match="depth of at least 1"):
        rank(np.eye(3), np.eye(3), [{0}] * 3, depth=0)
    with pytest.raises(BadInput, match="one shape"):
        similarities(np.eye(3), np.eye(3)[:2])
