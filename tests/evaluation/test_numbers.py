"""Scores of classes and numbers against slow references, scikit-learn and SciPy, and what must hold
for any answers."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics

from jaxdistill.errors import BadInput
from jaxdistill.evaluation import numbers

CLASSES = 4
QUICK = settings(max_examples=30, deadline=None)
pytestmark = pytest.mark.filterwarnings("error")


@st.composite
def answers(draw, classes=CLASSES, unseen=True):
    """(logits [N, C] on a coarse grid, so that ties occur; labels [N])."""
    rows = draw(st.integers(1, 12))
    logits = st.lists(st.integers(-2, 2), min_size=classes, max_size=classes)
    labels = st.integers(-1 if unseen else 0, classes - 1)
    return (
        np.array(draw(st.lists(logits, min_size=rows, max_size=rows)), np.float32),
        np.array(draw(st.lists(labels, min_size=rows, max_size=rows)), np.int32),
    )


@st.composite
def two_columns(draw):
    number = st.one_of(st.integers(-3, 3).map(float), st.floats(-1e3, 1e3, width=32))
    pairs = draw(st.lists(st.tuples(number, number), min_size=1, max_size=15))
    return tuple(np.array(pairs, np.float64).T)


def first_best(row):
    return [c for c in range(len(row)) if row[c] == max(row)][0]


def slow_f1(labels, found, label):
    right = sum(a == b == label for a, b in zip(labels, found))
    wrong = sum((a == label) != (b == label) for a, b in zip(labels, found))
    return right / (right + wrong / 2) if right else 0.0


def slow_classification(logits, labels):
    logits, labels = logits.tolist(), labels.tolist()
    found = [first_best(row) for row in logits]
    losses = [
        math.log(sum(math.exp(x) for x in row)) - row[label]
        for row, label in zip(logits, labels)
        if label >= 0
    ]
    known = {label for label in labels + found if label >= 0}
    return {
        "accuracy": sum(a == b for a, b in zip(labels, found)) / len(labels),
        "macro_f1": sum(slow_f1(labels, found, label) for label in known) / len(known),
        "loss": sum(losses) / len(losses) if losses else math.nan,
    }


def slow_binary(logits, labels, positive):
    found = [first_best(row) for row in logits.tolist()]
    labels = labels.tolist()
    # Matthews correlation: Pearson's of the one-hot rows, a column a class, summed over columns.
    columns = [
        [np.array([value == label for value in side], float) for label in (-1, 0, 1)]
        for side in (labels, found)
    ]
    centred = [[x - x.mean() for x in side] for side in columns]
    together = sum((a * b).sum() for a, b in zip(*centred))
    spread = [sum((x * x).sum() for x in side) for side in centred]
    constant = len(set(labels)) == 1 or len(set(found)) == 1
    return {
        "accuracy": sum(a == b for a, b in zip(labels, found)) / len(labels),
        "f1": slow_f1(labels, found, positive),
        "matthews": 0.0 if constant else together / math.sqrt(spread[0] * spread[1]),
    }


def same(found, expected):
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-12, nan_ok=True)
    assert all(type(value) in (float, int) for value in found.values())


@QUICK
@given(answers())
def test_classification_is_the_slow_reference(given_):
    same(numbers.classification(*given_), slow_classification(*given_))


@QUICK
@given(answers(classes=2), st.integers(0, 1))
def test_binary_is_the_slow_reference(given_, positive):
    same(numbers.binary(*given_, positive), slow_binary(*given_, positive))


def test_classification_is_as_scikit_learn_has_it():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(300, 5)).astype(np.float32) * 3, rng.integers(0, 5, 300)
    probabilities = np.exp(logits.astype(np.float64))
    probabilities /= probabilities.sum(-1, keepdims=True)
    expected = {
        "accuracy": metrics.accuracy_score(labels, logits.argmax(-1)),
        "macro_f1": metrics.f1_score(labels, logits.argmax(-1), average="macro"),
        "loss": metrics.log_loss(labels, probabilities),
    }
    same(numbers.classification(logits, labels), expected)


def test_binary_is_as_scikit_learn_has_it():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(300, 2)), rng.integers(0, 2, 300)
    logits[np.arange(300), labels] += 1
    for positive in (0, 1):
        expected = {
            "accuracy": metrics.accuracy_score(labels, logits.argmax(-1)),
            "f1": metrics.f1_score(labels, logits.argmax(-1), pos_label=positive),
            "matthews": metrics.matthews_corrcoef(labels, logits.argmax(-1)),
        }
        same(numbers.binary(logits, labels, positive), expected)


def test_the_loss_is_in_float64_whatever_the_logits_are():
    logits = np.array([[40.0, 0.0]], np.float16)  # 1 + exp(-40) is 1 in float32, and in float64
    assert numbers.classification(logits, np.array([1]))["loss"] == pytest.approx(40, abs=1e-12)
    big = np.array([[20000.0, 0.0, -20000.0]], np.float16)  # their difference is none of float16
    assert numbers.classification(big, np.array([2]))["loss"] == pytest.approx(40000, abs=1e-9)


@QUICK
@given(answers(), st.randoms())
def test_neither_order_nor_repetition_of_rows_changes_a_score(given_, random):
    logits, labels = given_
    order = random.sample(range(len(labels)), len(labels))
    expected = numbers.classification(logits, labels)
    for rows in (order, order * 2):
        same(numbers.classification(logits[rows], labels[rows]), expected)
    expected = numbers.binary(logits[:, :2], np.minimum(labels, 1), 1)
    for rows in (order, order * 2):
        same(numbers.binary(logits[rows, :2], np.minimum(labels[rows], 1), 1), expected)


@QUICK
@given(answers(unseen=False))
def test_right_answers_give_one_and_wrong_ones_zero(given_):
    labels = given_[1]
    right, wrong = np.eye(CLASSES)[labels] * 50, np.eye(CLASSES)[(labels + 1) % CLASSES] * 50
    same(numbers.classification(right, labels), {"accuracy": 1, "macro_f1": 1, "loss": 0})
    same(numbers.classification(wrong, labels), {"accuracy": 0, "macro_f1": 0, "loss": 50})


def test_right_and_wrong_answers_of_two_classes():
    labels = np.array([0, 1, 1, 0, 1])
    right = np.eye(2)[labels]
    same(numbers.binary(right, labels, 1), {"accuracy": 1, "f1": 1, "matthews": 1})
    same(numbers.binary(1 - right, labels, 1), {"accuracy": 0, "f1": 0, "matthews": -1})


@pytest.mark.parametrize("label, f1", [(1, 1.0), (0, 0.0)])
def test_one_class_only(label, f1):
    labels = np.full(3, label)
    found = numbers.binary(np.eye(2)[labels], labels, 1)
    assert found == {"accuracy": 1, "f1": f1, "matthews": 0}
    assert numbers.classification(np.eye(2)[labels], labels)["macro_f1"] == 1


def test_an_unseen_class_is_wrong_and_a_miss_and_not_in_the_loss():
    logits, labels = np.array([[2.0, 0.0], [2.0, 0.0], [0.0, 2.0]]), np.array([0, -1, 1])
    found = numbers.classification(logits, labels)
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["macro_f1"] == pytest.approx((2 / 3 + 1) / 2)  # class 0: one right, one miss
    assert found["loss"] == pytest.approx(math.log(1 + math.exp(-2)))
    found = numbers.classification(logits, np.full(3, -1))
    assert (found["accuracy"], found["macro_f1"]) == (0, 0) and math.isnan(found["loss"])
    same(numbers.binary(logits, np.full(3, -1), 1), {"accuracy": 0, "f1": 0, "matthews": 0})


@QUICK
@given(answers(), st.integers(0, CLASSES - 1))
def test_majority_is_the_score_of_a_network_that_always_says_it(given_, usual):
    logits, labels = given_
    always = np.tile(np.eye(CLASSES)[usual], (len(labels), 1))
    expected = numbers.classification(always, labels)
    expected.pop("loss")
    same(numbers.majority(labels, usual), expected)
    labels, usual = np.minimum(labels, 1), min(usual, 1)
    for positive in (0, 1):
        expected = numbers.binary(np.tile(np.eye(2)[usual], (len(labels), 1)), labels, positive)
        same(numbers.majority(labels, usual, positive), expected)


@QUICK
@given(answers())
def test_confusion_counts_each_pair(given_):
    logits, labels = given_
    found = logits.argmax(-1)
    expected = [[sum((labels == a) & (found == b)) for b in range(CLASSES)] for a in range(CLASSES)]
    counts = numbers.confusion(labels, found, CLASSES)
    assert counts.tolist() == expected and counts.dtype == np.int64
    twice = numbers.confusion(np.tile(labels, 2), np.tile(found, 2), CLASSES)
    assert (twice == 2 * counts).all()
    if (labels >= 0).any():
        theirs = metrics.confusion_matrix(labels, found, labels=range(CLASSES))
        assert (counts == theirs).all()


@QUICK
@given(answers())
def test_per_class_is_the_slow_reference(given_):
    logits, labels = given_
    found = logits.argmax(-1)
    rows = numbers.per_class(labels, found, CLASSES)
    assert [row["label"] for row in rows] == list(range(CLASSES))
    for label, row in enumerate(rows):
        right = sum((labels == label) & (found == label))
        expected = {
            "label": label,
            "precision": right / max(1, sum(found == label)),
            "recall": right / max(1, sum(labels == label)),
            "f1": slow_f1(labels, found, label),
            "support": int(sum(labels == label)),
        }
        same(row, expected)
    mean = np.mean([row["f1"] for c, row in enumerate(rows) if c in labels or c in found])
    assert numbers.classification(logits, labels)["macro_f1"] == pytest.approx(mean)


@pytest.mark.parametrize(
    "call",
    [
        lambda: numbers.classification(np.zeros((0, 2)), np.zeros(0, int)),
        lambda: numbers.classification(np.zeros((2, 2)), np.zeros(3, int)),
        lambda: numbers.classification(np.zeros((2, 2)), np.array([0, 2])),
        lambda: numbers.classification(np.zeros((2, 2)), np.array([0, -2])),
        lambda: numbers.binary(np.zeros((2, 3)), np.array([0, 1]), 1),
        lambda: numbers.binary(np.zeros((2, 2)), np.array([0, 1]), 2),
        lambda: numbers.binary(np.zeros((2, 2)), np.array([0, 2]), 1),
        lambda: numbers.majority(np.zeros(0, int), 0),
        lambda: numbers.confusion(np.array([0, 1]), np.array([0, 2]), 2),
        lambda: numbers.confusion(np.array([0, 1]), np.array([0, -1]), 2),
        lambda: numbers.per_class(np.array([0, 2]), np.array([0, 1]), 2),
        lambda: numbers.regression(np.zeros((2, 1)), np.zeros(2), 0.0),
        lambda: numbers.regression(np.zeros(3), np.zeros(2), 0.0),
        lambda: numbers.regression(np.zeros(0), np.zeros(0), 0.0),
    ],
)
def test_what_does_not_fit_is_refused(call):
    with pytest.raises(BadInput):
        call()


def slow_pearson(a, b):
    if len(set(a)) == 1 or len(set(b)) == 1:
        return 0.0
    a, b = a - math.fsum(a) / len(a), b - math.fsum(b) / len(b)
    return math.fsum(a * b) / math.sqrt(math.fsum(a * a) * math.fsum(b * b))


def slow_ranks(values):
    return np.array([sum(values < x) + (1 + sum(values == x)) / 2 for x in values])


@QUICK
@given(two_columns(), st.floats(-5, 5))
def test_regression_is_the_slow_reference(columns, usual):
    found, targets = columns
    scores = numbers.regression(found, targets, usual)
    assert scores["pearson"] == pytest.approx(slow_pearson(found, targets), abs=1e-6)
    ranks = slow_pearson(slow_ranks(found), slow_ranks(targets))
    assert scores["spearman"] == pytest.approx(ranks, abs=1e-9)
    error = math.fsum((found - targets) ** 2) / len(found)
    assert scores["mse"] == pytest.approx(error, rel=1e-9, abs=1e-12)
    baseline = math.fsum((usual - targets) ** 2) / len(found)
    assert scores["mean_baseline_mse"] == pytest.approx(baseline, rel=1e-9, abs=1e-12)


def test_regression_is_as_scipy_and_scikit_learn_have_it():
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 6, 200) / 1.0
    found = (targets + rng.normal(size=200)).round(1).astype(np.float32)
    scores = numbers.regression(found, targets, 2.5)
    expected = {
        "pearson": stats.pearsonr(found.astype(np.float64), targets).statistic,
        "spearman": stats.spearmanr(found, targets).statistic,
        "mse": metrics.mean_squared_error(targets, found.astype(np.float64)),
        "mean_baseline_mse": metrics.mean_squared_error(targets, np.full(200, 2.5)),
    }
    same(scores, expected)


@QUICK
@given(two_columns(), st.randoms())
def test_neither_order_nor_repetition_of_rows_changes_regression(columns, random):
    found, targets = columns
    order = random.sample(range(len(found)), len(found))
    expected = numbers.regression(found, targets, 0.5)
    for rows in (order, order * 2):
        again = numbers.regression(found[rows], targets[rows], 0.5)
        assert again == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_right_and_reversed_answers():
    targets = np.array([1.0, 2.0, 2.0, 5.0])
    right = numbers.regression(targets, targets, 2.5)
    assert right == pytest.approx(
        {"pearson": 1, "spearman": 1, "mse": 0, "mean_baseline_mse": 2.25}
    )
    turned = numbers.regression(-targets, targets, 2.5)
    assert (turned["pearson"], turned["spearman"]) == pytest.approx((-1, -1))


def test_a_constant_answer_scores_0_without_a_warning():
    """Warnings are errors here. The mean of three times 0.1 is not 0.1: a spread that is only
    rounding."""
    targets, flat = np.arange(3.0), np.full(3, 0.1)
    assert np.std(flat) > 0
    for found, target in [(flat, targets), (targets, flat), (flat, flat), (flat[:1], flat[:1])]:
        scores = numbers.regression(found, target, 2.5)
        assert (scores["pearson"], scores["spearman"]) == (0.0, 0.0)
    nearly = np.where(targets == 2, 1 + 1e-15, 1.0)
    with pytest.warns(stats.NearConstantInputWarning):
        stats.pearsonr(nearly, targets)
    assert numbers.regression(nearly, targets, 2.5)["spearman"] > 0


def test_a_diverged_answer_is_a_number_that_says_so():
    scores = numbers.regression(np.array([1.0, np.nan, 2.0]), np.array([1.0, 2.0, 3.0]), 2.0)
    assert all(math.isnan(scores[name]) for name in ("pearson", "spearman", "mse"))
    assert scores["mean_baseline_mse"] == pytest.approx(2 / 3)
