"""Answers as texts, from what a network says of `windows`: section 4.2 of BERT
(arXiv:1810.04805), and 4.3 for questions that may be impossible.

A span of tokens from i to j has the score start_logits[i] + end_logits[j]; the best of all spans of a
question is its answer. [CLS] stands for "impossible". Texts are cut out of the context, so that they
are spelt as there. Called by tasks that ask for spans."""

from __future__ import annotations

import dataclasses
import json
from typing import Any, NamedTuple

import numpy as np

from jaxdistill.data.squad import Questions
from jaxdistill.data.windows import Windows
from jaxdistill.errors import BadInput

FILES = ("predictions.json", "nbest_predictions.json", "null_odds.json")


@dataclasses.dataclass(frozen=True)
class Decoding:
    """`n_best`: different texts per question; `max_answer_length`: in tokens. With `impossible`, a
    question has no answer where that is better than its best span by more than `null_threshold`."""

    n_best: int = 20
    max_answer_length: int = 30
    impossible: bool = False
    null_threshold: float = 0.0


class Candidate(NamedTuple):
    """An answer, its share in the softmax of the scores of all that are listed, and its score in two
    parts."""

    text: str
    probability: float
    start_logit: float
    end_logit: float


@dataclasses.dataclass(frozen=True)
class Decoded:
    """Of N questions. `texts`: the answers, "" where there is none; `spans`: the best span of each,
    also where the answer is that there is none. `n_best`: the best first. `null_odds`: float64 [N], the
    score of no answer less that of the best span; None if every question has an answer."""

    texts: tuple[str, ...]
    spans: tuple[str, ...]
    n_best: tuple[tuple[Candidate, ...], ...]
    null_odds: np.ndarray | None


class _Found(NamedTuple):
    text: str
    start_logit: float
    end_logit: float

    @property
    def score(self) -> float:
        return self.start_logit + self.end_logit


def decode(
    windows: Windows,
    questions: Questions,
    start_logits: np.ndarray,
    end_logits: np.ndarray,
    settings: Decoding = Decoding(),
) -> Decoded:
    """The answers of all questions. `start_logits`, `end_logits`: [M, L], floats; L may be more than
    the tokens of a window. Raises `BadInput` for logits of other shapes, or that are not numbers."""
    _check(windows, start_logits, end_logits, settings)
    bounds = np.searchsorted(windows.question, np.arange(len(questions) + 1))
    texts, spans, lists, odds = [], [], [], []
    for row, begin, end in zip(questions.rows, bounds, bounds[1:]):
        those = [
            (number, start_logits[number].astype(np.float64), end_logits[number].astype(np.float64))
            for number in range(begin, end)
        ]
        found = _best(windows, row.context, those, settings)
        best = found[0] if found else _Found("", 0.0, 0.0)
        text = best.text
        if settings.impossible:
            none = min((_Found("", s[0], e[0]) for _, s, e in those), key=lambda one: one.score)
            odds.append(none.score - best.score)
            text = "" if odds[-1] > settings.null_threshold else text
            found = _with_none(found, none, settings.n_best)
        texts.append(text)
        spans.append(best.text)
        lists.append(_with_probabilities(found))
    null_odds = np.array(odds) if settings.impossible else None
    return Decoded(tuple(texts), tuple(spans), tuple(lists), null_odds)


def _check(windows: Windows, start: np.ndarray, end: np.ndarray, settings: Decoding) -> None:
    if settings.n_best < 1 or settings.max_answer_length < 1:
        raise BadInput(
            f"n_best={settings.n_best}, max_answer_length={settings.max_answer_length}: expected 1 or more"
        )
    longest = max(map(len, windows.ids))
    for name, logits in (("start_logits", start), ("end_logits", end)):
        if logits.ndim != 2 or len(logits) != len(windows) or logits.shape[1] < longest:
            raise BadInput(
                f"{name} has the shape {logits.shape}: expected ({len(windows)}, {longest} or more), a number for each "
                "token of each window"
            )
        none = logits[: len(logits) if settings.impossible else 0, 0]
        if not np.isfinite([logits.max(), *none]).all():  # of other tokens, -inf hides one
            raise BadInput(f"{name} holds numbers that are not finite: the network has diverged")


def _best(
    windows: Windows, context: str, those: list[tuple[int, np.ndarray, np.ndarray]], by: Decoding
) -> list[_Found]:
    """The best spans of one question that differ in their text, the best first; of equal ones, the
    first in the context. `those`: (number, start logits, end logits) of its windows."""
    tables = [
        _scores(windows, number, start, end, by.max_answer_length) for number, start, end in those
    ]
    sizes = np.cumsum([0, *(table.size for table in tables)])
    scores = np.concatenate([table.ravel() for table in tables])
    possible = int(np.isfinite(scores).sum())
    most = 2 * by.n_best
    while True:  # until enough of them differ
        found: dict[str, _Found] = {}
        for place in _largest(scores, min(most, possible)).tolist():
            which = int(np.searchsorted(sizes, place, side="right")) - 1
            first, more = divmod(place - int(sizes[which]), by.max_answer_length)
            number, start, end = those[which]
            text = context[
                windows.char_starts[number][first] : windows.char_ends[number][first + more]
            ]
            position = int(windows.second_begins[number]) + first
            if text and text not in found:
                found[text] = _Found(text, float(start[position]), float(end[position + more]))
        if len(found) >= by.n_best or most >= possible:
            return list(found.values())[: by.n_best]
        most *= 4


def _scores(
    windows: Windows, number: int, start: np.ndarray, end: np.ndarray, most: int
) -> np.ndarray:
    """Scores of all spans of a window, [tokens, `most`]: by the first token and how many follow it;
    -inf where there is none."""
    may_begin = windows.max_context[number]
    begin, tokens = int(windows.second_begins[number]), len(may_begin)
    ends = np.append(end[begin : begin + tokens], np.full(most - 1, -np.inf))
    starts = np.where(may_begin, start[begin : begin + tokens], -np.inf)
    if not tokens:
        return np.zeros((0, most))
    return starts[:, None] + np.lib.stride_tricks.sliding_window_view(ends, most)


def _largest(scores: np.ndarray, most: int) -> np.ndarray:
    """Where the `most` largest stand, in order; of equal ones the first."""
    if not most:
        return np.zeros(0, np.int64)
    least = np.partition(scores, len(scores) - most)[len(scores) - most]
    places = np.flatnonzero(scores >= least)
    return places[np.argsort(-scores[places], kind="stable")[:most]]


def _with_none(found: list[_Found], none: _Found, n_best: int) -> list[_Found]:
    """The list with "no answer" at its place, or behind the last."""
    better = sum(one.score >= none.score for one in found)
    others = found if better >= n_best else found[: n_best - 1]
    return [*others[:better], none, *others[better:]]


def _with_probabilities(found: list[_Found]) -> tuple[Candidate, ...]:
    weights = np.array([one.score for one in found])
    if found:
        weights = np.exp(weights - weights.max())
        weights /= weights.sum()
    return tuple(
        Candidate(one.text, float(weight), one.start_logit, one.end_logit)
        for one, weight in zip(found, weights)
    )


def answer_files(questions: Questions, decoded: Decoded) -> dict[str, str]:
    """What to write, by the ending of its file: the files of BERT's run_squad, which SQuAD's own
    scripts read."""
    ids = [row.id for row in questions.rows]
    lists = [[candidate._asdict() for candidate in found] for found in decoded.n_best]
    values: list[Any] = [decoded.texts, lists]
    values += [] if decoded.null_odds is None else [decoded.null_odds.tolist()]
    return {name: _json(ids, value) for name, value in zip(FILES, values)}


def _json(ids: list[str], values: Any) -> str:
    return json.dumps(dict(zip(ids, values)), ensure_ascii=False, indent=2) + "\n"
