from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxdistill.data import tokenizers
from jaxdistill.data.documents import Document
from jaxdistill.errors import BadInput

SPECIAL = list(tokenizers.SPECIAL_TOKENS)


def test_training_is_deterministic(text_file: Path, tokenizer: Any) -> None:
    texts = text_file.read_text().split("\n\n")
    for order in (texts, texts[::-1]):
        again = tokenizers.train_wordpiece(order, 150)
        assert again.get_vocab() == tokenizer.get_vocab()
    assert [tokenizer.convert_ids_to_tokens(number) for number in range(5)] == SPECIAL
    assert len(tokenizer) == 150
    assert tokenizers.tokenizer_digest(again) == tokenizers.tokenizer_digest(tokenizer)
    assert tokenizers.tokenizer_digest(
        tokenizers.train_wordpiece(texts, 120)
    ) != tokenizers.tokenizer_digest(tokenizer)


def test_saves_as_a_hugging_face_folder(tokenizer: Any, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert {
        "tokenizer.json",
        "vocab.txt",
        "tokenizer_config.json",
        "special_tokens_map.json",
    } <= names
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for loaded in (
        tokenizers.load_tokenizer(tmp_path),
        tokenizers.load_tokenizer(tmp_path / "vocab.txt"),
    ):
        assert tokenizers.tokenizer_digest(loaded) == tokenizers.tokenizer_digest(tokenizer)
        assert loaded("Bako mitu!")["input_ids"] == theirs("Bako mitu!")["input_ids"]


def test_ids_are_found_by_name(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text(
        "\n".join(["a", "##b", "[MASK]", "[SEP]", "[UNK]", "[PAD]", "[CLS]", "["]) + "\n"
    )
    vocabulary = tokenizers.describe(tokenizers.load_tokenizer(tmp_path / "vocab.txt"))
    special = vocabulary.special
    assert (special.mask, special.sep, special.unk, special.pad, special.cls) == (2, 3, 4, 5, 6)
    assert vocabulary.special_ids == (2, 3, 4, 5, 6)
    assert vocabulary.continuation_ids == (1,) and vocabulary.size == 8


def test_encoding_documents(tokenizer: Any) -> None:
    documents = [
        Document("Bako mitu. Ren sal.\n\nDorvex [MASK] [SEP] kolum", "a"),
        Document("...", "b"),
        Document("", "c"),
    ]
    encoded = list(tokenizers.encode_documents(tokenizer, documents))
    assert len(encoded) == 3
    tokens, starts = encoded[0]
    sentences = ["bako mitu.", "ren sal.", "dorvex [ mask ] [ sep ] kolum"]
    expected = [
        tokenizer(sentence, add_special_tokens=False)["input_ids"] for sentence in sentences
    ]
    assert tokens.tolist() == sum(expected, []) and tokens.dtype == np.int32
    assert np.flatnonzero(starts).tolist() == [
        0,
        len(expected[0]),
        len(expected[0]) + len(expected[1]),
    ]
    # Text that names special tokens must not become them.
    assert not np.isin(tokens, [tokenizer.mask_token_id, tokenizer.sep_token_id]).any()
    assert len(encoded[2][0]) == len(encoded[2][1]) == 0


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["empty"]),
        ("\n".join([*SPECIAL, "a", "b", "a"]).encode(), ["line 8", "'a'"]),
        ("\n".join(SPECIAL[:3]).encode(), ["[SEP], [MASK]", "truncated"]),
        ("\n".join(SPECIAL).encode(), ["no words beside", "truncated"]),
        (b"[PAD]\n\xff\xfe\n", ["UTF-8", "byte 6"]),
    ],
)
def test_bad_vocabularies(tmp_path: Path, content: bytes, words: list[str]) -> None:
    (tmp_path / "vocab.txt").write_bytes(content)
    for path in (tmp_path, tmp_path / "vocab.txt"):
        with pytest.raises(BadInput) as error:
            tokenizers.load_tokenizer(path)
        assert all(word in str(error.value) for word in words) and "\n" not in str(error.value), (
            str(error.value)
        )


def test_bad_folders(tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="neither"):
        tokenizers.load_tokenizer(tmp_path)
    tokenizer.save_pretrained(tmp_path / "model")
    with pytest.raises(BadInput, match="did you mean 'model'"):
        tokenizers.load_tokenizer(tmp_path / "modle")
    whole = (tmp_path / "model" / "tokenizer.json").read_text()
    (tmp_path / "model" / "tokenizer.json").write_text(whole[: len(whole) // 2])
    with pytest.raises(BadInput, match="cannot be read"):
        tokenizers.load_tokenizer(tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").write_text(whole)
    lines = (tmp_path / "model" / "vocab.txt").read_text().splitlines()
    (tmp_path / "model" / "vocab.txt").write_text("\n".join([*lines, "extra", "words"]))
    with pytest.raises(BadInput, match="152 tokens but tokenizer.json 150"):
        tokenizers.load_tokenizer(tmp_path / "model")


def test_bad_training() -> None:
    with pytest.raises(BadInput, match="vocab_size=3"):
        tokenizers.train_wordpiece(["text"], 3)
    with pytest.raises(BadInput, match="no words"):
        tokenizers.train_wordpiece([" ", ""], 200)
