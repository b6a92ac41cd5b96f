"""Texts without labels: every row, in order, from every kind of file."""

import csv
import gzip
import io
import json
import lzma
import tempfile
from pathlib import Path

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from jaxdistill.data import table_text
from jaxdistill.data.unlabelled import TextColumns, read_unlabelled
from jaxdistill.errors import BadInput


def read(path, content, **where):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    found = read_unlabelled(path, TextColumns(**where))
    rows = list(found)
    assert rows == list(found) and len(rows) == len(found)  # it is read anew
    return rows


def texts(*values):
    return [(value,) for value in values]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress, lzma.compress])
def test_row_k_is_line_k(tmp_path, end, pack):
    """Blank lines too, and whatever else looks like a line's end or a table."""
    lines = ["\ufeffa\u2028b\x85c", "", "text", '"d\te', "  ", '{"x": 1}', "é😀"]
    name = {bytes: "a.txt", gzip.compress: "a.txt.gz", lzma.compress: "a.TXT.xz"}[pack]
    for last in ("", end):
        found = read(tmp_path / name, pack((end.join(lines) + last).encode()))
        assert found == texts("a\u2028b\x85c", *lines[1:])
    assert read(tmp_path / "seq.in", "a\n\n") == texts("a", "")  # any name


CELL = st.text(st.sampled_from("ab0 ,;\t\n\r\"'\u2028é😀"), max_size=6)


@given(st.lists(st.tuples(CELL, CELL), min_size=1, max_size=6), st.sampled_from(["\n", "\r\n"]))
@settings(deadline=None, max_examples=50)
@example([("", ""), ("a", ""), ("", "")], "\n")
def test_every_row_of_any_csv(rows, end):
    written = io.StringIO()
    csv.writer(written, lineterminator=end, quoting=csv.QUOTE_ALL).writerows(rows)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.csv")
        first = next((row for row in rows if any(map(str.strip, row))), None)
        if first is None:
            with pytest.raises(BadInput, match="no rows"):
                read(path, written.getvalue(), header="no", text_column=0, pair_column=1)
            return
        found = read(path, written.getvalue(), header="no", text_column=0, pair_column="1")
        assert found == rows
        assert read(path, "x,y\n" + written.getvalue(), text_column="y") == [r[1:] for r in rows]


@given(st.lists(CELL, min_size=1, max_size=6))
@settings(deadline=None, max_examples=50)
def test_every_row_of_any_json(values):
    lines = [json.dumps({"id": 1, "text": value}) + "\n" for value in values]
    with tempfile.TemporaryDirectory() as folder:
        assert read(Path(folder, "a.jsonl"), "\n".join(lines)) == texts(*values)
        found = read(Path(folder, "a.jsonl"), "".join(lines), text_column="text", pair_column="id")
        assert found == [(value, "1") for value in values]


@given(st.lists(st.text(st.sampled_from("ab \"'é"), max_size=6), min_size=1, max_size=6))
@settings(deadline=None, max_examples=50)
def test_every_row_of_a_table_of_one_column(values):
    """A blank line is a row there, since nothing else can be one."""
    assume(any(map(str.strip, values)))
    with tempfile.TemporaryDirectory() as folder:
        content = "".join(value + "\n" for value in values)
        assert read(Path(folder, "a.tsv"), content, header="no", quoting="none") == texts(*values)


def test_quoting_and_header_as_for_tasks(tmp_path):
    path = tmp_path / "a.tsv"
    pandas = 'sentence\tid\n"a ""b""\tc\nd\te"\t1\n\nplain\t2\n'
    assert read(path, pandas, text_column="sentence") == texts('a "b"\tc\nd\te', "plain")
    glue = 'index\tsentence\n0\t"a" he said\n1\t"b\n'
    assert read(path, glue, text_column=1, header="yes") == texts('"a" he said', '"b')
    for first, header in (("sentence", True), ("a river", False)):
        found = read(path, f"{first}\nb\n")
        assert found == texts(*([] if header else [first]), "b")
        [notice] = read_unlabelled(path).notices
        assert repr(first) in notice and ("the header" in notice) == header
    semicolons = tmp_path / "a.txt"  # a table, since it is said how it is written
    assert read(semicolons, "a;b\n", separator=";", text_column=1) == texts("b")


@pytest.mark.parametrize(
    "name, content, where, words",
    [
        ("a.tsv", "index\tsentence\n0\ta\n", {}, ["2 columns", "'sentence'", "text_column"]),
        ("a.tsv", "sentence\tid\na\t1\n", {"text_column": "sentense"}, ["did you mean 'sentence'"]),
        ("a.tsv", "a\tb\n", {"text_column": 2}, ["2 columns", "no column 2"]),
        ("a.tsv", "a\tb\nc\n", {"text_column": 0}, ["line 2", "1 cell, expected 2"]),
        ("a.tsv", "text\n", {}, ["no rows"]),
        ("a.tsv", "a\n", {"header": "maybe"}, ["header='maybe'"]),
        ("a.csv", 'a,b\n"c,d\n', {"text_column": 0}, ["line 2", "none closes"]),
        ("a.txt", "", {}, ["no rows"]),
        ("a.txt", "a\nb\0\n", {}, ["line 2", "NUL"]),
        ("a.txt", "a\nä\n".encode("latin1"), {}, ["line 2", "not UTF-8", "iconv"]),
        ("a.txt.gz", gzip.compress(b"a\n" * 99, mtime=0)[:-9], {}, ["cut short"]),
        ("a.jsonl", '{"sentence": "a"}\n', {}, ["line 1", "no key 'text'", "sentence"]),
        ("a.jsonl", '{"text": "a"}\n{"text": null}\n', {}, ["line 2", "null"]),
        ("a.jsonl", '{"text": "a"}\n', {"header": "no"}, ["header", "JSON"]),
    ],
)
def test_what_cannot_be_used_is_refused(tmp_path, name, content, where, words):
    with pytest.raises(BadInput) as caught:
        read(tmp_path / name, content, **where)
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize("name", ["a.txt", "a.tsv", "a.csv", "a.jsonl"])
def test_it_is_read_as_it_is_used(tmp_path, name, monkeypatch):
    """What is written to the file after its first row was used is still found: no more is held."""
    monkeypatch.setattr(table_text, "_CHUNK", 100)
    mark = {"a.csv": '"a ""b"""', "a.jsonl": '{"text": "a"}'}.get(name, 'a "b"')
    path = tmp_path / name
    path.write_text(f"{mark}\n" * 10_000)
    where = TextColumns() if name in ("a.txt", "a.jsonl") else TextColumns(header="no")
    rows = iter(read_unlabelled(path, where))
    next(rows)
    with path.open("r+b") as file:
        file.seek(-len(mark) - 1, 2)
        file.write(mark.replace("a", "z").encode())
    assert list(rows)[-1][0][0] == "z"
