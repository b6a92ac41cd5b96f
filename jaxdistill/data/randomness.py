"""Counter-based random numbers: every draw is a pure function of (seed, epoch, example, stream,
position).

No generator is ever advanced, so a batch can be made anywhere, in any order, on any number of
hosts, and comes out the same: that is what makes resuming exact and the number of hosts free to
change. The bits are SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number
generators"), vectorised over uint64 arrays; the shuffle is a Feistel network with cycle walking
(Black and Rogaway 2002). Both are written out here, rather than taken from `numpy.random`, whose
streams may change between NumPy versions. Used by `cutting`, `pairs`, `masking`, `loader`."""

from __future__ import annotations

import enum
from typing import Any

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_FEISTEL_ROUNDS = 6


class Stream(enum.IntEnum):
    """What a draw is for. Two streams are independent; a new use gets a new number, an old number
    is never reused."""

    SHUFFLE = 1
    BREAK = 2
    IS_RANDOM = 3
    OTHER_RECORD = 4
    OTHER_BREAK = 5
    MASK_ORDER = 6
    MASK_ACTION = 7
    MASK_REPLACEMENT = 8
    SHORT = 9
    SHORT_LENGTH = 10
    PACK = 11
    BATCH_ORDER = 12
    AUGMENTATION = 13


def _mix(bits: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser: a bijection of uint64 in which every input bit reaches every output
    bit."""
    bits = bits ^ (bits >> np.uint64(30))
    bits *= _MIX_1
    bits ^= bits >> np.uint64(27)
    bits *= _MIX_2
    bits ^= bits >> np.uint64(31)
    return bits


def _as_uint64(value: Any) -> np.ndarray:
    return np.atleast_1d(np.asarray(value)).astype(np.int64, copy=False).view(np.uint64)


def row_keys(seed: int, stream: Stream, epoch: Any, example: Any) -> np.ndarray:
    """One 64-bit key a row.

    Args:
        seed: any Python int that fits in 64 signed bits.
        stream: what the draw is for.
        epoch, example: ints or integer arrays [B], broadcast against each other.

    Returns:
        uint64 [B].
    """
    key = _mix(_as_uint64(seed) + _GOLDEN)
    key = _mix(key + _as_uint64(int(stream)) * _GOLDEN)
    key = _mix(key + _as_uint64(epoch) * _GOLDEN)
    return _mix(key + _as_uint64(example) * _GOLDEN)


def position_bits(keys_B: np.ndarray, positions: int) -> np.ndarray:
    """`positions` independent 64-bit words a row: uint64 [B, positions] (SplitMix64 started from
    each row's key)."""
    steps = (np.arange(1, positions + 1, dtype=np.uint64) * _GOLDEN)[None, :]
    return _mix(keys_B[:, None] + steps)


def to_uniform(bits: np.ndarray) -> np.ndarray:
    """float64 in [0, 1), from the top 53 bits."""
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def to_integers(bits: np.ndarray, bound: Any) -> np.ndarray:
    """int64 in [0, bound), `bound` an int or an integer array below 2**32 (broadcast). Bias below
    bound / 2**32."""
    return (
        ((bits >> np.uint64(32)) * np.asarray(bound).astype(np.uint64)) >> np.uint64(32)
    ).astype(np.int64)


def permute(
    index: np.ndarray,
    size: int | np.ndarray,
    seed: int,
    epoch: np.ndarray,
    stream: Stream = Stream.SHUFFLE,
) -> np.ndarray:
    """Where a shuffle of range(size) puts each index: a bijection of [0, size) for every (seed,
    epoch).

    Args:
        index: int64 [B], each in [0, size).
        size: how many there are to shuffle, at least 1; or int64 [B], one shuffle a size.
        seed: the shuffle's seed.
        epoch: int64 [B]; every epoch is another shuffle.
        stream: what the shuffle is for.

    Returns:
        int64 [B].
    """
    sizes = np.broadcast_to(np.asarray(size, np.int64), index.shape)
    bit_length = np.frexp(np.maximum(sizes - 1, 1).astype(np.float64))[1]
    shift = np.maximum(1, (bit_length + 1) // 2).astype(np.uint64)
    low_mask = (np.uint64(1) << shift) - np.uint64(1)
    rounds_BxR = position_bits(row_keys(seed, stream, epoch, np.zeros_like(index)), _FEISTEL_ROUNDS)
    result = index.astype(np.uint64)
    todo = np.arange(len(result))
    # The network permutes a power of four that may exceed `size`: what falls outside walks on along
    # its cycle, which must come back inside. At least a quarter of the domain is inside, so the
    # walk is short.
    while len(todo):
        left, right = result[todo] >> shift[todo], result[todo] & low_mask[todo]
        for keys in rounds_BxR[todo].T:
            left, right = right, left ^ (_mix(right * _GOLDEN + keys) & low_mask[todo])
        result[todo] = (left << shift[todo]) | right
        todo = todo[result[todo] >= sizes[todo].astype(np.uint64)]
    return result.astype(np.int64)
