"""What is not plain text: known by a file's name, by its first bytes, or by its first lines. Called
by text_files.

A name or bytes of another kind are refused with what to do. Lines that look like markup or a table
are only a guess: they are read, and a notice shows them."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
from collections import Counter
from collections.abc import Sequence

from jaxdistill.errors import BadInput, shortened

_ROWS = 'write its texts into a .jsonl file, one {"text": "…"} a line'
_PLAIN = "save its text as .txt"
_OF_SUFFIX = {
    **dict.fromkeys((".html", ".htm", ".xhtml", ".xml", ".svg", ".sgml"), ("markup", _PLAIN)),
    **dict.fromkeys(
        (".md", ".markdown", ".rst", ".tex", ".ipynb"),
        ("marked-up text", f"{_PLAIN}, or rename it to read it as it is"),
    ),
    **dict.fromkeys(
        (".csv", ".tsv", ".xls", ".xlsx", ".ods", ".parquet", ".arrow", ".feather"),
        ("a table", _ROWS),
    ),
    **dict.fromkeys(
        (".conll", ".conllu", ".conllx", ".iob", ".bio"),
        ("a table of words", "write its sentences into a .txt file"),
    ),
    **dict.fromkeys((".json", ".yaml", ".yml", ".ndjson"), ("JSON or YAML", _ROWS)),
    **dict.fromkeys(
        (".pdf", ".doc", ".docx", ".odt", ".rtf", ".epub", ".ps"), ("a document", _PLAIN)
    ),
    **dict.fromkeys(
        (".zip", ".tar", ".tgz", ".txz", ".tbz2", ".7z", ".rar", ".bz2", ".zst"),
        ("an archive", "unpack it first"),
    ),
    **dict.fromkeys(
        (
            ".pkl",
            ".pickle",
            ".pt",
            ".npy",
            ".npz",
            ".bin",
            ".safetensors",
            ".tfrecord",
            ".db",
            ".sqlite",
        ),
        ("binary data", _PLAIN),
    ),
}
_OF_BYTES = (
    (b"PK\x03\x04", "a zip archive", "unpack it first"),
    (b"%PDF", "a PDF", _PLAIN),
    (b"PAR1", "a Parquet table", _ROWS),
    (b"\x1f\x8b", "packed with gzip", "give it the ending .gz"),
    (b"\xfd7zXZ\x00", "packed with xz", "give it the ending .xz"),
    (b"BZh", "packed with bzip2", "unpack it first"),
    (b"\x28\xb5\x2f\xfd", "packed with zstd", "unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it first"),
    (b"\xff\xfe\x00\x00", "UTF-32 text", "convert it: iconv -f utf-32 -t utf-8"),
    (b"\x00\x00\xfe\xff", "UTF-32 text", "convert it: iconv -f utf-32 -t utf-8"),
    (b"\xff\xfe", "UTF-16 text", "convert it: iconv -f utf-16 -t utf-8"),
    (b"\xfe\xff", "UTF-16 text", "convert it: iconv -f utf-16 -t utf-8"),
)
_TAG = re.compile(r"\s*</?[A-Za-z!?][^<>]*>")
_KEY = re.compile(r'\s*"[^"]*"\s*:')
_WORD_TAG = re.compile(r"(O|[BIESLU]-\S+)$")
_MOST_LINES, _LONGEST_LINE = 200, 1000
_FEWEST_ROWS = 8  # fewer lines alike may be chance
_MOST_ALIKE = 0.9


def check_name(path: str | os.PathLike[str]) -> None:
    """Raises BadInput for a file whose name says that it is no text."""
    shown = os.fspath(path)
    suffix = os.path.splitext(shown.lower().removesuffix(".xz").removesuffix(".gz"))[1]
    if suffix in _OF_SUFFIX:
        what, remedy = _OF_SUFFIX[suffix]
        raise BadInput(
            f"{shown!r} is {what} by its name ({suffix}), expected .txt or .jsonl: {remedy}"
        )


def check_bytes(head: bytes, shown: str) -> None:
    """Raises BadInput if the first bytes of a file are those of no UTF-8 text."""
    for begin, what, remedy in _OF_BYTES:
        if head.startswith(begin):
            raise BadInput(f"{shown!r} is {what}, expected UTF-8 text: {remedy}")
    if b"\0" in head:
        zeros = [head[i::2].count(0) for i in (0, 1)]
        if max(zeros) > len(head) // 4:  # every other byte of plain English
            order = "utf-16le" if zeros[1] > zeros[0] else "utf-16be"
            raise BadInput(
                f"{shown!r} is UTF-16 text, expected UTF-8: convert it: iconv -f {order} -t utf-8"
            )
        raise BadInput(
            f"{shown!r} holds zero bytes, so it is no text: give a .txt or .jsonl file in UTF-8"
        )


def notice(lines: Sequence[str], shown: str) -> str:
    """A line about text whose first `lines` look like something else; "" if they do not."""
    full = [line[:_LONGEST_LINE] for line in lines if line.strip()][:_MOST_LINES]
    found = _looks_like(full)
    if not found:
        return ""
    begins = " | ".join(shortened(line, 60) for line in full[:2])
    return f"{shown!r} looks like {found[0]} but is read as plain text; if that is not meant, {found[1]}. It begins: {begins}"


def _looks_like(full: Sequence[str]) -> tuple[str, str] | None:
    """(what, what to do) for the lines that are not blank."""
    if not full:
        return None
    first = full[0].strip().lower()
    tagged = sum(_TAG.match(line) is not None for line in full)
    if first.startswith(("<!doctype", "<html", "<?xml")) or 2 * tagged > len(full):
        return "markup", "take the text out of it first"
    if first[0] in "{[" and (_is_json(full[0]) or any(map(_KEY.match, full[1:3]))):
        return "JSON", "name it .jsonl if each line is an object" if _is_json(full[0]) else _ROWS
    if len(full) < _FEWEST_ROWS:
        return None
    if first.startswith("-docstart-") or _alike(
        [line.split() for line in full], least=2, tagged=True
    ):
        return "a table of tagged words", "write its sentences into a .txt file"
    if _alike([line.split("\t") for line in full], least=2):
        return "a table", _ROWS
    with contextlib.suppress(csv.Error):
        if _alike(list(csv.reader(full)), least=2):
            return "a table with commas", _ROWS
    return None


def _is_json(line: str) -> bool:
    try:
        return isinstance(json.loads(line), (dict, list))
    except (ValueError, RecursionError):
        return False


def _alike(rows: list[list[str]], least: int, tagged: bool = False) -> bool:
    """Whether nearly all rows have one number of cells, `least` or more; `tagged`: and end in tags
    such as B-PER."""
    [(width, count)] = Counter(map(len, rows)).most_common(1)
    tags = sum(_WORD_TAG.match(row[-1]) is not None for row in rows if row)
    return (
        width >= least
        and count >= _MOST_ALIKE * len(rows)
        and (not tagged or tags >= _MOST_ALIKE * len(rows))
    )
