"""How well sequences are tagged: entities as CoNLL's script counts them, words, and whole sentences.

Called by scores. Tags are BIO or plain (`data.conll.to_bio` converts others).
Entities are scored by `seqeval` in its default mode, words by `scikit-learn`."""

from __future__ import annotations

import dataclasses
import itertools
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from jaxdistill.errors import BadInput, nearest, shortened

Tags = Sequence[Sequence[str]]
SCHEMES = ("BIO", "plain")


@dataclasses.dataclass(frozen=True)
class EntityRow:
    """The scores of one type of entity. `support`: how many there are in truth."""

    name: str
    precision: float
    recall: float
    f1: float
    support: int


def entity_scores(
    truth: Tags, found: Tags, scheme: str = "BIO", usual: str = ""
) -> dict[str, float]:
    """All numbers over the whole set, by name.

    For BIO: `entity_f1`, `entity_precision`, `entity_recall` (over all entities, not averaged over
    types). For plain tags: `macro_f1`, the mean over all tags in truth or found. For both:
    `token_accuracy`, `frame_accuracy` (sentences without a mistake), and `majority_*`: the first and
    the token accuracy of the answer `usual` for each word, the most frequent tag of the training set
    ("" takes truth's).

    Raises:
        BadInput: an unknown scheme; no words; truth and found of unlike lengths.
    """
    if scheme not in SCHEMES:
        raise BadInput(f"scheme={shortened(scheme)!r}: {nearest(scheme, SCHEMES)}")
    counts_Sx2 = word_counts(truth, found)
    right, words = counts_Sx2.sum(axis=0)
    if not words:
        raise BadInput("no words to score: give sentences that have some")
    usual = usual or Counter(itertools.chain.from_iterable(truth)).most_common(1)[0][0]
    always = [[usual] * len(tags) for tags in truth]
    of_plain_or_entities = _plain_scores if scheme == "plain" else _micro_scores
    scores = of_plain_or_entities(truth, found)
    first = next(iter(scores))
    return {
        **scores,
        "token_accuracy": float(right / words),
        "frame_accuracy": float(np.mean(frames_right(truth, found))),
        f"majority_{first}": of_plain_or_entities(truth, always)[first],
        "majority_token_accuracy": float(word_counts(truth, always)[:, 0].sum() / words),
    }


def entity_rows(truth: Tags, found: Tags) -> list[EntityRow]:
    """The scores of each type of entity in truth or found, by name."""
    from seqeval.metrics.sequence_labeling import get_entities, precision_recall_fscore_support

    _check(truth, found)
    with _quiet():
        truth_lists, found_lists = _lists(truth), _lists(found)
        names = sorted({name for name, *_ in get_entities(truth_lists) + get_entities(found_lists)})
        columns = precision_recall_fscore_support(truth_lists, found_lists, zero_division=0)
    return [
        EntityRow(name, float(precision), float(recall), float(f1), int(support))
        for name, precision, recall, f1, support in zip(names, *columns)
    ]


def entity_counts(truth: Tags, found: Tags) -> np.ndarray:
    """int64 [S, 3]: the right, found and true entities of each sentence; their sums give F1, so that a
    bootstrap needs nothing else."""
    from seqeval.metrics.sequence_labeling import get_entities

    _check(truth, found)
    with _quiet():
        pairs = [
            (set(get_entities(list(true))), set(get_entities(list(tags))))
            for true, tags in zip(truth, found)
        ]
    counts = [(len(true & tags), len(tags), len(true)) for true, tags in pairs]
    return np.array(counts, np.int64).reshape(-1, 3)


def word_counts(truth: Tags, found: Tags) -> np.ndarray:
    """int64 [S, 2]: the words with the right tag, and all words, of each sentence."""
    _check(truth, found)
    counts = [(sum(map(str.__eq__, true, tags)), len(true)) for true, tags in zip(truth, found)]
    return np.array(counts, np.int64).reshape(-1, 2)


def frames_right(truth: Tags, found: Tags) -> np.ndarray:
    """bool [S]: whether all tags of the sentence are right."""
    counts_Sx2 = word_counts(truth, found)
    return counts_Sx2[:, 0] == counts_Sx2[:, 1]


def _micro_scores(truth: Tags, found: Tags) -> dict[str, float]:
    from seqeval.metrics.sequence_labeling import precision_recall_fscore_support

    with _quiet():
        precision, recall, f1, _ = precision_recall_fscore_support(
            _lists(truth), _lists(found), average="micro", zero_division=0
        )
    return {
        "entity_f1": float(f1),
        "entity_precision": float(precision),
        "entity_recall": float(recall),
    }


def _plain_scores(truth: Tags, found: Tags) -> dict[str, float]:
    from sklearn.metrics import f1_score

    pair = [list(itertools.chain.from_iterable(tags)) for tags in (truth, found)]
    return {"macro_f1": float(f1_score(*pair, average="macro", zero_division=0))}


def _lists(tags: Tags) -> list[list[str]]:
    """seqeval takes lists only: it would read tuples as one sentence."""
    return [list(sentence) for sentence in tags]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without seqeval's warnings of tags that are none of entities: `to_bio` has told of them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _check(truth: Tags, found: Tags) -> None:
    if list(map(len, truth)) != list(map(len, found)):
        raise BadInput(
            f"{len(truth):,} sentences of {sum(map(len, truth)):,} words in truth, {len(found):,} of "
            f"{sum(map(len, found)):,} found: expected a tag for each word of each sentence"
        )
