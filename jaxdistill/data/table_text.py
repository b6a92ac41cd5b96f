"""A table's file as lines of text: unpacked, decoded and split. Called by columns, labels
and searches."""

from __future__ import annotations

import codecs
import contextlib
import dataclasses
import itertools
import os
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from etils import epath

from jaxdistill.data import files, not_text, text_files
from jaxdistill.errors import BadInput

LARGEST_TABLE = 2**31  # bytes of memory, about; some kilobytes of .xz may unpack to gigabytes
BOM = "\ufeff"
JSON_ENDINGS = (".jsonl", ".ndjson", ".json")
_LINE_OVERHEAD = 200
_CHUNK = 2**20
_BOMS = (  # UTF-32 first: its mark begins as that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


@dataclasses.dataclass(frozen=True)
class Text:
    """A file's lines without `end`, which is "\\n", or "\\r" in a file of old Macs. A line of a file
    with "\\r\\n" still ends in "\\r": inside a quoted cell it belongs to the cell."""

    shown: str
    lines: list[str]
    end: str = "\n"

    @property
    def is_json(self) -> bool:
        """Whether the file's name says that each line is a JSON object."""
        return self._name.endswith(JSON_ENDINGS)

    @property
    def is_csv(self) -> bool:
        """Whether the file's name says that it is a .csv, whose cells are quoted."""
        return self._name.endswith(".csv")

    @property
    def separator(self) -> str:
        """What usually stands between the cells of such a file."""
        return "," if self.is_csv else "\t"

    @property
    def _name(self) -> str:
        return self.shown.lower().removesuffix(".xz").removesuffix(".gz")

    def plain_lines(self) -> list[str]:
        """The lines as one reads them, without byte-order marks."""
        return [plain(line) for line in self.lines]


class Lines(NamedTuple):
    """As a `Text`, but its lines are read as they are asked for, once."""

    shown: str
    lines: Iterator[str]
    end: str


def plain(line: str) -> str:
    """The line without what belongs to its end, and the byte-order mark of a file appended."""
    return line.rstrip("\r").removeprefix(BOM)


def read_text(path: epath.PathLike) -> Text:
    """All lines of a file, as `open_lines` has them.

    Raises:
        BadInput: as `open_lines`; it has more than fits into memory.
    """
    lines: list[str] = []
    size = 0
    with open_lines(path) as table:
        for line in table.lines:
            size += len(line) + _LINE_OVERHEAD
            if size > LARGEST_TABLE:
                raise BadInput(
                    f"task file {table.shown!r} holds more than fits into {LARGEST_TABLE:,} bytes of memory: give a part "
                    "of it"
                )
            lines.append(line)
    return Text(table.shown, lines, table.end)


@contextlib.contextmanager
def open_lines(path: epath.PathLike) -> Iterator[Lines]:
    """The lines of a file in UTF-8, or in UTF-16 or UTF-32 with a byte-order mark; .xz and .gz unpacked.

    Raises:
        BadInput: no such file; it cannot be read, or is no text.
    """
    file = files.find(path, "task file")
    shown = os.fspath(file)
    try:
        with files.unpacked(file) as stream:
            encoding = _encoding(stream.peek(512)[:512], shown)
            chunks: Iterator[bytes] = iter(lambda: stream.read(_CHUNK), b"")
            yield _split(chunks if encoding == "utf-8" else _in_utf8(chunks, encoding), shown)
    except UnicodeDecodeError as error:  # of UTF-16 and UTF-32; see _decoded for UTF-8
        raise BadInput(
            f"{shown!r} begins as {error.encoding} text but is none ({error.reason}): is it cut short? Write it anew"
        ) from error


def _encoding(head: bytes, shown: str) -> str:
    for mark, encoding in _BOMS:
        if head.startswith(mark):
            return encoding
    # Some zero bytes are a fault of their lines, which the reader names; many are another format.
    many = 4 * head.count(0) > len(head)
    not_text.check_bytes(head if many else head.replace(b"\0", b""), shown)
    return "utf-8"


def _in_utf8(chunks: Iterable[bytes], encoding: str) -> Iterator[bytes]:
    decoder = codecs.getincrementaldecoder(encoding)()
    for chunk in chunks:
        yield decoder.decode(chunk).encode()
    yield decoder.decode(b"", final=True).encode()


def _split(chunks: Iterator[bytes], shown: str) -> Lines:
    """The lines end in line feeds, or in carriage returns where the file has no line feed at all."""
    begin: list[bytes] = []
    unbroken = size = 0
    for chunk in chunks:
        begin.append(chunk)
        size += len(chunk)
        unbroken = 0 if b"\r" in chunk else unbroken + len(chunk)
        if b"\n" in chunk or max(unbroken - text_files.LARGEST_LINE, size - LARGEST_TABLE) > 0:
            break
    end = b"\n" if begin and b"\n" in begin[-1] else b"\r"
    pieces = _pieces(itertools.chain(begin, chunks), end, shown)
    lines = (_decoded(line, number, shown) for number, line in enumerate(pieces, start=1))
    return Lines(shown, lines, end.decode())


def _pieces(chunks: Iterable[bytes], end: bytes, shown: str) -> Iterator[bytes]:
    pending: list[bytes] = []
    held, number = 0, 1
    for chunk in chunks:
        for position, piece in enumerate(chunk.split(end)):
            if position:
                yield b"".join(pending)
                pending, held, number = [], 0, number + 1
            pending.append(piece)
            held += len(piece)
            if held > text_files.LARGEST_LINE:
                raise BadInput(
                    f"{shown!r} line {number} has more than {text_files.LARGEST_LINE:,} bytes: is it text? Break the line"
                )
    if held:
        yield b"".join(pending)


def _decoded(line: bytes, number: int, shown: str) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise BadInput(
            f"{shown!r} line {number} is not UTF-8 text (byte 0x{line[error.start]:02x}): "
            "convert it, e.g. with iconv -f latin1 -t utf-8"
        ) from error
