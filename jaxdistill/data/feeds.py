"""What a stage reads: a feed. Text and labelled tasks look alike from here on.

A feed knows the shapes of its rows, and of a task its labels, before any text is tokenised: models are
built and steps traced from them. Its batches come from a `Reader`, once there is a tokenizer. Add a
task: see `tasks`. Called by `text`, by every task, and by all that runs a stage."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

Batch = dict[str, np.ndarray]
MANY = 10**9  # stands for the number of rows of a text that is not read yet


class Shape(NamedTuple):
    """Of one array of a row, without the batch axis."""

    shape: tuple[int, ...]
    dtype: str


class Share(NamedTuple):
    """The part of each global batch that process `process` of `processes` reads: its slice of the rows."""

    process: int = 0
    processes: int = 1


ALONE = Share()


class About(NamedTuple):
    """What a task knows beside its settings: the name of its feed, and the seed of its order."""

    name: str
    seed: int


class Rows(NamedTuple):
    """`number` rows, counted from 0: `fetch(numbers)`, of int64[B], is the batch of those."""

    number: int
    fetch: Callable[[np.ndarray], Batch]


class Reader(NamedTuple):
    """Where the batches of a feed come from.

    `train(batch_size, first_row, share)`: batches without end, shuffled, from global row `first_row`
    on; a row is a function of the seed and its number alone, so that a run resumes anywhere.
    `heldout(batch_size, most, share)`: every held-out row once, in order, or a fixed sample of `most`
    rows. Rows that fill the last batch count in no mask. Every host gets as many batches.
    `parts`: the training and the held-out rows by number, of a feed whose rows stay what they are from
    epoch to epoch."""

    train: Callable[[int, int, Share], Iterator[Batch]]
    heldout: Callable[[int, int | None, Share], Iterator[Batch]]
    parts: tuple[Rows, Rows] | None = None


@dataclasses.dataclass(frozen=True)
class Feed:
    """One feed.

    `row`: shapes of the arrays of a training row, by name. `read`: the tokenizer -> its `Reader`.
    `rows`: of an epoch, `MANY` if not known yet; `heldout_rows`. `digests`: of the contents of
    "train" and "heldout", {} if not read yet; `tables`: where those are. Of a task, `head`: which of a network reads it;
    `labels`: the classes in the order of their numbers; `score`: a row of `evaluation.scores.SCORES`;
    `usual`: the answer to give without looking, the most frequent class of the training rows;
    `files(outputs)`: what to write about the answers to the held-out rows, text by the ending of its
    file."""

    name: str
    row: Mapping[str, Shape]
    read: Callable[[Any], Reader]
    rows: int = MANY
    heldout_rows: int = MANY
    digests: Mapping[str, str] = dataclasses.field(default_factory=dict)
    tables: Mapping[str, str] = dataclasses.field(default_factory=dict)
    head: str = ""
    labels: tuple[str, ...] = ()
    score: str = ""
    usual: int = 0
    files: Callable[[np.ndarray], Mapping[str, str]] = lambda outputs: {}

    @property
    def length(self) -> int:
        """Tokens of a row."""
        return self.row["input_ids"].shape[0]

    @property
    def predictions(self) -> int:
        """How many masked words a row has room for."""
        return self.row["mlm_positions"].shape[0] if "mlm_positions" in self.row else 0


def only(batch: Batch, number: int) -> Batch:
    """The batch with only its first `number` rows counting; the others fill it up."""
    counts_B = np.arange(len(batch["input_ids"])) < number
    masks = [name for name in batch if name.endswith(("_mask", "_weights"))]
    return {
        **batch,
        **{
            name: batch[name]
            * counts_B.astype(batch[name].dtype).reshape(-1, *[1] * (batch[name].ndim - 1))
            for name in masks
        },
    }
