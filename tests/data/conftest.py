"""A small text, a small vocabulary and a small prepared set, made once for all tests of the
room."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxdistill.data.prepare import prepare
from jaxdistill.data.prepared import PreparedText
from jaxdistill.data.tokenizers import train_wordpiece

_SYLLABLES = ["ba", "ko", "mi", "tu", "ren", "sal", "dor", "vex", "lum", "qua", "pi", "zan"]


def make_text(documents: int, seed: int) -> str:
    """Documents of sentences of made-up words, some of them long enough to become several word
    pieces."""
    random = np.random.default_rng(seed)
    words = ["".join(random.choice(_SYLLABLES, random.integers(1, 5))) for _ in range(400)]
    blocks = []
    for _ in range(documents):
        lines = []
        for _ in range(random.integers(1, 30)):
            sentence = " ".join(random.choice(words, random.integers(2, 14)))
            lines.append(sentence.capitalize() + ".")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(make_text(120, seed=0))
    return path


@pytest.fixture(scope="session")
def tokenizer(text_file: Path) -> Any:
    return train_wordpiece(text_file.read_text().split("\n\n"), 150)


@pytest.fixture(scope="session")
def prepared(
    text_file: Path, tokenizer: Any, tmp_path_factory: pytest.TempPathFactory
) -> PreparedText:
    return prepare(
        str(text_file),
        tokenizer,
        tmp_path_factory.mktemp("prepared"),
        sequence_length=64,
        split="all",
    )
