"""Exact match and F1 of answers; `transformers`, which holds SQuAD's official rules, is the oracle."""

from __future__ import annotations

import dataclasses
import string
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.data.metrics import squad_metrics as oracle
from transformers.data.processors.squad import SquadExample

from jaxdistill.data.squad import Answer, Question, Questions
from jaxdistill.errors import BadInput
from jaxdistill.evaluation import spans
from jaxdistill.evaluation.spans import Search, evaluate

WORDS = [
    "the",
    "The",
    "a",
    "an",
    "tower",
    "Tower's",
    "old",
    "mill.",
    "3,500",
    "Zoë",
    "北京",
    "—",
    "'s",
    "other",
]
TEXTS = st.one_of(
    st.text(alphabet=string.printable + "éß北京“” \u3000\xa0", max_size=30),
    st.lists(st.sampled_from(WORDS), max_size=6).map(" ".join),
)


def asked(*answers: list[str]) -> Questions:
    """Questions with these answers, impossible where there are none."""
    rows = [
        Question(str(n), "", "", "", tuple(Answer(text, 0) for text in texts), not texts)
        for n, texts in enumerate(answers)
    ]
    return Questions(tuple(rows))


def official(questions: Questions, texts: Any, odds: Any = None, threshold: float = 1e9) -> Any:
    examples = [
        SquadExample(row.id, "", "", None, None, "", [{"text": one.text} for one in row.answers])
        for row in questions.rows
    ]
    ids = [row.id for row in questions.rows]
    given = None if odds is None else dict(zip(ids, odds))
    found = oracle.squad_evaluate(examples, dict(zip(ids, texts)), given, threshold)
    shares = oracle.get_raw_scores(examples, dict(zip(ids, texts)))
    return found, [np.array([share[id] for id in ids]) for share in shares]


@given(TEXTS)
@settings(max_examples=150, deadline=None)
def test_words_are_the_official_ones(text: str) -> None:
    assert " ".join(spans.english(text)) == oracle.normalize_answer(text)


@given(TEXTS, TEXTS)
@settings(max_examples=150, deadline=None)
def test_f1_is_the_official_one(a: str, b: str) -> None:
    ours = spans.f1(spans.english(a), spans.english(b))
    assert ours == pytest.approx(oracle.compute_f1(b, a), abs=1e-12)
    assert ours == spans.f1(spans.english(b), spans.english(a)) and 0 <= ours <= 1
    assert (ours == 1) == (sorted(spans.english(a)) == sorted(spans.english(b)))


def test_by_hand() -> None:
    questions = asked(["Anna Holm", "Holm"], ["the tower"], [], [], ["3,500"])
    texts = ["holm!", "old tower tower", "", "mill", ""]
    found = evaluate(questions, texts)
    assert found.shares.exact.tolist() == [1, 0, 1, 0, 0]
    assert found.shares.f1.tolist() == pytest.approx([1, 0.5, 1, 0, 0])
    assert found.numbers == pytest.approx(
        {
            "exact": 0.4,
            "f1": 0.5,
            "has_answer_exact": 1 / 3,
            "has_answer_f1": 0.5,
            "no_answer_exact": 0.5,
            "no_answer_f1_baseline": 0.4,
        }
    )
    assert set(evaluate(asked(["a b"]), ["b"]).numbers) == {"exact", "f1"}
    assert set(evaluate(asked([]), ["b"]).numbers) == {
        "exact",
        "f1",
        "no_answer_exact",
        "no_answer_f1_baseline",
    }


ROWS = st.lists(
    st.tuples(
        st.lists(TEXTS.filter(bool), max_size=3), TEXTS, st.floats(-20, 20, allow_subnormal=False)
    ),
    min_size=1,
    max_size=12,
)


@given(ROWS)
@settings(max_examples=60, deadline=None)
def test_scores_are_the_official_ones(rows: list[Any]) -> None:
    answers, texts, _ = zip(*rows)
    questions = asked(*answers)
    found = evaluate(questions, texts)
    theirs, (exact, f1) = official(questions, texts)
    np.testing.assert_allclose(found.shares.exact, exact)
    np.testing.assert_allclose(found.shares.f1, f1, atol=1e-12)
    names = {"exact": "exact", "f1": "f1"}
    if not all(answers):
        names["no_answer_exact"] = "NoAns_exact"
        if any(answers):
            names |= {"has_answer_exact": "HasAns_exact", "has_answer_f1": "HasAns_f1"}
    for ours, name in names.items():
        assert 100 * found.numbers[ours] == pytest.approx(theirs[name]), ours
    assert set(found.numbers) - set(names) <= {"no_answer_f1_baseline"}
    nothing = evaluate(questions, [""] * len(rows))
    if not all(answers) and all(any(map(spans.english, one)) for one in answers if one):
        assert nothing.numbers["f1"] == pytest.approx(nothing.numbers["no_answer_f1_baseline"])


# The official search looks at whether a text is empty, not at its score: so words only, no articles.
SOLID = st.lists(st.sampled_from(["Tower", "old tower", "mill.", "the mill", "北京"]), max_size=2)


@given(
    st.lists(
        st.tuples(SOLID, SOLID.map(lambda w: " ".join(w) or "x"), st.floats(-20, 20)), min_size=1
    )
)
@settings(max_examples=60, deadline=None)
def test_the_best_threshold_is_the_official_one(rows: list[Any]) -> None:
    answers, texts, odds = zip(*rows)
    odds_N = np.array(odds) + np.arange(len(rows)) * 1e-3
    if len(set(odds_N)) < len(rows):
        return  # the official search takes equal odds one after the other: see below
    questions = asked(*answers)
    found = evaluate(questions, [""] * len(rows), Search(texts, odds_N)).numbers
    theirs, _ = official(questions, texts, odds_N)
    for name in ("exact", "f1"):
        assert 100 * found[f"best_{name}"] == pytest.approx(theirs[f"best_{name}"])
        # Where having no answer at all is best, the official threshold of 0 may give some.
        threshold = found[f"best_{name}_threshold"]
        if threshold in odds_N or odds_N.min() > 0:
            by_theirs = official(questions, texts, odds_N, theirs[f"best_{name}_thresh"])[0][name]
            assert by_theirs == pytest.approx(100 * found[f"best_{name}"])
            if name == "exact":
                assert threshold == theirs["best_exact_thresh"]


@given(ROWS, st.booleans())
@settings(max_examples=60, deadline=None)
def test_no_threshold_is_better(rows: list[Any], ties: bool) -> None:
    """The threshold given scores what is promised, and none that could be chosen scores more."""
    answers, texts, odds = zip(*rows)
    odds_N = np.round(np.array(odds) / 10) if ties else np.array(odds)
    questions = asked(*answers)
    found = evaluate(questions, texts, Search(texts, odds_N)).numbers

    def with_threshold(threshold: float, name: str) -> float:
        said = ["" if odd > threshold else text for text, odd in zip(texts, odds_N)]
        return evaluate(questions, said).numbers[name]

    for name in ("exact", "f1"):
        best = found[f"best_{name}"]
        assert with_threshold(found[f"best_{name}_threshold"], name) == pytest.approx(best)
        others = [*odds_N, odds_N.min() - 1]
        assert best == pytest.approx(max(with_threshold(other, name) for other in others))


def test_equal_odds_go_together() -> None:
    """Of two questions alike for the network, no threshold answers the one only."""
    questions = asked(["tower"], [])
    found = evaluate(questions, ["", ""], Search(["tower", "mill"], np.zeros(2))).numbers
    assert found["best_exact"] == 0.5
    assert found["best_exact_threshold"] < 0
    assert official(questions, ["tower", "mill"], [0.0, 0.0])[0]["best_exact"] == 100


def test_characters_for_other_languages() -> None:
    assert spans.characters("《马斯特 ABC条约》, Zoë's the") == [
        *"马斯特",
        "abc",
        *"条约",
        "zoës",
        "the",
    ]
    questions = asked(["北京大学"])
    assert evaluate(questions, ["北京"]).numbers["f1"] == 0
    questions = dataclasses.replace(questions, words="characters")
    found = evaluate(questions, ["北京。"]).numbers
    assert found == pytest.approx({"exact": 0, "f1": 2 / 3})
    assert evaluate(questions, ["「北京 大学」"]).numbers["exact"] == 1


def test_what_cannot_be_scored() -> None:
    with pytest.raises(BadInput, match="1 texts for 2 questions"):
        evaluate(asked([], []), [""])
    with pytest.raises(BadInput, match="no answers to compare with"):
        evaluate(Questions(asked([]).rows, labelled=False), [""])
    with pytest.raises(BadInput, match="2 null odds for 1 questions"):
        evaluate(asked([]), [""], Search([""], np.zeros(2)))
