from __future__ import annotations

import lzma
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxdistill.data.classification import (
    TokenizedTask,
    read_classification_tsv,
    split_examples,
    tokenize_examples,
)
from jaxdistill.errors import BadInput

ROWS = [
    ('ba "ko', "pos", "mi tu"),
    ("ren sal", "neg", "dor"),
    ("vex lum qua", "pos", "pi"),
    ("zan", "neg", "ko ko"),
]


def _tsv(path: Path, header: str | None = "sentence\tlabel\tother", rows: Any = ROWS) -> Path:
    lines = ([header] if header else []) + ["\t".join(row) for row in rows]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_columns_by_name_or_number_with_or_without_header(tmp_path: Path) -> None:
    with_header, without = _tsv(tmp_path / "a.tsv"), _tsv(tmp_path / "b.tsv", header=None)
    packed = tmp_path / "a.tsv.xz"
    packed.write_bytes(lzma.compress(with_header.read_bytes()))
    for path, columns in [(with_header, ("sentence", "label", "other")), (with_header, (0, 1, 2)), (without, (0, 1, 2)),
                          (without, ("0", "1", "2")), (packed, ("sentence", "label", "other"))]:  # fmt: skip
        examples = read_classification_tsv(path, *columns)
        assert examples.texts == tuple(row[0] for row in ROWS)
        assert examples.pairs == tuple(row[2] for row in ROWS)
        assert examples.label_names == ("neg", "pos") and examples.labels.tolist() == [1, 0, 1, 0]
        assert examples.labels.dtype == np.int32
    assert read_classification_tsv(with_header, "sentence", "label").pairs is None


def test_csv_and_number_labels(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('label,content\n10,"one, two\nthree"\n9,plain\n10,"a ""quoted"" word"\n')
    examples = read_classification_tsv(path, "content", "label")
    assert examples.texts == ("one, two\nthree", "plain", 'a "quoted" word')
    assert examples.label_names == ("9", "10") and examples.labels.tolist() == [1, 0, 1]


def test_labels_may_be_numbered_by_another_file(tmp_path: Path) -> None:
    path = _tsv(tmp_path / "dev.tsv", rows=ROWS[:1] * 2)
    assert read_classification_tsv(
        path, 0, 1, label_names=["neg", "other", "pos"]
    ).labels.tolist() == [2, 2]
    with pytest.raises(BadInput, match="line 2: label 'pos'"):
        read_classification_tsv(path, "sentence", "label", label_names=["neg", "other"])


@pytest.mark.parametrize(
    ("content", "columns", "words"),
    [
        ("", (0, 1), ["empty"]),
        ("sentence\tlabel\n", ("sentence", "label"), ["no examples"]),
        (
            "sentence\tlabel\na\tx\nb\n",
            ("sentence", "label"),
            ["line 3", "1 columns", "at least 2"],
        ),
        ("sentence\tlabel\na\tx\nb\ty\n", ("sentense", "label"), ["did you mean 'sentence'"]),
        ("a\tx\nb\tx\n", (0, 1), ["one label only", "'x'"]),
    ],
)
def test_bad_tables(tmp_path: Path, content: str, columns: Any, words: list[str]) -> None:
    (tmp_path / "a.tsv").write_text(content)
    with pytest.raises(BadInput) as error:
        read_classification_tsv(tmp_path / "a.tsv", *columns)
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value), str(
        error.value
    )


def test_missing_table(tmp_path: Path) -> None:
    _tsv(tmp_path / "train.tsv")
    with pytest.raises(BadInput, match="did you mean 'train.tsv'"):
        read_classification_tsv(tmp_path / "trian.tsv", 0, 1)


def test_split_keeps_equal_texts_together(tmp_path: Path) -> None:
    rows = [(f"text {n // 2}", "ab"[n % 3 == 0]) for n in range(600)]
    examples = read_classification_tsv(_tsv(tmp_path / "a.tsv", "sentence\tlabel", rows), 0, 1)
    train, dev = split_examples(examples, 0.2)
    assert len(train.texts) + len(dev.texts) == 600 and 80 < len(dev.texts) < 160
    assert not set(train.texts) & set(dev.texts)
    assert len(train.labels) == len(train.texts)
    with pytest.raises(BadInput, match="too few"):
        split_examples(examples.take([0]), 0.2)


@pytest.fixture
def task(tmp_path: Path, tokenizer: Any) -> TokenizedTask:
    rows = [(f"bako mitu {'ren ' * (n % 20)}", "ab"[n % 2], "sal " * (n % 7)) for n in range(37)]
    return tokenize_examples(
        read_classification_tsv(_tsv(tmp_path / "t.tsv", rows=rows), 0, 1, 2), tokenizer, 16
    )


def test_rows_are_framed_as_hugging_face_does(tokenizer: Any, tmp_path: Path) -> None:
    rows = [("bako " * a, "xy"[a % 2], "sal ren " * b) for a in (1, 4, 15) for b in (1, 3, 12)]
    examples = read_classification_tsv(
        _tsv(tmp_path / "t.tsv", rows=rows), "sentence", "label", "other"
    )
    ours = tokenize_examples(examples, tokenizer, 24)
    options: dict[str, Any] = {
        "max_length": 24,
        "truncation": True,
        "padding": "max_length",
        "return_tensors": "np",
    }
    theirs = tokenizer(list(examples.texts), list(examples.pairs or ()), **options)
    for key in ("input_ids", "attention_mask", "token_type_ids"):
        assert getattr(ours, key).dtype == np.int32
        # Where both are cut by an odd number, the two differ in which of them keeps the odd token.
        same = (getattr(ours, key) == theirs[key]).all(axis=1)
        assert same[[0, 1, 3]].all(), key
        assert (ours.attention_mask.sum(axis=1) == theirs["attention_mask"].sum(axis=1)).all()
    single = tokenize_examples(
        read_classification_tsv(tmp_path / "t.tsv", "sentence", "label"), tokenizer, 24
    )
    theirs = tokenizer(list(examples.texts), **options)
    assert (single.input_ids == theirs["input_ids"]).all() and (single.token_type_ids == 0).all()
