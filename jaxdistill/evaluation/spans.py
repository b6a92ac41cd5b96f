"""Scores of answers to SQuAD's questions: exact match and F1 (Rajpurkar et al. 2016, arXiv:1606.05250),
and those with questions that are impossible (2018, arXiv:1806.03822).

The rules are those of the official evaluation scripts; numbers are shares, 0 to 1. Called by tasks that
ask for spans."""

from __future__ import annotations

import dataclasses
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from jaxdistill.data.squad import Questions
from jaxdistill.errors import BadInput

Numbers = dict[str, float]
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_ALONE = re.compile("[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")


def english(text: str) -> list[str]:
    """The words of an answer as SQuAD compares them: lower case, without ASCII punctuation and
    articles."""
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def characters(text: str) -> list[str]:
    """For any language: lower case, no punctuation of any script, no articles taken away; Chinese and
    Japanese characters count as words, since no blanks part them."""
    kept = "".join(c for c in text.lower() if not unicodedata.category(c).startswith("P"))
    return _ALONE.sub(r" \g<0> ", kept).split()


WORDS: dict[str, Callable[[str], list[str]]] = {"english": english, "characters": characters}


class Shares(NamedTuple):
    """Of N answers: `exact` 0 or 1 and `f1` 0 to 1, float64 [N]."""

    exact: np.ndarray
    f1: np.ndarray


@dataclasses.dataclass(frozen=True)
class SpanScores:
    """`numbers` over all questions, by name, and each question's `shares` (for intervals)."""

    numbers: Numbers
    shares: Shares


class Search(NamedTuple):
    """What the best threshold is looked for with: the best span of every question, also where the
    answer was that there is none, and float64 [N], by how much none is better (`answers.Decoded`)."""

    spans: Sequence[str]
    null_odds: np.ndarray


def evaluate(
    questions: Questions, texts: Sequence[str], search: Search | None = None
) -> SpanScores:
    """Scores the answers `texts`, "" for none, one for each question.

    `exact` and `f1` always. With impossible questions also `has_answer_exact`, `has_answer_f1`,
    `no_answer_exact` (the share of impossible ones left without an answer) and
    `no_answer_f1_baseline`, which is what always saying "" scores; the first two only if a question
    has an answer. With `search` also `best_exact`, `best_exact_threshold`, `best_f1`,
    `best_f1_threshold`: the best that any threshold on the null odds gives, and that threshold.

    Raises `BadInput` for questions without labels, and another number of texts."""
    if not questions.labelled:
        raise BadInput("the questions have no answers to compare with: give a file with labels")
    shares = each(questions, texts)
    numbers = {"exact": _mean(shares.exact), "f1": _mean(shares.f1)}
    impossible = questions.impossible
    if impossible.any():
        if not impossible.all():
            numbers["has_answer_exact"] = _mean(shares.exact[~impossible])
            numbers["has_answer_f1"] = _mean(shares.f1[~impossible])
        numbers["no_answer_exact"] = _mean(shares.exact[impossible])
        numbers["no_answer_f1_baseline"] = _mean(impossible)
    if search is not None:
        answered = each(questions, search.spans)
        nothing = each(questions, [""] * len(questions))
        for name, with_span, without in zip(Shares._fields, answered, nothing):
            best, threshold = best_threshold(with_span, without, search.null_odds)
            numbers |= {f"best_{name}": best, f"best_{name}_threshold": threshold}
    return SpanScores(numbers, shares)


def each(questions: Questions, texts: Sequence[str]) -> Shares:
    """Every question's scores: the best over its answers, "" being the answer of impossible ones."""
    if len(texts) != len(questions):
        raise BadInput(f"{len(texts)} texts for {len(questions)} questions: expected one for each")
    words = WORDS[questions.words]
    scores = np.zeros((2, len(questions)))
    for number, (row, text) in enumerate(zip(questions.rows, texts)):
        given = words(text)
        # Answers of articles or punctuation only are no answers, as in the official scripts.
        right = [kept for answer in row.answers if (kept := words(answer.text))] or [[]]
        scores[:, number] = given in right, max(f1(given, one) for one in right)
    return Shares(*scores)


def f1(given: Sequence[str], right: Sequence[str]) -> float:
    """The harmonic mean of precision and recall over words, counted as often as they stand there;
    without any words on a side, whether both have none."""
    if not given or not right:
        return float(not given and not right)
    shared = (Counter(given) & Counter(right)).total()
    return 2 * shared / (len(given) + len(right))


def best_threshold(
    with_span: np.ndarray, without: np.ndarray, null_odds: np.ndarray
) -> tuple[float, float]:
    """(the best mean score, the threshold that gives it) where a question scores `without` if its
    `null_odds` are larger than the threshold, else `with_span`; float64 [N] each.

    Of equally good thresholds it is the smallest among the odds, or one below them all, at most 0."""
    if len(null_odds) != len(with_span):
        raise BadInput(
            f"{len(null_odds)} null odds for {len(with_span)} questions: expected one each"
        )
    order = np.argsort(null_odds, kind="stable")
    odds = null_odds[order]
    sums = np.cumsum((with_span - without)[order])
    ends = np.flatnonzero(np.append(odds[1:] != odds[:-1], True))  # equal odds go together
    totals = np.append(0.0, sums[ends])
    best = int(np.argmax(totals))
    below = min(0.0, float(np.nextafter(odds[0], -np.inf)))
    threshold = below if best == 0 else float(odds[ends[best - 1]])
    return float((without.sum() + totals[best]) / len(odds)), threshold


def _mean(values: np.ndarray) -> float:
    return float(np.mean(values))
