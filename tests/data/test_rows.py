"""Rows by number as batches: exact, for any number of processes."""

import itertools

import numpy as np
import pytest

from jaxdistill.data.feeds import ALONE, Order, Parts, Rows, Share
from jaxdistill.data.rows import (
    LENGTHS,
    POOL,
    evaluation_batches,
    mean_length,
    padded_length,
    reader_of,
    sample,
    stretch,
    training_batches,
)
from jaxdistill.errors import BadInput

NUMBER = 37


def fetch(numbers, length):
    ids = np.zeros((len(numbers), length), np.int32)
    ids[:, 0] = numbers
    return {
        "input_ids": ids,
        "attention_mask": (np.arange(length) < LENGTHS_N[numbers][:, None]).astype(np.int32),
        "example_weights": np.ones(len(numbers), np.float32),
    }


LENGTHS_N = np.random.default_rng(0).integers(2, 30, NUMBER)
ROWS = Rows(LENGTHS_N, fetch)
PLAIN = Order(1, 32, buckets=False)
BUCKETS = Order(1, 32)


def numbers(batch):
    return batch["input_ids"][:, 0].tolist()


ORDERS = pytest.mark.parametrize("order", [PLAIN, BUCKETS], ids=["plain", "buckets"])


@ORDERS
@pytest.mark.parametrize("first_row", [0, 5])
def test_training_resumes_covers_and_slices(order, first_row):
    whole = list(itertools.islice(training_batches(ROWS, order, 8, first_row), 12))
    resumed = itertools.islice(training_batches(ROWS, order, 8, first_row + 8 * 3), 9)
    assert list(map(numbers, resumed)) == list(map(numbers, whole[3:]))
    parts = [
        list(itertools.islice(training_batches(ROWS, order, 8, first_row, Share(p, 4)), 5))
        for p in range(4)
    ]
    for k in range(5):
        assert sum((numbers(part[k]) for part in parts), []) == numbers(whole[k])
        assert {part[k]["input_ids"].shape[1] for part in parts} == {whole[k]["input_ids"].shape[1]}


@ORDERS
def test_an_epoch_has_every_row_once_in_another_order(order):
    rows = Rows(np.resize(LENGTHS_N, 32), fetch)
    first, second = (
        sum(map(numbers, itertools.islice(training_batches(rows, order, 8, first), 4)), [])
        for first in (0, 32)
    )
    assert sorted(first) == sorted(second) == list(range(32))
    assert first not in (second, list(range(32)))


def test_batches_are_as_long_as_their_rows_need():
    lengths = np.random.default_rng(1).geometric(1 / 13, 4000).clip(3, 120)
    rows = Rows(
        lengths, lambda n, length: {"input_ids": np.full((len(n), length), lengths[n].max())}
    )
    order = Order(0, 128)
    batches = list(itertools.islice(training_batches(rows, order, 32), 2 * POOL))
    for batch in batches:
        length = batch["input_ids"].shape[1]
        assert length == padded_length(int(batch["input_ids"][0, 0]), 128)
    shapes = {batch["input_ids"].shape[1] for batch in batches}
    assert shapes <= set(LENGTHS) and len(shapes) > 5
    taken = np.mean([batch["input_ids"].shape[1] for batch in batches])
    assert taken == pytest.approx(mean_length(rows, order, 32)) and taken < 1.5 * lengths.mean()
    # The batches of a stretch are shuffled: they do not grow.
    first = [batch["input_ids"].shape[1] for batch in batches[:POOL]]
    assert first != sorted(first)
    assert mean_length(rows, Order(0, 128, buckets=False), 32) == 128


def packed_texts(batch):
    """(number, tokens) of every text of a batch of packed rows, as `fetch` made them."""
    return [
        (int(ids[begin]), int(np.sum(segments == slot + 1)))
        for ids, segments, begins, weights in zip(
            batch["input_ids"],
            batch["segment_ids"],
            batch["cls_positions"],
            batch["example_weights"],
        )
        for slot, begin in enumerate(begins)
        if weights[slot]
    ]


PACKED = Order(1, 32, packed=4)


@pytest.mark.parametrize("processes", [1, 2])
def test_packed_batches_hold_the_texts_of_plain_ones(processes):
    """Any texts in any order, as without packing; every process has rows of one shape."""
    plain = itertools.islice(training_batches(ROWS, PLAIN, 16), 12)
    parts = [
        list(itertools.islice(training_batches(ROWS, PACKED, 16, 0, Share(p, processes)), 12))
        for p in range(processes)
    ]
    for k, batch in enumerate(plain):
        found = sum((packed_texts(part[k]) for part in parts), [])
        assert sorted(found) == sorted((n, LENGTHS_N[n]) for n in numbers(batch))
        assert len({part[k]["input_ids"].shape for part in parts}) == 1
        rows, length = parts[0][k]["input_ids"].shape
        assert rows == 4 // processes and length % 16 == 0
    resumed = next(training_batches(ROWS, PACKED, 16, 16 * 7))
    if processes == 1:
        np.testing.assert_array_equal(resumed["input_ids"], parts[0][7]["input_ids"])


def test_packed_batches_have_few_pads_and_few_shapes():
    lengths = np.random.default_rng(1).geometric(1 / 13, 4000).clip(3, 120)

    def fetch(numbers, length):
        mask = (np.arange(length) < lengths[numbers, None]).astype(np.int32)
        return {"input_ids": mask, "attention_mask": mask}

    rows = Rows(lengths, fetch)
    order = Order(0, 128, packed=8)
    batches = list(itertools.islice(training_batches(rows, order, 64), 40))
    masks = [batch["attention_mask"] for batch in batches]
    assert sum(mask.sum() for mask in masks) > 0.85 * sum(mask.size for mask in masks)
    assert len({mask.shape for mask in masks}) < 8
    taken = np.mean([mask.size / 64 for mask in masks])
    assert taken == pytest.approx(mean_length(rows, order, 64), rel=0.02)


def test_rows_of_a_bucket_are_not_sorted_within_it():
    """Where length tells of the label, a batch would have one label."""
    lengths = np.resize(np.arange(32, 48), 800)  # all padded to 48
    rows = Rows(lengths, lambda n, length: {"input_ids": lengths[n]})
    for batch in itertools.islice(training_batches(rows, Order(0, 128), 16), 20):
        assert len(set(batch["input_ids"].tolist())) > 4


def test_a_length_is_the_next_of_a_few():
    assert [padded_length(n, 128) for n in (1, 7, 8, 17, 100, 128)] == [8, 8, 12, 24, 128, 128]
    assert [padded_length(n, 100) for n in (97, 95, 96, 100)] == [100, 96, 100, 100]
    assert padded_length(3000, 4096) == 4096


@ORDERS
@pytest.mark.parametrize("processes", [1, 2])
def test_evaluation_is_one_pass(processes, order):
    parts = [
        list(evaluation_batches(ROWS, order, 16, Share(p, processes))) for p in range(processes)
    ]
    joined = [
        {key: np.concatenate([part[k][key] for part in parts]) for key in parts[0][0]}
        for k in range(3)
    ]
    weights = np.concatenate([batch["example_weights"] for batch in joined])
    assert weights.tolist() == [1.0] * NUMBER + [0.0] * 11
    found = np.concatenate([batch["row"] for batch in joined])
    assert sorted(found[:NUMBER].tolist()) == list(range(NUMBER))
    assert found.tolist() == sum(map(numbers, joined), [])
    assert joined[-1]["attention_mask"].sum() == LENGTHS_N[found[32:NUMBER]].sum()
    if order.buckets:
        assert joined[0]["input_ids"].shape[1] < 32 >= joined[-1]["input_ids"].shape[1]


def test_a_sample_is_fixed_and_of_the_rows():
    drawn = sample(ROWS, 9, seed=4)
    (batch,) = evaluation_batches(drawn, BUCKETS, 9)
    assert len(set(numbers(batch))) == 9 and set(numbers(batch)) < set(range(NUMBER))
    assert numbers(batch) == numbers(next(evaluation_batches(sample(ROWS, 9, 4), BUCKETS, 9)))
    assert sample(ROWS, NUMBER, 4) is ROWS and sample(ROWS, None, 4) is ROWS


def test_stretches_part_the_rows_and_keep_what_belongs_to_each():
    keyed = ROWS._replace(keys=np.arange(NUMBER) * 3)
    parts = [stretch(keyed, first, first + 10, seed=4) for first in range(0, NUMBER, 10)]
    assert [part.number for part in parts] == [10, 10, 10, 7]
    held = [numbers(part.fetch(np.arange(part.number), 30)) for part in parts]
    assert sorted(sum(held, [])) == list(range(NUMBER)) and held[0] != sorted(held[0])
    for part, rows in zip(parts, held):
        assert part.keys.tolist() == [3 * row for row in rows]
        assert part.lengths.tolist() == LENGTHS_N[rows].tolist()
    assert held[0] == numbers(stretch(ROWS, 0, 10, 4).fetch(np.arange(10), 30))
    assert held[0] != numbers(stretch(ROWS, 0, 10, 5).fetch(np.arange(10), 30))


def test_a_batch_that_processes_cannot_share_is_refused():
    with pytest.raises(BadInput, match="batch_size=9 does not divide by 2"):
        training_batches(ROWS, BUCKETS, 9, 0, Share(0, 2))
    reader = reader_of(Parts(ROWS, ROWS, BUCKETS))
    assert reader.parts == (ROWS, ROWS, BUCKETS)
    assert len(next(reader.train(4, 0, ALONE))["input_ids"]) == 4
