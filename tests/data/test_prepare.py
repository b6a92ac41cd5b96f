from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdistill.data import prepare as preparing
from jaxdistill.data import tokenizers
from jaxdistill.data.cutting import cut_spans
from jaxdistill.data.prepare import prepare
from jaxdistill.data.prepared import PreparedText, load_prepared
from jaxdistill.data.records import open_reader
from jaxdistill.data.sources import read_documents
from jaxdistill.errors import BadInput


@settings(max_examples=100, deadline=None)
@given(total=st.integers(0, 300), longest=st.integers(2, 60), seed=st.integers(0, 1000))
def test_spans_cover_the_document(total: int, longest: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    words = random.random(total) < 0.7
    sentences = words & (random.random(total) < 0.1)
    words[:1] = sentences[:1] = True
    spans = list(cut_spans(np.arange(total), sentences, words, longest, seed=seed, document=3))
    place = 0
    for begin, end, breaks in spans:
        assert begin == place and 2 <= end - begin <= longest
        place = end
        inside = [n for n in range(begin + 1, end) if sentences[n]] or [
            n for n in range(begin + 1, end) if words[n]
        ]
        assert (breaks + begin).tolist() == (inside or list(range(begin + 1, end)))
        if end < total - 1 and words[begin + 2 : end + 1].any():
            assert words[end]
    assert total - place < 2


def test_a_tenth_is_short() -> None:
    flags = np.ones(200_000, bool)
    sizes = np.array(
        [end - begin for begin, end, _ in cut_spans(flags, flags, flags, 100, seed=0, document=0)]
    )
    short = sizes[sizes < 100]
    assert 0.08 < len(short) / len(sizes) < 0.12
    assert short.min() < 10 and short.max() > 90 and abs(short.mean() - 50) < 6


def test_records_hold_the_whole_text_in_order(
    prepared: PreparedText, text_file: Path, tokenizer: Any
) -> None:
    table, _ = open_reader(prepared).fetch(np.arange(prepared.num_records))
    documents = [
        ids for ids, _ in tokenizers.encode_documents(tokenizer, read_documents(str(text_file)))
    ]
    assert prepared.num_documents == len(documents) == 120
    starts = np.unique(table.document_begin)
    assert len(table) == prepared.num_records and len(starts) == 120
    for begin, ids in zip(starts, documents):
        end = table.document_end[begin]
        assert (table.document_end[begin:end] == end).all()
        stored = table.tokens[table.token_offsets[begin] : table.token_offsets[end]]
        assert len(ids) - len(stored) in (0, 1) and (stored == ids[: len(stored)]).all()
    assert prepared.num_tokens == len(table.tokens) and table.tokens.dtype == np.uint16
    assert np.diff(table.token_offsets).max() == 61


def test_is_written_once_and_found_again(
    text_file: Path, tokenizer: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    first = prepare(str(text_file), tokenizer, tmp_path, sequence_length=32)
    monkeypatch.setattr(preparing, "_write", None)  # would fail if it were called
    assert prepare(str(text_file), tokenizer, tmp_path, sequence_length=32) == first
    assert load_prepared(first.path) == first
    shutil.move(first.path, tmp_path / "elsewhere")
    moved = load_prepared(tmp_path / "elsewhere")
    assert moved.num_records == first.num_records
    open_reader(moved).fetch(np.arange(3))


def test_the_digest_follows_source_and_settings(
    text_file: Path, tokenizer: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(preparing, "_write", lambda folder, *_: folder.mkdir(parents=True))
    monkeypatch.setattr(preparing, "load_prepared", lambda folder: folder.name)
    other = tmp_path / "other.txt"
    other.write_text(text_file.read_text() + "\n\nMore.")
    smaller = tokenizers.train_wordpiece(["some other words " * 3], 120)

    def key(source: Path = text_file, vocabulary: Any = tokenizer, **options: Any) -> str:
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        return str(
            prepare(
                str(source), vocabulary, tmp_path / "out", **({"sequence_length": 64} | options)
            )
        )

    keys = [key(), key(other), key(vocabulary=smaller), key(sequence_length=32), key(seed=1), key(split="heldout"),
            key(heldout_fraction=0.1)]  # fmt: skip
    assert len(set(keys)) == len(keys)
    assert key() == keys[0]


def test_documents_by_blank_lines_have_the_digest_of_earlier_versions(
    text_file: Path, tokenizer: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    """So that sets prepared before there was a choice are found."""
    named: list[Any] = []
    monkeypatch.setattr(
        preparing, "_write", lambda folder, source, tokenizer, settings, *_: named.append(settings)
    )
    monkeypatch.setattr(preparing, "load_prepared", lambda folder: folder.name)
    digests = [
        prepare(str(text_file), tokenizer, tmp_path, sequence_length=64, documents=documents)
        for documents in ("blank_lines", "lines")
    ]
    assert (
        "documents" not in named[0]
        and named[1] == named[0] | {"documents": "lines"}
        and digests[0] != digests[1]
    )


def test_an_error_in_the_middle_leaves_nothing(
    text_file: Path, tokenizer: Any, tmp_path: Path
) -> None:
    def stop(done: int) -> None:
        if done >= 64:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(str(text_file), tokenizer, tmp_path, sequence_length=64, progress=stop)
    assert list(tmp_path.glob("*/*")) == []
    prepare(str(text_file), tokenizer, tmp_path, sequence_length=64)


def test_a_killed_preparation_leaves_nothing_readable(
    text_file: Path, tokenizer: Any, tmp_path: Path
) -> None:
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    code = (
        "import sys, time\n"
        "from jaxdistill.data.prepare import prepare\n"
        "from jaxdistill.data.tokenizers import load_tokenizer\n"
        "def wait(done):\n"
        "    if done: print('halfway', flush=True); time.sleep(60)\n"
        "prepare(sys.argv[1], load_tokenizer(sys.argv[2]), sys.argv[3], sequence_length=64, progress=wait)\n"
    )
    out = tmp_path / "out"
    arguments = [sys.executable, "-c", code, str(text_file), str(tmp_path / "tokenizer"), str(out)]
    root = Path(preparing.__file__).parents[2]
    # Standard error, because preparing silences standard output.
    code_env = {**os.environ, "PYTHONPATH": str(root)}
    arguments[2] = code.replace("flush=True", "flush=True, file=sys.stderr")
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, env=code_env) as process:
        assert process.stderr is not None
        assert any("halfway" in line for line in process.stderr)
        process.send_signal(signal.SIGKILL)
    (folder,) = out.iterdir()
    left = [path for path in folder.iterdir() if path.name.startswith("records-")]
    assert left, "it was not killed in the middle"
    with pytest.raises(BadInput, match="no complete prepared text"):
        load_prepared(folder)
    prepared = prepare(str(text_file), tokenizer, out, sequence_length=64)
    assert prepared.path == str(folder) and load_prepared(folder).num_records > 100
    assert left[0].exists()  # might be another process at work …
    old = time.time() - 2 * 24 * 3600
    os.utime(left[0], (old, old))
    (folder / "prepared.json").unlink()
    prepare(str(text_file), tokenizer, out, sequence_length=64)
    assert not left[0].exists()  # … but not after a day


def test_clear_errors(text_file: Path, tokenizer: Any, tmp_path: Path, monkeypatch: Any) -> None:
    with pytest.raises(BadInput, match="sequence_length=4"):
        prepare(str(text_file), tokenizer, tmp_path, sequence_length=4)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(BadInput, match="a file stands where a directory is needed"):
        prepare(str(text_file), tokenizer, tmp_path / "file", sequence_length=64)
    (tmp_path / "bad.txt").write_bytes(b"Good text here.\n\n" * 1000 + b"\xff")
    with pytest.raises(BadInput, match=r"bad.txt' line 2001 is not UTF-8") as raised:
        prepare(
            str(tmp_path / "bad.txt"), tokenizer, tmp_path / "out", sequence_length=64, split="all"
        )
    assert "\n" not in str(raised.value)
    (tmp_path / "tiny.txt").write_text("a")
    with pytest.raises(BadInput, match="no document of two tokens"):
        prepare(
            str(tmp_path / "tiny.txt"), tokenizer, tmp_path / "out", sequence_length=64, split="all"
        )
    for error, words in (
        (OSError(28, "No space left on device"), "no space"),
        (
            RuntimeError(
                "Failed to finalize: write() failed: No space left on device; writing x\nmore"
            ),
            "no space",
        ),
        (PermissionError(13, "x"), "no permission"),
    ):

        def fail(*_: Any, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(preparing, "_write", fail)
        with pytest.raises(BadInput, match=words) as raised:
            prepare(str(text_file), tokenizer, tmp_path / "out", sequence_length=64)
        assert "\n" not in str(raised.value)


def test_a_damaged_set_is_refused(text_file: Path, tokenizer: Any, tmp_path: Path) -> None:
    prepared = prepare(str(text_file), tokenizer, tmp_path, sequence_length=64)
    marker = Path(prepared.path) / "prepared.json"
    whole = marker.read_text()
    marker.write_text(whole[:-40])
    with pytest.raises(BadInput, match="delete its folder"):
        load_prepared(prepared.path)
    marker.write_text(whole.replace(f'"num_records": {prepared.num_records}', '"num_records": 7'))
    with pytest.raises(BadInput, match="expected 7"):
        open_reader(load_prepared(prepared.path))
    marker.write_text(whole)
    shutil.rmtree(Path(prepared.records_path))
    with pytest.raises(BadInput, match="is missing"):
        load_prepared(prepared.path)
