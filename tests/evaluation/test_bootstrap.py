"""Intervals: the fast ways against drawing rows and scoring them with scikit-learn and SciPy, and
how often an interval covers the truth."""

import collections
import itertools
import time
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics

from jaxdistill.errors import BadInput
from jaxdistill.evaluation import bootstrap, numbers

QUICK = settings(max_examples=40, deadline=None)
pytestmark = pytest.mark.filterwarnings("error")

THEIRS = {
    "accuracy": metrics.accuracy_score,
    "macro_f1": lambda labels, found: metrics.f1_score(
        labels, found, average="macro", zero_division=0
    ),
    "f1": lambda labels, found: metrics.f1_score(labels == 1, found == 1, zero_division=0),
    "matthews": metrics.matthews_corrcoef,
}


def some_answers(rows, classes, seed=0, unseen=False):
    rng = np.random.default_rng(seed)
    labels = rng.integers(-1 if unseen else 0, classes, rows)
    found = np.where(rng.random(rows) < 0.6, np.maximum(labels, 0), rng.integers(0, classes, rows))
    return labels, found


def quiet(score, labels, found):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return score(labels, found)


def test_rows_are_drawn_with_replacement_and_scored():
    seen = []

    def score(rows):
        assert rows.dtype == np.int64 and rows.shape == (7,)
        seen.append(tuple(rows))
        return float(rows.sum())

    low, high = bootstrap.interval(score, 7, samples=300, level=0.8)
    assert len(seen) == 300 and len(set(seen)) > 290
    assert set(itertools.chain(*seen)) == set(range(7))
    assert any(len(set(rows)) < 7 for rows in seen)
    sums = [sum(rows) for rows in seen]
    assert (low, high) == pytest.approx((np.percentile(sums, 10), np.percentile(sums, 90)))


@QUICK
@given(st.lists(st.floats(-10, 10), min_size=1, max_size=20), st.integers(0, 5))
def test_the_interval_of_a_mean_is_that_of_the_rows(values, seed):
    values = np.array(values)
    slow = bootstrap.interval(
        lambda rows: np.mean([values[row] for row in rows]), len(values), samples=50, seed=seed
    )
    fast = bootstrap.interval_of_mean(values, samples=50, seed=seed)
    assert fast == pytest.approx(slow, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(
    "kind, theirs", [("pearson", stats.pearsonr), ("spearman", stats.spearmanr)]
)
@pytest.mark.parametrize("steps", [3, 1000])
def test_the_interval_of_a_correlation_is_that_of_the_rows(kind, theirs, steps):
    rng = np.random.default_rng(0)
    first = rng.integers(0, steps, 25)
    second = first + rng.normal(size=25) * steps
    slow = bootstrap.interval(
        lambda rows: theirs(first[rows], second[rows])[0], 25, samples=200, seed=4
    )
    fast = bootstrap.correlation_interval(first, second, kind, samples=200, seed=4)
    assert fast == pytest.approx(slow, abs=1e-12)


@QUICK
@given(st.integers(1, 6), st.integers(0, 3), st.sampled_from(["pearson", "spearman"]))
def test_a_constant_sample_counts_as_no_correlation(rows, seed, kind):
    """Of few rows many samples are constant; 0.1 has a mean of equal values that is not 0.1."""
    first = np.linspace(0.1, 0.7, rows)
    slow = bootstrap.interval(
        lambda drawn: numbers.correlations(first[drawn], first[drawn])[kind],
        rows,
        samples=60,
        seed=seed,
    )
    fast = bootstrap.correlation_interval(first, first, kind, samples=60, seed=seed)
    assert fast == pytest.approx(slow, abs=1e-9)
    flat = bootstrap.correlation_interval(np.full(rows, 0.1), first, kind, samples=60)
    assert flat == (0.0, 0.0)


@pytest.mark.parametrize("metric", THEIRS)
def test_the_multinomial_of_cells_is_the_drawing_of_rows(metric):
    """Of 4 rows: every one of the 256 samples is as likely; the drawn scores follow that."""
    labels, found = np.array([0, 1, 1, 0]), np.array([0, 1, 1, 1])  # one cell twice
    exact = collections.Counter(
        round(quiet(THEIRS[metric], labels[list(rows)], found[list(rows)]), 9)
        for rows in itertools.product(range(4), repeat=4)
    )
    drawn = bootstrap.resampled_classes(labels, found, metric, samples=20_000)
    counts = collections.Counter(np.round(drawn, 9).tolist())
    assert set(counts) <= set(exact) and len(exact) >= 4
    observed = [counts[value] for value in exact]
    expected = [20_000 * share / 256 for share in exact.values()]
    assert stats.chisquare(observed, expected).pvalue > 0.001


@pytest.mark.parametrize(
    "metric, unseen", [("macro_f1", False), ("macro_f1", True), ("matthews", True)]
)
def test_many_classes_follow_the_drawing_of_rows(metric, unseen):
    labels, found = some_answers(60, 5, unseen=unseen)

    def score(rows):
        if metric == "macro_f1":
            return numbers.classification(np.eye(5)[found[rows]], labels[rows])["macro_f1"]
        return quiet(THEIRS[metric], labels[rows], found[rows])

    rng = np.random.default_rng(1)
    slow = [score(rng.integers(60, size=60)) for _ in range(400)]
    fast = bootstrap.resampled_classes(labels, found, metric, samples=3000)
    assert stats.ks_2samp(slow, fast).pvalue > 0.01
    assert np.std(fast) == pytest.approx(np.std(slow), rel=0.12)


@QUICK
@given(st.integers(1, 30), st.integers(1, 4), st.integers(0, 50), st.booleans())
def test_tallied_metrics_are_those_of_scikit_learn(rows, classes, seed, unseen):
    """A sample that is the rows themselves: the tally's arithmetic, without any drawing."""
    labels, found = some_answers(rows, classes, seed, unseen)
    every = np.union1d(labels, found)
    counts = [
        np.array([[np.sum((labels == label) & (found == label)) for label in every]], float),
        np.array([[np.sum(found == label) for label in every]], float),
        np.array([[np.sum(labels == label) for label in every]], float),
    ]
    tally = bootstrap.Tally(every, *counts)
    for metric, theirs in THEIRS.items():
        expected = quiet(theirs, labels, found)
        if metric == "macro_f1":
            expected = numbers.classification(np.eye(classes)[found], labels)["macro_f1"]
        assert bootstrap.CLASS_METRICS[metric](tally)[0] == pytest.approx(expected, abs=1e-9)


def test_intervals_of_classes():
    labels, found = some_answers(400, 3)
    for metric in THEIRS:
        low, high = bootstrap.interval_of_classes(labels, found, metric)
        wide = bootstrap.interval_of_classes(labels, found, metric, level=0.99)
        assert wide[0] < low < THEIRS[metric](labels, found) < high < wide[1]
        order = np.random.default_rng(0).permutation(400)
        again = bootstrap.interval_of_classes(labels[order], found[order], metric)
        assert again == (low, high)
    right = bootstrap.interval_of_classes(labels, labels, "macro_f1")
    assert right == (1.0, 1.0)
    one = np.zeros(5, int)
    assert bootstrap.interval_of_classes(one, one, "matthews") == (0.0, 0.0)
    assert bootstrap.interval_of_classes(one, one, "f1") == (0.0, 0.0)
    assert bootstrap.interval_of_classes(one == 0, one == 0, "f1") == (1.0, 1.0)
    assert bootstrap.interval_of_classes(one - 1, one, "macro_f1") == (0.0, 0.0)


def every_interval(seed, samples=40):
    labels, found = some_answers(50, 3)
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 50))
    given_ = dict(samples=samples, seed=seed)
    return [
        bootstrap.interval(lambda rows: first[rows].mean(), 50, **given_),
        bootstrap.interval_of_mean(second, **given_),
        bootstrap.correlation_interval(first, second, "spearman", **given_),
        bootstrap.interval_of_classes(labels, found, "macro_f1", **given_),
    ]


def test_the_seed_alone_decides_and_blocks_do_not(monkeypatch):
    expected = every_interval(0)
    np.random.seed(1)
    state = np.random.get_state()[1].tolist()
    assert every_interval(0) == expected
    assert np.random.get_state()[1].tolist() == state
    assert all(a != b for a, b in zip(every_interval(1), expected))
    for block in (1, 150, 333):
        monkeypatch.setattr(bootstrap, "_BLOCK", block)
        assert every_interval(0) == expected


@pytest.mark.parametrize("truth", [0.6, 0.85])
def test_the_interval_covers_the_true_accuracy(truth):
    rng = np.random.default_rng(0)
    covered = {"mean": 0, "classes": 0}
    for seed in range(200):
        right = rng.random(150) < truth
        low, high = bootstrap.interval_of_mean(right, samples=400, seed=seed)
        covered["mean"] += low <= truth <= high
        labels = rng.integers(0, 3, 150)
        found = np.where(right, labels, (labels + 1) % 3)
        low, high = bootstrap.interval_of_classes(labels, found, "accuracy", samples=400, seed=seed)
        covered["classes"] += low <= truth <= high
    assert all(0.9 <= share / 200 <= 0.99 for share in covered.values()), covered


def test_the_interval_of_a_correlation_covers_it():
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        first = rng.normal(size=120)
        second = 0.6 * first + 0.8 * rng.normal(size=120)  # correlated by 0.6
        low, high = bootstrap.correlation_interval(first, second, "pearson", samples=300, seed=seed)
        covered += low <= 0.6 <= high
    assert 0.9 <= covered / 200 <= 0.99


def test_a_thousand_samples_of_1500_pairs_are_quick():
    first, second = np.random.default_rng(0).normal(size=(2, 1500))
    start = time.process_time()
    bootstrap.correlation_interval(first, second, "spearman")
    assert time.process_time() - start < 3


@pytest.mark.parametrize(
    "call",
    [
        lambda: bootstrap.interval(len, 0),
        lambda: bootstrap.interval(len, 5, samples=0),
        lambda: bootstrap.interval(len, 5, level=1.0),
        lambda: bootstrap.interval_of_mean(np.zeros(0)),
        lambda: bootstrap.interval_of_mean(np.zeros((3, 1))),
        lambda: bootstrap.interval_of_classes(np.zeros(0, int), np.zeros(0, int), "accuracy"),
        lambda: bootstrap.interval_of_classes(np.zeros(3, int), np.zeros(2, int), "accuracy"),
        lambda: bootstrap.interval_of_classes(np.zeros(3, int), np.zeros(3, int), "acuracy"),
        lambda: bootstrap.correlation_interval(np.zeros(3), np.zeros(2), "pearson"),
        lambda: bootstrap.correlation_interval(np.zeros(3), np.zeros(3), "kendall"),
    ],
)
def test_what_does_not_fit_is_refused(call):
    with pytest.raises(BadInput):
        call()


def test_the_note_is_for_few_rows():
    assert bootstrap.uncertainty_note(71, 0.4366, 0.6761) == (
        "71 held-out rows: the accuracy is uncertain, 95 % interval 0.44 to 0.68"
    )
    assert bootstrap.uncertainty_note(199, 0.1, 0.2) and not bootstrap.uncertainty_note(
        200, 0.1, 0.2
    )
    assert "1 held-out row: the f1" in bootstrap.uncertainty_note(1, 0.0, 0.5, "f1")
    assert "every sample gives 1.00" in bootstrap.uncertainty_note(50, 1.0, 1.0)
