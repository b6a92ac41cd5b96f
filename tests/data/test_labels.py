from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxdistill.data.labels import (
    Labels,
    as_integer,
    as_number,
    as_scores,
    number_labels,
    read_label_file,
)
from jaxdistill.errors import BadInput


def _number(cells: Sequence[str], *rest: Any, **options: Any) -> Labels:
    places = [("f.tsv", line) for line in range(2, 2 + len(cells))]
    return number_labels(cells, places, "'f.tsv' column 'label'", *rest, **options)


def _refusal(call: Any) -> str:
    with pytest.raises(BadInput) as error:
        call()
    assert "\n" not in str(error.value) and len(str(error.value)) < 700, str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("cells", "names"),
    [
        (["pos", "neg", "pos"], ["neg", "pos"]),
        (["10", "9", "10"], ["9", "10"]),
        (["1", "2", "3"], ["1", "2", "3"]),
        (["1", "-1", "0"], ["-1", "0", "1"]),
        (["1", "1.0", "2"], ["1", "2"]),
        (["1.0", "0.0", "-0", "1e0", " 0 ", "+1"], ["0", "1"]),
        (["1", "1.0", "x"], ["1", "1.0", "x"]),  # words keep their spelling
        (["nan", "inf", "1.0"], ["1.0", "inf", "nan"]),
        (["b", "2", "a", "10"], ["2", "10", "a", "b"]),
        (["B", "a", "b"], ["B", "a", "b"]),
        (["1_0", "1", "1"], ["1", "1_0"]),
        (["12345678901234567890", "12345678901234567891"], None),
    ],
)
def test_labels_are_numbered(cells: list[str], names: list[str] | None) -> None:
    names = names or sorted(cells)
    labels = _number(cells)
    assert labels.names == tuple(names) and labels.notices == ()
    assert labels.numbers.dtype == np.int32 and labels.numbers.shape == (len(cells),)
    spelled = [as_integer(cell) or cell for cell in cells]
    integral = all(as_integer(cell) for cell in cells)
    for cell, spelling, number in zip(cells, spelled, labels.numbers):
        assert names[number] == (spelling if integral else cell.strip())


def test_integers_of_two_files_are_the_same_labels() -> None:
    for train, dev in [(["0", "1", "2"], ["2.0", "0.0"]), (["0.0", "1.0", "2.0"], ["2", "0"])]:
        names = _number(train).names
        assert names == ("0", "1", "2")
        labels = _number(dev, names)
        assert labels.numbers.tolist() == [2, 0] and labels.names == names
        # So they are beside a label that is none.
        odd = _number([*dev, "x", "3.75"], names, unseen="wrong")
        assert odd.numbers.tolist() == [2, 0, -1, -1]
    assert _number(["1.0", "0"], ["1", "0.0"]).names == ("1", "0")  # the order is the given one
    assert _number(["1.0", "x"], ["x", "1.0"]).numbers.tolist() == [1, 0]
    assert _number(["1"], ["x", "1.0"], unseen="wrong").numbers.tolist() == [-1]


def test_known_labels_are_listed_once() -> None:
    assert "'1' is listed 2 times" in _refusal(lambda: _number(["1"], ["1", "2", "1.0"]))
    assert "'a' is listed 2 times" in _refusal(lambda: _number(["a"], ["a", "b", "a"]))


def test_scores_are_no_classes() -> None:
    cells = ["3.75", "1", "2", "2"] * 20
    said = _refusal(lambda: _number(cells))
    assert "'3.75'" in said and "task=regression" in said and "label_file=FILE" in said
    assert _number(cells, ["1", "2", "3.75"]).numbers[:3].tolist() == [2, 0, 1]


def test_columns_that_hold_no_classes() -> None:
    said = _refusal(lambda: _number(["x", "x"]))
    assert "one label only, 'x'" in said and "'f.tsv' column 'label'" in said
    assert "one label only, '1'" in _refusal(lambda: _number(["1", "1.0"]))
    texts = [f"text {n}" for n in range(30)]
    said = _refusal(lambda: _number([*texts, "text 0"]))
    assert "30 labels in 31 rows" in said and "'text 0'" in said
    assert len(_number(texts * 2).names) == 30
    assert len(_number(texts[:20]).names) == 20
    assert len(_number(texts[:3], texts).names) == 30
    many = [str(n) for n in range(1001)]
    assert "1,001 labels in 9,009 rows" in _refusal(lambda: _number(many * 9))
    assert len(_number(many * 10).names) == 1001
    assert "line 3 has no label" in _refusal(lambda: _number(["x", " ", "y"]))


def test_unseen_labels_are_refused() -> None:
    said = _refusal(lambda: _number(["pos", "nag"], ["neg", "pos"]))
    assert "'f.tsv' line 3: label 'nag'" in said and "did you mean 'neg'" in said
    assert "unseen_labels=wrong" in said and "label_file=FILE" in said and "valid: neg, pos" in said
    said = _refusal(lambda: _number(["1", "10"], ["0", "1"]))  # no number is near another
    assert "line 3: label '10'" in said and "did you mean" not in said and "valid: 0, 1" in said
    said = _refusal(lambda: _number(["pos"], ["neg", "pos"], unseen="wrng"))
    assert "unseen_labels='wrng'" in said and "did you mean 'wrong'" in said


def test_unseen_labels_may_count_as_wrong() -> None:
    cells = ["y", "x", "a", "x", "y", "x", "b", "y", "x"]
    labels = _number(cells, ["a", "b"], unseen="wrong")
    assert labels.numbers.tolist() == [-1, -1, 0, -1, -1, -1, 1, -1, -1]
    assert labels.names == ("a", "b") and labels.notices == (
        "7 rows have labels that the training file lacks: 'x' (4), 'y' (3); they count as wrong",
    )
    (notice,) = _number(["y", "x", "y"], ["a", "b"], unseen="wrong").notices
    assert "'y' (2), 'x' (1)" in notice  # the most frequent first
    (notice,) = _number(["a", "x"], ["a", "b"], unseen="wrong").notices
    assert notice.startswith("1 row has a label that the training file lacks: 'x' (1); it counts")
    (notice,) = _number([f"n{n:02}" for n in range(13)], ["a", "b"], unseen="wrong").notices
    assert "'n09' (1) and 3 more;" in notice
    assert _number(["a"], ["a", "b"], unseen="wrong").notices == ()


@given(st.lists(st.sampled_from(["a", "b", "1", "1.0", "-0", "0", "2e0", "nan"]), min_size=2))
def test_names_number_the_labels_back(cells: list[str]) -> None:
    spelled = [as_integer(c) or "" for c in cells] if all(map(as_integer, cells)) else cells
    if len(set(spelled)) < 2:
        with pytest.raises(BadInput, match="one label only"):
            _number(cells)
        return
    labels = _number(cells)
    assert [labels.names[n] for n in labels.numbers] == spelled
    again = _number(cells, labels.names)
    assert again.names == labels.names and (again.numbers == labels.numbers).all()


@given(st.integers() | st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_are_read_as_python_does(number: float) -> None:
    assert as_number(str(number)) == float(number)
    whole = isinstance(number, int) or number.is_integer()
    integer = as_integer(str(number))
    assert whole == (integer is not None)
    assert integer is None or (int(integer) == number or float(integer) == number)


def test_blanks_around_a_number_do_not_count() -> None:
    assert as_number(" 1.0\x1c") == 1 and as_integer("\u3000 1.0\x1c") == "1"


@pytest.mark.parametrize("cell", ["nan", "inf", "1e999", "1_0", "٣", "1,5", "", "1 2", "0x1", "."])
def test_what_is_no_number(cell: str) -> None:
    assert as_number(cell) is None and as_integer(cell) is None


def test_label_files(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_bytes("\ufeffpos \r\nneg\r\nin between\r\n\r\n".encode())
    assert read_label_file(path) == ("pos", "neg", "in between")
    for content, words in [
        ("a\nb\na\n", ["line 3", "'a' stands in line 1"]),
        ("a\n\nb\n", ["line 2 is blank"]),
        ("0\ta\n1\tb\n", ["line 1 holds a tab"]),
        ("a\n", ["holds 1 labels"]),
        ("", ["holds 0 labels"]),
    ]:
        path.write_text(content)
        said = _refusal(lambda: read_label_file(path))
        assert all(word in said for word in words), said


def test_scores() -> None:
    places = [("f.tsv", 7), ("f.tsv", 9), ("g.tsv", 1)]
    scores = as_scores(["3.75", " -1e-3 ", "5"], places, "the score column")
    assert (
        scores.dtype == np.float32
        and scores.tolist() == np.array([3.75, -1e-3, 5], np.float32).tolist()
    )
    for bad in ("nan", "-inf", "1e39", "good", "", "3,5", "1_0"):
        said = _refusal(lambda bad=bad: as_scores(["1", bad, "x"], places, "the score column"))  # type: ignore[misc]
        assert f"'f.tsv' line 9: {bad!r} is no finite number" in said
        assert "the score column" in said
