"""Tagged files as they are found, and files that cannot be used, by file and line."""

from __future__ import annotations

import gzip
import lzma
from pathlib import Path
from typing import Any

import pytest

from jaxdistill.data.conll import Tagged, read_conll, read_parallel_tags, with_bio_tags
from jaxdistill.errors import BadInput

CONLL_2003 = """-DOCSTART- -X- -X- O

EU NNP B-NP B-ORG
rejects VBZ B-VP O

-DOCSTART- -X- -X- O

Peter NNP B-NP B-PER
"""


def _file(folder: Path, content: str | bytes, name: str = "a.txt") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def _sentences(tagged: Tagged) -> list[list[tuple[str, str]]]:
    assert tagged.tags is not None
    return [list(zip(words, tags)) for words, tags in zip(tagged.tokens, tagged.tags)]


def test_columns_documents_and_places(tmp_path: Path) -> None:
    path = _file(tmp_path, CONLL_2003)
    found = read_conll(path)
    assert _sentences(found) == [[("EU", "B-ORG"), ("rejects", "O")], [("Peter", "B-PER")]]
    assert found.places == ((str(path), 3), (str(path), 8)) and found.notices == ()
    assert read_conll(path, tag_column=1).tags == (("NNP", "VBZ"), ("NNP",))
    assert read_conll(path, tag_column=-2).tags == (("B-NP", "B-VP"), ("B-NP",))
    swapped = read_conll(path, token_column=-1, tag_column=0)
    assert (swapped.tokens, swapped.tags) == (found.tags, found.tokens)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "\ufeff" + text,
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.replace("\n\n", "\n \t \n"),
        lambda text: text.replace("\n\n", "\n\n\n\n"),
        lambda text: text.replace(" ", "\t"),
        lambda text: text.replace(" ", " \t  "),
        lambda text: text.replace("\n\n", " \n\n"),
        lambda text: text.rstrip("\n"),
        lambda text: text.replace("O\n\nEU", "O\nEU"),
        lambda text: text.replace("O\n\n-D", "O\n-D"),
    ],
    ids=[
        "bom",
        "crlf",
        "blank-lines",
        "more-lines",
        "tabs",
        "runs",
        "trailing",
        "no-end",
        "docstart-is-a-border",
        "docstart-ends",
    ],
)
def test_the_same_sentences_written_otherwise(tmp_path: Path, change: Any) -> None:
    expected = _sentences(read_conll(_file(tmp_path, CONLL_2003)))
    path = _file(tmp_path, change(CONLL_2003), "b.txt")
    assert _sentences(read_conll(path)) == expected


@pytest.mark.parametrize(("name", "pack"), [("a.gz", gzip.compress), ("a.xz", lzma.compress)])
def test_packed(tmp_path: Path, name: str, pack: Any) -> None:
    path = _file(tmp_path, pack(CONLL_2003.encode()), name)
    assert read_conll(path).tokens == (("EU", "rejects"), ("Peter",))


@pytest.mark.parametrize(
    "character", ["\x85", "\u2028", "\xa0", "\u3000", "\x0c", "\x1c", "\u200b"]
)
@pytest.mark.parametrize("blank", [" ", "\t"])
def test_odd_blanks_are_part_of_a_token(tmp_path: Path, character: str, blank: str) -> None:
    words = (f"a{character}b", character, "c")
    path = _file(tmp_path, "".join(f"{word}{blank}O\n" for word in words))
    assert read_conll(path).tokens == (words,)
    tokens = _file(tmp_path, " ".join(words) + "\n", "seq.in")
    assert read_parallel_tags(tokens, _file(tmp_path, "O O O\n", "seq.out")).tokens == (words,)
    assert read_conll(_file(tmp_path, "\n".join(words)), tag_column=None).tokens == (words,)


def test_a_hash_is_a_token_unless_its_line_is_short(tmp_path: Path) -> None:
    path = _file(tmp_path, "# id = 1\n#\tO\n1\tB-X\n# \tO\n#hash\tO\n")
    assert read_conll(path).tokens == (("#", "1", "#", "#hash"),)
    assert read_conll(path).places[0][1] == 2
    with pytest.raises(BadInput, match="line 2 "):
        read_conll(_file(tmp_path, "a\tO\n#x\n"))
    # A comment of the columns needed is none.
    commented = _file(tmp_path, "# x\n" + CONLL_2003.replace("EU", "# a b\nEU"))
    assert read_conll(commented, tag_column=3).tokens == (("EU", "rejects"), ("Peter",))
    assert read_conll(commented).tokens == (("#",), ("#", "EU", "rejects"), ("Peter",))
    assert read_conll(_file(tmp_path, "# O\na O\n")).tokens == (("#", "a"),)
    # A comment's tab makes no table of tabs.
    commented = _file(tmp_path, "# a\tb\nx y z B-P\n")
    assert read_conll(commented, tag_column=3).tags == (("B-P",),)


def test_separators(tmp_path: Path) -> None:
    path = _file(tmp_path, "New York\tB-LOC\nis here\tO\n")
    assert read_conll(path).tokens == (("New York", "is here"),)
    assert read_conll(path, separator="\\t") == read_conll(path)
    assert read_conll(path, separator=" ").tokens == (("New", "is"),)
    comma = _file(tmp_path, "a b,O\n,,O\n", "b.csv")
    with pytest.raises(BadInput, match="line 2 .*nothing in the token's column 0"):
        read_conll(comma, separator=",")
    assert read_conll(_file(tmp_path, "a b, O\n"), separator=",").tags == (("O",),)


def test_a_language_before_every_token_goes(tmp_path: Path) -> None:
    found = read_conll(_file(tmp_path, "en:a\tO\nen::\tO\n\nen:en:\tB-X\n"))
    assert found.tokens == (("a", ":"), ("en:",)) and "'en:'" in found.notices[0]
    for others in ("de:a", "a", "en:", "EN:a", "eng:a"):
        kept = read_conll(_file(tmp_path, f"en:b\tO\n\n{others}\tO\n"))
        assert kept.tokens == (("en:b",), (others,)) and not kept.notices
        assert read_conll(_file(tmp_path, f"{others}\tO\nen:b\tO\n")).tokens[0][1] == "en:b"
    assert read_conll(_file(tmp_path, "10:30\tO\n")).tokens == (("10:30",),)


def test_without_tags(tmp_path: Path) -> None:
    found = read_conll(_file(tmp_path, "# a\nb\n\nc\tX\n"), tag_column=None)
    assert found.tokens == (("# a", "b"), ("c",)) and found.tags is None
    assert with_bio_tags(found) == (found, "plain")
    path = _file(tmp_path, "a b\n\nc\n")
    assert read_parallel_tags(path, None).tokens == (("a", "b"), ("c",))
    assert read_parallel_tags(path, None).tags is None
    assert read_parallel_tags(path, None).places[1][1] == 3


BAD = [
    ("a O\nb\nc O\n", {}, ["line 2", "'b'", "1 of the 2 columns", "skip_bad_rows"]),
    ("a x O\nb O\n", {"tag_column": 2}, ["line 2", "2 of the 3 columns"]),
    ("a x O\nb O\n", {"tag_column": -2}, ["line 2", "2 of the 3 columns"]),
    ("a x O\nb O\n", {"tag_column": -3, "token_column": 1}, ["line 2", "2 of the 3 columns"]),
    ("a\tO\n\tO\n", {}, ["line 2", "token's column 0"]),
    ("a\tO\nb\t\n", {}, ["line 2", "tag's column -1"]),
    ("a\tO\tx\nb\t\tx\n", {"tag_column": 1}, ["line 2", "tag's column 1"]),
    ("a b c d\na b c d e f g\n", {"token_column": 3, "tag_column": -4}, ["line 2", "are one"]),
]


@pytest.mark.parametrize(("content", "columns", "words"), BAD)
def test_bad_rows_are_refused_or_left_out_with_their_sentence(
    tmp_path: Path, content: str, columns: Any, words: list[str]
) -> None:
    path = _file(tmp_path, content)
    with pytest.raises(BadInput) as error:
        read_conll(path, **columns)
    for word in [str(path), *words]:
        assert word in str(error.value)
    assert "\n" not in str(error.value)
    good = content.splitlines()[0]
    path.write_text(f"{good}\n\n{content}\n{good}\n{good}\n")
    found = read_conll(path, skip_bad_rows=True, **columns)
    assert list(map(len, found.tokens)) == [1, 2]
    assert "1 sentences" in found.notices[0] and "line 4" in found.notices[0]
    with pytest.raises(BadInput, match="no sentence.*1 sentences with a bad row"):
        read_conll(_file(tmp_path, content), skip_bad_rows=True, **columns)


@pytest.mark.parametrize("content", ["", "\n \n", "-DOCSTART- -X- O O\n\n", "# only\n"])
def test_nothing_to_read(tmp_path: Path, content: str) -> None:
    with pytest.raises(BadInput, match="holds no sentence"):
        read_conll(_file(tmp_path, content), tag_column=3)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    path = _file(tmp_path, CONLL_2003, "train.txt")
    for wrong in (tmp_path, tmp_path / "trian.txt"):
        with pytest.raises(BadInput, match="does not exist or is a folder"):
            read_conll(wrong)
    with pytest.raises(BadInput, match="did you mean 'train.txt'"):
        read_conll(tmp_path / "trian.txt")
    with pytest.raises(BadInput, match="both 1; they must differ"):
        read_conll(path, token_column=1, tag_column=1)
    with pytest.raises(BadInput, match="line 2 is not UTF-8"):
        read_conll(_file(tmp_path, b"a O\n\xe4 O\n"))


def test_a_file_larger_than_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _file(tmp_path, CONLL_2003)
    monkeypatch.setattr("jaxdistill.data.conll.LARGEST_TABLE", 500)
    with pytest.raises(BadInput, match="more than fits into 500 bytes"):
        read_conll(path)


def test_parallel_files(tmp_path: Path) -> None:
    tokens = _file(tmp_path, "add  a\tsong\n\nplay it \n", "seq.in")
    tags = _file(tmp_path, "O O B-s\n\nO O\n", "seq.out")
    found = read_parallel_tags(tokens, tags)
    assert _sentences(found) == [
        [("add", "O"), ("a", "O"), ("song", "B-s")],
        [("play", "O"), ("it", "O")],
    ]
    assert found.places == ((str(tokens), 1), (str(tokens), 3))
    for content, words in [
        ("O O\n\nO O\n", ["line 1 has 3 words", "2 tags"]),
        ("O O B-s\nO\nO O\n", ["line 2 has 0 words", "1 tags"]),
        ("O O B-s\n\n\n", ["line 3 has 2 words", "0 tags"]),
    ]:
        bad = _file(tmp_path, content, "bad")
        with pytest.raises(BadInput) as error:
            read_parallel_tags(tokens, bad)
        assert all(word in str(error.value) for word in [*words, str(tokens), str(bad)])
        skipped = read_parallel_tags(tokens, bad, skip_bad_rows=True)
        assert words[0].partition(" has")[0] in skipped.notices[0] and set(skipped.tokens) <= set(
            found.tokens
        )
    with pytest.raises(BadInput, match="3 lines but .*bad' 1:"):
        read_parallel_tags(tokens, _file(tmp_path, "O O B-s\n", "bad"))


def test_parts_and_digests(tmp_path: Path) -> None:
    found = read_conll(_file(tmp_path, CONLL_2003))
    part = found.take([1])
    assert len(found) == 2 and len(part) == 1
    assert (part.tokens, part.tags) == ((("Peter",),), (("B-PER",),))
    assert part.places == found.places[1:]
    same = read_conll(_file(tmp_path, CONLL_2003.replace("\n\n", "\n\n\n"), "b"))
    assert found.digest == same.digest != part.digest
    assert found.digest != read_conll(_file(tmp_path, CONLL_2003.replace("ORG", "LOC"))).digest


def test_tags_in_bio_and_a_notice_of_invalid_ones(tmp_path: Path) -> None:
    path = _file(tmp_path, "a I-X\nb I-X\nc B-X\n\nd O\ne I-Y\n")
    found, scheme = with_bio_tags(read_conll(path))
    assert scheme == "IOB1" and found.tags == (("B-X", "I-X", "B-X"), ("O", "B-Y"))
    assert not found.notices
    kept, scheme = with_bio_tags(read_conll(path), "BIO")
    assert scheme == "BIO" and kept.tags == read_conll(path).tags
    assert "2 tags in 2 sentences break the rules of BIO" in kept.notices[0]
    assert f"{str(path)!r} line 1, word 1" in kept.notices[0]
    three = read_conll(_file(tmp_path, "a I-X\nb I-Y\n\nc I-X\n", "b.txt"))
    assert "3 tags in 2 sentences" in with_bio_tags(three, "BIO")[0].notices[0]
    one, _ = with_bio_tags(read_conll(path).take([1]), "BIO")
    assert "line 5, word 2 of the sentence that begins there ('e')" in one.notices[0]
    with pytest.raises(BadInput, match=r"a.txt': tags of entities .I-X. beside others .Z-X."):
        with_bio_tags(read_conll(_file(tmp_path, "a I-X\nb I-X\nc Z-X\n")))
