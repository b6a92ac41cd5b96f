"""How good answers are: every score by name. A task's feed names its score. Add one: a row here.

A score is over the whole held-out set, never averaged over batches. Called by run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from jaxdistill.registry import Table

Numbers = dict[str, float]


@dataclasses.dataclass(frozen=True)
class Score:
    """`of(outputs, targets, usual)`: numbers by name, from a head's `output` for N rows, what the
    batch holds as `target`, and the answer to give without looking. `higher`: the numbers of which
    more is better, and `lower` those of which less is; by these a stage may choose its best state."""

    of: Callable[[np.ndarray, np.ndarray, int], Numbers]
    higher: tuple[str, ...]
    lower: tuple[str, ...] = ()
    output: str = "logits"
    target: str = "labels"


def classification(logits_NxC: np.ndarray, labels_N: np.ndarray, usual: int) -> Numbers:
    """Share of right answers, the mean cross-entropy (nats), and the share of always answering
    `usual`."""
    logits_NxC = logits_NxC.astype(np.float64)
    shifted_NxC = logits_NxC - logits_NxC.max(axis=-1, keepdims=True)
    log_sums_N = np.log(np.exp(shifted_NxC).sum(axis=-1))
    losses_N = log_sums_N - np.take_along_axis(shifted_NxC, labels_N[:, None], -1)[:, 0]
    return {
        "accuracy": float(np.mean(np.argmax(logits_NxC, axis=-1) == labels_N)),
        "loss": float(np.mean(losses_N)),
        "majority_accuracy": float(np.mean(labels_N == usual)),
    }


SCORES = Table("score", {"classification": Score(classification, ("accuracy",), ("loss",))})


def register(name: str, score: Score) -> None:
    """Adds a score of one's own. Raises `BadInput` if the name is taken."""
    SCORES.register(name, score)
