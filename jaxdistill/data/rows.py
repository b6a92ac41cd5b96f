"""Rows by number as batches: what a task needs beside making a row.

Most texts are far shorter than the longest, so rows of about equal length share a batch, which is padded
to one of a few lengths; or training rows of any length share a batch and, several of them, a packed row of
it, which then is of one of a few lengths too. Training rows come in an order that is shuffled anew in each epoch; stretches of
`POOL` batches of it are sorted by padded length, cut into batches, and the batches shuffled. Batch k of a run is
a function of the seed and k, so a run resumes anywhere and hosts slice the global batch, as the
pre-training loader has it. Called by every task, and by derived feeds."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, SupportsIndex

import numpy as np

from jaxdistill.data import loader, packing, randomness
from jaxdistill.data.feeds import (
    ALONE,
    Answers,
    Batch,
    Order,
    Outputs,
    Parts,
    Reader,
    Rows,
    Share,
    only,
)

# Each is a program of its own for every stage. Between neighbours lie at most half of the smaller.
LENGTHS = (8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
POOL = 50  # batches that are sorted together: more leave fewer pads, and less chance
_TEXTS = 4  # a packed row has room for so many times the texts that it has on average


def padded_length(tokens: int, most: int) -> int:
    """The length that a batch whose longest row has so many `tokens` is padded to, of rows that have
    `most`: longer by a pad at least, since MobileBERT's trigrams let the last token see whether one
    follows, and no row may depend on the batch it is in."""
    return min(most, min((length for length in LENGTHS if tokens < length), default=most))


def packed_length(tokens: int) -> int:
    """The length of packed rows of which the fullest has so many `tokens`: the next of a few that lie closer
    than `LENGTHS`, since the sums of several texts differ less. Texts end in such a row without a pad."""
    step = max(16, 2 ** (tokens.bit_length() - 4))
    return -(-tokens // step) * step


def packed_rows(lengths: np.ndarray, count: int, packed: int) -> np.ndarray:
    """Which packed row of their host the texts of a batch go to, of which each host has `count`."""
    parts = [
        packing.share_out(lengths[first : first + count], count // packed, _TEXTS * packed)
        for first in range(0, len(lengths), count)
    ]
    return np.concatenate(parts)


def _padded(lengths: np.ndarray, order: Order) -> int:
    """What a batch of rows of these lengths is padded to."""
    return padded_length(int(lengths.max()), order.length) if order.buckets else order.length


def _buckets(lengths: np.ndarray) -> np.ndarray:
    """Which of `LENGTHS` each length is padded to, by number."""
    return np.searchsorted(LENGTHS, lengths, side="right")


def reader_of(
    parts: Parts, answers: Callable[[Outputs], Answers] | None = None, notices: tuple[str, ...] = ()
) -> Reader:
    """The `Reader` of a task: training rows shuffled anew in each epoch, held-out ones once."""
    train, heldout, order = parts

    def batches(batch_size: int, first_row: int, share: Share) -> Iterator[Batch]:
        return training_batches(train, order, batch_size, first_row, share)

    def heldout_batches(batch_size: int, most: int | None, share: Share) -> Iterator[Batch]:
        return evaluation_batches(sample(heldout, most, order.seed), order, batch_size, share)

    return Reader(batches, heldout_batches, parts, answers, notices)


@dataclasses.dataclass(frozen=True)
class _Source:
    """Grain's view of the endless run over rows: item k is this host's part of batch k."""

    rows: Rows
    order: Order
    batch_size: int
    first_row: int
    share: Share

    def __len__(self) -> int:
        return (loader.ENDLESS - self.first_row) // self.batch_size

    @functools.cached_property
    def pool(self) -> Callable[[int], np.ndarray]:
        """The rows of a stretch of batches: int64 [batches, batch size]. The last two are held,
        since batches are asked for in order."""
        return functools.lru_cache(2)(self._pool)

    @property
    def batches_together(self) -> int:
        """How many batches are sorted together: no more than an epoch has, so that a batch hardly ever
        has a row twice."""
        if self.order.packed > 1 or not self.order.buckets:
            return 1
        return min(POOL, max(1, self.rows.number // self.batch_size))

    def _pool(self, number: int) -> np.ndarray:
        count, seed = self.batches_together, self.order.seed
        size = count * self.batch_size
        first = self.first_row % self.batch_size + number * size
        epoch, place = np.divmod(np.arange(first, first + size), self.rows.number)
        found = randomness.permute(place, self.rows.number, seed, epoch)
        if count > 1:
            # By what they are padded to and no finer: length often tells something of the label, and
            # batches of one label teach badly.
            found = found[np.argsort(_buckets(self.rows.lengths[found]), kind="stable")]
        place, stream = np.arange(count), randomness.Stream.BATCH_ORDER
        shuffled = randomness.permute(place, count, seed, np.full(count, number), stream)
        return found.reshape(count, self.batch_size)[shuffled]

    def __getitem__(self, index: SupportsIndex) -> Batch:
        pool, place = divmod(self.first_row // self.batch_size + int(index), self.batches_together)
        numbers = self.pool(pool)[place]
        count = loader.rows_a_host(self.batch_size, *self.share)
        first = self.share.process * count
        if self.order.packed > 1:
            return self._packed(numbers, count, first)
        length = _padded(self.rows.lengths[numbers], self.order)
        return self.rows.fetch(numbers[first : first + count], length)

    def _packed(self, numbers: np.ndarray, count: int, first: int) -> Batch:
        """This host's part of a batch of packed rows, which are equally long on all hosts."""
        lengths, packed = self.rows.lengths[numbers], self.order.packed
        rows, most = count // packed, _TEXTS * packed
        shares = packed_rows(lengths, count, packed)
        fullest = max(
            int(np.bincount(shares[part : part + count], lengths[part : part + count]).max())
            for part in range(0, len(numbers), count)
        )
        row = shares[first : first + count]
        inside = np.argsort(row, kind="stable")  # examples stand in the order of their rows
        mine = numbers[first : first + count][inside]
        batch = self.rows.fetch(mine, int(self.rows.lengths[mine].max()))
        return packing.join_rows(
            batch,
            row[inside],
            num_rows=rows,
            length=packed_length(fullest),
            max_segments=most,
            fills=self.fills,
        )

    @functools.cached_property
    def fills(self) -> dict[str, Any]:
        """What stands at pads, of the arrays that grow with the tokens."""
        row, tokens = np.zeros(1, np.int64), int(self.rows.lengths[0])
        short, long = (self.rows.fetch(row, tokens + pads) for pads in (1, 2))
        return {name: x[0, -1] for name, x in long.items() if x.shape != short[name].shape}


def training_batches(
    rows: Rows, order: Order, batch_size: int, first_row: int = 0, share: Share = ALONE
) -> Iterator[Batch]:
    """Batches without end, in another order in each epoch. Raises `BadInput` for a batch that hosts
    cannot share out equally."""
    loader.rows_a_host(batch_size, *share)
    return loader.read_through_grain(_Source(rows, order, batch_size, first_row, share), True)


def evaluation_batches(
    rows: Rows, order: Order, batch_size: int, share: Share = ALONE
) -> Iterator[Batch]:
    """Every row once, the short ones first; `row` int32 [B] says which. The last batch is filled up with
    copies of its last row that count in no mask."""
    count = loader.rows_a_host(batch_size, *share)
    turn = np.argsort(rows.lengths, kind="stable") if order.buckets else np.arange(rows.number)
    for begin in range(0, rows.number, batch_size):
        whole = turn[begin : begin + batch_size]
        place = np.arange(begin, begin + count) + share.process * count
        numbers = turn[np.minimum(place, rows.number - 1)]
        batch = rows.fetch(numbers, _padded(rows.lengths[whole], order))
        yield {**only(batch, rows.number - int(place[0])), "row": numbers.astype(np.int32)}


def sample(rows: Rows, most: int | None, seed: int) -> Rows:
    """The rows themselves or, if they are more than `most`, so many of them, drawn by `seed`."""
    if most is None or rows.number <= most:
        return rows
    return stretch(rows, 0, most, seed)


def stretch(rows: Rows, first: int, end: int, seed: int) -> Rows:
    """Of all rows in an order that `seed` draws, those from `first` up to, not including, `end` or the end."""
    place = np.arange(first, min(end, rows.number))
    chosen = randomness.permute(place, rows.number, seed, np.zeros(len(place), np.int64))
    keys = None if rows.keys is None else rows.keys[chosen]
    return Rows(
        rows.lengths[chosen], lambda numbers, length: rows.fetch(chosen[numbers], length), keys
    )


def mean_length(rows: Rows, order: Order, batch_size: int) -> float:
    """Tokens that a training row takes on average, pads included, in batches of this size."""
    source = _Source(rows, order, batch_size, 0, ALONE)
    pools = max(1, rows.number // (source.batches_together * batch_size))

    def tokens(lengths: np.ndarray) -> float:
        if order.packed == 1:
            return _padded(lengths, order)
        shares = packed_rows(lengths, batch_size, order.packed)
        return packed_length(int(np.bincount(shares, lengths).max())) / order.packed

    found = [
        tokens(rows.lengths[numbers])
        for pool in range(min(pools, 20))
        for numbers in source.pool(pool)
    ]
    return float(np.mean(found))
