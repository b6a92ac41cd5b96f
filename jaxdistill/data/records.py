"""Reading prepared records: the whole corpus as one table in memory when it fits, else the batch's
records from disk.

Both are the same interface, give the same rows, and read the ArrayRecord files through TFDS's
random-access source."""

from __future__ import annotations

import contextlib
import functools
import io
import os
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from etils import epath

from jaxdistill.data import files
from jaxdistill.data.prepared import SIZES_FILE, PreparedText
from jaxdistill.data.spans import SpanTable
from jaxdistill.errors import BadInput

IN_MEMORY_TOKENS = 200_000_000  # about a minute to read at the start, 400 MB to keep
_RECORDS_A_READ = 4096


class RecordReader(Protocol):
    """Random access to the records of a prepared text."""

    def fetch(self, records: np.ndarray) -> tuple[SpanTable, np.ndarray]:
        """A table that holds the records (int64 [B]), and their places in it (int64 [B])."""

    def fetch_with_next(self, records: np.ndarray) -> tuple[SpanTable, np.ndarray]:
        """As `fetch`; behind each record stands the corpus's next one, if it is of the same
        document."""


class MemoryReader:
    """The whole corpus in one table."""

    def __init__(self, prepared: PreparedText) -> None:
        self._table = SpanTable.from_records(list(_in_order(prepared)))

    def fetch(self, records: np.ndarray) -> tuple[SpanTable, np.ndarray]:
        return self._table, records

    fetch_with_next = fetch


class DiskReader:
    """Only the records asked for, read when they are."""

    def __init__(self, prepared: PreparedText) -> None:
        self._source, self._path = _open(prepared), prepared.path
        self._last = prepared.num_records - 1

    def fetch(self, records: np.ndarray) -> tuple[SpanTable, np.ndarray]:
        return self._table(records), np.arange(len(records))

    def fetch_with_next(self, records: np.ndarray) -> tuple[SpanTable, np.ndarray]:
        following = np.minimum(records + 1, self._last)
        return self._table(np.stack([records, following], axis=1).ravel()), 2 * np.arange(
            len(records)
        )

    def _table(self, records: np.ndarray) -> SpanTable:
        with damage(self._path):
            return SpanTable.from_records(self._source.__getitems__(records.tolist()))


def open_reader(prepared: PreparedText, in_memory: bool | None = None) -> RecordReader:
    """A reader; `in_memory` None: in memory up to `IN_MEMORY_TOKENS` tokens."""
    if in_memory is None:
        in_memory = prepared.num_tokens <= IN_MEMORY_TOKENS
    return MemoryReader(prepared) if in_memory else DiskReader(prepared)


@functools.lru_cache(maxsize=2)
def record_sizes(prepared: PreparedText) -> np.ndarray:
    """How many tokens each record has: int32 [num_records], read-only. Raises BadInput if the file
    is damaged.

    Of a set prepared before sizes were written it reads all records, once a process.
    """
    file = epath.Path(prepared.records_path) / SIZES_FILE
    if not file.exists():
        sizes = np.fromiter(
            (len(record["tokens"]) for record in _in_order(prepared)),
            np.int32,
            prepared.num_records,
        )
    else:
        try:
            # Not np.load, which would also open an archive.
            sizes = np.lib.format.read_array(io.BytesIO(file.read_bytes()), allow_pickle=False)
        except (ValueError, EOFError, MemoryError) as error:
            raise BadInput(
                f"{os.fspath(file)!r} is damaged ({error}): delete it, and sizes are counted again"
            ) from error
    if len(sizes) != prepared.num_records or sizes.sum() != prepared.num_tokens:
        raise BadInput(
            f"{os.fspath(file)!r} is of other records: delete it, and sizes are counted again"
        )
    sizes.flags.writeable = False
    return sizes


def _in_order(prepared: PreparedText) -> Iterator[Any]:
    source, total = _open(prepared), prepared.num_records
    for begin in range(0, total, _RECORDS_A_READ):
        with damage(prepared.path):
            found = source.__getitems__(list(range(begin, min(begin + _RECORDS_A_READ, total))))
        yield from found


@contextlib.contextmanager
def damage(path: str) -> Iterator[None]:
    """Turns ArrayRecord's complaint about a file that is cut short or changed into one line."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).splitlines()[0][:120]
        raise BadInput(
            f"the prepared text in {os.fspath(path)!r} is damaged ({reason}): delete it to prepare it again"
        ) from error


def _open(prepared: PreparedText) -> Any:
    import tensorflow_datasets as tfds

    files.check_features(epath.Path(prepared.records_path))
    with damage(prepared.path):
        source = tfds.builder_from_directory(prepared.records_path).as_data_source(split="text")
        found = len(source)
    if found != prepared.num_records:
        raise BadInput(
            f"the prepared text in {os.fspath(prepared.path)!r} has {found} records, expected "
            f"{prepared.num_records}: delete the folder and prepare it again"
        )
    return source
