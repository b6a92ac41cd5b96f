"""Rows by number as batches: exact, for any number of processes."""

import itertools

import numpy as np
import pytest

from jaxdistill.data.feeds import ALONE, Rows, Share
from jaxdistill.data.rows import evaluation_batches, reader_of, sample, training_batches
from jaxdistill.errors import BadInput

NUMBER = 37


def fetch(numbers):
    return {
        "input_ids": np.stack([numbers, numbers**2], axis=1).astype(np.int32),
        "attention_mask": np.ones((len(numbers), 2), np.int32),
        "example_weights": np.ones(len(numbers), np.float32),
    }


ROWS = Rows(NUMBER, fetch)


def numbers(batch):
    return batch["input_ids"][:, 0].tolist()


def test_training_resumes_covers_and_slices():
    whole = list(itertools.islice(training_batches(ROWS, 1, 8), 12))
    resumed = itertools.islice(training_batches(ROWS, 1, 8, first_row=8 * 4), 8)
    assert list(map(numbers, resumed)) == list(map(numbers, whole[4:]))
    parts = [
        list(itertools.islice(training_batches(ROWS, 1, 8, 0, Share(p, 4)), 5)) for p in range(4)
    ]
    for k in range(5):
        assert sum((numbers(part[k]) for part in parts), []) == numbers(whole[k])
    first, second = itertools.islice(training_batches(ROWS, 1, NUMBER), 2)
    assert sorted(numbers(first)) == sorted(numbers(second)) == list(range(NUMBER))
    assert numbers(first) not in (numbers(second), list(range(NUMBER)))


@pytest.mark.parametrize("processes", [1, 2])
def test_evaluation_is_one_pass(processes):
    parts = [list(evaluation_batches(ROWS, 16, Share(p, processes))) for p in range(processes)]
    joined = [
        {key: np.concatenate([part[k][key] for part in parts]) for key in parts[0][0]}
        for k in range(3)
    ]
    weights = np.concatenate([batch["example_weights"] for batch in joined])
    assert weights.tolist() == [1.0] * NUMBER + [0.0] * 11
    assert sum(map(numbers, joined), [])[:NUMBER] == list(range(NUMBER))
    assert joined[-1]["attention_mask"].sum() == 2 * (NUMBER - 32)


def test_a_sample_is_fixed_and_of_the_rows():
    drawn = sample(ROWS, 9, seed=4)
    (batch,) = evaluation_batches(drawn, 9)
    assert len(set(numbers(batch))) == 9 and set(numbers(batch)) < set(range(NUMBER))
    assert numbers(batch) == numbers(next(evaluation_batches(sample(ROWS, 9, 4), 9)))
    assert sample(ROWS, NUMBER, 4) is ROWS and sample(ROWS, None, 4) is ROWS


def test_a_batch_that_processes_cannot_share_is_refused():
    with pytest.raises(BadInput, match="batch_size=9 does not divide by 2"):
        training_batches(ROWS, 1, 9, 0, Share(0, 2))
    reader = reader_of(ROWS, ROWS, 1)
    assert reader.parts == (ROWS, ROWS)
    assert len(next(reader.train(4, 0, ALONE))["input_ids"]) == 4
