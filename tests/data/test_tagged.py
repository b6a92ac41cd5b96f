"""Words to word pieces and back: every word is tagged once, whatever the words and the rows' length."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxdistill.data import tokenizers
from jaxdistill.data.conll import Tagged
from jaxdistill.data.tagged import Pieces, decode, number_tags, pieces, tag_names
from jaxdistill.errors import BadInput

NAMES = ("O", "B-x", "I-x")
# The last three have no piece: a zero-width space, a control character, a combining accent.
ODD = ["ba", "bakomitu", "Salvex.", "[SEP]", "q", "日本", "a b", "x" * 120, "\u200b", "\x01", "\u0301"]  # fmt: skip
VANISHING = ODD[-3:]


def _tagged(*sentences: str, tags: Any = None) -> Tagged:
    words = tuple(tuple(sentence.split(" ")) if sentence else () for sentence in sentences)
    given = None if tags is None else tuple(tuple(line.split()) for line in tags)
    return Tagged(words, given, tuple(("a.txt", 10 * i + 1) for i in range(len(words))))


def _padded(rows: list[np.ndarray], width: int, value: int) -> np.ndarray:
    padded = np.full((len(rows), width), value, np.int32)
    for row, ids in enumerate(rows):
        padded[row, : len(ids)] = ids
    return padded


def _slow_rows(tagged: Tagged, tokenizer: Any, length: int) -> list[list[list[int]]]:
    """For each row, each word's pieces: a word at a time, by Hugging Face's own call."""
    rows = []
    for words in tagged.tokens:
        row: list[list[int]] = []
        for word in words:
            ids = tokenizer(word, add_special_tokens=False, split_special_tokens=True)["input_ids"]
            ids = (ids or [tokenizer.unk_token_id])[: length - 2]
            if row and sum(map(len, row)) + len(ids) > length - 2:
                rows.append(row)
                row = []
            row.append(ids)
        if row:
            rows.append(row)
    return rows


words = st.one_of(st.sampled_from(ODD), st.text(st.characters(exclude_categories=["Cs"]), max_size=9))  # fmt: skip


@st.composite
def documents(draw: Any) -> Tagged:
    sentences = draw(st.lists(st.lists(words, max_size=9), max_size=5))
    tags = [[draw(st.sampled_from(NAMES)) for _ in sentence] for sentence in sentences]
    return Tagged(
        tuple(map(tuple, sentences)), tuple(map(tuple, tags)), (("a.txt", 1),) * len(tags)
    )


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(tagged=documents(), length=st.integers(3, 20), extra=st.integers(0, 3))
def test_every_word_comes_back_once(
    tokenizer: Any, tagged: Tagged, length: int, extra: int
) -> None:
    rows = pieces(tagged, tokenizer, length, NAMES)
    width = max(map(len, rows.ids), default=0) + extra
    assert width - extra <= length
    found = decode(rows, tagged, _padded(rows.tags, width, 7))
    assert tagged.tags is not None
    assert [[NAMES[number] for number in numbers] for numbers in found] == list(
        map(list, tagged.tags)
    )
    logits = np.eye(len(NAMES), dtype=np.float32)[_padded(rows.tags, width, 0)]
    assert decode(rows, tagged, logits) == found
    # Against the slow reference: the ids, where the tags are, and the counts.
    special = tokenizers.describe(tokenizer).special
    expected = _slow_rows(tagged, tokenizer, length)
    assert [ids.tolist() for ids in rows.ids] == [
        [special.cls, *sum(row, []), special.sep] for row in expected
    ]
    masks = [
        [False, *(i == 0 for word in row for i in range(len(word))), False] for row in expected
    ]
    assert [(tags >= 0).tolist() for tags in rows.tags] == masks
    assert [np.flatnonzero(mask).tolist() for mask in masks] == [f.tolist() for f in rows.firsts]
    assert all(
        array.dtype == np.int32
        for array in (*rows.ids, *rows.tags, *rows.firsts, rows.sentence, rows.first_word)
    )
    whole = _slow_rows(tagged, tokenizer, 10**6)
    everything = [ids for row in whole for ids in row]
    assert rows.words_cut == sum(len(ids) > length - 2 for ids in everything)
    assert rows.rows_cut == sum(np.bincount(rows.sentence) > 1) if len(rows) else not whole


def test_a_row_and_its_tags(tokenizer: Any) -> None:
    tagged = _tagged("bakomitu ba", "", "ko", tags=["B-x O", "", "I-x"])
    rows = pieces(tagged, tokenizer, 20, NAMES)
    of_word = tokenizer("bakomitu", add_special_tokens=False)["input_ids"]
    assert len(of_word) > 1
    later = [-1] * (len(of_word) - 1)
    assert [tags.tolist() for tags in rows.tags] == [[-1, 1, *later, 0, -1], [-1, 2, -1]]
    assert rows.sentence.tolist() == [0, 2] and rows.first_word.tolist() == [0, 0]
    assert tokenizer.decode(rows.ids[0]) == "[CLS] bakomitu ba [SEP]"
    assert (rows.rows_cut, rows.words_cut, rows.words_unknown, rows.notices) == (0, 0, 0, ())
    assert decode(rows, tagged, _padded(rows.tags, 20, 0)) == [[1, 0], [], [2]]


def test_what_is_longer_than_a_row_is_counted_and_not_lost(tokenizer: Any) -> None:
    one = tokenizer("ba", add_special_tokens=False)["input_ids"]
    assert len(one) == 1
    tagged = _tagged("ba ba ba ba ba", "ba ba", "ba bakomitubakomitu ba", "ba ba ba")
    tagged = dataclasses.replace(tagged, tags=tuple(("O",) * len(w) for w in tagged.tokens))
    rows = pieces(tagged, tokenizer, 5, NAMES)
    assert rows.sentence.tolist() == [0, 0, 1, 2, 2, 2, 3]
    assert rows.first_word.tolist() == [0, 3, 0, 0, 1, 2, 0]
    assert [len(ids) for ids in rows.ids] == [5, 4, 4, 3, 5, 3, 5]
    assert (rows.rows_cut, rows.words_cut, rows.words_unknown) == (2, 1, 0)
    text = " | ".join(rows.notices)
    assert "2 sentences are longer than 5" in text and "1 words have more than 3" in text
    # Answers of the second row are those of the words from the fourth on.
    answers = np.zeros((7, 5), np.int32)
    answers[1, 1:3] = [1, 2]
    assert decode(rows, tagged, answers)[0] == [0, 0, 0, 1, 2]


@pytest.mark.parametrize("word", VANISHING)
def test_words_without_pieces(tokenizer: Any, word: str) -> None:
    assert tokenizer(word, add_special_tokens=False)["input_ids"] == []
    tagged = Tagged((("ba", word, "ba"), (word,)), (("O", "B-x", "O"), ("I-x",)), (("a", 1),) * 2)
    rows = pieces(tagged, tokenizer, 8, NAMES)
    assert rows.ids[0][2] == rows.ids[1][1] == tokenizer.unk_token_id and rows.words_unknown == 2
    assert "2 words have no piece" in rows.notices[0]
    assert rows.tags[0].tolist() == [-1, 0, 1, 0, -1]
    # A word that the vocabulary lacks is [UNK] by itself, and not counted.
    assert pieces(_tagged("日"), tokenizer, 8, NAMES).words_unknown == 0


def test_special_tokens_in_a_text_are_text(tokenizer: Any) -> None:
    [ids] = pieces(_tagged("[SEP] ba"), tokenizer, 20, NAMES).ids
    assert ids.tolist().count(tokenizer.sep_token_id) == 1


def test_distinct_words_are_encoded_once_in_any_batches(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tagged = _tagged("ba ko ba mi", "mi tu ba")
    expected = pieces(tagged, tokenizer, 9, NAMES)
    backend, seen = tokenizers.plain_backend(tokenizer), []

    class Counting:
        def encode_batch_fast(self, batch: list[str], add_special_tokens: bool) -> Any:
            seen.append(batch)
            return backend.encode_batch_fast(batch, add_special_tokens=add_special_tokens)

    monkeypatch.setattr(tokenizers, "plain_backend", lambda _: Counting())
    monkeypatch.setattr("jaxdistill.data.tagged._WORDS_A_BATCH", 3)
    found = pieces(tagged, tokenizer, 9, NAMES)
    assert seen == [["ba", "ko", "mi"], ["tu"]]
    assert [ids.tolist() for ids in found.ids] == [ids.tolist() for ids in expected.ids]


def test_without_tags_words_still_get_answers(tokenizer: Any) -> None:
    tagged = _tagged("bakomitu ba", "ko")
    rows = pieces(tagged, tokenizer, 12, NAMES)
    assert all((tags == -1).all() for tags in rows.tags) and rows.tags_unseen == 0
    answers = np.arange(24).reshape(2, 12)
    second = len(tokenizer("bakomitu", add_special_tokens=False)["input_ids"]) + 1
    assert decode(rows, tagged, answers) == [[1, second], [13]]


def test_names_of_tags() -> None:
    tagged = _tagged("a b c d", "e", tags=["I-x O B-y B-x", "A"])
    assert tag_names(tagged) == ("O", "A", "B-x", "B-y", "I-x")
    assert tag_names(_tagged("a b", tags=["VB NN"])) == ("NN", "VB")
    given = ("B-y", "I-y", "A", "O", "I-x", "B-x")
    assert tag_names(tagged, given) == given
    for wrong, message in [
        (("O", "B-x", "I-x", "A"), r"'a.txt' line 1, word 3 of .* \('c'\): tag 'B-y' is not known"),
        (("O", "O", "A"), "tags O are given twice"),
    ]:
        with pytest.raises(BadInput, match=message):
            tag_names(tagged, wrong)
    with pytest.raises(BadInput, match="one tag only, 'O'"):
        tag_names(_tagged("a b", tags=["O O"]))
    with pytest.raises(BadInput, match="'a.txt' was read without tags"):
        tag_names(_tagged("a b"))


def test_unseen_tags_are_refused_or_wrong(tokenizer: Any) -> None:
    tagged = _tagged("ba ko", "mi tu ba", tags=["O B-x", "B-z O B-z"])
    with pytest.raises(BadInput) as error:
        pieces(tagged, tokenizer, 20, NAMES)
    message = str(error.value)
    assert "\n" not in message
    for part in (
        "'a.txt' line 11, word 1",
        "('mi')",
        "tag 'B-z'",
        "B-x",
        "set unseen_labels=wrong",
    ):
        assert part in message
    rows = pieces(tagged, tokenizer, 20, NAMES, "wrong")
    assert rows.tags_unseen == 2 and "2 words have tags without a number" in rows.notices[0]
    assert "B-z" in rows.notices[0]
    numbers, _ = number_tags(tagged, NAMES, "wrong")
    assert [n.tolist() for n in numbers] == [[0, 1], [-1, 0, -1]]
    # Such words are answered as any.
    assert list(map(len, decode(rows, tagged, _padded(rows.tags, 20, 0)))) == [2, 3]
    with pytest.raises(BadInput, match="did you mean 'refuse'"):
        number_tags(tagged, NAMES, "refused")


def test_rows_too_short_and_outputs_of_others(tokenizer: Any) -> None:
    tagged = _tagged("ba ko", "mi", tags=["O B-x", "O"])
    with pytest.raises(BadInput, match="length=2: expected 3 or more"):
        pieces(tagged, tokenizer, 2, NAMES)
    rows = pieces(tagged, tokenizer, 20, NAMES)
    width = max(map(len, rows.ids))
    for shape in [(1, 20), (3, 20), (2, width - 1), (2,), (2, 20, 3, 1)]:
        with pytest.raises(BadInput, match="outputs of shape"):
            decode(rows, tagged, np.zeros(shape))
    for other in (tagged.take([0]), tagged.take([1, 0]), _tagged("ba ko", "mi tu"), _tagged("ba ko", "mi", "tu")):  # fmt: skip
        with pytest.raises(BadInput, match="other sentences"):
            decode(rows, other, np.zeros((2, 20), np.int32))
    backwards = Pieces(
        **{
            **{f.name: getattr(rows, f.name) for f in dataclasses.fields(rows)},
            "first_word": np.array([1, 0]),
        }
    )
    with pytest.raises(BadInput, match="other sentences"):
        decode(backwards, tagged, np.zeros((2, 20), np.int32))
