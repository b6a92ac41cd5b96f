from __future__ import annotations

import gzip
import json
import lzma
import os
from pathlib import Path

import pytest

from jaxdistill.data import text_files
from jaxdistill.data.documents import split_sentences
from jaxdistill.data.sources import read_documents, source_digest
from jaxdistill.errors import BadInput

TEXT = "First title\nA paragraph. Another sentence.\n\n  \nSecond title\nMore text here.\n"


def _texts(path: Path, split: str = "all", fraction: float = 0.02) -> list[str]:
    return [document.text for document in read_documents(str(path), split, fraction)]


def test_blank_lines_separate_documents_in_every_packing(tmp_path: Path) -> None:
    wanted = ["First title\nA paragraph. Another sentence.", "Second title\nMore text here."]
    (tmp_path / "a.txt").write_text(TEXT)
    (tmp_path / "b.txt.xz").write_bytes(lzma.compress(TEXT.encode()))
    (tmp_path / "c.txt.gz").write_bytes(
        gzip.compress(("\ufeff" + TEXT).replace("\n", "\r\n").encode())
    )
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "d.jsonl").write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in wanted)
    )
    (tmp_path / "ignored.bin").write_bytes(b"\xff\xfe")
    for name in ("a.txt", "b.txt.xz", "c.txt.gz", "sub/d.jsonl"):
        assert _texts(tmp_path / name) == wanted
    names = [document.name for document in read_documents(str(tmp_path))]
    assert len(names) == 8 and names == sorted(names)


def test_splits_are_disjoint_complete_and_keep_equal_documents_together(text_file: Path) -> None:
    every, train, heldout = (_texts(text_file, split, 0.2) for split in ("all", "train", "heldout"))
    assert sorted(train + heldout) == sorted(every)
    assert not set(train) & set(heldout)
    assert 0.05 < len(heldout) / len(every) < 0.4


def test_digest_follows_content_and_names(tmp_path: Path) -> None:
    folder = tmp_path / "one"
    folder.mkdir()
    (folder / "a.txt").write_text("Some text.")
    first = source_digest(str(folder))
    assert source_digest(str(folder)) == first
    os.rename(folder, tmp_path / "two")
    folder = tmp_path / "two"
    assert source_digest(str(folder)) == first
    (folder / "a.txt").write_text("Some texT.")
    assert source_digest(str(folder)) != first
    (folder / "a.txt").write_text("Some text.")
    os.rename(folder / "a.txt", folder / "b.txt")
    assert source_digest(str(folder)) != first


def test_wikitext_is_undone(tmp_path: Path) -> None:
    (tmp_path / "w.txt").write_text(
        " \n = Robert Boulter = \n \n Robert is a well @-@ known actor . \n \n = = Career = = "
        "\n \n He earned 1 @,@ 000 . \n"
        " \n = Other = \n \n It is 2 @.@ 5 long . \n"
    )
    assert _texts(tmp_path / "w.txt") == [
        "Robert Boulter\nRobert is a well-known actor .\nCareer\nHe earned 1,000 .",
        "Other\nIt is 2.5 long .",
    ]
    assert text_files.undo_wikitext(" = = = Deep = = = ") == "Deep"


def test_sentences() -> None:
    text = 'Dr. Smith met J. Doe, e.g. in May. "Was it late?" Yes! It cost 3.5 euros.\nA heading\n他来了。她走了。'
    assert split_sentences(text) == [
        "Dr. Smith met J. Doe, e.g. in May.", '"Was it late?"', "Yes!", "It cost 3.5 euros.",
        "A heading", "他来了。", "她走了。",
    ]  # fmt: skip
    assert split_sentences(" \n\n") == []


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", b"Good line.\n\nBad \xff line.\n", ["line 3", "UTF-8", "0xff"]),
        ("a.txt", b" \n\n\n", ["no text"]),
        ("a.txt", b"", ["no text"]),
        ("a.txt.xz", lzma.compress(TEXT.encode() * 9)[:-20], ["cut short"]),
        ("a.txt.xz", b"this is no xz file", ["damaged"]),
        ("a.txt.gz", gzip.compress(TEXT.encode(), mtime=0)[:-9], ["cut short"]),
        ("a.txt.gz", b"this is no gz file", ["damaged"]),
        ("a.txt.gz", gzip.compress(TEXT.encode(), mtime=0)[:12] + b"\xff" * 30, ["damaged"]),
        ("a.jsonl", b'{"text": "x"}\n{"texts": 1}\n', ["line 2", "texts"]),
        ("a.jsonl", b'{"text": "x"}\nplain\n', ["line 2", "JSON"]),
    ],
)
def test_bad_files(tmp_path: Path, name: str, content: bytes, words: list[str]) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput) as error:
        _texts(tmp_path / name)
    assert all(word in str(error.value) for word in [*words, name]) and "\n" not in str(error.value)


def test_bad_paths(tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text(TEXT)
    for source, words in [
        (tmp_path / "corpis.txt", ["corpis.txt", "did you mean 'corpus.txt'"]),
        (tmp_path / "nowhere" / "deep.txt", ["nowhere"]),
        ("default:heldaut", ["did you mean 'heldout'"]),
    ]:
        with pytest.raises(BadInput) as error:
            list(read_documents(str(source)))
        assert all(word in str(error.value) for word in words), str(error.value)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="holds no .txt"):
        _texts(tmp_path / "empty")
    with pytest.raises(BadInput, match="did you mean 'train'"):
        _texts(tmp_path / "corpus.txt", "trian")
    with pytest.raises(BadInput, match="heldout_fraction=2"):
        _texts(tmp_path / "corpus.txt", "train", 2)
