"""The prepared text as flat arrays: every record a span of consecutive tokens of one document.

A `SpanTable` holds any number of records end to end, so that pairs are built for a whole batch with
a few gathers. The loader makes one of the whole corpus when it fits in memory, or a small one a
batch out of the records it read."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class SpanTable:
    """R records. `tokens` T uint16 or int32, and where each record begins: `token_offsets` int64
    [R+1].

    `breaks`: int64, ascending, the places in `tokens` where a record may be split in two (the
    starts of its sentences after the first); those of record r are
    `breaks[break_offsets[r]:break_offsets[r + 1]]`, at least one each.

    `document_begin`, `document_end`: int64 [R], which records of the whole corpus the record's
    document has."""

    tokens: np.ndarray
    token_offsets: np.ndarray
    breaks: np.ndarray
    break_offsets: np.ndarray
    document_begin: np.ndarray
    document_end: np.ndarray

    @classmethod
    def from_records(cls, records: Sequence[Mapping[str, Any]]) -> SpanTable:
        """Joins records as they were written: mappings with `tokens`, `breaks` (from their start),
        `document`."""
        documents = np.array([record["document"] for record in records], dtype=np.int64).reshape(
            -1, 2
        )
        token_offsets = _offsets([len(record["tokens"]) for record in records])
        break_offsets = _offsets([len(record["breaks"]) for record in records])
        breaks = np.concatenate([record["breaks"] for record in records]).astype(np.int64)
        return cls(
            tokens=np.concatenate([record["tokens"] for record in records]),
            token_offsets=token_offsets,
            breaks=breaks + np.repeat(token_offsets[:-1], np.diff(break_offsets)),
            break_offsets=break_offsets,
            document_begin=documents[:, 0],
            document_end=documents[:, 1],
        )

    def __len__(self) -> int:
        return len(self.document_begin)


def _offsets(lengths: Sequence[int]) -> np.ndarray:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])
