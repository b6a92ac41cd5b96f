"""Labelled rows of a task and texts without labels, in one feed."""

import json

import numpy as np
import pytest

from jaxdistill import defaults
from jaxdistill.data.feeds import ALONE
from jaxdistill.data.rows import training_batches
from jaxdistill.data.tasks import open_task
from jaxdistill.data.tokenizers import describe, train_wordpiece
from jaxdistill.errors import BadInput
from jaxdistill.evaluation import derived
from jaxdistill.evaluation.derivation import Making
from jaxdistill.objectives import terms
from jaxdistill.training import sharding
from tests.conftest import WORDS, write_table


@pytest.fixture(scope="module")
def tokenizer():
    return train_wordpiece([" ".join(WORDS[:-4])] * 20, 100)


def read(feed, tokenizer, **settings):
    made = derived.transfer_set(feed, None, **settings)
    making = Making({}, sharding.make_mesh(1), 8, ALONE, tokenizer, lambda part: None, "x")
    return made, made.read(feed.read(tokenizer), making)


def classification(folder):
    write_table(folder / "task.tsv", rows=40)
    section = defaults.task("classification", source=str(folder / "task.tsv"), sequence_length=12)
    return open_task("task", section, seed=0)


def test_rows_with_and_without_labels(tmp_path, tokenizer):
    feed = classification(tmp_path)
    (tmp_path / "more.txt").write_text("river stone\nwinter paper garden\nsignal\n")
    made, reader = read(feed, tokenizer, unlabelled=str(tmp_path / "more.txt"))
    rows = reader.parts.train
    assert rows.number == made.rows(feed.rows) == feed.rows + 3
    batch = rows.fetch(np.arange(rows.number), 12)
    base = feed.read(tokenizer).parts.train.fetch(np.arange(feed.rows), 12)
    for name, x in base.items():
        np.testing.assert_array_equal(batch[name][: feed.rows], x)
    assert batch["label_weights"].tolist() == [1.0] * feed.rows + [0.0] * 3
    text = tokenizer.decode(batch["input_ids"][-2], skip_special_tokens=True)
    assert text == "winter paper garden"
    assert float(terms.LOSSES["classification"].count(batch)) == feed.rows
    assert float(terms.LOSSES["classification_kl"].count(batch)) == feed.rows + 3
    held = next(reader.heldout(4, None, ALONE))
    assert held["label_weights"].all()
    settings = (("unlabelled", str(tmp_path / "more.txt")),)
    outlined = derived.outlined(
        "it", derived.Derived("transfer_set", "task", "", settings), feed, None
    )
    assert outlined.row.keys() == batch.keys()


def test_what_an_unlabelled_row_holds_does_not_reach_a_loss_of_true_labels(tmp_path, tokenizer):
    feed = classification(tmp_path)
    (tmp_path / "more.txt").write_text("\n".join(["river stone"] * 40) + "\n")
    _, reader = read(feed, tokenizer, unlabelled=str(tmp_path / "more.txt"))
    batch = next(training_batches(reader.parts.train, reader.parts.order, 32))
    of = batch["label_weights"] > 0
    assert 0 < of.sum() < 32
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(32, 2)).astype(np.float32)
    loss = terms.LOSSES["classification"]
    ours = {name: x[of] for name, x in batch.items()}
    np.testing.assert_allclose(
        loss.sum(logits, None, batch), loss.sum(logits[of], None, ours), rtol=1e-6
    )
    assert float(loss.count(batch)) == of.sum()


def test_only_the_texts_without_labels(tmp_path, tokenizer):
    feed = classification(tmp_path)
    (tmp_path / "more.tsv").write_text("a\tb\nriver\tstone\n")
    settings = dict(unlabelled=str(tmp_path / "more.tsv"), text_column="b", header="yes")
    made, reader = read(feed, tokenizer, labelled=False, **settings)
    assert reader.parts.train.number == made.rows(feed.rows) == 1
    batch = reader.parts.train.fetch(np.zeros(1, np.int64), 12)
    assert tokenizer.decode(batch["input_ids"][0], skip_special_tokens=True) == "stone"
    assert batch["labels"].tolist() == [0] and not batch["label_weights"].any()
    with pytest.raises(BadInput, match="needs unlabelled=FILE"):
        derived.transfer_set(feed, None, labelled=False)
    with pytest.raises(BadInput, match="no such file|not there|does not exist"):
        derived.transfer_set(feed, None, unlabelled=str(tmp_path / "absent.txt"))


def test_tags_are_asked_of_the_first_piece_of_each_word(tmp_path, tokenizer):
    (tmp_path / "train.txt").write_text("river B-X\nstone O\n\nwinter O\nengine B-X\n")
    section = defaults.task(
        "tagging", source=str(tmp_path / "train.txt"), heldout=str(tmp_path / "train.txt"), sequence_length=16
    )  # fmt: skip
    feed = open_task("task", section, seed=0)
    words = [WORDS[-1], "stone", WORDS[-2]]  # not in the vocabulary: several pieces
    (tmp_path / "more.tsv").write_text(" ".join(words) + "\n\n")
    made, reader = read(feed, tokenizer, unlabelled=str(tmp_path / "more.tsv"), labelled=False)
    assert made.rows(2) == 1  # epochs are counted by it
    batch = reader.parts.train.fetch(np.zeros(1, np.int64), 16)
    pieces = [tokenizer.encode(word, add_special_tokens=False) for word in words]
    assert max(map(len, pieces)) > 1
    firsts = np.cumsum([1, *map(len, pieces)])[:-1]
    assert np.flatnonzero(batch["tag_weights"][0]).tolist() == firsts.tolist()
    assert float(terms.LOSSES["tagging"].count(batch)) == 0
    assert float(terms.LOSSES["tagging_kl"].count(batch)) == 3
    (tmp_path / "more.txt").write_text("river\nstone\n\npaper\n")
    _, reader = read(feed, tokenizer, unlabelled=str(tmp_path / "more.txt"))
    assert reader.parts.train.number == 4


def test_questions_without_answers(tmp_path, tokenizer):
    def file(name, answers):
        qas = [{"id": name, "question": "river ?", "answers": answers}]
        content = {
            "data": [{"title": name, "paragraphs": [{"context": "stone river winter", "qas": qas}]}]
        }
        (tmp_path / name).write_text(json.dumps(content))
        return str(tmp_path / name)

    train = file("a.json", [{"text": "river", "answer_start": 6}])
    section = defaults.task(
        "question_answering", source=train, heldout=train, sequence_length=32, stride=4, question_length=8
    )  # fmt: skip
    feed = open_task("task", section, seed=0)
    _, reader = read(feed, tokenizer, unlabelled=file("b.json", []), labelled=True)
    batch = reader.parts.train.fetch(np.arange(2), 32)
    assert batch["label_weights"].tolist() == [1.0, 0.0]
    assert float(terms.LOSSES["span_start"].count(batch)) == 1
    assert float(terms.LOSSES["span_start_kl"].count(batch)) == 2
    special = describe(tokenizer).special
    assert batch["input_ids"][1, 0] == special.cls
