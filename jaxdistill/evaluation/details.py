"""What stands behind the number of a task that counts: a 95 % interval, and a row for each class, tag or
type of entity. Add one: a row here, by the name of a score. Called by measure and task_commands."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxdistill.data.cosines import similarities
from jaxdistill.data.feeds import Answers, Feed
from jaxdistill.data.intent_slots import INTENT
from jaxdistill.evaluation import bootstrap, entities, numbers, retrieval, spans
from jaxdistill.evaluation.bootstrap import Interval
from jaxdistill.evaluation.scores import metric_of

Details = dict[str, Any]


def details(answers: Answers, feed: Feed) -> Details:
    """Of a network's answers: `metric`, its `interval` [low, high], and what else there is to tell,
    JSON-ready; {} for a score of one's own."""
    if feed.score not in DETAILS:
        return {}
    interval, more = DETAILS[feed.score](answers, feed)
    return {"metric": metric_of(feed), "interval": list(interval), **more}


def uncertainty(found: Details, feed: Feed) -> str:
    """A line on how certain a number of few rows is; "" of many, and without an interval."""
    if not found:
        return ""
    (low, high), name = found["interval"], found["metric"].replace("_", " ")
    return bootstrap.uncertainty_note(feed.heldout_rows, low, high, name) or ""


def classes(answers: Answers, feed: Feed) -> tuple[Interval, Details]:
    """`classes`: precision, recall, F1 and support of each; `confusion` [C, C]: true class by answer."""
    labels_N, found_N = answers.truth, np.argmax(answers.found, -1)
    true, said, metric = labels_N, found_N, metric_of(feed)
    if metric == "f1":  # of one class against all else
        true, said = ((numbers_N == feed.positive).astype(int) for numbers_N in (true, said))
    interval = bootstrap.interval_of_classes(true, said, metric)
    return interval, _by_class(labels_N, found_N, feed.labels)


def _by_class(labels_N: np.ndarray, found_N: np.ndarray, names: Sequence[str]) -> Details:
    rows = numbers.per_class(labels_N, found_N, len(names))
    return {
        "classes": [{**row, "label": names[int(row["label"])]} for row in rows],
        "confusion": numbers.confusion(labels_N, found_N, len(names)).tolist(),
    }


def regression(answers: Answers, feed: Feed) -> tuple[Interval, Details]:
    """The interval of the correlation."""
    return bootstrap.correlation_interval(answers.found, answers.truth, metric_of(feed)), {}


def similarity(answers: Answers, feed: Feed) -> tuple[Interval, Details]:
    """The interval of the correlation."""
    first_NxE, second_NxE = answers.found
    cosines = similarities(first_NxE, second_NxE)
    return bootstrap.correlation_interval(cosines, answers.truth, metric_of(feed)), {}


def searches(answers: Answers, feed: Feed) -> tuple[Interval, Details]:
    """The interval of the mean over queries; how many `queries` and `documents` there are."""
    found_Q = retrieval.ranking_per_query(answers.found)[metric_of(feed)]
    more = {"queries": len(found_Q), "documents": answers.found.documents}
    return bootstrap.interval_of_mean(found_Q), more


def entity_types(answers: Answers, feed: Feed) -> tuple[Interval, Details]:
    """`entities`: precision, recall, F1 and support of each type. Sentences are drawn, not words."""
    counts_Sx3 = entities.entity_counts(answers.truth, answers.found)

    def f1(rows_S: np.ndarray) -> float:
        right, found, true = counts_Sx3[rows_S].sum(axis=0)
        return float(2 * right / max(found + true, 1))

    rows = entities.entity_rows(answers.truth, answers.found)
    more = {"entities": [dataclasses.asdict(row) for row in rows]}
    return bootstrap.interval(f1, len(counts_Sx3)), more


def frames(answers: Answers, feed: Feed) -> tuple[Interval, Details]:
    """The interval of the share of utterances that are right in all; `entities`, of each slot; `classes` and
    `confusion`, of the intents."""
    truth, found = answers.truth, answers.found
    names = [label for label in feed.labels if label.startswith(INTENT)]
    number_of = {name: number for number, name in enumerate(names)}
    true_N, found_N = (
        np.array([number_of.get(intent, numbers.UNSEEN) for intent in part.intents])
        for part in (truth, found)
    )
    rows = entities.entity_rows(truth.tags, found.tags)
    right_N = entities.frames_right(truth.whole, found.whole)
    return bootstrap.interval_of_mean(right_N), {
        "entities": [dataclasses.asdict(row) for row in rows],
        **_by_class(true_N, found_N, names),
    }


def words(answers: Answers, feed: Feed) -> tuple[Interval, Details]:
    """The interval of the share of right words. Sentences are drawn."""
    counts_Sx2 = entities.word_counts(answers.truth, answers.found)

    def accuracy(rows_S: np.ndarray) -> float:
        right, all_words = counts_Sx2[rows_S].sum(axis=0)
        return float(right / max(all_words, 1))

    return bootstrap.interval(accuracy, len(counts_Sx2)), {}


def questions(answers: Answers, feed: Feed) -> tuple[Interval, Details]:
    """The interval of the mean over questions."""
    shares = spans.each(answers.truth, answers.found.texts)
    return bootstrap.interval_of_mean(getattr(shares, metric_of(feed))), {}


DETAILS: dict[str, Callable[[Answers, Feed], tuple[Interval, Details]]] = {
    "classification": classes,
    "binary": classes,
    "regression": regression,
    "entities": entity_types,
    "tagging": words,
    "intent_slots": frames,
    "spans": questions,
    "similarity": similarity,
    "retrieval": searches,
}
