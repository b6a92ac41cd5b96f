"""Rows by number as batches: what a task needs beside making a row.

Row n of a run is a function of (seed, n), so it resumes anywhere and hosts slice the global batch, as
the pre-training loader has it. Called by every task, and by derived feeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import SupportsIndex

import numpy as np

from jaxdistill.data import loader, randomness
from jaxdistill.data.feeds import ALONE, Batch, Reader, Rows, Share, only


def reader_of(train: Rows, heldout: Rows, seed: int) -> Reader:
    """The `Reader` of a task: `train` shuffled anew in each epoch, `heldout` in order."""

    def batches(batch_size: int, first_row: int, share: Share) -> Iterator[Batch]:
        return training_batches(train, seed, batch_size, first_row, share)

    def heldout_batches(batch_size: int, most: int | None, share: Share) -> Iterator[Batch]:
        return evaluation_batches(sample(heldout, most, seed), batch_size, share)

    return Reader(batches, heldout_batches, (train, heldout))


@dataclasses.dataclass(frozen=True)
class _Source:
    """Grain's view of the endless run over rows: item k is this host's part of batch k."""

    rows: Rows
    seed: int
    batch_size: int
    first_row: int
    share: Share

    def __len__(self) -> int:
        return (loader.ENDLESS - self.first_row) // self.batch_size

    def __getitem__(self, index: SupportsIndex) -> Batch:
        count = loader.rows_a_host(self.batch_size, *self.share)
        first = self.first_row + int(index) * self.batch_size + self.share.process * count
        epoch, place = np.divmod(np.arange(first, first + count), self.rows.number)
        return self.rows.fetch(randomness.permute(place, self.rows.number, self.seed, epoch))


def training_batches(
    rows: Rows, seed: int, batch_size: int, first_row: int = 0, share: Share = ALONE
) -> Iterator[Batch]:
    """Batches without end, in another order in each epoch. Raises `BadInput` for a batch that hosts
    cannot share out equally."""
    loader.rows_a_host(batch_size, *share)
    return loader.read_through_grain(_Source(rows, seed, batch_size, first_row, share), True)


def evaluation_batches(rows: Rows, batch_size: int, share: Share = ALONE) -> Iterator[Batch]:
    """Every row once, in order; the last batch filled up with copies of the last row that count in no
    mask."""
    count = loader.rows_a_host(batch_size, *share)
    for begin in range(0, rows.number, batch_size):
        place = np.arange(begin, begin + count) + share.process * count
        batch = rows.fetch(np.minimum(place, rows.number - 1))
        yield only(batch, rows.number - int(place[0]))


def sample(rows: Rows, most: int | None, seed: int) -> Rows:
    """The rows themselves or, if they are more than `most`, so many of them, drawn by `seed`."""
    if most is None or rows.number <= most:
        return rows
    chosen = randomness.permute(np.arange(most), rows.number, seed, np.zeros(most, np.int64))
    return Rows(most, lambda numbers: rows.fetch(chosen[numbers]))
