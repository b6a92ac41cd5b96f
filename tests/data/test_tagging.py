"""Tags as a feed: rows, tags where a word begins, and every word's answer again."""

import numpy as np
import pytest

from jaxdistill import defaults
from jaxdistill.data.feeds import ALONE
from jaxdistill.data.tasks import open_task
from jaxdistill.data.tokenizers import train_wordpiece
from jaxdistill.errors import BadInput

WORDS = ("bako", "ren", "sal", "mitubako")


@pytest.fixture(scope="module")
def tokenizer():
    return train_wordpiece(["bako ren sal mitu"] * 3, 100)


def conll(path, sentences=30, tag="B-LOC", rare=None):
    lines = []
    for n in range(sentences):
        words = [(w, tag if w == "sal" else "O") for w in WORDS[: 2 + n % 3]]
        words = [(f"{words[0][0]}", "B-RARE")] + words[1:] if n == rare else words
        lines += [f"{word}{n if k == 1 else ''} {t}" for k, (word, t) in enumerate(words)] + [""]
    path.write_text("\n".join(lines))
    return str(path)


def opened(**settings):
    return open_task("it", defaults.task("tagging", sequence_length=12, **settings), seed=0)


def test_tags_stand_where_words_begin_and_come_back(tmp_path, tokenizer):
    file = conll(tmp_path / "a.txt")
    feed = opened(source=file, heldout=file)
    assert feed.labels == ("O", "B-LOC") and feed.score == "entities" and feed.usual == 0
    reader = feed.read(tokenizer)
    for batch in reader.heldout(8, None, ALONE):
        assert ((batch["tag_weights"] > 0) <= (batch["attention_mask"] > 0)).all()
        counts = batch["example_weights"] > 0
        assert not batch["tags"][counts][batch["tag_weights"][counts] == 0].any()
    # Logits that are the true tags give all tags of all words.
    rows = reader.parts.heldout
    whole = rows.fetch(np.arange(rows.number), 12)
    logits = np.eye(2)[whole["tags"]]
    answers = reader.answers({"logits": logits})
    assert answers.found == answers.truth and len(answers.truth) == 30
    lines = answers.files["tsv"].splitlines()
    assert lines[:3] == ["bako\tO\tO", "ren0\tO\tO", ""]


def test_a_sentence_longer_than_a_row_is_several_rows(tmp_path, tokenizer):
    path = tmp_path / "long.txt"
    path.write_text("\n".join(f"bako {'B-LOC' if n % 3 else 'O'}" for n in range(25)))
    feed = opened(source=str(path), heldout=str(path))
    reader = feed.read(tokenizer)
    rows = reader.parts.heldout
    assert feed.heldout_rows == 1 and rows.number > 2
    assert any("longer" in said or "rows" in said for said in reader.notices), reader.notices
    whole = rows.fetch(np.arange(rows.number), 12)
    answers = reader.answers({"logits": np.eye(2)[whole["tags"]]})
    assert answers.found == answers.truth and len(answers.truth[0]) == 25


def test_a_file_that_is_parted_by_itself_has_the_tags_of_both_parts(tmp_path):
    for place in range(30):
        feed = opened(source=conll(tmp_path / "a.txt", rare=place), heldout_fraction=0.3)
        assert set(feed.labels) == {"O", "B-LOC", "B-RARE"}
        assert 0 < feed.heldout_rows < 30


def test_other_schemes_two_files_and_tags_that_training_lacks(tmp_path, tokenizer):
    iob1 = opened(source=conll(tmp_path / "i.txt", tag="I-LOC"), heldout=conll(tmp_path / "j.txt"))
    assert iob1.labels == ("O", "B-LOC")
    plain = opened(source=conll(tmp_path / "p.txt", tag="NN"))
    assert plain.score == "tagging" and set(plain.labels) == {"O", "NN"}
    (tmp_path / "seq.in").write_text("bako ren\nsal\n" * 9)
    (tmp_path / "seq.out").write_text("O B-x\nO\n" * 9)
    parts = {f"{part}{what}": str(tmp_path / file) for part in ("", "heldout_") for what, file in
             (("source", "seq.in"), ("tag_source", "seq.out"))}  # fmt: skip
    parts["heldout"] = parts.pop("heldout_source")
    two = opened(**parts)
    assert two.labels == ("O", "B-x") and two.heldout_rows == 18
    settings = dict(source=conll(tmp_path / "a.txt"), heldout=conll(tmp_path / "b.txt", rare=4))
    with pytest.raises(BadInput, match="'B-RARE' is not known"):
        opened(**settings)
    feed = opened(**settings, unseen_labels="wrong")
    answers = feed.read(tokenizer).answers(
        {"logits": np.zeros((feed.read(tokenizer).parts.heldout.number, 12, 2))}
    )
    assert any("B-RARE" in tags for tags in answers.truth)
    with pytest.raises(BadInput, match="source is empty"):
        opened()
