"""How certain a score is: percentile bootstrap intervals over held-out rows.

A sample draws as many rows as there are, with replacement, and is scored again; the interval holds
the middle `level` of the scores of all samples. The same seed gives the same interval.

Called by details. Letters: N rows, S samples, K distinct pairs of label and answer, C classes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from jaxdistill.errors import BadInput
from jaxdistill.evaluation.numbers import UNSEEN, check_rows
from jaxdistill.registry import Table

Interval = tuple[float, float]

FEW_ROWS = 200  # below this the interval is worth a line

_BLOCK = 2**20  # drawn numbers held at a time


def interval(
    score: Callable[[np.ndarray], float],
    n: int,
    *,
    samples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """(low, high) of any score of `n` rows. `score` gets the numbers of the drawn rows, int64 [N].

    Raises `BadInput` without rows or samples, or for a level that is not between 0 and 1."""
    scores_S = [score(rows_N) for rows_SxN in _drawn_rows(n, samples, seed) for rows_N in rows_SxN]
    return _middle(np.array(scores_S, np.float64), level)


def interval_of_mean(
    values_N: np.ndarray, *, samples: int = 1000, level: float = 0.95, seed: int = 0
) -> Interval:
    """`interval` of the mean of one number per row: right or wrong, exact match, 1 / rank."""
    values_N = values_N.astype(np.float64)
    check_rows(values_N, values_N)
    blocks = _drawn_rows(len(values_N), samples, seed)
    return _middle(np.concatenate([values_N[rows].mean(axis=-1) for rows in blocks]), level)


def correlation_interval(
    first_N: np.ndarray,
    second_N: np.ndarray,
    kind: str,
    *,
    samples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """`interval` of a correlation, `kind` "pearson" or "spearman"; ranks are those within a sample.

    A sample in which either side is constant counts as 0."""
    correlation = CORRELATIONS.named(kind)
    check_rows(first_N, second_N)
    first_N, second_N = first_N.astype(np.float64), second_N.astype(np.float64)
    found = [
        correlation(first_N[rows], second_N[rows])
        for rows in _drawn_rows(len(first_N), samples, seed)
    ]
    return _middle(np.concatenate(found), level)


def interval_of_classes(
    labels_N: np.ndarray,
    found_N: np.ndarray,
    metric: str,
    *,
    samples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """`interval` of a metric of classes, a name in `CLASS_METRICS`, defined as in `numbers`.

    `f1` is that of class 1. For another class give `labels_N == it, found_N == it`."""
    return _middle(resampled_classes(labels_N, found_N, metric, samples, seed), level)


def resampled_classes(
    labels_N: np.ndarray, found_N: np.ndarray, metric: str, samples: int = 1000, seed: int = 0
) -> np.ndarray:
    """The metric of each sample, float64 [S].

    Draws the cells of the confusion matrix from a multinomial instead of rows. That is exactly
    equivalent: the metric depends only on the counts of the cells, and the counts of N rows drawn
    with replacement are multinomial, with the observed shares as probabilities. Empty cells stay
    empty, so only the K others are drawn, and `UNSEEN` labels are cells like any other."""
    from scipy.sparse import csr_array

    measure = CLASS_METRICS.named(metric)
    check_rows(found_N, labels_N)
    _check(len(labels_N), samples)
    pairs_Nx2 = np.stack([labels_N.astype(np.int64), found_N.astype(np.int64)], axis=1)
    cells_Kx2, counts_K = np.unique(pairs_Nx2, axis=0, return_counts=True)
    classes_C, columns = np.unique(cells_Kx2, return_inverse=True)
    labels_K, found_K = columns.reshape(cells_Kx2.shape).T
    right_K = labels_K == found_K

    def by_class(columns_K: np.ndarray, ones_K: np.ndarray) -> csr_array:
        shape = len(counts_K), len(classes_C)
        return csr_array((ones_K.astype(np.float64), (np.arange(shape[0]), columns_K)), shape)

    every_K = np.ones(len(counts_K))
    right_KxC = by_class(labels_K, right_K)
    found_KxC, labels_KxC = by_class(found_K, every_K), by_class(labels_K, every_K)
    generator, parts = np.random.default_rng(seed), []
    for number in _blocks(samples, max(len(counts_K), len(classes_C))):
        drawn_SxK = generator.multinomial(len(labels_N), counts_K / len(labels_N), size=number)
        tally = Tally(
            classes_C, drawn_SxK @ right_KxC, drawn_SxK @ found_KxC, drawn_SxK @ labels_KxC
        )
        parts.append(measure(tally))
    return np.concatenate(parts)


class Tally(NamedTuple):
    """Rows of each sample by class: those answered right, those with this answer, and those with
    this label. `classes_C`: the number of each class, `UNSEEN` among them."""

    classes_C: np.ndarray
    right_SxC: np.ndarray
    found_SxC: np.ndarray
    labels_SxC: np.ndarray


def _accuracy(tally: Tally) -> np.ndarray:
    return tally.right_SxC.sum(axis=-1) / tally.labels_SxC.sum(axis=-1)


def _macro_f1(tally: Tally) -> np.ndarray:
    present_SxC = (tally.found_SxC + tally.labels_SxC > 0) & (tally.classes_C != UNSEEN)
    return np.sum(_f1_by_class(tally) * present_SxC, axis=-1) / np.sum(present_SxC, axis=-1)


def _f1(tally: Tally) -> np.ndarray:
    return np.sum(_f1_by_class(tally) * (tally.classes_C == 1), axis=-1)


def _f1_by_class(tally: Tally) -> np.ndarray:
    return 2 * tally.right_SxC / np.maximum(tally.found_SxC + tally.labels_SxC, 1)


def _matthews(tally: Tally) -> np.ndarray:
    """For any number of classes, as scikit-learn: 0 where every label or every answer is the same."""
    rows_S = tally.labels_SxC.sum(axis=-1)
    together_S = tally.right_SxC.sum(axis=-1) * rows_S
    together_S -= np.sum(tally.found_SxC * tally.labels_SxC, axis=-1)
    found_S = rows_S**2 - np.sum(tally.found_SxC**2, axis=-1)
    labels_S = rows_S**2 - np.sum(tally.labels_SxC**2, axis=-1)
    spread_S = np.sqrt(found_S) * np.sqrt(labels_S)
    return np.divide(together_S, spread_S, out=np.zeros_like(spread_S), where=spread_S > 0)


def _pearson(first_SxN: np.ndarray, second_SxN: np.ndarray) -> np.ndarray:
    constant_S = (np.ptp(first_SxN, axis=-1) == 0) | (np.ptp(second_SxN, axis=-1) == 0)
    first_SxN = first_SxN - first_SxN.mean(axis=-1, keepdims=True)
    second_SxN = second_SxN - second_SxN.mean(axis=-1, keepdims=True)
    together_S = np.sum(first_SxN * second_SxN, axis=-1)
    spread_S = np.linalg.norm(first_SxN, axis=-1) * np.linalg.norm(second_SxN, axis=-1)
    # The mean of equal values is rounded, so that their spread is not always 0.
    return np.where(constant_S, 0.0, together_S / np.where(constant_S, 1.0, spread_S))


def _spearman(first_SxN: np.ndarray, second_SxN: np.ndarray) -> np.ndarray:
    from scipy.stats import rankdata

    return _pearson(rankdata(first_SxN, axis=-1), rankdata(second_SxN, axis=-1))


CLASS_METRICS: Table[Callable[[Tally], np.ndarray]] = Table(
    "metric of classes",
    {"accuracy": _accuracy, "macro_f1": _macro_f1, "f1": _f1, "matthews": _matthews},
)
CORRELATIONS: Table[Callable[[np.ndarray, np.ndarray], np.ndarray]] = Table(
    "correlation", {"pearson": _pearson, "spearman": _spearman}
)


def uncertainty_note(rows: int, low: float, high: float, name: str = "accuracy") -> str | None:
    """A line on the 95 % interval of the score `name`, or None from `FEW_ROWS` rows on."""
    if rows >= FEW_ROWS:
        return None
    if low < high:
        said = f"95 % interval {low:.2f} to {high:.2f}"
    else:  # e.g. every answer is right
        said = f"and a bootstrap cannot say by how much, as every sample gives {low:.2f}"
    return f"{rows} held-out row{'s' * (rows != 1)}: the {name} is uncertain, {said}"


def _drawn_rows(n: int, samples: int, seed: int) -> Iterator[np.ndarray]:
    """Row numbers, int64 [S, N] a block; the numbers do not depend on the size of a block."""
    _check(n, samples)
    generator = np.random.default_rng(seed)
    for number in _blocks(samples, n):
        yield generator.integers(n, size=(number, n))


def _blocks(samples: int, width: int) -> Iterator[int]:
    """How many samples each block has."""
    size = max(1, _BLOCK // width)
    for start in range(0, samples, size):
        yield min(size, samples - start)


def _middle(scores_S: np.ndarray, level: float) -> Interval:
    if not 0 < level < 1:
        raise BadInput(f"the level of an interval must be between 0 and 1; given: {level}")
    low, high = np.quantile(scores_S, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _check(n: int, samples: int) -> None:
    if n < 1 or samples < 1:
        raise BadInput(f"a bootstrap needs rows and samples; given: {n} rows, {samples} samples")
