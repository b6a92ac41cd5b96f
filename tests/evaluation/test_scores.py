"""Every score from what a task answers, and predictions that do not depend on batches or devices."""

import dataclasses

import jax
import numpy as np
import pytest
import seqeval.metrics
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from jaxdistill.data.answers import Decoded
from jaxdistill.data.cosines import rank
from jaxdistill.data.feeds import Answers, Feed, only
from jaxdistill.data.intent_slots import Frames
from jaxdistill.data.squad import Answer, Question, Questions
from jaxdistill.evaluation.predictions import predict
from jaxdistill.evaluation.scores import SCORES, metric_of
from jaxdistill.models import Model
from jaxdistill.training import sharding
from tests.conftest import STUDENT, pretraining_batch, random_params

RNG = np.random.default_rng(0)


def feed(score, labels=(), **facts):
    return Feed("it", {}, lambda tokenizer: None, score=score, labels=labels, **facts)


def classifier(head, **changes):
    return Model(STUDENT.config.replace(heads=(head,), num_labels=3, **changes))


@pytest.mark.parametrize("classes", [2, 4])
def test_classes_are_judged_as_scikit_learn_does(classes):
    logits, labels = RNG.normal(size=(50, classes)), RNG.integers(0, classes, 50)
    task = feed("classification", tuple("abcd"[:classes]), usual=1)
    task = dataclasses.replace(task, score="binary" if classes == 2 else "classification")
    found = SCORES[task.score].of(Answers(labels, logits, {}), task)
    answers = logits.argmax(-1)
    assert found["accuracy"] == pytest.approx(accuracy_score(labels, answers))
    assert found["macro_f1"] == pytest.approx(f1_score(labels, answers, average="macro"))
    assert found["majority_accuracy"] == pytest.approx(np.mean(labels == 1))
    assert ("f1" in found) == ("matthews" in found) == (classes == 2)
    if classes == 2:
        assert found["f1"] == pytest.approx(f1_score(labels, answers))
        assert found["matthews"] == pytest.approx(matthews_corrcoef(labels, answers))
    assert metric_of(task) == "accuracy"
    assert metric_of(feed("binary", metric="matthews")) == "matthews"


def test_numbers_are_judged_beside_the_mean():
    targets = RNG.normal(size=30)
    found = SCORES["regression"].of(
        Answers(targets, 2 * targets + 1, {}), feed("regression", usual=0.0)
    )
    assert found["pearson"] == pytest.approx(1) and found["spearman"] == pytest.approx(1)
    assert found["mean_baseline_mse"] == pytest.approx(np.mean(targets**2))


QUESTION = Question("q", "", "a b", "?", (Answer("a", 0),), False)
DECODED = Decoded(("a",), ("a",), ((),), None)
EXAMPLES = {
    "classification": (np.array([0, 1, 2]), np.eye(3)),
    "binary": (np.array([0, 1]), np.eye(2)),
    "similarity": (
        np.array([0.0, 1.0]),
        np.array([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [0.0, 2.0]]]),
    ),
    "retrieval": ([{0}, {1}], rank(np.eye(2), np.eye(2), [{0}, {1}])),
    "regression": (np.array([0.0, 1.0]), np.array([0.5, 0.7])),
    "entities": ([["O", "B-x"]], [["O", "B-x"]]),
    "tagging": ([["N", "V"]], [["N", "N"]]),
    "intent_slots": (
        Frames(["intent=a", "intent=b"], [["O", "B-x"], ["O"]]),
        Frames(["intent=a", "intent=a"], [["O", "B-x"], ["O"]]),
    ),
    "spans": (Questions((QUESTION,)), DECODED),
}


@pytest.mark.parametrize("score", SCORES)
def test_what_a_score_names_it_gives(score):
    """A stage may choose its best state by any of these numbers, and finds out in the middle."""
    row = SCORES[score]
    truth, found = EXAMPLES[score]
    labels = {
        "classification": "abc",
        "binary": "ab",
        "entities": ("O", "B-x"),
        "tagging": "NV",
        "intent_slots": ("O", "B-x", "intent=a", "intent=b"),
    }
    numbers = row.of(Answers(truth, found, {}), feed(score, tuple(labels.get(score, ()))))
    assert row.higher and not set(row.higher) & set(row.lower)
    assert {*row.higher, *row.lower} <= numbers.keys()


def random_frames(rows, truth=None):
    """Frames that are mostly those of `truth`."""
    intents, tags = ["intent=a", "intent=b", "intent=c"], ["O", "B-x", "I-x", "B-y"]
    lengths = [len(row) for row in truth.tags] if truth else RNG.integers(1, 7, rows)
    found = Frames(
        [str(intent) for intent in RNG.choice(intents, rows)],
        [[str(tag) for tag in RNG.choice(tags, length)] for length in lengths],
    )
    if truth is None:
        return found
    keep = RNG.random((2, rows)) < 0.6
    return Frames(
        [b if kept else a for a, b, kept in zip(found.intents, truth.intents, keep[0])],
        [b if kept else a for a, b, kept in zip(found.tags, truth.tags, keep[1])],
    )


def test_frames_are_judged_as_seqeval_and_scikit_learn_do():
    truth = random_frames(80)
    truth = truth._replace(tags=[["O"] * len(t) if n % 3 else t for n, t in enumerate(truth.tags)])
    found = random_frames(80, truth)
    task = feed("intent_slots", ("O", "B-x", "I-x", "B-y", "intent=a", "intent=b"), usual=5)
    scores = SCORES["intent_slots"].of(Answers(truth, found, {}), task)
    right = [0, 0]  # of the answers, of the most frequent intent without a slot
    for intent, tags, said, answer in zip(truth.intents, truth.tags, found.intents, found.tags):
        right[0] += intent == said and all(a == b for a, b in zip(tags, answer))
        right[1] += intent == "intent=b" and set(tags) == {"O"}
    assert right[1] > 0 and 0 < right[0] < 80
    expected = {
        "frame_accuracy": right[0] / 80,
        "intent_accuracy": accuracy_score(truth.intents, found.intents),
        "slot_f1": seqeval.metrics.f1_score(truth.tags, found.tags),
        "slot_precision": seqeval.metrics.precision_score(truth.tags, found.tags),
        "slot_recall": seqeval.metrics.recall_score(truth.tags, found.tags),
        "majority_frame_accuracy": right[1] / 80,
        "majority_intent_accuracy": np.mean([intent == "intent=b" for intent in truth.intents]),
    }
    assert scores == pytest.approx(expected)
    assert scores["frame_accuracy"] < scores["intent_accuracy"]
    assert metric_of(task) == "frame_accuracy"


@pytest.mark.parametrize("head", ["sequence_classification", "token_classification"])
@pytest.mark.parametrize("devices", [1, 8])
def test_predictions_are_of_the_rows_that_count_at_their_places(head, devices):
    """Batches of other lengths, their rows in any order, the last one filled up."""
    model = classifier(head)
    params = random_params(model)
    batches, expected = [], []
    for seed, length in enumerate((8, 12)):
        batch = {**pretraining_batch(seed, rows=8, length=length)}
        batch["row"] = np.arange(8, dtype=np.int32)[::-1] + 8 * seed
        batches.append(batch)
        expected.append(np.asarray(model.apply(params, batch)[0]["logits"])[::-1])
    batches[1] = only(batches[1], 3)
    batches[1]["row"] = np.int32([8, 10, 9, 9, 9, 9, 9, 9])
    (name, logits), *rest = predict(
        model, params, batches, head, sharding.make_mesh(devices)
    ).items()
    assert name == "logits" and not rest and isinstance(logits, np.ndarray)
    assert not isinstance(logits, jax.Array) and len(logits) == 11
    np.testing.assert_allclose(
        logits[:8, ..., :8, :] if logits.ndim == 3 else logits[:8],
        expected[0],
        rtol=1e-5,
        atol=1e-6,
    )
    last = expected[1][::-1]
    np.testing.assert_allclose(logits[[8, 10, 9]], last[:3], rtol=1e-5, atol=1e-6)
    if head == "token_classification":
        assert not logits[:8, 8:].any()
