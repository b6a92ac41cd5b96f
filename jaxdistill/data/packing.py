"""Several short rows in one: bins from the records' lengths, seed and epoch alone, then rows joined
into packed rows.

Bins are found before anything is read, by the lengths' histogram (Krell et al. 2021,
arXiv:2107.02027, section 3): longest first, each length goes where it leaves the least room, whole
groups of equal bins at a time. So a plan says how many bins hold which lengths. It is the same for
every epoch; which record fills which place of its length is drawn anew each epoch, and so is the
order of the bins. Hence an epoch has a fixed number of packed rows, holds every record exactly
once, and the packed row of any number is found without those before it: nothing is carried along.
Rows of a task, whose batches are drawn first, are shared out over the packed rows of their batch.
Called by `loader` and `rows`.

A record counts with the most tokens that its row may have. (A random next sentence may be shorter
than the true one.)"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxdistill.data import randomness
from jaxdistill.data.randomness import Stream

_FEWEST_TOKENS = 4  # of a row: [CLS], two tokens, [SEP]


@dataclasses.dataclass(frozen=True)
class Plan:
    """Which records share a row. Bins of one group hold equal lengths.

    `first_bin`: int64 [G + 1], where each group's bins begin, then their number. `lengths`: int64
    [G, S], the lengths in a bin of the group, then zeros. `first_place`: int64 [G, S], the group's
    first bin has this place among all places for that length. `by_length`: int64 [N], the records
    in order of length; those of length l are `by_length[class_begin[l]:class_begin[l + 1]]`.
    `seed`: of the draws."""

    first_bin: np.ndarray
    lengths: np.ndarray
    first_place: np.ndarray
    by_length: np.ndarray
    class_begin: np.ndarray
    seed: int

    @property
    def num_bins(self) -> int:
        return int(self.first_bin[-1])

    def records(
        self, bins: np.ndarray, epoch: np.ndarray, shuffle: bool = True
    ) -> tuple[np.ndarray, np.ndarray]:
        """What lies in `bins` int64 [B] in `epoch` int64 [B]: for each of M records, the index into
        `bins` (ascending) and the record, int64 [M] twice. Without `shuffle` it is the same in
        every epoch."""
        group = np.searchsorted(self.first_bin, bins, side="right") - 1
        lengths = self.lengths[group]
        places = self.first_place[group] + (bins - self.first_bin[group])[:, None]
        row, slot = np.nonzero(lengths)
        begin, end = self.class_begin[lengths[row, slot]], self.class_begin[lengths[row, slot] + 1]
        place = places[row, slot]
        if shuffle:
            place = randomness.permute(place, end - begin, self.seed, epoch[row], Stream.PACK)
        return row, self.by_length[begin + place]


def segments_a_row(length: int) -> int:
    """S, the most texts in a packed row of `length` tokens: the width of `cls_positions` and of
    what is pooled."""
    return max(8, length // 32)


def make_plan(lengths: np.ndarray, longest: int, seed: int, max_segments: int) -> Plan:
    """Packs rows of `lengths` (integers [N], 1 to `longest`) into bins of at most `longest` tokens
    and `max_segments` rows. Apart from sorting the lengths, its time depends on `longest` alone."""
    sizes = np.bincount(lengths, minlength=longest + 1)
    groups = pack_lengths(sizes, longest, max_segments)
    counts = np.array([count for count, _ in groups], np.int64)
    table = np.array(
        [pattern + (0,) * (max_segments - len(pattern)) for _, pattern in groups], np.int64
    )
    first_place, used = np.zeros_like(table), np.zeros(longest + 1, np.int64)
    for group, (count, pattern) in enumerate(groups):
        for slot, length in enumerate(pattern):
            first_place[group, slot] = used[length]
            used[length] += count
    return Plan(
        first_bin=np.concatenate([[0], np.cumsum(counts)]),
        lengths=table,
        first_place=first_place,
        by_length=np.argsort(lengths, kind="stable"),
        class_begin=np.concatenate([[0], np.cumsum(sizes)]),
        seed=seed,
    )


def pack_lengths(
    sizes: np.ndarray, longest: int, max_segments: int
) -> list[tuple[int, tuple[int, ...]]]:
    """(how many bins, the lengths in each) by group. `sizes`: int [longest + 1], how many rows have
    each length."""
    # By the room left in a bin: groups that may take more. Best fit is the first room that is large
    # enough.
    open_groups: list[list[tuple[int, tuple[int, ...]]]] = [[] for _ in range(longest + 1)]
    closed: list[tuple[int, tuple[int, ...]]] = []
    for length in range(longest, 0, -1):
        left = int(sizes[length])
        while left:
            room = next((room for room in range(length, longest) if open_groups[room]), longest)
            count, pattern = open_groups[room].pop() if room < longest else (left, ())
            # The fullest bin that has room stays so until no more fits.
            together = min(room // length, max_segments - len(pattern), left)
            taken = min(count, left // together)
            if taken < count and pattern:
                open_groups[room].append((count - taken, pattern))
            group = (taken, pattern + (length,) * together)
            (
                closed if len(group[1]) == max_segments else open_groups[room - length * together]
            ).append(group)
            left -= taken * together
    return closed + [group for groups in open_groups for group in groups]


def predictions_a_row(
    length: int, max_predictions: int, mask_rate: float, max_segments: int
) -> int:
    """P of a packed row: room for every prediction of its segments, if tokens are masked one by
    one.

    A segment of n tokens has max(1, round(mask_rate n)) predictions or fewer: at most mask_rate n +
    1/2, or one where that is less. Whole-word masking may want more in rows of few and long words:
    see `join`."""
    surplus = max(0.5, 1 - mask_rate * _FEWEST_TOKENS)
    return min(
        length,
        max_segments * max_predictions,
        math.floor(mask_rate * length + max_segments * surplus + 1e-9),
    )


def join(
    batch: dict[str, np.ndarray],
    row: np.ndarray,
    *,
    num_rows: int,
    pad: int,
    predictions: int,
    max_segments: int,
) -> dict[str, np.ndarray]:
    """Puts the rows of `batch` (as `make_loader` gives it, M rows of at most L tokens) behind each
    other in packed rows.

    Args:
        batch: M examples.
        row: int64 [M], the packed row of each, ascending; those of one row have at most L tokens together.
        num_rows: R; every one of them holds something.
        pad: the id of [PAD].
        predictions: P of a packed row. What exceeds it (see `predictions_a_row`) is not predicted, and not masked.
        max_segments: S.

    Returns:
        The packed batch: the fields of `batch`, those over tokens [R, L], over predictions [R, P], over examples [R, S];
        and `segment_ids` [R, L], `position_ids` [R, L], `cls_positions` [R, S], all int32.
    """
    fills = {"input_ids": pad, "attention_mask": 0, "token_type_ids": 0}
    fields = (*fills, "nsp_labels", "example_weights")
    packed = join_rows(
        {name: batch[name] for name in fields},
        row,
        num_rows=num_rows,
        length=batch["input_ids"].shape[1],
        max_segments=max_segments,
        fills=fills,
    )
    begin = _sum_before(batch["attention_mask"].sum(axis=1), row)
    return packed | _join_predictions(batch, packed["input_ids"], row, begin, predictions)


def join_rows(
    batch: Mapping[str, np.ndarray],
    row: np.ndarray,
    *,
    num_rows: int,
    length: int,
    max_segments: int,
    fills: Mapping[str, Any],
) -> dict[str, np.ndarray]:
    """`join`, of rows of any kind: M examples behind each other in R rows of `length` tokens.

    `row`: as there. `fills`: of each array that has an entry for each token, [M, L, ...], what stands at
    pads; others have one for each example, [M, ...], and become [R, S, ...], zeros where there is none."""
    size = batch["attention_mask"].sum(axis=1)
    slot = _rank_in_row(row)
    # Rows are filled from the left and examples come in their order, so tokens stand in one order
    # on both sides.
    is_token = batch["attention_mask"] > 0
    is_filled = np.arange(length) < np.bincount(row, size, num_rows)[:, None]
    tokens = {
        "segment_ids": np.repeat(slot + 1, size).astype(np.int32),
        "position_ids": (np.arange(size.sum()) - np.repeat(np.cumsum(size) - size, size)).astype(
            np.int32
        ),
        **{name: batch[name][is_token] for name in fills},
    }
    packed = {}
    for name, values in tokens.items():
        shape = (num_rows, length, *values.shape[1:])
        packed[name] = np.full(shape, fills.get(name, 0), values.dtype)
        packed[name][is_filled] = values
    examples = {
        "cls_positions": _sum_before(size, row).astype(np.int32),
        **{name: values for name, values in batch.items() if name not in fills},
    }
    for name, values in examples.items():
        packed[name] = np.zeros((num_rows, max_segments, *values.shape[1:]), values.dtype)
        packed[name][row, slot] = values
    return packed


def share_out(lengths: np.ndarray, num_rows: int, max_segments: int) -> np.ndarray:
    """Which of `num_rows` packed rows each text of `lengths`, int64 [M], goes to, so that the fullest holds
    few tokens: int64 [M]. The longest text comes first, each goes where the fewest tokens are
    (Graham 1969, LPT: at most a third more than the best)."""
    row, tokens = np.zeros(len(lengths), np.int64), np.zeros(num_rows, np.int64)
    room = np.full(num_rows, max_segments)
    for text in np.argsort(-lengths, kind="stable"):
        row[text] = np.argmin(np.where(room > 0, tokens, np.iinfo(np.int64).max))
        tokens[row[text]] += lengths[text]
        room[row[text]] -= 1
    return row


def _join_predictions(
    batch: dict[str, np.ndarray],
    packed_ids: np.ndarray,
    row: np.ndarray,
    begin: np.ndarray,
    predictions: int,
) -> dict[str, np.ndarray]:
    """The `mlm_…` fields of `join`; puts the word back into `packed_ids` where a prediction has no
    room."""
    example, slot = np.nonzero(batch["mlm_weights"])
    to_row = row[example]
    place = begin[example] + batch["mlm_positions"][example, slot]
    label, rank = batch["mlm_labels"][example, slot], _rank_in_row(to_row)
    fits = rank < predictions
    packed_ids[to_row[~fits], place[~fits]] = label[~fits]
    fields = {
        "mlm_positions": place,
        "mlm_labels": label,
        "mlm_weights": batch["mlm_weights"][example, slot],
    }
    result = {}
    for name, values in fields.items():
        result[name] = np.zeros((len(packed_ids), predictions), batch[name].dtype)
        result[name][to_row[fits], rank[fits]] = values[fits]
    return result


def _rank_in_row(row: np.ndarray) -> np.ndarray:
    """How many entries of the same row stand before each: int64 [M]; `row` is ascending."""
    return np.arange(len(row)) - np.searchsorted(row, row, side="left")


def _sum_before(values: np.ndarray, row: np.ndarray) -> np.ndarray:
    """The sum of the values of the same row before each: int64 [M]; `row` is ascending."""
    before = np.cumsum(values) - values
    return before - before[np.searchsorted(row, row, side="left")]
