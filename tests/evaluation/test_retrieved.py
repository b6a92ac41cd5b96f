"""Texts of a corpus that are like those of a task."""

import numpy as np
import pytest

from jaxdistill import defaults, run
from jaxdistill.data.feeds import ALONE
from jaxdistill.data.tasks import open_task
from jaxdistill.data.tokenizers import train_wordpiece
from jaxdistill.errors import BadInput
from jaxdistill.evaluation import derived
from jaxdistill.evaluation.derivation import Making
from jaxdistill.evaluation.retrieved import nearest_texts
from jaxdistill.models import Model, preset
from jaxdistill.training import sharding
from tests.conftest import WORDS, random_params, write_table

TEXTS = ["river stone", "winter paper garden", "signal copper", "market silver window", "engine"]


@pytest.fixture(scope="module")
def tokenizer():
    return train_wordpiece([" ".join(WORDS)] * 20, 100)


@pytest.fixture
def task(tmp_path):
    write_table(tmp_path / "task.tsv", rows=40)
    section = defaults.task("classification", source=str(tmp_path / "task.tsv"), sequence_length=12)
    return open_task("task", section, seed=0)


def model_of(tokenizer):
    sizes = dict(num_layers=1, hidden_size=16, num_heads=2, intermediate_size=16, max_positions=16)
    return Model(preset("bert_base").replace(vocab_size=len(tokenizer), heads=(), **sizes))


def read(feed, tokenizer, folder, **settings):
    model = model_of(tokenizer)
    made = derived.retrieved(feed, model, **settings)
    path = lambda part: (folder / part).with_suffix(".array_record")  # noqa: E731
    making = Making(
        random_params(model), sharding.make_mesh(1), 8, ALONE, tokenizer, path, str(settings)
    )
    return made, made.read(feed.read(tokenizer), making)


def test_the_nearest_of_every_row_first():
    """Against a loop over ranks and rows."""
    rng = np.random.default_rng(0)
    rows, corpus = (
        x / np.linalg.norm(x, axis=1, keepdims=True) for x in rng.normal(size=(2, 30, 4))
    )
    rows = rows[:5]
    order = np.argsort(-(rows @ corpus.T), axis=1)
    expected = list(dict.fromkeys(order.T.ravel().tolist()))
    for most in (1, 5, 12, 30):
        assert nearest_texts(rows, corpus, most).tolist() == expected[:most]


def test_a_text_of_the_task_is_its_own_nearest(task, tokenizer, tmp_path):
    """Whatever the length of the batch that it was in; the others follow behind the labelled rows."""
    base = task.read(tokenizer).parts.train
    own = [
        tokenizer.decode(base.fetch(np.array([i]), 12)["input_ids"][0], skip_special_tokens=True)
        for i in range(base.number)
    ]
    different = list(dict.fromkeys(own))
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join([*TEXTS, *different]) + "\n")
    made, reader = read(task, tokenizer, tmp_path, corpus=str(corpus), texts=len(different))
    rows = reader.parts.train
    assert rows.number == made.rows(task.rows) == task.rows + len(different)
    batch = rows.fetch(np.arange(rows.number), 12)
    assert batch["label_weights"].sum() == task.rows
    found = {
        tokenizer.decode(ids, skip_special_tokens=True) for ids in batch["input_ids"][task.rows :]
    }
    assert found == set(different)
    alone, reader = read(task, tokenizer, tmp_path, corpus=str(corpus), texts=99, labelled=False)
    assert reader.parts.train.number == alone.rows(task.rows) == len(TEXTS) + len(different)


def test_what_was_found_is_kept(task, tokenizer, tmp_path, monkeypatch):
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(TEXTS) + "\n")
    _, first = read(task, tokenizer, tmp_path, corpus=str(corpus), texts=3)
    monkeypatch.setattr("jaxdistill.evaluation.retrieved.nearest_texts", None)
    _, again = read(task, tokenizer, tmp_path, corpus=str(corpus), texts=3)
    numbers = np.arange(first.parts.train.number)
    for name, x in first.parts.train.fetch(numbers, 12).items():
        np.testing.assert_array_equal(again.parts.train.fetch(numbers, 12)[name], x)


def test_what_cannot_be_retrieved(task, tokenizer, tmp_path):
    model = model_of(tokenizer)
    with pytest.raises(BadInput, match="wants corpus=FILE"):
        derived.retrieved(task, model)
    with pytest.raises(BadInput, match="absent.txt"):
        derived.retrieved(task, model, corpus=str(tmp_path / "absent.txt"))
    tags = tmp_path / "tags.txt"
    tags.write_text("river B-X\nstone O\n\nwinter O\nengine B-X\n")
    section = defaults.task("tagging", source=str(tags), heldout=str(tags), sequence_length=16)
    with pytest.raises(BadInput, match="for classes and numbers alone"):
        derived.retrieved(open_task("task", section, seed=0), model, corpus=str(tags))


def test_a_run_reads_it_and_another_corpus_is_another_run(tmp_path):
    write_table(tmp_path / "task.tsv", rows=40)
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(TEXTS) + "\n")
    config = defaults.smoke(defaults.task_recipe("it"))
    config.feeds.task.source = str(tmp_path / "task.tsv")
    config.feeds.more = defaults.derived(
        "retrieved", of="task", by="teacher", corpus=str(corpus), texts=3
    )
    config.stages.distill = defaults.stage(
        "soft_labels", "student", feed="more", steps=2, batch_size=8
    )
    config.order, config.export, config.log_every = ("finetune", "distill"), False, 1
    found = run.train(config, tmp_path / "run")
    assert "student" in found["networks"]
    assert len(list((tmp_path / "run" / "derived").iterdir())) == 1
    run.train(config, tmp_path / "run")
    corpus.write_text("\n".join(TEXTS[::-1]) + "\n")
    with pytest.raises(BadInput, match="'distill' in this workdir was run with other settings"):
        run.train(config, tmp_path / "run")
