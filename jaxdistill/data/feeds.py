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
    """Rows by number, counted from 0. `lengths`: int64[N], tokens of each. `fetch(numbers, length)`: of
    int64[B], the batch of those, padded to `length` tokens, which none of them exceeds. `keys`:
    int64[N], of a task, what each is known by outside (`encoded.keys_of`)."""

    lengths: np.ndarray
    fetch: Callable[[np.ndarray, int], Batch]
    keys: np.ndarray | None = None

    @property
    def number(self) -> int:
        return len(self.lengths)


@dataclasses.dataclass(frozen=True)
class Order:
    """In which order the rows of a task come, and how long. `length`: the longest that a row can be;
    `buckets`: rows of about equal length share a batch, which is padded no further than they need;
    else every batch is padded to `length`. `packed`: how many texts share a training row on average; then
    rows of any length share a batch."""

    seed: int
    length: int
    buckets: bool = True
    packed: int = 1


class Parts(NamedTuple):
    """The training and the held-out rows of a task, and the order they come in."""

    train: Rows
    heldout: Rows
    order: Order


Outputs = Mapping[str, np.ndarray]


class Answers(NamedTuple):
    """What a task makes of a network's outputs for its held-out rows. `truth` and `found`: of each
    example, in the form that the task's score reads; `files`: what to write about them, text by the
    ending of its file."""

    truth: Any
    found: Any
    files: Mapping[str, str]


class Reader(NamedTuple):
    """Where the batches of a feed come from.

    `train(batch_size, first_row, share)`: batches without end, shuffled, from global row `first_row`
    on; a row is a function of the seed and its number alone, so that a run resumes anywhere.
    `heldout(batch_size, most, share)`: every held-out row once, those of a task by their `row`, or a
    fixed sample of `most` rows. Rows that fill the last batch count in no mask. Every host gets as many batches.
    Batches may differ in length. `parts`: of a feed whose rows stay what they are from epoch to epoch.
    Of a task, `answers(outputs)`: what a network says of all held-out rows, from its head's outputs
    [N, ...] by name. `notices`: what the user should know of the rows."""

    train: Callable[[int, int, Share], Iterator[Batch]]
    heldout: Callable[[int, int | None, Share], Iterator[Batch]]
    parts: Parts | None = None
    answers: Callable[[Outputs], Answers] | None = None
    notices: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Feed:
    """One feed.

    `row`: shapes of the arrays of a training row, by name; batches may be shorter than their tokens.
    `read`: the tokenizer -> its `Reader`. `rows`: of an epoch, `MANY` if not known yet;
    `heldout_rows`. `digests`: of the contents of "train" and "heldout", {} if not read yet; `tables`:
    where those are. `notices`: what the user should know of them.

    Of a task, `head`: which of a network reads it; `losses`: the rows of `objectives.terms.LOSSES` that
    train it; `labels`: the classes in the order of their numbers, () of one that asks for a number;
    `score`: a row of `evaluation.scores.SCORES`, and `metric` the number of it that counts, "" for its
    first; `usual`: the answer to give without looking: the most frequent class of the training rows,
    the mean of their numbers; `positive`: of two classes the one that F1 is of. `decided`: settings that
    the training rows decided, as the scheme of their tags, and that test rows are read with. `packed`:
    how many texts share a row of a training batch on average."""

    name: str
    row: Mapping[str, Shape]
    read: Callable[[Any], Reader]
    rows: int = MANY
    heldout_rows: int = MANY
    digests: Mapping[str, str] = dataclasses.field(default_factory=dict)
    tables: Mapping[str, str] = dataclasses.field(default_factory=dict)
    head: str = ""
    losses: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    score: str = ""
    metric: str = ""
    usual: float = 0
    positive: int = 1
    decided: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    notices: tuple[str, ...] = ()
    packed: int = 1

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
