"""Intents and slots as a feed: from three files to rows and back, and what the intent weighs."""

import lzma
from collections import Counter

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdistill import defaults
from jaxdistill.data import tasks
from jaxdistill.data.conll import read_conll
from jaxdistill.data.feeds import ALONE
from jaxdistill.data.tokenizers import train_wordpiece
from jaxdistill.errors import BadInput
from jaxdistill.objectives.terms import LOSSES

SLOTS = {"bako": "O", "ren": "O", "sal": "B-place", "mitubako": "B-thing"}
LENGTH = 12


@pytest.fixture(scope="module")
def tokenizer():
    return train_wordpiece(["bako ren sal mitu"] * 3, 100)


def utterances(number=24, longest=5, seed=0):
    """(words, slots, intent) of each: the intent is whether its places are odd."""
    rng = np.random.default_rng(seed)
    for _ in range(number):
        words = [str(word) for word in rng.choice([*SLOTS], rng.integers(1, longest + 1))]
        yield (
            words,
            [SLOTS[word] for word in words],
            "Go" if words.count("sal") % 2 else "Stay here",
        )


def write(folder, rows=None):
    rows = list(utterances() if rows is None else rows)
    folder.mkdir(exist_ok=True)
    for name, lines in zip(("seq.in", "seq.out", "label"), zip(*rows)):
        cells = [line if isinstance(line, str) else " ".join(line) for line in lines]
        (folder / name).write_text("\n".join(cells) + "\n")
    return str(folder)


def opened(source, heldout=None, **settings):
    section = defaults.task(
        "intent_slots",
        source=source,
        heldout=source if heldout is None else heldout,
        sequence_length=LENGTH,
        **settings,
    )
    return tasks.open_task("it", section, seed=0)


def heldout(feed, tokenizer):
    """(reader, the batch of all its held-out rows)."""
    reader = feed.read(tokenizer)
    rows = reader.parts.heldout
    return reader, rows.fetch(np.arange(rows.number), LENGTH)


def test_the_intent_stands_at_cls_and_slots_where_words_begin(tmp_path, tokenizer):
    feed = opened(write(tmp_path / "a"))
    assert feed.labels == ("O", "B-place", "B-thing", "intent=Go", "intent=Stay here")
    most, _ = Counter(intent for *_, intent in utterances()).most_common(1)[0]
    assert (
        feed.labels[feed.usual] == f"intent={most}"
        and feed.heldout_rows == 24
        and feed.losses == ("tagging",)
    )
    reader, batch = heldout(feed, tokenizer)
    for row, (_, slots, intent) in enumerate(utterances()):
        read = batch["tag_weights"][row] > 0
        names = [feed.labels[number] for number in batch["tags"][row][read]]
        assert read[0] and names == [f"intent={intent}", *slots]
    for filled in reader.heldout(16, None, ALONE):
        assert not filled["tag_weights"][filled["example_weights"] == 0].any()
    answers = reader.answers({"logits": np.eye(5)[batch["tags"]]})
    assert answers.found == answers.truth and len(answers.truth.whole) == 24


@pytest.mark.parametrize("given", [False, True])
def test_an_answer_is_the_best_label_of_its_own_kind(given, tmp_path, tokenizer):
    """Whatever the others score, and in whatever order a model has its labels; a slow reference."""
    labels = ("intent=Stay here", "B-thing", "O", "intent=Go", "B-place") if given else ()
    feed = opened(write(tmp_path / "a"), labels=labels)
    assert not given or feed.labels == labels
    reader, batch = heldout(feed, tokenizer)
    logits = np.random.default_rng(1).normal(size=(*batch["tags"].shape, 5)).astype(np.float32)
    kinds = np.array([name.startswith("intent=") for name in feed.labels])
    logits[:, 0, ~kinds] += 9  # the best of all labels at [CLS] is a slot, at words an intent
    logits[:, 1:, kinds] += 9
    found = reader.answers({"logits": logits}).found
    for row, (words, _, _) in enumerate(utterances()):
        intents = {name: logits[row, 0, n] for n, name in enumerate(feed.labels) if kinds[n]}
        assert found.intents[row] == max(intents, key=intents.get)
        firsts = [place for place in np.flatnonzero(batch["tag_weights"][row]) if place]
        assert len(found.tags[row]) == len(words) == len(firsts)
        for tag, place in zip(found.tags[row], firsts):
            slots = {
                name: logits[row, place, n] for n, name in enumerate(feed.labels) if not kinds[n]
            }
            assert tag == max(slots, key=slots.get)


@pytest.mark.parametrize("weight", [1.0, 0.25])
def test_the_loss_balances_the_two_cross_entropies(weight, tmp_path, tokenizer):
    """Over all rows it is their weighted mean, as a sum of two means has it; not one [CLS] among all
    words."""
    feed = opened(write(tmp_path / "a"), intent_weight=weight)
    _, batch = heldout(feed, tokenizer)
    logits = np.random.default_rng(2).normal(size=(*batch["tags"].shape, 5))
    row = LOSSES["tagging"]
    batch = {name: jnp.asarray(values) for name, values in batch.items()}
    loss = float(row.sum(jnp.asarray(logits), None, batch) / row.count(batch))
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    of_intents, of_slots = [], []
    for n, length in enumerate(batch["attention_mask"].sum(-1)):
        for place in range(length):
            if batch["tag_weights"][n, place]:
                nats = -np.log(probabilities[n, place, batch["tags"][n, place]])
                (of_slots if place else of_intents).append(nats)
    assert len(of_intents) == 24 < len(of_slots)
    expected = (np.mean(of_slots) + weight * np.mean(of_intents)) / (1 + weight)
    assert loss == pytest.approx(expected, rel=1e-5)


def test_a_long_utterance_has_its_intent_in_the_first_of_its_rows(tmp_path, tokenizer):
    rows = list(utterances(6, longest=40, seed=3))
    feed = opened(write(tmp_path / "a", rows))
    reader, batch = heldout(feed, tokenizer)
    assert len(batch["tags"]) > 6 == feed.heldout_rows
    at_cls = batch["tag_weights"][:, 0] > 0
    assert at_cls[0] and at_cls.sum() == 6
    assert (batch["tag_weights"][:, 1:] > 0).sum() == sum(len(words) for words, *_ in rows)
    logits = np.eye(len(feed.labels))[batch["tags"]]
    for n in np.flatnonzero(~at_cls):  # what [CLS] of the others says is of no account
        logits[n, 0] = 5 * np.random.default_rng(n).normal(size=len(feed.labels))
    answers = reader.answers({"logits": logits})
    assert answers.found == answers.truth
    assert answers.truth.whole == [[f"intent={intent}", *slots] for _, slots, intent in rows]


def test_answers_are_read_back(tmp_path, tokenizer):
    feed = opened(write(tmp_path / "a", [*utterances(), (["#", "sal"], ["O", "B-place"], "Go")]))
    reader, batch = heldout(feed, tokenizer)
    logits = np.random.default_rng(1).normal(size=(*batch["tags"].shape, 5))
    answers = reader.answers({"logits": logits})
    (tmp_path / "answers.tsv").write_text(answers.files["tsv"])
    for column, frames in ((1, answers.truth), (2, answers.found)):
        assert read_conll(tmp_path / "answers.tsv", tag_column=column).tags == tuple(
            map(tuple, frames.tags)
        )
    lines = answers.files["tsv"].splitlines()
    assert lines[:2] == ["# intent = Stay here", f"# found = {answers.found.intents[0][7:]}"]
    for key, frames in (("intent", answers.truth), ("found", answers.found)):
        start = f"# {key} = "
        found = [line.removeprefix(start) for line in lines if line.startswith(start)]
        assert [f"intent={name}" for name in found] == frames.intents


def test_three_files_and_packed_ones_are_the_folder(tmp_path):
    folder = tmp_path / "a"
    whole = opened(write(folder))
    files = [str(folder / name) for name in ("seq.in", "seq.out", "label")]
    of_files = opened(files[0], tag_source=files[1], label_source=files[2])
    packed = tmp_path / "b"
    packed.mkdir()
    for name in ("seq.in", "seq.out", "label"):
        (packed / f"{name}.xz").write_bytes(lzma.compress((folder / name).read_bytes()))
    others = dict(zip(("heldout", "heldout_tag_source", "heldout_label_source"), files))
    for same in (of_files, opened(str(packed)), opened(str(packed), **others)):
        assert same.digests == whole.digests and same.labels == whole.labels


def test_a_set_that_is_parted_by_itself_has_the_labels_of_both_parts(tmp_path):
    for place in range(12):
        rows = list(utterances(12))
        rows[place] = ([f"x{place}"], ["B-rare"], "Rare")
        feed = opened(write(tmp_path / "a", rows), "", heldout_fraction=0.3)
        assert {"B-rare", "intent=Rare"} < set(feed.labels)
        assert 0 < feed.heldout_rows < 12


def test_other_schemes_become_bio(tmp_path):
    rows = [(["sal", "bako"], ["S-place", "O"], "Go"), (["ren", "ren"], ["B-x", "E-x"], "Stay")]
    feed = opened(write(tmp_path / "a", rows))
    assert feed.labels == ("O", "B-place", "B-x", "I-x", "intent=Go", "intent=Stay")


def test_labels_that_training_lacks_are_refused_or_wrong(tmp_path, tokenizer):
    train = write(tmp_path / "a")
    rare = [(["ren"], ["O"], "Rare"), (["ren", "sal"], ["O", "B-rare"], "Go")]
    for row, said in zip(
        rare, ("label' line 1: label 'Rare' is not known", "'B-rare' is not known")
    ):
        with pytest.raises(BadInput, match=said):
            opened(train, write(tmp_path / "b", [row]))
    feed = opened(train, write(tmp_path / "b", rare), unseen_labels="wrong")
    assert any("'Rare'" in said for said in feed.notices)
    section = defaults.task("intent_slots", test=str(tmp_path / "b"), sequence_length=LENGTH)
    with pytest.raises(BadInput, match="is not known"):
        tasks.test_of(opened(train), section, 0)
    section.unseen_labels = "wrong"
    test = tasks.test_of(opened(train), section, 0)
    assert test.labels == feed.labels and test.usual == feed.usual
    reader, batch = heldout(feed, tokenizer)
    _, again = heldout(test, tokenizer)
    np.testing.assert_array_equal(batch["tags"], again["tags"])
    assert batch["tag_weights"][0, 0] == 0 < batch["tag_weights"][1, 0]
    assert any("B-rare" in said for said in reader.notices)
    answers = reader.answers({"logits": np.eye(5)[batch["tags"]]})
    assert answers.truth.whole == [["intent=Rare", "O"], ["intent=Go", "O", "B-rare"]]
    assert "# intent = Rare\n" in answers.files["tsv"]


def change(folder, name, number, line):
    """The line of that number becomes another, or goes."""
    lines = (folder / name).read_text().splitlines()
    lines[number - 1 : number] = [] if line is None else [line]
    (folder / name).write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(
    "name, line, words",
    [
        ("label", None, ["seq.in' has 24 lines", "label' 23"]),
        ("seq.out", None, ["seq.in' has 24 lines", "seq.out' 23"]),
        ("seq.out", "O O O O O O", ["seq.in' line 5 has", "6 tags"]),
        ("label", "", ["label' line 5 has no intent", "seq.in' has words"]),
    ],
)
def test_files_that_do_not_fit_are_refused_by_line(name, line, words, tmp_path):
    source = write(tmp_path / "a")
    change(tmp_path / "a", name, 5, line)
    with pytest.raises(BadInput) as error:
        opened(source)
    assert all(word in str(error.value) for word in words), error.value
    if line is None:
        return
    feed = opened(source, skip_bad_rows=True)
    others = [row for number, row in enumerate(utterances(), start=1) if number != 5]
    assert feed.digests == opened(write(tmp_path / "b", others)).digests
    assert "left out" in feed.notices[0]


def test_an_intent_without_words_is_refused(tmp_path):
    rows = list(utterances())
    rows[4] = ([], [], "Go")
    source = write(tmp_path / "a", rows)
    with pytest.raises(BadInput, match="label' line 5 has the intent 'Go' but .* no words"):
        opened(source)
    assert opened(source, skip_bad_rows=True).heldout_rows == 23
    change(tmp_path / "a", "label", 5, "")
    assert opened(source).heldout_rows == 23  # blank in all three: no utterance


def test_what_cannot_be_used_is_refused(tmp_path):
    source = write(tmp_path / "a")
    for settings, words in (
        (dict(source=""), "source is empty"),
        (dict(source=str(tmp_path)), "has no seq.in; it holds a"),
        (dict(source=str(tmp_path / "b")), "does not exist"),
        (dict(source=f"{source}/seq.in"), "also tag_source and label_source"),
        (dict(source=source, label_source="x"), "leave out tag_source and label_source"),
        (dict(source=source, labels=("O", "B-place")), "expected tags and intents"),
        (dict(source=source, labels=("O", "intent=Go", "O")), "each name once"),
        (dict(source=source, intent_weight=-1.0), "intent_weight=-1.0"),
    ):
        with pytest.raises(BadInput, match=words):
            opened(**settings)
    plain = [(words, ["N"] * len(words), intent) for words, _, intent in utterances()]
    with pytest.raises(BadInput, match="are N: expected 'O', 'B-artist'"):
        opened(write(tmp_path / "c", plain))
