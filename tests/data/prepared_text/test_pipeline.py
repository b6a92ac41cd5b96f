"""Apache Beam prepares the same text as one process does, record for record and batch for batch."""

from __future__ import annotations

import dataclasses
import functools
import gzip
import hashlib
import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxdistill import cli, commands, inputs
from jaxdistill.data import loader, records, tokenizers
from jaxdistill.data import prepare as preparing
from jaxdistill.data.beam_options import parse_options
from jaxdistill.data.prepare import prepare
from jaxdistill.data.prepared import PreparedText, load_prepared
from jaxdistill.errors import BadInput
from tests.conftest import tiny_config
from tests.data.conftest import make_text

OPTIONS: dict[str, Any] = {"sequence_length": 64, "heldout_fraction": 0.2, "seed": 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text in several files and forms, with documents that make no record or hold no text."""
    path = tmp_path_factory.mktemp("texts")
    (path / "a.txt").write_text(make_text(40, 1) + "\n\n1\n\n" + make_text(30, 2))
    (path / "nested").mkdir()
    lines = [json.dumps({"text": text}) for text in ("", "   ", *make_text(50, 3).split("\n\n"))]
    (path / "nested" / "b.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    (path / "z.txt").write_text("x\n\n" + make_text(40, 4))
    return path


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        tokenizers, "by_size", functools.partial(tokenizers.by_size, characters=3000)
    )


def facts(prepared: PreparedText) -> dict[str, Any]:
    return {
        key: value
        for key, value in dataclasses.asdict(prepared).items()
        if key not in ("path", "records_path")
    }


def record_digest(prepared: PreparedText) -> str:
    """Over the sorted hashes of all records."""
    found = records.open_reader(prepared, in_memory=False)
    hashes = []
    for number in range(prepared.num_records):
        table, _ = found.fetch(np.array([number]))
        arrays = [getattr(table, field.name) for field in dataclasses.fields(table)]
        hashes.append(
            hashlib.sha256(
                b"|".join(str(array.dtype).encode() + array.tobytes() for array in arrays)
            ).hexdigest()
        )
    return hashlib.sha256("".join(sorted(hashes)).encode()).hexdigest()


def assert_equal(one: PreparedText, other: PreparedText) -> None:
    """The same facts, records, and batches: shuffled, paired and masked, and packed, and held-out
    ones in order."""
    assert facts(one) == facts(other) and one.records_path != other.records_path
    assert record_digest(one) == record_digest(other)
    assert (records.record_sizes(one) == records.record_sizes(other)).all()
    options: dict[str, Any] = {"batch_size": 16, "seed": 5, "max_predictions": 10}
    for made in (
        lambda prepared: itertools.islice(
            loader.make_loader(prepared, prefetch=False, **options), 8
        ),
        lambda prepared: itertools.islice(
            loader.make_loader(prepared, prefetch=False, pack=True, **options), 4
        ),
        lambda prepared: loader.heldout_batches(prepared, **options),
    ):
        for mine, theirs in itertools.zip_longest(made(one), made(other)):
            assert mine.keys() == theirs.keys()
            assert all((mine[key] == theirs[key]).all() for key in mine)


def test_the_same_records_and_batches(
    folder: Path,
    tokenizer: Any,
    tmp_path: Path,
    small_blocks: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here = prepare(str(folder), tokenizer, tmp_path / "here", **OPTIONS)
    beam_options = "runner=DirectRunner,direct_num_workers=2,direct_running_mode=multi_threading"
    beam = prepare(str(folder), tokenizer, tmp_path / "beam", beam_options=beam_options, **OPTIONS)
    assert beam.num_documents > 100 and beam.num_records > 300
    assert_equal(here, beam)
    monkeypatch.setattr(preparing, "_write", None)  # would fail if it were called
    assert prepare(str(folder), tokenizer, tmp_path / "beam", **OPTIONS) == beam


@pytest.mark.slow
def test_in_processes_of_their_own(folder: Path, tokenizer: Any, tmp_path: Path) -> None:
    here = prepare(str(folder), tokenizer, tmp_path / "here", **OPTIONS)
    beam_options = "direct_num_workers=2,direct_running_mode=multi_processing"
    assert_equal(
        here,
        prepare(str(folder), tokenizer, tmp_path / "beam", beam_options=beam_options, **OPTIONS),
    )


def read(config, folder):
    return inputs.read(config, folder, inputs.outline(config))


def test_a_run_finds_what_beam_prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text.txt").write_text(make_text(30, 5))
    config = tiny_config(tmp_path / "text.txt")
    expected = read(config, tmp_path / "here").corpus
    found = commands.prepare(config, tmp_path / "w", beam_options="")
    monkeypatch.setattr(preparing, "_write", None)
    corpus = read(config, tmp_path / "w").corpus
    assert (
        corpus.describe(config) == found
        and found["train"]["records"] > found["heldout"]["records"] > 0
    )
    assert_equal(corpus.parts.train, expected.parts.train)
    assert_equal(corpus.parts.heldout, expected.parts.heldout)


KILLED = """
import os, signal, sys
from jaxdistill.data.prepare import prepare
from jaxdistill.data.prepared_text import builder
from jaxdistill.data.tokenizers import load_tokenizer
write = builder._LocalFirst.write
def die(self, path, examples):
    write(self, path, examples)
    os.kill(os.getpid(), signal.SIGKILL)
builder._LocalFirst.write = die
prepare(sys.argv[1], load_tokenizer(sys.argv[2]), sys.argv[3], sequence_length=64, beam_options="")
"""


@pytest.mark.slow  # tests/data/test_prepare.py kills one without Beam
def test_a_killed_preparation_leaves_nothing_readable(
    text_file: Path, tokenizer: Any, tmp_path: Path
) -> None:
    """Killed when the records are written, but for the last words about them."""
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    command = [
        sys.executable,
        "-c",
        KILLED,
        str(text_file),
        str(tmp_path / "tokenizer"),
        str(tmp_path / "out"),
    ]
    root = Path(preparing.__file__).parents[2]
    killed = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(root)}
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    (left,) = (tmp_path / "out").iterdir()
    assert list(left.glob("records-*/**/*array_record*")), "it was not killed in the middle"
    with pytest.raises(BadInput, match="no complete prepared text"):
        load_prepared(left)
    prepared = prepare(
        str(text_file), tokenizer, tmp_path / "out", sequence_length=64, beam_options=""
    )
    assert prepared.path == str(left)
    assert_equal(
        prepared, prepare(str(text_file), tokenizer, tmp_path / "other", sequence_length=64)
    )


def test_errors_of_workers_are_ours_in_one_line(tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "bad.txt").write_bytes(b"Good text here.\n\n" * 10 + b"\xff")
    with pytest.raises(BadInput, match=r"^'.*bad.txt' line 21 is not UTF-8 text .*utf-8$"):
        prepare(
            str(tmp_path / "bad.txt"),
            tokenizer,
            tmp_path / "out",
            split="all",
            sequence_length=64,
            beam_options="",
        )
    (tmp_path / "tiny.txt").write_text("a")
    with pytest.raises(
        BadInput, match=r"^the split 'all' of the text holds no document of two tokens .*heldout\)$"
    ):
        prepare(
            str(tmp_path / "tiny.txt"),
            tokenizer,
            tmp_path / "out",
            split="all",
            sequence_length=64,
            beam_options="",
        )
    assert list((tmp_path / "out").glob("*/*")) == []


def test_records_that_a_runner_lost_are_missed(
    text_file: Path, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from jaxdistill.data.prepared_text import pipeline

    number = pipeline._number
    monkeypatch.setattr(
        pipeline, "_number", lambda block, first: itertools.islice(number(block, first), 1, None)
    )
    with pytest.raises(BadInput, match=r"lost records .* were written"):
        prepare(str(text_file), tokenizer, tmp_path, sequence_length=64, beam_options="")
    assert list(tmp_path.glob("*/*")) == []


@pytest.mark.parametrize(
    ("step", "lost"),
    [("_read", (0, False)), ("_read", (0, True)), ("_read", (1, True)), ("_Tokenise", (2, False))],
)
def test_blocks_that_a_runner_lost_are_missed(
    step: str,
    lost: tuple[int, bool],
    tokenizer: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A part's text, its end, all there is of a part without text, after they were read; and text
    that was tokenised."""
    (tmp_path / "texts").mkdir()
    for name, text in (("a", make_text(12, 6)), ("b", " "), ("c", make_text(12, 7))):
        (tmp_path / "texts" / f"{name}.txt").write_text(text)
    from jaxdistill.data.prepared_text import pipeline

    def losing(blocks: Any) -> Any:
        return (block for block in blocks if block[0][::2] != lost)

    if step == "_read":
        read = pipeline._read
        monkeypatch.setattr(pipeline, "_read", lambda *given: losing(read(*given)))
    else:
        process = pipeline._Tokenise.process
        monkeypatch.setattr(
            pipeline._Tokenise, "process", lambda self, block: losing(process(self, block))
        )
    with pytest.raises(
        BadInput,
        match=rf"^Beam lost text on the way.* of part {lost[0]} \(.* 3 parts\); use another runner",
    ):
        prepare(
            str(tmp_path / "texts"),
            tokenizer,
            tmp_path / "out",
            split="all",
            sequence_length=64,
            beam_options="",
        )
    assert list((tmp_path / "out").glob("*/*")) == []


@pytest.mark.parametrize(
    "lost", [(0, 0, False), (0, 1, True), (1, 0, True), (2, 0, True), "none, but one twice"]
)
def test_every_sum_is_of_all_blocks(lost: Any, tmp_path: Path) -> None:
    from jaxdistill.data.prepared_text import pipeline

    whole = [(0, 0, False), (0, 1, True), (1, 0, True), (2, 0, True)]
    places = [place for place in reversed(whole) if place != lost] + (
        [] if lost in whole else whole[:1]
    )
    pipeline._sum_up([(place, 1) for place in whole], 3, {})
    with pytest.raises(BadInput, match="lost text"):
        pipeline._sum_up([(place, 1) for place in places], 3, {})
    with pytest.raises(BadInput, match="lost text"):
        pipeline._write_totals(
            [(place, 1, np.array([5], np.int32)) for place in places], str(tmp_path / "totals"), 3
        )
    assert not (tmp_path / "totals").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("runner=Nonsense", "Unexpected pipeline runner: Nonsense"),
        ("direct_num_worker=2", "did you mean 'direct_num_workers'"),
        ("direct_num_workers=two", "invalid int value: 'two'"),
        ("direct_running_mode=fast", "invalid choice: 'fast'"),
        ("runner=DataflowRunner", "Missing required option: project"),
        ("help", "not an option"),
        ("=", "cannot be used"),
    ],
)
def test_bad_options(
    options: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "prepare",
        "--config=quickstart",
        f"--workdir={tmp_path / 'w'}",
        f"--beam_options={options}",
    ]
    assert cli.main(arguments) == 2
    written = capsys.readouterr()
    assert words in written.err and written.err.count("\n") == 1 and not written.out
    assert not (tmp_path / "w").exists()


def test_the_direct_runner_fetches_no_other() -> None:
    """Beam's own choice for this name is a program that it downloads where there is a network."""
    from apache_beam.runners.portability.fn_api_runner import FnApiRunner

    for options in ("", "runner=DirectRunner", "runner=direct"):
        assert type(parse_options(options)[0]) is FnApiRunner


def test_without_beam(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from jaxdistill.data import prepared_text

    monkeypatch.delitem(sys.modules, "jaxdistill.data.prepared_text.pipeline", raising=False)
    monkeypatch.delattr(prepared_text, "pipeline", raising=False)
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    assert (
        cli.main(
            ["prepare", "--config=quickstart", f"--workdir={tmp_path / 'w'}", "--beam_options="]
        )
        == 2
    )
    assert "pip install apache-beam" in capsys.readouterr().err
