"""What the numbers of a stage or network say against it. Called by `run`, which puts it into its
results."""

from __future__ import annotations

import math
from collections.abc import Mapping

from jaxdistill.errors import TrainingStopped

# Dynamic losses of half precision skip one update in a thousand; one in ten is no accident.
SKIPPED_SHARE = 0.1


def stage_warnings(
    name: str, *, steps: int, skipped: int, last_loss: float | None, moved: bool
) -> list[str]:
    """One line for everything that makes the result of stage `name` doubtful; empty if nothing
    does.

    `skipped`: how many of the `steps` updates were. `last_loss`: None if it is not known. `moved`:
    whether any parameter differs from what the stage began with."""
    found = []
    if skipped > SKIPPED_SHARE * steps:
        found.append(
            f"stage {name!r}: {skipped} of {steps} updates were skipped because they were not finite; lower its "
            "learning rate or lengthen its warm-up"
        )
    if last_loss is not None and not math.isfinite(last_loss):
        found.append(
            f"stage {name!r}: the loss of its last step is not finite ({last_loss}); lower its learning rate"
        )
    if steps and not moved:
        found.append(
            f"stage {name!r}: no parameter moved in {steps} steps; raise its learning rate or its steps"
        )
    return found


def score_warnings(network: str, task: str, numbers: Mapping[str, float], rows: int) -> list[str]:
    """A line if the network is no better on a task than an answer given without looking."""
    for metric, baseline, answer in (
        ("accuracy", "majority_accuracy", "of always answering the most frequent label"),
        ("entity_f1", "majority_entity_f1", "of always answering the most frequent tag"),
        ("macro_f1", "majority_macro_f1", "of always answering the most frequent tag"),
        (
            "frame_accuracy",
            "majority_frame_accuracy",
            "of always the most frequent intent, no slot",
        ),
        ("f1", "no_answer_f1_baseline", "of never answering"),
        ("mse", "mean_baseline_mse", "of always answering the mean"),
        ("mrr@10", "random_mrr@10", "of a random order"),
    ):
        found, usual = numbers.get(metric), numbers.get(baseline)
        if found is None or usual is None:
            continue
        if found >= usual if metric == "mse" else found <= usual:
            return [
                f"network {network!r}: the {metric.replace('_', ' ')} on the {rows} held-out rows of {task!r}, "
                f"{found:.4f}, is not {'below' if metric == 'mse' else 'above'} that {answer}, {usual:.4f}"
            ]
    return []


def check_trained(name: str, *, steps: int, skipped: int) -> None:
    """Raises `TrainingStopped` if more than half of a stage's updates were skipped: what it left is
    not trained. To be called once everything is written."""
    if 2 * skipped > steps:
        raise TrainingStopped(
            f"stage {name!r}: {skipped} of {steps} updates were skipped because they were not finite, so its "
            "network is hardly trained; in a new workdir, lower its learning rate or lengthen its warm-up"
        )
