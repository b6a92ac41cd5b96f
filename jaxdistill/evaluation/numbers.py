"""Scores of classes and of numbers: a whole held-out set in, numbers by name out.

Numpy in and plain numbers out; the metrics are scikit-learn's and SciPy's, imported at first use.
Called by scores, retrieval and bootstrap. Letters: N rows, C classes.

A label of `UNSEEN` (-1) marks a row whose class is in no training row: every answer to it is wrong."""

from __future__ import annotations

import warnings

import numpy as np

from jaxdistill.errors import BadInput

Numbers = dict[str, float]

UNSEEN = -1


def classification(logits_NxC: np.ndarray, labels_N: np.ndarray) -> Numbers:
    """`accuracy`, `macro_f1` and `loss` (mean cross-entropy, nats, computed in float64).

    Macro F1 is scikit-learn's: the mean over the classes that occur among labels or answers. `UNSEEN`
    rows are wrong for accuracy, false positives of the class that was answered for macro F1, and not
    part of the loss, which is NaN if no other rows exist. Of equal logits, the first is the answer.
    Raises `BadInput` without rows and for labels outside -1 to C - 1."""
    from scipy.special import log_softmax

    labels_N = _checked_labels(labels_N, logits_NxC, logits_NxC.shape[-1])
    seen_N = labels_N != UNSEEN
    log_probs_NxC = log_softmax(logits_NxC[seen_N].astype(np.float64), axis=-1)
    losses_N = -np.take_along_axis(log_probs_NxC, labels_N[seen_N][:, None], axis=-1)[:, 0]
    return {
        **_many_classes(labels_N, np.argmax(logits_NxC, axis=-1)),
        "loss": float(np.mean(losses_N)) if losses_N.size else float("nan"),
    }


def binary(logits_Nx2: np.ndarray, labels_N: np.ndarray, positive: int) -> Numbers:
    """`accuracy`, `f1` of class `positive`, and `matthews` (Matthews correlation, 0 where undefined).

    An `UNSEEN` row is wrong, is not positive, and is a third class for Matthews correlation. Raises
    `BadInput` without rows, for other than two logits, and for labels or `positive` outside 0 and 1."""
    if logits_Nx2.shape[-1] != 2 or positive not in (0, 1):
        raise BadInput(
            f"two classes, 0 and 1, are needed for F1 and Matthews correlation; "
            f"given: {logits_Nx2.shape[-1]} classes, of which {positive} is the positive one"
        )
    labels_N = _checked_labels(labels_N, logits_Nx2, 2)
    return _two_classes(labels_N, np.argmax(logits_Nx2, axis=-1), positive)


def majority(labels_N: np.ndarray, usual: int, positive: int | None = None) -> Numbers:
    """The scores of always answering `usual`, the most frequent class of the training rows.

    `accuracy` and `macro_f1` as in `classification`; with a `positive` class as in `binary`."""
    found_N = np.full(len(labels_N), usual)
    labels_N = _checked_labels(labels_N, found_N)
    if positive is None:
        return _many_classes(labels_N, found_N)
    return _two_classes(labels_N, found_N, positive)


def confusion(labels_N: np.ndarray, found_N: np.ndarray, classes: int) -> np.ndarray:
    """int64 [C, C]: how many rows of each class (first axis) got each answer (second axis).

    `UNSEEN` rows are not in it."""
    labels_N = _checked_labels(labels_N, found_N, classes)
    _check_answers(found_N, classes)
    counts_CxC = np.zeros((classes, classes), np.int64)
    seen_N = labels_N != UNSEEN
    np.add.at(counts_CxC, (labels_N[seen_N], found_N[seen_N]), 1)
    return counts_CxC


def per_class(labels_N: np.ndarray, found_N: np.ndarray, classes: int) -> list[Numbers]:
    """For each class `label` (its number), `precision`, `recall`, `f1` and `support` (its rows).

    0 where undefined. `UNSEEN` rows lower the precision of the class that was answered."""
    from sklearn.metrics import precision_recall_fscore_support

    labels_N = _checked_labels(labels_N, found_N, classes)
    _check_answers(found_N, classes)
    columns = precision_recall_fscore_support(
        labels_N, found_N, labels=range(classes), zero_division=0
    )
    return [
        {
            "label": label,
            "precision": float(precision),
            "recall": float(recall),
            "f1": float(f1),
            "support": int(support),
        }
        for label, (precision, recall, f1, support) in enumerate(zip(*columns))
    ]


def regression(found_N: np.ndarray, targets_N: np.ndarray, usual: float) -> Numbers:
    """`pearson`, `spearman`, `mse` (mean squared error) and `mean_baseline_mse`, the error of always
    answering `usual`, the mean of the training targets. In float64; raises `BadInput` as
    `check_rows`."""
    check_rows(found_N, targets_N)
    found_N, targets_N = found_N.astype(np.float64), targets_N.astype(np.float64)
    return {
        **correlations(found_N, targets_N),
        "mse": float(np.mean(np.square(found_N - targets_N))),
        "mean_baseline_mse": float(np.mean(np.square(usual - targets_N))),
    }


def correlations(found_N: np.ndarray, targets_N: np.ndarray) -> Numbers:
    """`pearson` and `spearman` (tied values share their mean rank); 0 where either side is
    constant."""
    from scipy.stats import pearsonr, spearmanr

    check_rows(found_N, targets_N)
    found_N, targets_N = found_N.astype(np.float64), targets_N.astype(np.float64)
    if np.ptp(found_N) == 0 or np.ptp(targets_N) == 0:
        return {"pearson": 0.0, "spearman": 0.0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SciPy warns of nearly constant values
        return {
            "pearson": float(pearsonr(found_N, targets_N)[0]),
            "spearman": float(spearmanr(found_N, targets_N)[0]),
        }


def check_rows(found_N: np.ndarray, targets_N: np.ndarray) -> None:
    """Raises `BadInput` unless both are one number per row, for the same rows, of at least one."""
    if found_N.shape != targets_N.shape or targets_N.ndim != 1 or not targets_N.size:
        raise BadInput(
            f"answers and targets must be one number per row, of at least one row; given: "
            f"answers of shape {found_N.shape}, targets of shape {targets_N.shape}"
        )


def _checked_labels(
    labels_N: np.ndarray, answers: np.ndarray, classes: int | None = None
) -> np.ndarray:
    if labels_N.ndim != 1 or len(labels_N) != len(answers) or not labels_N.size:
        raise BadInput(
            f"a label per row is needed, of at least one row; given: answers of shape "
            f"{answers.shape}, labels of shape {labels_N.shape}"
        )
    labels_N = labels_N.astype(np.int64)
    if labels_N.min() < UNSEEN or (classes is not None and labels_N.max() >= classes):
        raise BadInput(
            f"labels must lie between {UNSEEN} (unseen in training) and the last class"
            f"{'' if classes is None else f', {classes - 1}'}; "
            f"given: {labels_N.min()} to {labels_N.max()}"
        )
    return labels_N


def _check_answers(found_N: np.ndarray, classes: int) -> None:
    if found_N.shape != (len(found_N),) or found_N.min() < 0 or found_N.max() >= classes:
        raise BadInput(
            f"answers must be one class per row, from 0 to {classes - 1}; given: shape "
            f"{found_N.shape}, {found_N.min()} to {found_N.max()}"
        )


def _many_classes(labels_N: np.ndarray, found_N: np.ndarray) -> Numbers:
    from sklearn.metrics import accuracy_score, f1_score

    known = np.setdiff1d(np.concatenate([labels_N, found_N]), [UNSEEN])
    f1 = f1_score(labels_N, found_N, labels=known, average="macro", zero_division=0)
    return {"accuracy": float(accuracy_score(labels_N, found_N)), "macro_f1": float(f1)}


def _two_classes(labels_N: np.ndarray, found_N: np.ndarray, positive: int) -> Numbers:
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    # scikit-learn warns where both sides have the same single class.
    defined = np.ptp(labels_N) > 0 and np.ptp(found_N) > 0
    return {
        "accuracy": float(accuracy_score(labels_N, found_N)),
        "f1": float(f1_score(labels_N == positive, found_N == positive, zero_division=0)),
        "matthews": float(matthews_corrcoef(labels_N, found_N)) if defined else 0.0,
    }
