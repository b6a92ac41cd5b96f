"""How good answers are: every score by name. A task's feed names its score. Add one: a row here.

A score is over the whole held-out set, never averaged over batches. Called by measure and resolve."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from jaxdistill.data.feeds import Answers, Feed
from jaxdistill.data.intent_slots import Frames
from jaxdistill.evaluation import numbers, retrieval
from jaxdistill.evaluation.entities import entity_scores, frames_right
from jaxdistill.evaluation.numbers import Numbers
from jaxdistill.evaluation.spans import Search, evaluate
from jaxdistill.registry import Table


@dataclasses.dataclass(frozen=True)
class Score:
    """`of(answers, feed)`: numbers by name, from what the task `feed` makes of a network's outputs.
    `higher`: the numbers of which more is better, the one that counts first, and `lower` those of
    which less is; by these a stage may choose its best state."""

    of: Callable[[Answers, Feed], Numbers]
    higher: tuple[str, ...]
    lower: tuple[str, ...] = ()


def classification(answers: Answers, feed: Feed) -> Numbers:
    """`accuracy`, `macro_f1` and `loss` (nats); `majority_accuracy`, of always answering the most
    frequent class of the training rows."""
    found = numbers.classification(answers.found, answers.truth)
    usual = numbers.majority(answers.truth, int(feed.usual))
    return {**found, "majority_accuracy": usual["accuracy"]}


def binary(answers: Answers, feed: Feed) -> Numbers:
    """The same of two classes, and `f1`, of the positive one, `matthews` and `majority_f1`."""
    of_two = numbers.binary(answers.found, answers.truth, feed.positive)
    usual = numbers.majority(answers.truth, int(feed.usual), feed.positive)
    return {**classification(answers, feed), **of_two, "majority_f1": usual["f1"]}


def regression(answers: Answers, feed: Feed) -> Numbers:
    """`pearson`, `spearman`, `mse`; `mean_baseline_mse`, of always answering the mean."""
    return numbers.regression(answers.found, answers.truth, feed.usual)


def entities(answers: Answers, feed: Feed) -> Numbers:
    """`entity_f1`, `entity_precision`, `entity_recall`; `token_accuracy`, `frame_accuracy`; and what
    the most frequent tag for each word would give."""
    usual = feed.labels[int(feed.usual)]
    return entity_scores(answers.truth, answers.found, "BIO", usual)


def tagging(answers: Answers, feed: Feed) -> Numbers:
    """The same of tags that are no entities: `macro_f1` over the tags, `token_accuracy`,
    `frame_accuracy`."""
    usual = feed.labels[int(feed.usual)]
    return entity_scores(answers.truth, answers.found, "plain", usual)


def intent_slots(answers: Answers, feed: Feed) -> Numbers:
    """`frame_accuracy`: utterances whose intent and tags are all right; `intent_accuracy`; `slot_f1`,
    `slot_precision`, `slot_recall`; `majority_*`, of always answering the most frequent intent of the
    training utterances and no slot."""
    truth, found = answers.truth, answers.found
    intent, always_o = feed.labels[int(feed.usual)], [["O"] * len(tags) for tags in truth.tags]
    usual = Frames([intent] * len(always_o), always_o)
    slots = entity_scores(truth.tags, found.tags, "BIO", "O")

    def accuracies(frames: Frames) -> Numbers:
        intents_right = [true == said for true, said in zip(truth.intents, frames.intents)]
        return {
            "frame_accuracy": float(np.mean(frames_right(truth.whole, frames.whole))),
            "intent_accuracy": float(np.mean(intents_right)),
        }

    return {
        **accuracies(found),
        **{f"slot_{name}": slots[f"entity_{name}"] for name in ("f1", "precision", "recall")},
        **{f"majority_{name}": value for name, value in accuracies(usual).items()},
    }


def similarity(answers: Answers, feed: Feed) -> Numbers:
    """`spearman` and `pearson` of the cosines of pairs of embeddings with the scores of the pairs."""
    first_NxE, second_NxE = answers.found
    return retrieval.pair_scores(first_NxE, second_NxE, answers.truth)


def searches(answers: Answers, feed: Feed) -> Numbers:
    """`mrr@10`, `mrr`, `recall@1`, `recall@5`, `recall@10`, means over queries; `random_mrr@10` and
    `random_recall@10`, of a random order of the documents."""
    return {**retrieval.ranking_scores(answers.found), **retrieval.random_scores(answers.found)}


def spans(answers: Answers, feed: Feed) -> Numbers:
    """`exact` and `f1` as SQuAD's script has them; where questions may be impossible also of both sorts
    apart, of never answering, and the best that a threshold would give."""
    found = answers.found
    search = None if found.null_odds is None else Search(found.spans, found.null_odds)
    return evaluate(answers.truth, found.texts, search).numbers


SCORES = Table(
    "score",
    {
        "classification": Score(classification, ("accuracy", "macro_f1"), ("loss",)),
        "binary": Score(binary, ("accuracy", "f1", "matthews", "macro_f1"), ("loss",)),
        "entities": Score(
            entities,
            ("entity_f1", "entity_precision", "entity_recall", "token_accuracy", "frame_accuracy"),
        ),
        "tagging": Score(tagging, ("token_accuracy", "macro_f1", "frame_accuracy")),
        "intent_slots": Score(
            intent_slots,
            ("frame_accuracy", "intent_accuracy", "slot_f1", "slot_precision", "slot_recall"),
        ),
        "spans": Score(spans, ("f1", "exact")),
        "similarity": Score(similarity, ("spearman", "pearson")),
        "retrieval": Score(searches, ("mrr@10", "recall@1", "recall@5", "recall@10", "mrr")),
        "regression": Score(regression, ("pearson", "spearman"), ("mse",)),
    },
)


def register(name: str, score: Score) -> None:
    """Adds a score of one's own. Raises `BadInput` if the name is taken."""
    SCORES.register(name, score)


def metric_of(feed: Feed) -> str:
    """The number of a task that counts."""
    score = SCORES[feed.score]
    return feed.metric or (*score.higher, *score.lower)[0]
