"""Rows with words replaced: which words, by what, and what goes with them."""

import numpy as np
import pytest
from etils import epath

from jaxdistill import defaults
from jaxdistill.data.feeds import ALONE
from jaxdistill.data.tasks import open_task
from jaxdistill.data.tokenizers import describe, train_wordpiece
from jaxdistill.errors import BadInput
from jaxdistill.evaluation import augmented, derived
from jaxdistill.evaluation.augmented import Plan, Words
from jaxdistill.evaluation.derivation import Making
from jaxdistill.models import Model, preset
from jaxdistill.training import sharding
from tests.conftest import WORDS, random_params, write_table

PLAN = Plan(copies=3, replaced=0.5, candidates=4, context="row", first_segment=False, seed=0)


@pytest.fixture(scope="module")
def tokenizer():
    """Most words are one piece, the others several."""
    return train_wordpiece([" ".join(WORDS[:-4])] * 20 + ["a the of " * 20], 100)


@pytest.fixture(scope="module")
def words_model(tokenizer):
    size = describe(tokenizer).size
    model = Model(
        preset("bert_base").replace(
            vocab_size=size + 3,  # a table may be padded
            num_layers=1,
            hidden_size=16,
            num_heads=2,
            intermediate_size=16,
            max_positions=48,
            heads=("mlm",),
        )
    )
    return model, random_params(model, 1)


@pytest.fixture(scope="module")
def tagging(tmp_path_factory, tokenizer):
    """Sentences whose tag says which word it was, so that tags can be followed."""
    file = tmp_path_factory.mktemp("tags") / "train.txt"
    rng = np.random.default_rng(0)
    chosen = sorted(WORDS)
    sentences = [rng.choice(chosen, rng.integers(2, 6)) for _ in range(30)]
    lines = ["\n".join(f"{word} T-{word}" for word in sentence) for sentence in sentences]
    file.write_text("\n\n".join(lines) + "\n")
    section = defaults.task(
        "tagging", source=str(file), heldout=str(file), sequence_length=20, scheme="plain"
    )
    feed = open_task("task", section, seed=0)
    return feed, feed.read(tokenizer)


def pieces_of(tokenizer, word):
    return tokenizer.encode(word, add_special_tokens=False)


def rows_of(base, tokenizer, words_model, plan, batch_size=8):
    model, params = words_model
    parts = augmented.augment(base, tokenizer, model, params, plan, batch_size)
    return augmented.joined(parts)


def test_every_row_is_there_and_its_copies(tagging, tokenizer, words_model):
    _, reader = tagging
    base = reader.parts.train
    made = rows_of(base, tokenizer, words_model, PLAN)
    assert sorted(made.of.tolist()) == sorted(list(range(base.number)) * 4)
    rows = made.rows(base)
    batch = rows.fetch(np.arange(rows.number), 20)
    whole = base.fetch(made.of, 20)
    same = (batch["input_ids"] == whole["input_ids"]).all(axis=1)
    changed = rows.number - same.sum()
    assert same.sum() >= base.number and changed > 2 * base.number


def test_tags_go_with_their_words(tagging, tokenizer, words_model):
    """A word of several pieces becomes one of one piece, and what is behind it moves up."""
    feed, reader = tagging
    base = reader.parts.train
    made = rows_of(base, tokenizer, words_model, PLAN)
    rows = made.rows(base)
    batch, whole = rows.fetch(np.arange(rows.number), 20), base.fetch(made.of, 20)
    shorter, goes_on = 0, Words.of(tokenizer).continues
    for i in range(rows.number):
        tags, theirs = (x["tags"][i][x["tag_weights"][i] > 0].tolist() for x in (batch, whole))
        assert tags == theirs
        length = batch["attention_mask"][i].sum()
        assert length == rows.lengths[i] and not batch["tag_weights"][i, length:].any()
        assert (batch["input_ids"][i, length:] == describe(tokenizer).special.pad).all()
        shorter += length < whole["attention_mask"][i].sum()
        # An unchanged word has its own tag still.
        for place in np.flatnonzero(batch["tag_weights"][i]):
            word = feed.labels[batch["tags"][i, place]].removeprefix("T-")
            old = pieces_of(tokenizer, word)
            if goes_on[batch["input_ids"][i, place + 1]]:
                assert batch["input_ids"][i, place : place + len(old)].tolist() == old
    assert shorter > 5


def test_words_are_replaced_by_whole_words_of_letters_and_special_tokens_never(
    tagging, tokenizer, words_model
):
    _, reader = tagging
    base, words = reader.parts.train, Words.of(tokenizer)
    made = rows_of(base, tokenizer, words_model, PLAN)
    whole = base.fetch(made.of, 20)
    for i in range(len(made.of)):
        ids = made.ids[made.begins[i] : made.begins[i + 1]]
        before = whole["input_ids"][i, made.places[made.begins[i] : made.begins[i + 1]]]
        new = ids != before
        assert words.usable[ids[new]].all() and not words.special[before[new]].any()
    assert not words.usable[list(describe(tokenizer).continuation_ids)].any()
    stop = tokenizer.convert_tokens_to_ids(["a", "the", "of"])
    assert not words.replaceable[stop].any()


def test_a_copy_depends_on_its_row_alone(tagging, tokenizer, words_model):
    base = tagging[1].parts.train
    first, second = (
        rows_of(base, tokenizer, words_model, PLAN, batch_size) for batch_size in (8, 30)
    )

    def by_row(made):
        found = {}
        for i, of in enumerate(made.of.tolist()):
            ids = tuple(made.ids[made.begins[i] : made.begins[i + 1]].tolist())
            found.setdefault(of, []).append(ids)
        return {of: sorted(rows) for of, rows in found.items()}

    assert by_row(first) == by_row(second)


@pytest.mark.parametrize("replaced, least, most", [(0.2, 0.1, 0.25), (1.0, 0.6, 0.9)])
def test_about_as_many_words_as_asked(tagging, tokenizer, words_model, replaced, least, most):
    """Stop words stay, and a word may be replaced by itself, so that fewer differ."""
    base = tagging[1].parts.train
    plan = Plan(3, replaced, 4, "row", False, 0)
    made = rows_of(base, tokenizer, words_model, plan)
    whole = base.fetch(made.of, 20)
    kept = words = 0
    seen = set()
    for i, of in enumerate(made.of.tolist()):
        if of not in seen:
            seen.add(of)
            continue  # the row itself, which comes first
        begin, end = made.begins[i : i + 2]
        tagged = np.flatnonzero(whole["tag_weights"][i])
        words += len(tagged)
        old = {place: int(whole["input_ids"][i, place]) for place in tagged}
        new = dict(zip(made.places[begin:end].tolist(), made.ids[begin:end].tolist()))
        kept += sum(new[place] == old[place] for place in tagged)
    assert least < 1 - kept / words <= most


def test_each_word_masked_alone_beside_the_text(tagging, tokenizer, words_model, monkeypatch):
    """The input of the released code: [CLS] masked text [SEP] text [SEP]."""
    base = tagging[1].parts.train
    seen = []
    real = augmented._Candidates._run

    def run(self, batch, positions):
        seen.append((batch, positions))
        return real(self, batch, positions)

    monkeypatch.setattr(augmented._Candidates, "_run", run)
    rows_of(base, tokenizer, words_model, Plan(1, 0.5, 4, "word", False, 0))
    special = describe(tokenizer).special
    for batch, positions in seen:
        read = (batch[name] for name in ("input_ids", "attention_mask", "token_type_ids"))
        for ids, mask, types, place in zip(*read, positions[:, 0]):
            real_ids, kinds = ids[mask > 0], types[mask > 0]
            first, second = real_ids[kinds == 0], real_ids[kinds == 1]
            assert (first == special.mask).sum() == 1 and first[place] == special.mask
            text = np.delete(first[1:], place - 1)
            np.testing.assert_array_equal(text, np.delete(second, place - 1)[: len(text)])


def test_answers_move_with_their_words(tokenizer):
    """Places in a row, as those of an answer, follow the tokens that they point to."""
    base = augmented.Rows(
        np.array([6]),
        lambda numbers, length: {
            "input_ids": np.pad(np.array([[2, 50, 51, 52, 53, 3]]), ((0, 0), (0, length - 6))),
            "attention_mask": (np.arange(length) < 6)[None].astype(np.int32),
            "start_positions": np.array([3]),
            "end_positions": np.array([4]),
            "example_weights": np.ones(1, np.float32),
        },
    )
    made = augmented.Rewritten(
        np.zeros(1, np.int64),
        np.array([2, 60, 52, 53, 3], np.int32),
        np.array([0, 1, 3, 4, 5], np.int32),
        np.array([0, 5]),
    )
    batch = made.rows(base).fetch(np.zeros(1, np.int64), 8)
    assert batch["start_positions"] == 2 and batch["end_positions"] == 3
    assert batch["input_ids"].tolist() == [[2, 60, 52, 53, 3, 0, 0, 0]]


def test_as_a_feed_it_is_made_once_and_has_as_many_rows_as_said(
    tmp_path, tokenizer, words_model, monkeypatch
):
    model, params = words_model
    write_table(tmp_path / "task.tsv", rows=60)
    section = defaults.task("classification", source=str(tmp_path / "task.tsv"), sequence_length=16)
    feed = open_task("task", section, seed=0)
    base = feed.read(tokenizer)
    made = derived.augmented(feed, model, copies=2, most=20)

    def read(fingerprint="x"):
        return made.read(
            base,
            Making(
                params, sharding.make_mesh(1), 8, ALONE, tokenizer,
                lambda part: epath.Path(tmp_path) / "derived" / f"{part}.array_record", fingerprint,
            ),
        )  # fmt: skip

    reader = read()
    assert reader.parts.train.number == made.rows(feed.rows) == 60
    batch = reader.parts.train.fetch(np.arange(60), 16)
    assert batch.keys() == base.parts.train.fetch(np.arange(1), 16).keys()
    monkeypatch.setattr(augmented, "augment", None)
    again = read().parts.train.fetch(np.arange(60), 16)
    np.testing.assert_array_equal(batch["input_ids"], again["input_ids"])
    with pytest.raises(TypeError):  # another fingerprint is made anew
        read("y")


def test_a_network_without_an_mlm_head_is_refused(tagging):
    model = Model(preset("bert_base").replace(vocab_size=30, num_layers=1, heads=()))
    with pytest.raises(BadInput, match="is augmented by a network with the head 'mlm'"):
        derived.augmented(tagging[0], model)
