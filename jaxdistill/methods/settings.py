"""The settings that stages of all kinds have. Called by `kinds`, and by methods for their annotations."""

from __future__ import annotations

import dataclasses
from typing import Annotated

from jaxdistill.methods.base import DecayName, OptimizerName
from jaxdistill.settings import Count, CountOrZero, Each, MayRamp, OffOrAtLeast, Weight, Within

# `layer_map[i]` is the teacher layer that layer i follows, -1 for none; an empty one maps i to i.
LayerMap = Annotated[tuple[int, ...], Each(int, "whole numbers, the teacher's layers from 0")]
Temperature = Annotated[float, Within(0.01, 1000.0), MayRamp()]
Patterns = Annotated[tuple[str, ...], Each(str, "patterns of names, as ('layers/',)")]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Common:
    """The settings of every stage, whatever its kind."""

    baseline: bool = False
    # What its rows are: "text", as config.data describes it, or a task, a section of config.feeds.
    feed: str = "text"
    # The network that the terms compare with; a method with several names them itself.
    teacher: str = "teacher"
    # Weights and temperatures of its kind that change while it goes on: ("temperature: 8 to 1, cosine",).
    ramps: Annotated[
        tuple[str, ...],
        Each(str, "texts, as ('temperature: 8 to 1', 'hard_labels: 0 to 1, cosine')"),
    ] = ()
    # One of the three says how long the stage is.
    steps: CountOrZero = 0
    examples: int = 0
    epochs: float = 0.0
    batch_size: Count = 32
    accumulation: Count = 1
    optimizer: OptimizerName = "lamb"
    learning_rate: Weight = 1.5e-3
    warmup_steps: CountOrZero = 0
    # The same as a share of the stage's steps.
    warmup_ratio: Annotated[float, Within(0, 1)] = 0.0
    decay: DecayName = "linear"
    end_ratio: Weight = 1e-4
    weight_decay: Weight = 0.01
    clip_norm: Weight = 1.0
    bias_correction: bool = False
    dropout: bool = False
    # Patterns of the parameters that move, in place of the kind's own.
    moves: Patterns = ()
    # Which layers move, from the first number up to, not including, the second, as (4, 6); (): all.
    layers: Annotated[tuple[int, ...], Each(int, "two whole numbers, as (4, 6)")] = ()
    # Which rows of its feed it learns, of all in an order that the seed draws: from the first number up to,
    # not including, the second, as (0, 100000); (): all.
    rows: Annotated[tuple[int, ...], Each(int, "two whole numbers, as (0, 100000)")] = ()
    # Skip updates whose loss is so many standard deviations above its recent mean.
    skip_above: Annotated[
        float,
        OffOrAtLeast(
            2,
            "0 (no update is skipped) or 2 standard deviations or more: below that a usual loss is "
            "a spike",
        ),
    ] = 0.0
    # Hand on the state that is best by a held-out number: "loss" or one of its terms, or a number of a
    # task's score, as "accuracy"; "": the last.
    best: str = ""
    # Whether the state that the stage begins with may be the best one.
    best_or_start: bool = False
    # The feed whose held-out rows it is measured on; "": the stage's own.
    best_on: str = ""
    # After how many steps; 0: at each step-based checkpoint.
    best_every: CountOrZero = 0
    # End after so many of those measurements in a row that bring no better state; 0: run all steps.
    patience: CountOrZero = 0
    tf1_unmasked: bool = False
