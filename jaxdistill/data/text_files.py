"""Documents from text files and folders, compressed or not; WikiText's tokenisation undone. See
`sources`."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence

from etils import epath

from jaxdistill import remote
from jaxdistill.data import files, not_text
from jaxdistill.data.documents import BLANK_LINES, LINES, Document
from jaxdistill.errors import BadInput, listed

LARGEST_LINE = (
    2**24
)  # bytes; and characters of a document, below. A few kilobytes of .xz may unpack to gigabytes
LARGEST_DOCUMENT = 2**26
SUFFIXES = tuple(kind + packing for kind in (".txt", ".jsonl") for packing in ("", ".xz", ".gz"))
_SNIFFED_LINES = 400
_LOOKED_AT = 20  # files of a folder
_LINE_OVERHEAD = 64  # bytes of memory
_WIKITEXT_SEPARATOR = re.compile(r" @([-,.])@ ")
_WIKITEXT_TITLE = re.compile(r"^\s*= ([^=].*?) =\s*$")
_WIKITEXT_HEADING = re.compile(r"^\s*=(?: =)+ (.*?) =(?: =)+\s*$")


def find(path: epath.Path) -> list[epath.Path]:
    """The text files at a path, sorted by their names below it.

    Raises:
        BadInput: nothing there, or a folder without text files.
    """
    shown = os.fspath(path)
    if not path.exists():
        raise BadInput(
            f"text source {shown!r} does not exist (nor is it 'default' or 'tfds:…'); {files.nearest_beside(path)}"
        )
    if not path.is_dir():
        not_text.check_name(path)
        return [_readable(path)]
    with files.clear_errors("reading the folder", path):
        present = sorted(files.walk(path), key=os.fspath)
    found = [file for file in present if file.name.endswith(SUFFIXES)]
    if not found:
        others = f", only {_left_out(present)}" if present else ""
        raise BadInput(
            f"text folder {shown!r} holds no {', '.join(SUFFIXES)} file{others}: give a folder that does, or a file"
        )
    return [_readable(file) for file in found]


def _readable(file: epath.Path) -> epath.Path:
    """The file itself. Raises BadInput for a pipe or a device, which cannot be read twice, and for
    a broken link."""
    if not remote.is_remote(file) and not os.path.isfile(file):
        raise BadInput(
            f"text source {os.fspath(file)!r} is no regular file (a pipe, a device or a broken link): give a file"
        )
    return file


def _left_out(present: Sequence[epath.Path]) -> str:
    """ "3 others (.html, .py)"."""
    kinds = sorted({file.suffix or file.name for file in present})
    return f"{len(present):,} other{'s' if len(present) != 1 else ''} ({listed(kinds, 5)})"


def check(path: epath.Path) -> tuple[list[str], bool]:
    """(notices of what may be meant otherwise, whether any file is plain text), from a look at some
    of them.

    Raises BadInput as `find`, and as `read` for the first lines of those files.
    """
    found = find(path)
    notices = []
    if path.is_dir():
        with files.clear_errors("reading the folder", path):
            others = sorted({*files.walk(path)} - {*found}, key=os.fspath)
        if others:
            notices.append(
                f"text folder {os.fspath(path)!r}: only .txt and .jsonl files are read, not {_left_out(others)}"
            )
    plain = [file for file in found if not is_jsonl(file)]
    for file in found[:: max(1, len(found) // _LOOKED_AT)][:_LOOKED_AT]:
        head = list(_head(read_lines(file)))
        if (notice := "" if is_jsonl(file) else not_text.notice(head, os.fspath(file))) and len(
            notices
        ) < 3:
            notices.append(notice)
    return notices, bool(plain)


def is_jsonl(file: epath.Path) -> bool:
    return file.name.removesuffix(".xz").removesuffix(".gz").endswith(".jsonl")


def digest(path: epath.Path) -> str:
    """A digest of the files' names, sizes and contents; the folder's own name does not matter."""
    parts = []
    for file in find(path):
        content, size = hashlib.sha256(), 0
        with files.clear_errors("reading the text file", file), file.open("rb") as stream:
            while block := stream.read(1 << 20):
                content.update(block)
                size += len(block)
        name = os.fspath(file.relative_to(path)) if file != path else file.name
        parts.append([name, size, content.hexdigest()])
    return files.digest_of(parts)


def read(path: epath.Path, documents: str = BLANK_LINES) -> Iterator[Document]:
    """The documents of a file or folder, in order. `documents`: what separates them in a .txt file,
    as in `sources`.

    Raises:
        BadInput: nothing there; a file that is not UTF-8, cut short, or not what its name says.
    """
    for file in find(path):
        lines = read_lines(file)
        reader = _read_jsonl if is_jsonl(file) else _read_lines if documents == LINES else _read_txt
        yield from reader(lines, os.fspath(file))


def read_lines(path: epath.Path) -> Iterator[str]:
    """The lines of a UTF-8 file, .xz and .gz unpacked, without their ends; one is held at a time.

    Raises BadInput in one line if it cannot be read, or if a line is longer than `LARGEST_LINE`.
    """
    shown = os.fspath(path)
    number = 0
    try:
        with files.unpacked(path) as stream:
            not_text.check_bytes(stream.peek(512)[:512], shown)
            for number, line in enumerate(
                iter(lambda: stream.readline(LARGEST_LINE + 1), b""), start=1
            ):
                if len(line) > LARGEST_LINE:
                    raise BadInput(
                        f"{shown!r} line {number} has more than {LARGEST_LINE:,} bytes: is it text? Break the line"
                    )
                yield line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise BadInput(
            f"{shown!r} line {number} is not UTF-8 text (byte 0x{error.object[error.start]:02x}): "
            "convert it, e.g. with iconv -f latin1 -t utf-8"
        ) from error


def _read_jsonl(lines: Iterable[str], shown: str) -> Iterator[Document]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise BadInput(
                f'{shown!r} line {number} is not JSON ({error}): expected an object with a "text"'
            ) from error
        if not isinstance(record, dict) or not isinstance(record.get("text"), str):
            given = (
                f"the fields {', '.join(sorted(record))}"
                if isinstance(record, dict)
                else type(record).__name__
            )
            raise BadInput(
                f'{shown!r} line {number} holds {given}: expected an object with a string "text"'
            )
        yield Document(record["text"], f"{shown}:{number}")


def _read_lines(lines: Iterable[str], shown: str) -> Iterator[Document]:
    """Each line that is not blank is a document."""
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield Document(line.strip(), f"{shown}:{number}")


def _read_txt(lines: Iterator[str], shown: str) -> Iterator[Document]:
    head = list(_head(lines))
    lines = itertools.chain(head, lines)
    is_wikitext = any(_WIKITEXT_SEPARATOR.search(line) for line in head) and any(
        map(_WIKITEXT_TITLE.match, head)
    )
    lines = _with_limit(
        lines, shown, _WIKITEXT_TITLE.match if is_wikitext else lambda line: not line.strip()
    )
    blocks = _wikitext_articles(lines) if is_wikitext else _blocks(lines)
    for number, block in enumerate(blocks):
        yield Document("\n".join(block), f"{shown}#{number}")


def _head(lines: Iterator[str]) -> Iterator[str]:
    """The first lines, as many as tell the form of the text."""
    size = 0
    for line in itertools.islice(lines, _SNIFFED_LINES):
        yield line
        size += len(line)
        if size > LARGEST_LINE:
            return


def _with_limit(lines: Iterable[str], shown: str, begins: Callable[[str], object]) -> Iterator[str]:
    """The lines; raises BadInput where more lie between two that `begins` is true of than a
    document may have."""
    size = 0
    for line in lines:
        size = 0 if begins(line) else size + len(line) + _LINE_OVERHEAD
        if size > LARGEST_DOCUMENT:
            raise BadInput(
                f"{shown!r} holds a document of more than {LARGEST_DOCUMENT:,} characters: separate documents by "
                "blank lines"
            )
        yield line


def _blocks(lines: Iterable[str]) -> Iterator[list[str]]:
    block: list[str] = []
    for line in lines:
        if line.strip():
            block.append(line.strip())
        elif block:
            yield block
            block = []
    if block:
        yield block


def _wikitext_articles(lines: Iterable[str]) -> Iterator[list[str]]:
    """WikiText separates paragraphs by blank lines; an article begins with a heading of the first
    level."""
    article: list[str] = []
    for line in lines:
        if _WIKITEXT_TITLE.match(line) and article:
            yield article
            article = []
        if line.strip():
            article.append(undo_wikitext(line))
    if article:
        yield article


def undo_wikitext(line: str) -> str:
    """One line of WikiText as plain text: " @-@ " is "-" (so with , and .), "= = Title = =" is the
    title."""
    for heading in (_WIKITEXT_TITLE, _WIKITEXT_HEADING):
        if match := heading.match(line):
            line = match[1]
    return _WIKITEXT_SEPARATOR.sub(r"\1", line).strip()
