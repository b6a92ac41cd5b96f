"""Text and tasks as feeds: what is compiled for is what comes, and only real rows count."""

import itertools

import numpy as np
import pytest

from jaxdistill import defaults, inputs
from jaxdistill.data import tasks
from jaxdistill.data.feeds import MANY, Share, only
from jaxdistill.data.tokenizers import train_wordpiece
from jaxdistill.errors import BadInput
from tests.conftest import WORDS, pretraining_batch, tiny_config, write_table, write_text


@pytest.fixture(scope="module")
def tokenizer():
    return train_wordpiece([" ".join(WORDS)], 100)


@pytest.fixture
def task(tmp_path):
    section = defaults.task(
        "classification", source=str(write_table(tmp_path / "task.tsv")), sequence_length=12
    )
    return tasks.open_task("task", section, seed=3)


def same_shapes(feed, batch):
    assert batch.keys() == feed.row.keys()
    for name, value in batch.items():
        promised = feed.row[name]
        assert value.dtype == promised.dtype, name
        assert len(value.shape[1:]) == len(promised.shape), name
        assert all(size <= most for size, most in zip(value.shape[1:], promised.shape)), name


@pytest.mark.parametrize("pack", [False, True])
def test_text_comes_in_the_shapes_that_were_promised(tmp_path, pack):
    config = tiny_config(write_text(tmp_path / "text.txt"))
    config.data.packing = pack
    before = inputs.outline(config)
    feed = inputs.read(config, tmp_path, before).feeds["text"]
    assert feed.row == before["text"].row and before["text"].rows == MANY
    reader = feed.read(None)
    same_shapes(feed, next(reader.train(8, 0, Share())))
    assert 0 < feed.rows < 1000 and feed.digests.keys() == {"train", "heldout"}
    counted = sum(batch["example_weights"].sum() for batch in reader.heldout(8, None, Share()))
    assert counted == feed.heldout_rows


def test_a_task_comes_in_the_shapes_that_were_promised(task, tokenizer):
    reader = task.read(tokenizer)
    same_shapes(task, next(reader.train(8, 0, Share())))
    assert task.labels == ("dry", "wet") and task.rows + task.heldout_rows == 90
    held = list(reader.heldout(8, None, Share()))
    assert sum(batch["example_weights"].sum() for batch in held) == task.heldout_rows
    few = list(reader.heldout(8, 5, Share()))
    assert [batch["example_weights"].sum() for batch in few] == [5]
    assert {tuple(row) for row in few[0]["input_ids"][:5]} <= {
        tuple(row) for batch in held for row in batch["input_ids"]
    }


def test_two_processes_read_what_one_reads(task, tokenizer):
    reader = task.read(tokenizer)
    for batches in (
        lambda share: itertools.islice(reader.train(8, 16, share), 3),
        lambda share: reader.heldout(8, None, share),
    ):
        parts = [list(batches(Share(i, 2))) for i in range(2)]
        for whole, first, second in zip(batches(Share()), *parts, strict=True):
            for name in whole:
                np.testing.assert_array_equal(
                    whole[name], np.concatenate([first[name], second[name]])
                )


def test_rows_that_fill_a_batch_count_in_no_mask():
    batch = pretraining_batch(rows=6)
    cut = only(batch, 4)
    for name in ("attention_mask", "mlm_weights", "example_weights"):
        assert not cut[name][4:].any() and cut[name].dtype == batch[name].dtype
        np.testing.assert_array_equal(cut[name][:4], batch[name][:4])
    np.testing.assert_array_equal(cut["input_ids"], batch["input_ids"])
    assert not only(batch, -2)["example_weights"].any()


def test_the_digest_is_of_texts_and_labels(tmp_path):
    def digests(**changes):
        path = write_table(tmp_path / "t.tsv", **changes)
        section = defaults.task("classification", source=str(path), sequence_length=12)
        return tasks.open_task("t", section, 0).digests

    assert digests() == digests() != digests(seed=1)
    assert digests(labels=("dry", "damp"))["heldout"] != digests()["heldout"]


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"sequence_length": 4}, "config.feeds.it.sequence_length=4"),
        ({"heldout_fraction": 0.0}, "config.feeds.it.heldout_fraction=0.0; expected a fraction"),
        ({"source": "/nowhere/x.tsv"}, "does not exist"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(tmp_path, changes, words):
    section = defaults.task("classification", source=str(write_table(tmp_path / "t.tsv")))
    section.update(changes)
    with pytest.raises(BadInput, match=words):
        tasks.open_task("it", section, 0)


def test_an_unknown_kind_or_setting_has_a_nearest_name():
    with pytest.raises(BadInput, match="did you mean 'classification'"):
        defaults.task("clasification")
    with pytest.raises(BadInput, match="did you mean 'text_column'"):
        defaults.task("classification", text_colum="0")
    with pytest.raises(BadInput, match="'text' is the feed of config.data"):
        tasks.open_task("text", defaults.task("classification"), 0)
