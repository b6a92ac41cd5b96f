"""What stands behind a number, for every score."""

import json

import numpy as np
import pytest

from jaxdistill import report
from jaxdistill.data.feeds import Answers, Feed
from jaxdistill.data.intent_slots import Frames
from jaxdistill.evaluation.details import DETAILS, details, uncertainty
from jaxdistill.evaluation.scores import SCORES, metric_of
from tests.evaluation.test_scores import EXAMPLES, feed

LABELS = {
    "classification": ("a", "b", "c"),
    "binary": ("a", "b"),
    "entities": ("O", "B-x"),
    "intent_slots": ("O", "B-x", "intent=a", "intent=b"),
}


@pytest.mark.parametrize("score", SCORES)
def test_every_score_has_an_interval_that_holds_its_number(score):
    truth, found = EXAMPLES[score]
    task = feed(score, LABELS.get(score, ("N", "V")))
    answers = Answers(truth, found, {})
    more = details(answers, task)
    low, high = more["interval"]
    assert more["metric"] == metric_of(task)
    # Correlations are summed in another order.
    assert low - 1e-9 <= SCORES[score].of(answers, task)[more["metric"]] <= high + 1e-9
    assert json.loads(json.dumps(report.plain(more), allow_nan=False)) == more


def test_classes_have_their_names_and_their_places_in_the_matrix():
    labels, answers = np.array([0, 0, 1, 2, -1]), np.array([0, 1, 1, 2, 2])
    task = feed("classification", ("ant", "bee", "cow"))
    found = details(Answers(labels, np.eye(3)[answers], {}), task)
    assert [row["label"] for row in found["classes"]] == ["ant", "bee", "cow"]
    assert [row["support"] for row in found["classes"]] == [2, 1, 1]
    assert found["classes"][0]["recall"] == 0.5 and found["classes"][2]["precision"] == 0.5
    assert found["confusion"] == [[1, 1, 0], [0, 1, 0], [0, 0, 1]]


def test_the_interval_of_entities_draws_sentences():
    """Half of the sentences are right in all, half wrong in all: F1 of a sample is their share."""
    truth = [["B-x", "O"], ["O", "B-x"]] * 50
    found = [["B-x", "O"], ["B-x", "O"]] * 50
    more = details(Answers(truth, found, {}), feed("entities", ("O", "B-x")))
    low, high = more["interval"]
    assert 0.35 < low < 0.45 < 0.55 < high < 0.65
    (row,) = more["entities"]
    assert row["name"] == "x" and row["support"] == 100 and row["f1"] == 0.5


def test_frames_have_their_intents_and_slots():
    """And an intent that training lacks is in no row of the matrix."""
    truth = Frames(["intent=a", "intent=b", "intent=c"], [["B-x", "O"], ["B-y"], ["O"]])
    found = Frames(["intent=a", "intent=a", "intent=b"], [["B-x", "O"], ["B-x"], ["O"]])
    task = feed("intent_slots", ("intent=b", "O", "B-x", "B-y", "intent=a"))
    more = details(Answers(truth, found, {}), task)
    assert more["metric"] == "frame_accuracy" and more["interval"] == [0, 1]
    assert [row["label"] for row in more["classes"]] == ["intent=b", "intent=a"]
    assert more["confusion"] == [[0, 1], [0, 1]]
    assert [(row["name"], row["precision"], row["support"]) for row in more["entities"]] == [
        ("x", 0.5, 1),
        ("y", 0, 1),
    ]


def test_few_rows_say_how_uncertain_they_are():
    task = feed("binary", ("a", "b"), heldout_rows=4)
    labels = np.array([0, 1, 0, 1])
    more = details(Answers(labels, np.eye(2)[[0, 1, 1, 1]], {}), task)
    assert uncertainty(more, task).startswith("4 held-out rows: the accuracy is uncertain, 95 %")
    assert uncertainty(more, feed("binary", ("a", "b"), heldout_rows=200)) == ""


def test_a_score_of_ones_own_has_none():
    own = Feed("it", {}, lambda tokenizer: None, score="errors")
    assert details(Answers([], [], {}), own) == {} and uncertainty({}, own) == ""
    assert set(DETAILS) == set(SCORES)
