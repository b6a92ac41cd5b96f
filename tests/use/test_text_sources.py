"""What people give as text: files of other kinds, odd encodings, links, addresses; one text a
line."""

import os
import zipfile

import pytest

from jaxdistill import cli, commands, inputs
from jaxdistill.configuration import load_config
from jaxdistill.data import prepare, tokenizers
from jaxdistill.data.sources import read_documents
from tests.conftest import write_text

LINES = [
    f"The {a} {b} holds a {c}."
    for a in ("old", "quiet", "bright")
    for b in ("river", "stone", "engine", "winter")
    for c in ("letter", "window", "market")
]


def prepare_with(capsys, tmp_path, source, *more):
    """(exit code, what is said, whether a workdir was made) of preparing a source."""
    workdir = tmp_path / "run"
    code = cli.main(
        [
            "prepare",
            "--config=quickstart:smoke",
            f"--workdir={workdir}",
            f"--config.data.source={source}",
            "--config.data.vocab_size=120",
            *more,
        ]
    )
    return code, capsys.readouterr().err, workdir.exists()


def refused(capsys, tmp_path, source, *words, more=()):
    code, err, made = prepare_with(capsys, tmp_path, source, *more)
    assert code == 2 and err.count("\n") == 1 and len(err) < 600 and not made, err
    for word in words:
        assert word in err


def zipped(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "text")


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("page.html", b"<html></html>", ["markup", ".html"]),
        ("table.csv", b"a,b\n", ["a table", ".jsonl"]),
        ("table.tsv.gz", b"", ["a table"]),
        ("words.conll", b"a O\n", ["table of words"]),
        ("data.json", b"{}", ["JSON"]),
        ("notes.md", b"# A\n", ["marked-up"]),
        ("paper.pdf", b"%PDF", ["document"]),
        ("all.zip", b"PK", ["archive", "unpack"]),
        ("inside.txt", b"%PDF-1.7 ...", ["a PDF"]),
        ("packed.txt", b"\x1f\x8b\x08\x00", ["gzip", ".gz"]),
        ("wide.txt", "\n\n".join(LINES).encode("utf-16"), ["UTF-16", "iconv -f utf-16 -t utf-8"]),
        (
            "wide.txt",
            "\n\n".join(LINES).encode("utf-16-le"),
            ["UTF-16", "iconv -f utf-16le -t utf-8"],
        ),
        ("latin.txt", "café\n\n".encode("latin1") * 9, ["not UTF-8", "iconv -f latin1"]),
        ("binary.txt", b"abc\0def" * 9, ["zero bytes"]),
    ],
)
def test_a_file_of_another_kind_is_refused_with_what_to_do(capsys, tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    refused(capsys, tmp_path, tmp_path / name, name, *words)


def test_an_archive_with_the_name_of_a_text_is_refused(capsys, tmp_path):
    zipped(tmp_path / "text.txt")
    refused(capsys, tmp_path, tmp_path / "text.txt", "zip archive", "unpack")


@pytest.mark.parametrize(
    "source, words",
    [
        ("", ["empty", "a variable that is not set"]),
        ("https://example.org/text.txt", ["https://", "download it first"]),
        ("ftp://example.org/text.txt", ["ftp://", "download it first"]),
        ("/dev/zero", ["no regular file"]),
    ],
)
def test_a_source_that_is_no_file(capsys, tmp_path, monkeypatch, source, words):
    monkeypatch.chdir(tmp_path)
    write_text(tmp_path / "lies_here.txt")  # which an empty source has read
    refused(capsys, tmp_path, source, *words)


def test_links_in_a_circle(capsys, tmp_path):
    os.symlink("loopb", tmp_path / "loopa")
    os.symlink("loopa", tmp_path / "loopb")
    refused(capsys, tmp_path, tmp_path / "loopa", "symbolic link to 'loopb'", "in a circle")
    folder = tmp_path / "folder"
    folder.mkdir()
    write_text(folder / "a.txt", documents=3)
    os.symlink(".", folder / "again")
    assert len(list(read_documents(str(folder)))) == 3  # and not forty times three


@pytest.mark.parametrize(
    "lines, words",
    [
        (["<!DOCTYPE html>", *(f"<p>{line}</p>" for line in LINES)], ["markup", "<!DOCTYPE html>"]),
        (
            ["text\tlabel", *(f"{line}\t{i % 2}" for i, line in enumerate(LINES))],
            ["a table", "text label"],
        ),
        (
            ["text,label", *(f'"{line}",{i % 2}' for i, line in enumerate(LINES))],
            ["a table with commas"],
        ),
        (
            [word for line in LINES for word in [*(f"{w} NN O" for w in line.split()), ""]],
            ["tagged words", "The NN O"],
        ),
        ([f'{{"text": "{line}"}}' for line in LINES], ["JSON", ".jsonl"]),
    ],
)
def test_text_that_looks_like_something_else_is_shown(tmp_path, lines, words):
    (tmp_path / "text.txt").write_text("\n".join(lines) + "\n")
    [notice] = inputs.check_text(
        load_config("quickstart:smoke", [f"data.source={tmp_path / 'text.txt'}"])
    )
    assert len(notice) < 600 and "\n" not in notice
    for word in words:
        assert word in notice


def test_plain_text_is_read_without_a_word(tmp_path):
    for text in (write_text(tmp_path / "a.txt"), tmp_path / "b.txt", tmp_path / "c.txt"):
        if text.name == "b.txt":
            text.write_text("\n".join(LINES))
        if text.name == "c.txt":
            text.write_text(
                "\n".join(f"{line}, and {line}" for line in LINES[:5])
                + "\n\nYes, no, maybe.\nSo it is.\nA, b.\nC.\n"
            )
        assert inputs.check_text(load_config("quickstart:smoke", [f"data.source={text}"])) == []


def test_what_a_folder_holds_beside_its_text_is_said(capsys, tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.html").write_text("<p>")
    refused(capsys, tmp_path, folder, "only 1 other (.html)")
    write_text(folder / "a.txt")
    code, err, _ = prepare_with(capsys, tmp_path, folder, "--config.data.heldout_fraction=0.3")
    assert code == 0 and "not 1 other (.html)" in err.splitlines()[0]


def test_one_text_a_line(capsys, tmp_path):
    """It is one document by blank lines, which no other held-out fraction can divide."""
    source = tmp_path / "lines.txt"
    source.write_text("\n".join(LINES) + "\n")
    refused(capsys, tmp_path, source, "blank lines", "documents='lines'", "config.data.heldout")
    code, err, _ = prepare_with(
        capsys,
        tmp_path,
        source,
        "--config.data.documents=lines",
        "--config.data.heldout_fraction=0.3",
    )
    assert code == 0, err
    assert len(list(read_documents(str(source), documents="lines"))) == len(LINES)
    refused(
        capsys,
        tmp_path / "x",
        source,
        "documents='line' is unknown",
        "did you mean 'lines'",
        more=["--config.data.documents=line"],
    )
    refused(
        capsys,
        tmp_path / "y",
        "default",
        "would do nothing",
        more=["--config.data.documents=lines"],
    )


def test_what_separates_documents_is_part_of_the_digest_unless_it_is_the_default(tmp_path):
    source = write_text(tmp_path / "text.txt", documents=40)
    tokenizer = tokenizers.train_wordpiece([source.read_text()], 120)
    made = [
        prepare.prepare(
            str(source),
            tokenizer,
            tmp_path / "out",
            sequence_length=24,
            heldout_fraction=0.3,
            **more,
        )
        for more in ({}, {"documents": "blank_lines"}, {"documents": "lines"})
    ]
    assert made[0].digest == made[1].digest != made[2].digest
    assert made[2].num_documents > made[0].num_documents


def test_evaluate_takes_one_text_a_line(capsys, tmp_path, finished, monkeypatch):
    monkeypatch.setenv("JAXDISTILL_CACHE", str(tmp_path / "cache"))
    source = tmp_path / "lines.txt"
    source.write_text("\n".join(LINES) + "\n")
    command = [
        "evaluate",
        f"--model={finished[1] / 'student'}",
        f"--source={source}",
        "--sequence_length=24",
    ]
    assert cli.main(command) == 2
    err = capsys.readouterr().err
    assert "documents='lines'" in err and "nsp=False" not in err
    assert cli.main([*command, "--documents=lines"]) == 0


def test_a_workdir_from_before_the_setting_goes_on(tmp_path, finished):
    """Its config.json lacks `documents`, which then was what it is by default."""
    import json
    import shutil

    from jaxdistill.workdir import Workdir

    config, workdir, _ = finished
    shutil.copytree(workdir, tmp_path / "old")
    page = json.loads((tmp_path / "old" / "config.json").read_text())
    del page["data"]["documents"]
    (tmp_path / "old" / "config.json").write_text(json.dumps(page))
    Workdir(tmp_path / "old", config)
    facts = commands.prepare(config, tmp_path / "old")
    assert facts["train"]["digest"] in {path.name for path in (workdir / "data").iterdir()}
