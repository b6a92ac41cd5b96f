from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdistill.data import randomness
from jaxdistill.data.randomness import Stream


def _splitmix64(state: int) -> int:
    """The published algorithm on Python integers: the next output from a state that was already
    advanced."""
    mask = (1 << 64) - 1
    z = state & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def test_bits_are_splitmix64() -> None:
    # The first outputs of the reference implementation for seed 1234567.
    bits = randomness.position_bits(np.array([1234567], np.uint64), 3)[0]
    assert bits.tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert bits[1] == _splitmix64(1234567 + 2 * 0x9E3779B97F4A7C15)


def test_draws_are_uniform_and_uncorrelated() -> None:
    keys = randomness.row_keys(7, Stream.MASK_ORDER, 3, np.arange(2000))
    uniform = randomness.to_uniform(randomness.position_bits(keys, 50))
    assert abs(uniform.mean() - 0.5) < 0.005
    counts, _ = np.histogram(uniform, bins=20, range=(0, 1))
    expected = uniform.size / 20
    assert (
        (counts - expected) ** 2 / expected
    ).sum() < 50  # chi-squared, 19 degrees of freedom: p < 0.0002
    # Neighbouring examples, neighbouring positions, neighbouring epochs, other streams.
    others = [
        (uniform[:-1], uniform[1:]),
        (uniform[:, :-1], uniform[:, 1:]),
        (uniform, _uniform(7, Stream.MASK_ORDER, 4)),
        (uniform, _uniform(8, Stream.MASK_ORDER, 3)),
        (uniform, _uniform(7, Stream.MASK_ACTION, 3)),
    ]
    for one, other in others:
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.015


def _uniform(seed: int, stream: Stream, epoch: int) -> np.ndarray:
    return randomness.to_uniform(
        randomness.position_bits(randomness.row_keys(seed, stream, epoch, np.arange(2000)), 50)
    )


def test_integers_reach_every_value_below_the_bound() -> None:
    bits = randomness.position_bits(randomness.row_keys(0, Stream.BREAK, 0, np.arange(3000)), 1)[
        :, 0
    ]
    values = randomness.to_integers(bits, 7)
    assert set(values.tolist()) == set(range(7))
    bounds = np.arange(1, 3001)
    assert (randomness.to_integers(bits, bounds) < bounds).all()


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 700), seed=st.integers(-(2**40), 2**40), epoch=st.integers(0, 2**31))
def test_permute_is_a_bijection(size: int, seed: int, epoch: int) -> None:
    shuffled = randomness.permute(np.arange(size), size, seed, np.full(size, epoch))
    assert sorted(shuffled.tolist()) == list(range(size))


def test_permute_is_elementwise_and_mixes() -> None:
    size = 5000
    every = randomness.permute(np.arange(size), size, 1, np.zeros(size, np.int64))
    one = randomness.permute(np.array([1234]), size, 1, np.array([0]))
    assert one[0] == every[1234]
    other = randomness.permute(np.arange(size), size, 1, np.ones(size, np.int64))
    assert (every == other).mean() < 0.01
    assert abs(np.corrcoef(every, np.arange(size))[0, 1]) < 0.05
    assert abs(np.corrcoef(every[:-1], every[1:])[0, 1]) < 0.05


@pytest.mark.parametrize("size", [2, 3, 6])
def test_small_shuffles_reach_every_order_of_the_first_element(size: int) -> None:
    firsts = [
        randomness.permute(np.array([0]), size, 0, np.array([epoch]))[0] for epoch in range(400)
    ]
    counts = np.bincount(firsts, minlength=size)
    assert counts.min() > 0.5 * 400 / size
