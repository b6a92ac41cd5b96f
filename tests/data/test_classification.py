"""Classes and numbers as feeds: labels, weights, what was answered."""

import numpy as np
import pytest

from jaxdistill import defaults
from jaxdistill.data import examples
from jaxdistill.data.examples import Texts
from jaxdistill.data.feeds import ALONE
from jaxdistill.data.tasks import open_task
from jaxdistill.data.tokenizers import train_wordpiece
from jaxdistill.errors import BadInput

KINDS = [("bako ko", "pos", "mi tu"), ("ren sal", "neg", "dor"), ("vex lum", "pos", "pi")]
ROWS = [(f"{a} {n}", b, c) for n in range(20) for a, b, c in KINDS]


@pytest.fixture(scope="module")
def tokenizer():
    return train_wordpiece([" ".join(row[0] for row in ROWS)], 100)


def table(path, rows=ROWS, header="sentence\tlabel\tother"):
    path.write_text("\n".join([header, *("\t".join(row) for row in rows)]) + "\n")
    return str(path)


def opened(kind="classification", **settings):
    return open_task("it", defaults.task(kind, sequence_length=16, **settings), seed=0)


def test_a_pair_and_its_class(tmp_path, tokenizer):
    train, held = table(tmp_path / "t.tsv"), table(tmp_path / "h.tsv", ROWS[:4])
    feed = opened(source=train, heldout=held, pair_column="2")
    assert feed.labels == ("neg", "pos") and (feed.rows, feed.heldout_rows) == (60, 4)
    assert feed.usual == 1 and feed.losses == ("classification",)
    reader = feed.read(tokenizer)
    (batch,) = reader.heldout(4, None, ALONE)
    order = np.argsort(batch["row"])
    assert batch["labels"][order].tolist() == [1, 0, 1, 1]
    assert batch["token_type_ids"].any()
    logits = np.array([[0.0, 1], [1, 0], [1, 0], [0, 1]])
    answers = reader.answers({"logits": logits})
    lines = answers.files["tsv"].splitlines()
    assert lines[0] == "label\tprediction\ttext\tpair" and len(lines) == 5
    assert lines[3].split("\t") == ["pos", "neg", "vex lum 0", "pi"]


def test_a_cell_of_the_answers_stays_in_its_line(tmp_path, tokenizer):
    (tmp_path / "t.csv").write_text('text,label\n"two\nlines",a\n"a\ttab",b\n')
    feed = opened(source=str(tmp_path / "t.csv"), heldout=str(tmp_path / "t.csv"))
    text = feed.read(tokenizer).answers({"logits": np.eye(2)}).files["tsv"]
    assert text == "label\tprediction\ttext\na\ta\ttwo lines\nb\tb\ta tab\n"


def test_a_list_says_the_order_of_the_classes(tmp_path, tokenizer):
    train = table(tmp_path / "t.tsv")
    assert opened(source=train, labels=("pos", "other", "neg")).labels == ("pos", "other", "neg")
    (tmp_path / "labels.txt").write_text("pos\nneg\n")
    feed = opened(source=train, label_file=str(tmp_path / "labels.txt"))
    assert feed.labels == ("pos", "neg")
    batch = next(feed.read(tokenizer).train(8, 0, ALONE))
    assert set(batch["labels"].tolist()) == {0, 1}
    with pytest.raises(BadInput, match="'neg'"):
        opened(source=train, labels=("pos", "other"))


def test_a_heldout_class_that_training_lacks(tmp_path, tokenizer):
    held = table(tmp_path / "h.tsv", [*ROWS[:2], ("mi", "new", "x")])
    settings = dict(source=table(tmp_path / "t.tsv"), heldout=held)
    with pytest.raises(BadInput, match="(?s)'new'.*unseen_labels"):
        opened(**settings)
    feed = opened(**settings, unseen_labels="wrong")
    assert feed.labels == ("neg", "pos") and any("'new'" in said for said in feed.notices)
    answers = feed.read(tokenizer).answers({"logits": np.eye(3)[:, :2]})
    assert answers.truth.tolist() == [1, 0, -1]
    assert "new\t" in answers.files["tsv"]


def test_balanced_weights_give_each_class_the_same_share(tmp_path, tokenizer):
    feed = opened(source=table(tmp_path / "t.tsv"), class_weights="balanced", heldout_fraction=0.5)
    reader = feed.read(tokenizer)
    rows = reader.parts.train
    batch = rows.fetch(np.arange(rows.number), 16)
    shares = [batch["example_weights"][batch["labels"] == c].sum() for c in (0, 1)]
    assert shares[0] == pytest.approx(shares[1]) and sum(shares) == pytest.approx(rows.number)
    held = [*reader.heldout(8, None, ALONE)]
    assert {w for batch in held for w in batch["example_weights"]} <= {0.0, 1.0}
    with pytest.raises(BadInput, match="no training row has the label 'third'"):
        opened(
            source=table(tmp_path / "t.tsv"),
            class_weights="balanced",
            labels=("neg", "pos", "third"),
        )


def test_a_number_for_a_text(tmp_path, tokenizer):
    rows = [(text, f"{n % 5}.25", pair) for n, (text, _, pair) in enumerate(ROWS)]
    train = table(tmp_path / "t.tsv", rows)
    feed = opened("regression", source=train, heldout=train, pair_column="2")
    assert feed.labels == () and feed.usual == pytest.approx(2.25)
    reader = feed.read(tokenizer)
    batch = next(reader.train(8, 0, ALONE))
    assert batch["labels"].dtype == np.float32
    answers = reader.answers({"logits": np.zeros((60, 1), np.float32)})
    assert answers.truth[:3].tolist() == [0.25, 1.25, 2.25] and answers.found.shape == (60,)
    with pytest.raises(BadInput, match="task=regression"):
        opened(source=train)  # never five classes
    with pytest.raises(BadInput, match="'(pos|neg)' is no finite number"):
        opened("regression", source=table(tmp_path / "u.tsv"))


def test_how_alike_two_texts_are(tmp_path, tokenizer):
    """Every text is a row: the first ones, then the second ones; cosines against a loop."""
    rows = [(text, f"{n % 5}", pair) for n, (text, _, pair) in enumerate(ROWS)]
    held = table(tmp_path / "t.tsv", rows)
    feed = opened("similarity", source=held, heldout=held, pair_column="2")
    reader = feed.read(tokenizer)
    assert feed.rows == 120 and feed.heldout_rows == 60 and not feed.losses
    texts = reader.parts.heldout
    whole = texts.fetch(np.arange(texts.number), 16)["input_ids"]
    assert {tuple(row) for row in whole[60:]} == {tuple(row) for row in whole[60:63]}
    vectors = np.random.default_rng(0).normal(size=(120, 5))
    answers = reader.answers({"embedding": vectors})
    line = answers.files["tsv"].splitlines()[1].split("\t")
    a, b = vectors[0], vectors[60]
    assert line[2:] == [*rows[0][::2]]
    assert float(line[1]) == pytest.approx(a @ b / np.sqrt(a @ a * (b @ b)), abs=1e-4)
    assert answers.truth[:3].tolist() == [0, 1, 2]
    with pytest.raises(BadInput, match="pair_column is empty"):
        opened("similarity", source=held)


def test_split_keeps_equal_texts_together(tmp_path):
    rows = [(f"ba {n % 25}", "ab"[n % 2], "x") for n in range(100)]
    where = Texts(source=table(tmp_path / "a.tsv", rows), heldout_fraction=0.2)
    train, held = examples.read_parts(where)
    assert len(train) + len(held) == 100 and len(held) > 0
    assert not set(train.texts) & set(held.texts)
    again = examples.read_parts(where)
    assert again[1] == held
    with pytest.raises(BadInput, match="too few"):
        examples.split(train.take([0]), 0.2)


def test_a_rare_class_may_be_held_out(tmp_path):
    """A table that is parted by itself has the classes of both parts."""
    for place in range(60):
        rows = [*ROWS]
        rows[place] = (rows[place][0], "rare", "x")
        feed = opened(source=table(tmp_path / "t.tsv", rows), heldout_fraction=0.3)
        assert feed.labels == ("neg", "pos", "rare")


def test_two_files_and_several(tmp_path):
    (tmp_path / "seq.in").write_text("play a song\nbook it\n" * 9)
    (tmp_path / "label").write_text("Play\nBook\n" * 9)
    feed = opened(source=str(tmp_path / "seq.in"), label_source=str(tmp_path / "label"),
                  heldout=str(tmp_path / "seq.in"), heldout_label_source=str(tmp_path / "label"))  # fmt: skip
    assert feed.labels == ("Book", "Play") and feed.rows == feed.heldout_rows == 18
    one, two = table(tmp_path / "one.tsv"), table(tmp_path / "two.tsv", ROWS[:6])
    assert opened(source=f"{one},{two}", heldout=two).rows == 66
