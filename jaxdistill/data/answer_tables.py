"""Answers as bytes of a file that grows: .tsv, .jsonl or .npy, or tags in CoNLL's columns. Called by
prediction.

A record is an answer to a row: values by name, of which one may be a list, or a dict of numbers."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from jaxdistill.data.classification import table_line

Record = dict[str, Any]


def short(number: float) -> float:
    """The number as seven digits tell it, which is what float32 has."""
    return float(f"{number:.7g}")


def table(records: Iterable[Record], header: bool) -> Iterator[bytes]:
    """A line for each record, and before them the names of the columns. Tabs and line ends in a cell
    become blanks, so that rows stay lines."""
    for record in records:
        names, values = zip(*_cells(record))
        if header:
            yield table_line(names).encode()
            header = False
        yield table_line(map(str, values)).encode()


def _cells(record: Record) -> Iterator[tuple[str, Any]]:
    for name, value in record.items():
        if isinstance(value, dict):
            yield from value.items()
        elif isinstance(value, list):
            yield from ((f"{name}_{place}", number) for place, number in enumerate(value))
        else:
            yield name, value


class Submission:
    """A line for each record with its number, from 0, and its label or score, as GLUE takes them."""

    def __init__(self) -> None:
        self._numbers = itertools.count()

    def __call__(self, records: Iterable[Record], header: bool) -> Iterator[bytes]:
        if header:
            yield table_line(("index", "prediction")).encode()
        for record, number in zip(records, self._numbers):
            yield table_line((str(number), str(record.get("label", record.get("score"))))).encode()


def json_lines(records: Iterable[Record]) -> Iterator[bytes]:
    """An object in each line, whose texts are as they were."""
    for record in records:
        yield (json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n").encode()


def tagged_lines(records: Iterable[Record], header: bool = False) -> Iterator[bytes]:
    """A token and its tag in each line, a blank line after each sentence, and no `header`; the intent of
    a sentence, if it has one, in a comment before it."""
    for record in records:
        if "intent" in record:
            yield f"# intent = {' '.join(record['intent'].split())}\n".encode()
        pairs = zip(record["tokens"], record["tags"])
        lines = [f"{token.replace(chr(9), ' ')}\t{tag}\n" for token, tag in pairs]
        yield ("".join(lines) + "\n").encode()


def array(rows_NxE: np.ndarray, total: int | None) -> Iterator[bytes]:
    """The rows as NumPy's file has them, and before them, of `total` rows in all, its header."""
    rows_NxE = np.ascontiguousarray(rows_NxE, "<f4")
    if total is not None:
        header = io.BytesIO()
        form = np.lib.format.header_data_from_array_1_0(rows_NxE)
        np.lib.format.write_array_header_1_0(
            header, {**form, "shape": (total, *rows_NxE.shape[1:])}
        )
        yield header.getvalue()
    yield rows_NxE.tobytes()
