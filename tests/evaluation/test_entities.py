"""Scores of tags against seqeval, scikit-learn and a slow count of entities."""

import subprocess
import sys

import numpy as np
import pytest
import seqeval.metrics
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score

from jaxdistill.errors import BadInput
from jaxdistill.evaluation.entities import (
    EntityRow,
    entity_counts,
    entity_rows,
    entity_scores,
    frames_right,
    word_counts,
)

BIO = ["O", "B-x", "I-x", "B-y", "I-y"]
TRUTH = [("B-x", "I-x", "O", "B-y"), ("O", "O"), ("B-x",)]
FOUND = [("B-x", "I-x", "O", "O"), ("O", "B-y"), ("I-x",)]


@st.composite
def pairs(draw, names=BIO):
    """Tags of truth and found, of any kind, for the same words."""
    lengths = draw(st.lists(st.integers(1, 6), min_size=1, max_size=5))
    return [
        [tuple(draw(st.lists(st.sampled_from(names), min_size=n, max_size=n))) for n in lengths]
        for _ in range(2)
    ]


def slow_entities(tags):
    """(type, first word, last word), as conlleval reads BIO: I- begins one where none goes on."""
    found, before = [], "O"
    for word, tag in enumerate(tags):
        if tag[0] == "B" or (tag[0] == "I" and before[1:] != tag[1:]):
            found.append([tag[2:], word, word])
        elif tag[0] == "I":
            found[-1][2] = word
        before = tag
    return set(map(tuple, found))


def test_numbers_by_hand():
    scores = entity_scores(TRUTH, FOUND)
    assert scores == {
        "entity_f1": pytest.approx(2 / 3),
        "entity_precision": pytest.approx(2 / 3),
        "entity_recall": pytest.approx(2 / 3),
        "token_accuracy": pytest.approx(4 / 7),
        "frame_accuracy": 0.0,
        "majority_entity_f1": 0.0,
        "majority_token_accuracy": pytest.approx(3 / 7),
    }
    assert entity_counts(TRUTH, FOUND).tolist() == [[1, 1, 2], [0, 1, 0], [1, 1, 1]]
    assert word_counts(TRUTH, FOUND).tolist() == [[3, 4], [1, 2], [0, 1]]
    assert frames_right(TRUTH, [TRUTH[0], *FOUND[1:]]).tolist() == [True, False, False]
    assert entity_rows(TRUTH, FOUND) == [
        EntityRow("x", 1.0, 1.0, 1.0, 2),
        EntityRow("y", 0.0, 0.0, 0.0, 1),
    ]


# seqeval's own averages over no type.
@pytest.mark.filterwarnings("ignore:Mean of empty slice", "ignore:invalid value")
@given(pairs())
def test_entities_are_as_seqeval_has_them(pair):
    truth, found = pair
    lists = [[list(tags) for tags in sentences] for sentences in pair]
    scores = entity_scores(truth, found)
    for name in ("f1", "precision", "recall"):
        score = getattr(seqeval.metrics, f"{name}_score")
        assert scores[f"entity_{name}"] == score(*lists, zero_division=0)
    assert scores["token_accuracy"] == pytest.approx(seqeval.metrics.accuracy_score(*lists))
    assert scores["frame_accuracy"] == np.mean([a == b for a, b in zip(truth, found)])
    report = seqeval.metrics.classification_report(*lists, output_dict=True, zero_division=0)
    rows = entity_rows(truth, found)
    assert [row.name for row in rows] == [name for name in report if not name.endswith(" avg")]
    for row in rows:
        expected = report[row.name]
        assert (row.precision, row.recall, row.f1, row.support) == tuple(expected.values())


@given(pairs())
def test_counts_of_sentences_add_up_to_the_scores(pair):
    truth, found = pair
    counts = entity_counts(truth, found)
    slow = [(slow_entities(a), slow_entities(b)) for a, b in zip(truth, found)]
    assert counts.tolist() == [[len(a & b), len(b), len(a)] for a, b in slow]
    right, predicted, true = counts.sum(axis=0)
    expected = 2 * right / (predicted + true) if predicted + true else 0.0
    assert entity_scores(truth, found)["entity_f1"] == pytest.approx(expected)


@given(pairs(["NN", "VB", "B-x", "O"]))
def test_plain_tags_are_as_scikit_learn_has_them(pair):
    truth, found = pair
    flat = [[tag for tags in sentences for tag in tags] for sentences in pair]
    scores = entity_scores(truth, found, "plain", usual="NN")
    assert scores.keys() == {
        "macro_f1",
        "token_accuracy",
        "frame_accuracy",
        "majority_macro_f1",
        "majority_token_accuracy",
    }
    assert scores["token_accuracy"] == pytest.approx(accuracy_score(*flat))
    assert scores["macro_f1"] == f1_score(*flat, average="macro", zero_division=0)
    always = ["NN"] * len(flat[0])
    assert scores["majority_token_accuracy"] == pytest.approx(accuracy_score(flat[0], always))
    assert scores["majority_macro_f1"] == f1_score(
        flat[0], always, average="macro", zero_division=0
    )


def test_the_answer_without_looking():
    truth = [["B-x", "O", "O"], ["B-x"], ["B-x"]]
    most = entity_scores(truth, truth)
    assert most["majority_token_accuracy"] == pytest.approx(3 / 5)
    # A single word of x is an entity, so always answering it finds some.
    assert most["majority_entity_f1"] == pytest.approx(2 * 3 / (3 + 5))
    given_usual = entity_scores(truth, truth, usual="O")
    assert given_usual["majority_token_accuracy"] == pytest.approx(2 / 5)
    assert given_usual["majority_entity_f1"] == 0.0


def test_an_unknown_tag_of_truth_is_never_right(recwarn):
    scores = entity_scores([["B-x", "B-z", "O"], ["Z"]], [["B-x", "O", "O"], ["O"]])
    assert scores["token_accuracy"] == 0.5 and scores["frame_accuracy"] == 0.0
    assert scores["entity_recall"] == 0.5 and not recwarn.list


def test_no_entity_at_all_is_no_error(recwarn):
    scores = entity_scores([["O"]], [["O"]])
    assert scores["entity_f1"] == 0.0 and scores["token_accuracy"] == 1.0
    assert entity_rows([["O"]], [["O"]]) == [] and not recwarn.list
    assert entity_counts([], []).shape == (0, 3) and word_counts([], []).shape == (0, 2)


def test_what_cannot_be_scored():
    for found in ([["O"]], [["O"], ["O", "O"]], [["O", "O"], ["O"], []]):
        for score in (entity_scores, entity_rows, entity_counts, word_counts, frames_right):
            with pytest.raises(BadInput, match="a tag for each word"):
                score([["O", "O"], ["O"]], found)
    with pytest.raises(BadInput, match="scheme='IOBES': .*BIO"):
        entity_scores([["O"]], [["O"]], "IOBES")
    with pytest.raises(BadInput, match="no words"):
        entity_scores([], [])


def test_the_libraries_are_imported_when_they_are_needed():
    code = (
        "import sys, jaxdistill.evaluation.entities, jaxdistill.data.tagged\n"
        "found = {'seqeval', 'sklearn', 'transformers', 'jax'} & {*sys.modules}\n"
        "assert not found, found"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
