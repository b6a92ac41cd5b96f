from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import lzma
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from jaxdistill.data import table_rows, table_text, text_files
from jaxdistill.data.columns import Columns, Layout, read_columns, read_parallel
from jaxdistill.errors import BadInput


def _file(folder: Path, content: str | bytes, name: str = "a.tsv") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def _rows(read: Columns) -> list[tuple[str, ...]]:
    return list(zip(*read.cells))


def _refused(*words: str) -> Any:
    return pytest.raises(BadInput, match="(?s)" + ".*".join(words))


def _one_line(call: Any) -> str:
    with pytest.raises(BadInput) as error:
        call()
    assert "\n" not in str(error.value) and len(str(error.value)) < 700, str(error.value)
    return str(error.value)


# A first row is never lost, and a header is never taken for an example.


@pytest.mark.parametrize(
    ("content", "label", "known", "header"),
    [
        ("a\tpos\nb\tneg\nc\tpos\n", 1, None, False),  # occurs again
        ("a\tpos\nb\tneg\nc\tneg\n", 1, ["neg", "pos"], False),  # known
        ("a\tdreh\nb\t0\nc\t1\n", 1, None, True),  # the others are numbers
        ("a\tdreh\nb\tneg\nc\tpos\n", 1, ["neg", "pos"], True),  # the others are known
        ("Quality\tb\n1\tb\n0\tc\n", 0, None, True),
        ("b\t Gold Label \nb\tneg\nc\tpos\n", 1, None, True),  # a usual name
        ("sentence\tKlasse\nb\tneg\nc\tpos\n", 1, None, True),  # the text's name is
        ("a\t3.75\nb\t1.2\nc\t4.1\n", 1, None, False),  # a score that no other row has
        ("a\t7\nb\tx\nc\ty\n", 1, None, False),
        ("a\tlabel\nb\tneg\nc\tlabel\n", 1, None, False),  # a usual name, but a label too
        ("a\t5\n", 1, None, False),
    ],
)
def test_a_header_is_told_from_an_example(
    tmp_path: Path, content: str, label: int, known: list[str] | None, header: bool
) -> None:
    rows = [tuple(cell.strip() for cell in line.split("\t")) for line in content.splitlines()]
    for columns_ in ([0, 1], ["0", "1"]):
        read = read_columns(_file(tmp_path, content), columns_, label=label, known_labels=known)
        assert _rows(read) == rows[header:]
        assert read.places[0] == (str(tmp_path / "a.tsv"), 1 + header)


@pytest.mark.parametrize(
    "content",
    [
        "a\tdreh\nb\tneg\nc\tpos\n",  # words, none of them known
        "a\tneg\n",
        "a\tNA\nb\t1\nc\t2\n",  # a missing label
        "0\t1\nb\t1\nc\t0\n",  # pandas writes such a header
        "\t0\t1\n0\tb\t1\n1\tc\t0\n",
    ],
)
def test_an_ambiguous_first_row_is_asked_about(tmp_path: Path, content: str) -> None:
    path = _file(tmp_path, content)
    said = _one_line(lambda: read_columns(path, [0, 1], label=1))
    assert "line 1" in said and "header=yes or header=no" in said
    assert repr(content.split("\t")[0]) in said
    lines = content.count("\n")
    if lines > 1:
        assert len(read_columns(path, [0, 1], Layout(header="yes")).places) == lines - 1
    assert len(read_columns(path, [0, 1], Layout(header="no")).places) == lines


def test_a_first_row_without_a_label_is_no_header(tmp_path: Path) -> None:
    with _refused("line 1 has no label"):
        read_columns(_file(tmp_path, "a\t\nb\t1\nc\t0\n"), [0, 1], label=1)


def test_a_known_label_decides_with_a_notice(tmp_path: Path) -> None:
    path = _file(tmp_path, "a\tnew\nb\tneg\nc\tpos\n")
    read = read_columns(path, [0, 1], label=1, known_labels=["neg", "pos"])
    assert len(read.places) == 2 and "'new' is no known label" in read.notices[0]


def test_without_labels_only_usual_names_are_a_header(tmp_path: Path) -> None:
    for first, header in [("sentence1\tPremise", True), ("sentence1\tb", False), ("a\tb", False)]:
        path = _file(tmp_path, f"{first}\nc\td\n")
        assert len(read_columns(path, [0, 1]).places) == 2 - header
        assert len(read_columns(path, [0, 1], Layout(header="yes")).places) == 1
        assert len(read_columns(path, [0, 1], Layout(header="no")).places) == 2


def test_columns_by_name(tmp_path: Path) -> None:
    path = _file(tmp_path, "1\t  label \t text\t0\na\tx\tb\tc\n")
    assert _rows(read_columns(path, ["text", "label "], label=1)) == [("b", "x")]
    # A name that is a number wins over the number.
    assert _rows(read_columns(path, ["text", "0", "1"])) == [("b", "c", "a")]
    assert _rows(read_columns(path, ["text", 0, 1])) == [("b", "a", "x")]
    with _refused("no column 'txt'", "did you mean 'text'"):
        read_columns(path, ["txt", "label"])
    with _refused("header=no", "text"):
        read_columns(path, ["text", "label"], Layout(header="no"))
    with _refused("must differ"):
        read_columns(path, ["label", 1])
    with _refused("numbered from 0"):
        read_columns(path, ["label", -1])
    with _refused("4 columns", "no column 7"):
        read_columns(path, [0, 7])
    twice = _file(tmp_path, "text\tlabel\ttext \na\tx\tb\n")
    assert _rows(read_columns(twice, ["label"])) == [("x",)]
    with _refused("2 columns of the name 'text'"):
        read_columns(twice, ["text"])


def test_a_header_within_joined_files_is_no_example(tmp_path: Path) -> None:
    for wanted in (["text", "label"], [0, 1]):
        content = "\ufefftext\tlabel\na\tx\n\ufefftext\tlabel\nb\ty\n\ufeffc\tx\n"
        read = read_columns(_file(tmp_path, content), wanted, label=1)
        assert _rows(read) == [("a", "x"), ("b", "y"), ("c", "x")]
        assert [line for _, line in read.places] == [2, 4, 5]
        assert "line 3" in read.notices[0] and "1 such in all" in read.notices[0]


def test_several_files_are_read_one_after_the_other(tmp_path: Path) -> None:
    first = _file(tmp_path, "text\tlabel\na\tx\nb\ty\n", "1.tsv")
    second = _file(tmp_path, "c,y\nd,x\n", "2.csv")  # no header: x and y are known by then
    read = read_columns([first, str(second)], [0, 1], label=1)
    assert _rows(read) == [("a", "x"), ("b", "y"), ("c", "y"), ("d", "x")]
    assert read.places == ((str(first), 2), (str(first), 3), (str(second), 1), (str(second), 2))
    with _refused("no task file"):
        read_columns([], [0, 1])
    with _refused("does not exist", "did you mean '1.tsv'"):
        read_columns([first, tmp_path / "11.tsv"], [0, 1])


# Bad rows.


@pytest.mark.parametrize(
    ("name", "row", "words"),
    [
        ("a.tsv", "b\tmore\ty", ["line 3 has 3 cells, expected 2", "a tab inside a text"]),
        ("a.csv", "b,more,y", ["line 3 has 3 cells, expected 2", "an unquoted comma"]),
        ("a.tsv", "b", ["line 3 has 1 cell, expected 2"]),
        ("a.tsv", "b\t  ", ["line 3 has no label"]),
        ("a.tsv", "b\0c\tx", ["line 3 holds a NUL"]),
        ("a.csv", 'b "c\0,x', ["line 3 holds a NUL"]),
        ("a.csv", '"b" c,x', ["line 3 has text after the quotation mark"]),
        ("a.csv", '"b,x', ["line 3 opens a cell with a quotation mark that none closes"]),
    ],
)
@pytest.mark.parametrize("header", [True, False])
def test_bad_rows_are_refused_or_skipped(
    tmp_path: Path, name: str, row: str, words: list[str], header: bool
) -> None:
    mark = "," if name == "a.csv" else "\t"
    good = [("text", "label") if header else ("e", "x"), ("a", "x"), ("c", "y"), ("d", "x")]
    lines = [mark.join(cells) for cells in good]
    path = _file(tmp_path, "\n".join([*lines[:2], row, *lines[2:]]) + "\n", name)
    said = _one_line(lambda: read_columns(path, [0, 1], label=1))
    assert all(word in said for word in words) and name in said and "skip_bad_rows" in said, said
    read = read_columns(path, [0, 1], Layout(skip_bad_rows=True), label=1)
    assert _rows(read) == good[header:]
    assert len(read.notices) == 1 and "1 bad row of" in read.notices[0], read.notices
    assert words[0] in read.notices[0] and name in read.notices[0]


def test_the_first_few_bad_rows_are_named(tmp_path: Path) -> None:
    path = _file(tmp_path, "a\tx\nb\ty\n" * 2 + "c\n" * 3 + "\tx\nd\tx\n")
    (path.parent / "b.tsv").write_text("a\tx\nb\nc\td\te\n")
    read = read_columns(path, [0, 1], Layout(skip_bad_rows=True), label=1)
    assert len(read.places) == 6
    assert read.notices[0].startswith("3 bad rows of") and "more" not in read.notices[0]
    assert all(f"line {line} has 1 cell" in read.notices[0] for line in (5, 6, 7))
    more = _file(tmp_path, "a\tx\nb\ty\n" * 3 + "c\n" * 5)
    (notice,) = read_columns(more, [0, 1], Layout(skip_bad_rows=True), label=1).notices
    assert "5 bad rows" in notice and "line 9" in notice and "line 10" not in notice
    assert "2 more" in notice
    only = _file(tmp_path, "a\t\nb\t\n")
    with _refused("bad rows only", "line 1 has no label"):
        read_columns(only, [0, 1], Layout(header="no", skip_bad_rows=True), label=1)


def test_the_most_common_width_counts_without_a_header(tmp_path: Path) -> None:
    with _refused("line 1 has 3 cells, expected 2"):
        read_columns(_file(tmp_path, "a\tx\ty\nb\tx\nc\tx\n"), [0, 1], label=1)
    with _refused("line 2 has 3 cells, expected 2"):  # the first of several
        read_columns(_file(tmp_path, "a\tx\nb\tx\ty\n"), [0, 1])
    with _refused("line 2 has 2 cells, expected 3"):  # the header's in any case
        read_columns(_file(tmp_path, "text\tlabel\tid\nb\tx\nc\tx\n"), ["text", "label"])


def test_empty_texts_are_kept_and_counted(tmp_path: Path) -> None:
    path = _file(tmp_path, "text\tlabel\tpair\n \tx\ta\nb\ty\t\nc\tx\td\n\ty\t\n")
    read = read_columns(path, ["text", "label", "pair"], label=1)
    assert read.cells == ((" ", "b", "c", ""), ("x", "y", "x", "y"), ("a", "", "d", ""))
    assert read.notices == (f"3 rows of {str(path)!r} have an empty text",)
    one = _file(tmp_path, "text\tlabel\n\tx\nb\ty\n")
    assert read_columns(one, ["text", "label"]).notices == (
        f"1 row of {str(one)!r} has an empty text",
    )


def test_blank_rows_are_none_and_equal_rows_are_kept(tmp_path: Path) -> None:
    content = "\n\na\tx\n  \n\t\t \na\tx\n\n\nb\ty\n\n"
    read = read_columns(_file(tmp_path, content), [0, 1], label=1)
    assert _rows(read) == [("a", "x"), ("a", "x"), ("b", "y")] and read.notices == ()
    assert [line for _, line in read.places] == [3, 6, 9]
    read = read_columns(_file(tmp_path, "a,x\n,,\n,\na,x\n", "a.csv"), [0, 1], label=1)
    assert _rows(read) == [("a", "x")] * 2


@pytest.mark.parametrize(
    ("name", "content", "wanted", "words"),
    [
        ("a.tsv", "", [0, 1], ["is empty"]),
        ("a.tsv", "\n \n", [0, 1], ["is empty"]),
        ("a.jsonl", "\n", ["text"], ["is empty"]),
        ("a.tsv", "text\tlabel\n", ["text", "label"], ["a header but no examples"]),
        ("a.tsv", "text\tlabel\n\n", [0, 1], ["a header but no examples"]),
        ("a.tsv", "a,x\nb,y\n", [0, 1], ["single column", "'\\t'", "'a,x'", "separator=','"]),
        ("a.csv", "a;x\nb;y\n", ["text", "label"], ["single column", "','", "separator=';'"]),
        ("a.txt", "a b c\nb d\n", [0, 1], ["single column", "'a b c'"]),
        ("a.txt", '{"text": "a", "label": 1}\n', [0, 1], ["single column", ".jsonl"]),
        ("a.tsv", "a b c\nb d\n", [1], ["single column"]),
        ("a.tsv", "a b c\nb d\n", ["texts"], ["no column 'texts'"]),
    ],
)
def test_tables_that_cannot_be_used(
    tmp_path: Path, name: str, content: str, wanted: list[Any], words: list[str]
) -> None:
    path = _file(tmp_path, content, name)
    label = 1 if len(wanted) > 1 else None
    said = _one_line(lambda: read_columns(path, wanted, label=label))
    assert all(word in said for word in words), said


def test_layouts_are_checked() -> None:
    for name, wrong in [
        ("header", "true"),
        ("quoting", "quote"),
        ("separator", "||"),
        ("separator", '"'),
    ]:
        with _refused(f"{name}="):
            Layout(**{name: wrong})  # type: ignore[arg-type]
    assert Layout(separator="\\t").separator == "\t" and Layout(separator=";").separator == ";"


def test_another_separator(tmp_path: Path) -> None:
    path = _file(tmp_path, 'a;"x;y"\nb;"x;y"\n', "a.csv")
    assert _rows(read_columns(path, [0, 1], Layout(separator=";"), label=1)) == [
        ("a", "x;y"),
        ("b", "x;y"),
    ]
    path = _file(tmp_path, "a|x\nb|x\nc|d|x\n")
    with _refused("line 3", "'|' inside a text".replace("|", r"\|")):
        read_columns(path, [0, 1], Layout(separator="|"), label=1)


# Quoting.


def test_files_without_quoting_stay_literal(tmp_path: Path) -> None:
    for cells in (
        ['"The pie business', "not"],  # begins with a mark and does not end in one, as QNLI's
        ['He said "no" twice', "a"],
        ['"He left."', "b"],  # a quotation alone; the other cells are not wrapped
        ['5"', '"'],
        ['"a" and "b"', ""],
        ['""', "c"],
    ):
        path = _file(tmp_path, f"sentence\tother\tlabel\n{cells[0]}\t{cells[1]}\t0\nb\tc\t1\n")
        read = read_columns(path, ["sentence", "other", "label"], label=2)
        assert _rows(read) == [(*cells, "0"), ("b", "c", "1")]
    path = _file(tmp_path, 'a\t0\n"He left."\t1\nb\t1\n')
    (notice,) = read_columns(path, [0, 1], Layout(header="no"), label=1).notices
    assert "quoting=quoted" in notice and "He left." in notice
    read = read_columns(path, [0, 1], Layout(header="no", quoting="quoted"), label=1)
    assert read.cells[0] == ("a", "He left.", "b") and read.notices == ()


def test_files_with_quoting_are_recognised(tmp_path: Path) -> None:
    for raw, cell in [
        ('"a ""b"" c"', 'a "b" c'),
        ('"a\tb"', "a\tb"),
        ('"a\nb"', "a\nb"),
        ('"a\r\n\nb"', "a\r\n\nb"),
        ('"a\tb\tc\nd\t""e"""', 'a\tb\tc\nd\t"e"'),
    ]:
        content = f"sentence\tlabel\n{raw}\t0\nplain\t1\n{raw}\t1\n"
        for end in ("\n", "\r\n"):
            path = _file(tmp_path, content if end == "\n" else content.replace("\t0\n", "\t0\r\n"))
            read = read_columns(path, [0, 1], label=1)
            assert _rows(read) == [(cell, "0"), ("plain", "1"), (cell, "1")], (raw, end)
        lines = raw.count("\n")
        assert [line for _, line in read.places] == [2, 3 + lines, 4 + lines]
    every = _file(tmp_path, '"sentence"\t"label"\n"a"\t0\n"b"\t1\n')  # words only
    assert _rows(read_columns(every, ["sentence", "label"])) == [("a", "0"), ("b", "1")]
    # One mark that does not wrap a cell, and none does.
    path = _file(tmp_path, 'a\t0\n"a ""b"" c"\t1\n5" disk\t1\n')
    assert read_columns(path, [0, 1], label=1).cells[0] == ("a", '"a ""b"" c"', '5" disk')
    # Rows of different widths are not what a writer of quoted cells wrote.
    path = _file(tmp_path, 'a\t0\n"a ""b"" c"\t1\nb\tc\t1\n')
    with _refused("line 3 has 3 cells", "quoting=quoted|a tab inside"):
        read_columns(path, [0, 1], label=1)
    read = read_columns(path, [0, 1], Layout(skip_bad_rows=True), label=1)
    assert read.cells[0] == ("a", '"a ""b"" c"')


def test_a_quotation_over_two_rows_is_asked_about(tmp_path: Path) -> None:
    path = _file(tmp_path, 'a\t0\n"I came.\t1\nI saw."\t0\nb\t1\n')
    said = _one_line(lambda: read_columns(path, [0, 1], label=1))
    assert "line 2" in said and "quoting=quoted or quoting=none" in said
    read = read_columns(path, [0, 1], Layout(quoting="none"), label=1)
    assert read.cells == (("a", '"I came.', 'I saw."', "b"), ("0", "1", "0", "1"))
    read = read_columns(path, [0, 1], Layout(quoting="quoted", header="no"))
    assert read.cells[0] == ("a", "I came.\t1\nI saw.", "b")


def test_open_marks_cost_no_more_than_a_few_readings(tmp_path: Path) -> None:
    path = _file(tmp_path, "a,x\n" + 'a","\n' * 300, "a.csv")
    with _refused("too many quotation marks"):
        read_columns(path, [0, 1], Layout(skip_bad_rows=True))
    # The rows after an open mark are not lost.
    path = _file(tmp_path, 'a,x\n"b,y\nc,y\nd,x\n', "a.csv")
    read = read_columns(path, [0, 1], Layout(skip_bad_rows=True), label=1)
    assert _rows(read) == [("a", "x"), ("c", "y"), ("d", "x")]


CELL = st.text(st.sampled_from("ab0 ,;\t\n\r\"'\u2028\x85\u3000\x1c\x0bé😀"), max_size=6)
PLAIN = st.text(st.sampled_from("ab0 ,;\"'\u2028\x85\u3000\x1c\x0c\x1eé😀"), max_size=6)


def _tables(cell: st.SearchStrategy[str]) -> st.SearchStrategy[list[list[str]]]:
    return st.integers(2, 4).flatmap(
        lambda width: st.lists(
            st.lists(cell, min_size=width, max_size=width).filter(
                lambda row: any(value.strip() for value in row)
            ),
            min_size=1,
            max_size=6,
        )
    )


def _read_back(name: str, content: str, width: int, layout: Layout) -> list[list[str]]:
    with tempfile.TemporaryDirectory() as folder:
        read = read_columns(_file(Path(folder), content, name), list(range(width)), layout)
    return [list(row) for row in zip(*read.cells)]


@given(_tables(CELL), st.sampled_from(["\n", "\r\n"]), st.booleans())
@settings(deadline=None)
@example([["a\r", "\r\n"], ['"', '""\n,']], "\r\n", False)
def test_any_csv_is_read_back(table: list[list[str]], end: str, all_quoted: bool) -> None:
    written = io.StringIO()
    # Python 3.11 leaves a carriage return unquoted where it ends no line.
    every = all_quoted or end == "\n"
    csv.writer(
        written, lineterminator=end, quoting=csv.QUOTE_ALL if every else csv.QUOTE_MINIMAL
    ).writerows(table)
    assume("\n" in written.getvalue().replace("\r\n", "\n"))
    width = len(table[0])
    assert _read_back("a.csv", written.getvalue(), width, Layout(header="no")) == table


@given(_tables(PLAIN), st.sampled_from(["\n", "\r\n", "\r"]))
@settings(deadline=None)
def test_any_table_without_quoting_is_read_back(table: list[list[str]], end: str) -> None:
    content = "".join("\t".join(row) + end for row in table)
    layout = Layout(header="no", quoting="none")
    assert _read_back("a.tsv", content, len(table[0]), layout) == table


def _as_pandas(table: Sequence[Sequence[str]]) -> str:
    """What `DataFrame.to_csv(sep="\\t", index=False)` writes: cells are wrapped where they must be."""
    lines = []
    for row in table:
        cells = [
            '"' + cell.replace('"', '""') + '"' if any(mark in cell for mark in '\t\n\r"') else cell
            for cell in row
        ]
        lines.append("\t".join(cells) + "\n")
    return "".join(lines)


@given(_tables(CELL))
@settings(deadline=None)
@example([["a\tb", "c"], ["d", "e"]])
@example([["a\nb", "c"], ['"d"', "e"]])
def test_any_table_of_pandas_is_read_back(table: list[list[str]]) -> None:
    content, width = _as_pandas(table), len(table[0])
    quoted = Layout(header="no", quoting="quoted")
    assert _read_back("a.tsv", content, width, quoted) == table
    needed = any(mark in cell for row in table for cell in row for mark in '\t\n"')
    try:
        read = _read_back("a.tsv", content, width, Layout(header="no"))
    except BadInput as error:  # both readings have rows of one width, over several lines
        assert "quoting=quoted or quoting=none" in str(error)
        assert len({line.count("\t") for line in content.split("\n") if line.strip()}) == 1
        assert any("\n" in cell for row in table for cell in row)
    else:
        assert read == table or not needed


@given(st.text(st.sampled_from('ab,\n"'), max_size=20))
@settings(deadline=None, max_examples=300)
@example('""\n"a""b",c\n"\n"')
def test_quoted_cells_are_read_as_the_csv_module_does(content: str) -> None:
    text = table_text.Text("a.csv", content.removesuffix("\n").split("\n"))
    ours, _ = table_rows.table_rows(text, ",", "quoted")
    try:
        theirs = list(csv.reader(io.StringIO(content, newline=""), strict=True))
    except csv.Error:
        assert any(row.fault for row in ours)
    else:
        assert not any(row.fault for row in ours)
        assert [row.cells for row in ours] == [row for row in theirs if any(map(str.strip, row))]


def test_a_long_cell_is_read(tmp_path: Path) -> None:
    long = "word " * 40_000
    for name, cell in [("a.tsv", long), ("a.csv", f'"{long}""\n,"')]:
        mark = "," if name == "a.csv" else "\t"
        path = _file(tmp_path, f"{cell}{mark}x\nb{mark}x\n", name)
        read = read_columns(path, [0, 1], label=1)
        assert read.cells[0] == (long + ('"\n,' if mark == "," else ""), "b")


# Files.


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("packing", ["", ".gz", ".xz", ".XZ"])
def test_line_ends_marks_and_packings(tmp_path: Path, end: str, packing: str) -> None:
    content = ("\ufefftext\tlabel\nä\u2028b\x85c\tx\n\ufeffd\ty").replace("\n", end).encode()
    pack: Any = {"": bytes, ".gz": gzip.compress}.get(packing, lzma.compress)
    path = _file(tmp_path, pack(content), "a.tsv" + packing)
    for wanted in (["text", "label"], [0, 1]):
        read = read_columns(path, wanted, label=1)
        assert _rows(read) == [("ä\u2028b\x85c", "x"), ("d", "y")]
        assert [line for _, line in read.places] == [2, 3]
    if packing:
        _file(tmp_path, path.read_bytes()[:-9], path.name)
        with _refused("cut short or damaged"):
            read_columns(path, [0, 1], label=1)


def test_a_mark_before_a_quoted_cell_is_none_of_its_text(tmp_path: Path) -> None:
    path = _file(tmp_path, '\ufeff"te""xt",label\na,x\n\ufeff"b,c",x\n', "a.csv")
    assert _rows(read_columns(path, ['te"xt', "label"])) == [("a", "x"), ("b,c", "x")]


def test_a_carriage_return_within_a_line_stays(tmp_path: Path) -> None:
    path = _file(tmp_path, "a\rb\tx\nc\tx\n")
    assert read_columns(path, [0, 1], label=1).cells[0] == ("a\rb", "c")
    path = _file(tmp_path, 'a,x\r"b\rc",x\r', "a.csv")
    assert read_columns(path, [0, 1], label=1).cells[0] == ("a", "b\rc")


def test_other_encodings(tmp_path: Path) -> None:
    content = 'text\tlabel\r\nä😀 "b"\tx\r\nc\ty\r\n'
    for mark, encoding in [
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
        (codecs.BOM_UTF32_LE, "utf-32-le"),
        (codecs.BOM_UTF32_BE, "utf-32-be"),
    ]:
        raw = mark + content.encode(encoding)
        path = _file(tmp_path, raw)
        assert _rows(read_columns(path, [0, 1], label=1)) == [('ä😀 "b"', "x"), ("c", "y")]
        said = _one_line(lambda raw=raw: read_columns(_file(tmp_path, raw[:-1]), [0, 1]))
        assert "is it cut short" in said
    with _refused("UTF-16 text", "iconv -f utf-16le"):
        read_columns(_file(tmp_path, content.replace("😀", "").encode("utf-16-le")), [0, 1])
    with _refused("line 2 is not UTF-8 text", "0xe4", "iconv -f latin1"):
        read_columns(_file(tmp_path, "text\tlabel\nbä\tx\n".encode("latin1")), [0, 1])
    with _refused("zip archive", "unpack"):
        read_columns(_file(tmp_path, b"PK\x03\x04abc", "a.csv"), [0, 1])


def test_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _file(tmp_path, lzma.compress(b"a\tx\n" * 1000), "a.tsv.xz")
    assert len(read_columns(path, [0, 1], label=1).places) == 1000
    monkeypatch.setattr(table_text, "LARGEST_TABLE", 100_000)
    with _refused("more than fits into 100,000 bytes"):
        read_columns(path, [0, 1], label=1)
    monkeypatch.setattr(text_files, "LARGEST_LINE", 1000)
    for end in ("\n", "\r"):
        path = _file(tmp_path, f"a\tx{end}{'b' * 1001}\tx{end}")
        with _refused("line 2 has more than 1,000 bytes"):
            read_columns(path, [0, 1], label=1)
    with _refused("line 1 has more than 1,000 bytes"):
        read_columns(_file(tmp_path, "b" * 1001), [0])
    monkeypatch.setattr(table_text, "_CHUNK", 100)
    path = _file(tmp_path, "a\tx\r" * 300)
    assert len(read_columns(path, [0, 1], label=1).places) == 300
    with _refused("line 1 has more than 1,000 bytes"):  # a line feed: it is no file of old Macs
        read_columns(_file(tmp_path, "a\tx\r" * 300 + "\n"), [0, 1], label=1)
    (tmp_path / "folder.tsv").mkdir()
    with _refused("is a folder"):
        read_columns(tmp_path / "folder.tsv", [0])


def test_lines_over_several_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for size in (1, 2, 3, 5):
        monkeypatch.setattr(table_text, "_CHUNK", size)
        for end in ("\n", "\r", "\r\n"):
            content = f"ä\tx{end}bcdefgh\tx{end}{end}ij\tx"
            for encoding in ("utf-8", "utf-16", "utf-32"):
                read = read_columns(_file(tmp_path, content.encode(encoding)), [0, 1], label=1)
                assert read.cells[0] == ("ä", "bcdefgh", "ij")
                assert [line for _, line in read.places] == [1, 2, 4]


# JSON lines.


def test_json_lines(tmp_path: Path) -> None:
    lines = [
        '{"text": "a\\tb\\nc", "label": 1, "0": "zero"}',
        "",
        '\ufeff{"label": 2.50, "text": true, "0": "x"}\r',
        '{"text": "old", "text": 1e2, "label": " y ", "0": false}',
    ]
    path = _file(tmp_path, "\n".join(lines), "a.jsonl")
    read = read_columns(path, ["text", "label", "0"], label=1)
    assert _rows(read) == [("a\tb\nc", "1", "zero"), ("true", "2.50", "x"), ("1e2", "y", "false")]
    assert [line for _, line in read.places] == [1, 3, 4]
    with _refused("no object has the key '1'", "valid: .*text"):
        read_columns(path, ["text", 1])
    with _refused("'labl'", "did you mean 'label'"):
        read_columns(path, ["text", "labl"], Layout(skip_bad_rows=True))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"text": null, "label": "x"}', "has null as 'text'"),
        ('{"text": ["a"], "label": "x"}', "has a list as 'text'"),
        ('{"text": {}, "label": "x"}', "has an object as 'text'"),
        ('{"text": "a"}', "has no key 'label'"),
        ('{"text": "a", "label": ""}', "has no label"),
        ('{"text": "a", "label": NaN}', "is not JSON"),
        ('{"text": "a", "label": "x"', "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ('["a", "x"]', "holds no JSON object"),
        ('{"text": "\\ud800", "label": "x"}', "has half a character"),
        ('{"text": "a\\u0000", "label": "x"}', "holds a NUL"),
    ],
)
def test_bad_json_lines(tmp_path: Path, line: str, words: str) -> None:
    good = '{"text": "a", "label": "x"}\n'
    path = _file(tmp_path, good + line + "\n" + good, "a.jsonl")
    said = _one_line(lambda: read_columns(path, ["text", "label"], label=1))
    assert f"line 2 {words}" in said
    read = read_columns(path, ["text", "label"], Layout(skip_bad_rows=True), label=1)
    assert len(read.places) == 2 and f"line 2 {words}" in read.notices[0]


@given(st.lists(st.tuples(st.text(max_size=8), st.integers(-9, 9)), min_size=1, max_size=5))
@settings(deadline=None)
def test_any_json_lines_are_read_back(table: list[tuple[str, int]]) -> None:
    assume(not any("\0" in text for text, _ in table))
    content = "".join(
        json.dumps({"label": label, "text": text}, ensure_ascii=label < 0) + "\n"
        for text, label in table
    )
    with tempfile.TemporaryDirectory() as folder:
        read = read_columns(_file(Path(folder), content, "a.jsonl"), ["text", "label"], label=1)
    assert _rows(read) == [(text, str(label)) for text, label in table]


# Tagging files.


@pytest.mark.parametrize("mark", ["\t", " "])
def test_a_tagging_file_is_refused(tmp_path: Path, mark: str) -> None:
    sentence = ["EU X B-ORG", "rejects X O", '" X O', "German X B-MISC", '" X O', ". X O"]
    words = [line.replace(" ", mark) for line in sentence]
    path = _file(tmp_path, "\n".join([*words, "", *words, "", *words]) + "\n", "a.txt")
    for wanted in ([0, 2], [0, 1], ["0", "2"], ["text", "label"]):
        said = _one_line(lambda wanted=wanted: read_columns(path, wanted, label=1))  # type: ignore[misc]
        if mark == " " or wanted != [0, 1]:
            assert "task=tagging" in said, said
    without = _file(tmp_path, "\n".join(words * 2) + "\n", "a.txt")
    layout = Layout(separator=mark, quoting="none")
    assert len(read_columns(without, [0, 2], layout, label=1).places) == 12


def test_sentences_with_such_labels_are_no_tagging_file(tmp_path: Path) -> None:
    path = _file(tmp_path, "a b\tO\nc d\tB-x\n\na b\tO\ne f\tB-x\n")
    assert len(read_columns(path, [0, 1], label=1).places) == 4
    path = _file(tmp_path, "a\tO\nc\tx\n\na\tO\ne\tB-x\n")
    assert len(read_columns(path, [0, 1], label=1).places) == 4


# Parallel files.


def test_parallel_files(tmp_path: Path) -> None:
    texts = _file(tmp_path, '\ufeff"a\tb\r\n\r\nc\u2028d\r\n\r\n\r\n', "seq.in")
    labels = _file(tmp_path, gzip.compress(b"label\n y\n1\n"), "label.gz")
    pairs = _file(tmp_path, "e\nf\ng", "pairs.txt")
    read = read_parallel(texts, labels)
    assert read.cells == (('"a\tb', "", "c\u2028d"), ("label", "y", "1"))
    assert read.places == tuple((str(texts), line) for line in (1, 2, 3))
    assert read.notices == (f"1 row of {str(texts)!r} has an empty text",)
    assert read_parallel(texts, labels, pairs).cells[2] == ("e", "f", "g")


def test_parallel_files_must_have_as_many_lines(tmp_path: Path) -> None:
    three, two = _file(tmp_path, "a\nb\nc\n", "3"), _file(tmp_path, "x\ny\n\n", "2")
    assert read_parallel(three, _file(tmp_path, "x\ny\nz", "z")).cells[1] == ("x", "y", "z")
    for first, second in ((three, _file(tmp_path, "x\ny\n", "2")), (two, three)):
        said = _one_line(lambda first=first, second=second: read_parallel(first, second))  # type: ignore[misc]
        assert "has 2 lines" in said and "has 3" in said
    with _refused("has 2 lines", "has 3"):
        read_parallel(three, three, _file(tmp_path, "x\ny\n", "2"))
    both = read_parallel(_file(tmp_path, "a\n\n\n", "t"), _file(tmp_path, "x\n\n\n", "l"))
    assert both.cells == (("a",), ("x",)) and both.notices == ()
    # A text that is blank at the end is one where a label stands.
    assert read_parallel(_file(tmp_path, "a\n\n", "t"), _file(tmp_path, "x\ny\n", "l")).cells == (
        ("a", ""),
        ("x", "y"),
    )
    with _refused("empty"):
        read_parallel(_file(tmp_path, "", "t"), _file(tmp_path, "\n", "l"))


def test_bad_parallel_lines(tmp_path: Path) -> None:
    texts = _file(tmp_path, "a\nb\nc\0\nd\n", "t")
    labels = _file(tmp_path, "x\n \nx\ny\n", "l")
    with _refused("'[^']*/l' line 2 has no label"):
        read_parallel(texts, labels)
    read = read_parallel(texts, labels, skip_bad_rows=True)
    assert read.cells == (("a", "d"), ("x", "y"))
    assert [line for _, line in read.places] == [1, 4] and "2 bad rows" in read.notices[0]
    with _refused("bad rows only"):
        read_parallel(texts, _file(tmp_path, "\n\nx\n\n", "l"), skip_bad_rows=True)
