"""Texts as rows: framed as Hugging Face does, and fetched padded as far as one likes."""

import numpy as np
import pytest

from jaxdistill.data import encoded
from jaxdistill.data.tokenizers import train_wordpiece
from jaxdistill.errors import BadInput

PIECES = ["bako", "sal", "ren", "mitu"]


@pytest.fixture(scope="module")
def tokenizer():
    return train_wordpiece([" ".join(PIECES)] * 3, 100)


def whole(rows, length):
    return rows.fetch(np.arange(len(rows)), length)


def test_rows_are_framed_as_hugging_face_does(tokenizer):
    texts = ["bako " * a for a in (1, 4, 15) for _ in range(3)]
    pairs = ["sal ren " * b for _ in range(3) for b in (1, 3, 12)]
    options = dict(max_length=24, truncation=True, padding="max_length", return_tensors="np")
    ours, theirs = (
        whole(encoded.encode(texts, pairs, tokenizer, 24), 24),
        tokenizer(texts, pairs, **options),
    )
    for key in ("input_ids", "attention_mask", "token_type_ids"):
        assert ours[key].dtype == np.int32
        # Where both are cut by an odd number, the two differ in which of them keeps the odd token.
        same = (ours[key] == theirs[key]).all(axis=1)
        assert same[[0, 1, 3]].all(), key
    lengths = ours["attention_mask"].sum(axis=1)
    assert (lengths == theirs["attention_mask"].sum(axis=1)).all()
    single, theirs = (
        whole(encoded.encode(texts, None, tokenizer, 24), 24),
        tokenizer(texts, **options),
    )
    assert (single["input_ids"] == theirs["input_ids"]).all() and not single["token_type_ids"].any()


def test_more_padding_changes_nothing_else(tokenizer):
    rows = encoded.encode(["bako", "sal " * 7, ""], ["ren", "mitu " * 3, "sal"], tokenizer, 40)
    longest = int(rows.rows.lengths.max())
    short, long = whole(rows, longest), whole(rows, 40)
    for key in ("input_ids", "attention_mask", "token_type_ids"):
        np.testing.assert_array_equal(short[key], long[key][:, :longest])
    assert not long["attention_mask"][:, longest:].any() and (long["input_ids"][0, -1] == 0).all()
    assert rows.rows.lengths.tolist() == short["attention_mask"].sum(axis=1).tolist()


def test_what_was_cut_is_counted(tokenizer):
    texts = ["sal " * n for n in (2, 5, 6, 7, 30)]  # one piece each
    assert len(encoded.pieces(["sal " * 6], tokenizer)[0]) == 6
    assert encoded.encode(texts, None, tokenizer, 8).truncated == 2
    assert encoded.encode(texts, ["ren"] * 5, tokenizer, 9).truncated == 3
    assert encoded.encode(texts, None, tokenizer, 40).truncated == 0


def test_columns_and_values_of_tokens_come_along(tokenizer):
    import dataclasses

    rows = encoded.encode(["sal", "sal sal sal"], None, tokenizer, 12)
    tags = np.arange(len(rows.ids), dtype=np.int32)
    rows = dataclasses.replace(
        rows, columns={"labels": np.float32([0.5, 2])}, by_token={"tags": (tags, -1)}
    )
    batch = rows.fetch(np.array([1, 0]), 6)
    assert batch["labels"].tolist() == [2, 0.5]
    assert batch["tags"].tolist() == [[3, 4, 5, 6, 7, -1], [0, 1, 2, -1, -1, -1]]


def test_a_length_without_room_is_refused(tokenizer):
    with pytest.raises(BadInput, match="sequence_length=7: expected 8 or more"):
        encoded.encode(["sal"], None, tokenizer, 7)


def test_texts_are_tokenised_some_at_a_time(tokenizer, monkeypatch):
    texts, pairs = ["bako " * n for n in range(7)], ["sal " * (9 - n // 2) for n in range(7)]
    once = encoded.encode(texts, pairs, tokenizer, 14)
    assert 0 < once.truncated < 7
    for at_once in (1, 3, 7):
        monkeypatch.setattr(encoded, "_AT_ONCE", at_once)
        again = encoded.encode(texts, pairs, tokenizer, 14)
        assert again.truncated == once.truncated
        for name in ("ids", "begins", "second_begins"):
            ours, theirs = getattr(again, name), getattr(once, name)
            assert ours.dtype == theirs.dtype and (ours == theirs).all(), name
