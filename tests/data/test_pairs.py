from __future__ import annotations

import numpy as np
import pytest

from jaxdistill.data import pairs, randomness
from jaxdistill.data.pairs import SpecialIds
from jaxdistill.data.randomness import Stream
from jaxdistill.data.spans import SpanTable

SPECIAL = SpecialIds(pad=0, unk=1, cls=2, sep=3, mask=4)
LENGTH = 32


def _table(seed: int = 0, documents: int = 12) -> tuple[SpanTable, list[dict[str, np.ndarray]]]:
    """Records whose tokens are all different, so that a token says where it is from."""
    random = np.random.default_rng(seed)
    records: list[dict[str, np.ndarray]] = []
    token = 100
    for _ in range(documents):
        count = int(random.integers(1, 6))
        document = np.array([len(records), len(records) + count])
        for _ in range(count):
            size = int(random.integers(2, LENGTH - 2))
            breaks = np.sort(
                random.choice(
                    np.arange(1, size), min(size - 1, int(random.integers(1, 4))), replace=False
                )
            )
            records.append(
                {"tokens": np.arange(token, token + size), "breaks": breaks, "document": document}
            )
            token += size
    return SpanTable.from_records(records), records


def _make(table: SpanTable, record: np.ndarray, epoch: np.ndarray, seed: int = 5) -> pairs.Rows:
    other = pairs.draw_other_records(
        table.document_begin[record], table.document_end[record], len(table), seed, epoch, record
    )
    is_random = pairs.draw_is_random(seed, epoch, record)
    return pairs.make_pairs(
        table, record, table, other, other, is_random=is_random, length=LENGTH, special=SPECIAL, seed=seed, epoch=epoch,
        record=record,
    )  # fmt: skip


def _one(key: np.ndarray, bound: int) -> int:
    return (int(key[0]) >> 32) * bound >> 32


def _reference(
    records: list[dict[str, np.ndarray]], record: int, epoch: int, seed: int = 5
) -> dict[str, list[int]]:
    """One row, one token at a time."""

    def key(stream: Stream) -> np.ndarray:
        return randomness.row_keys(seed, stream, epoch, record)

    own = records[record]
    cut = int(own["breaks"][_one(key(Stream.BREAK), len(own["breaks"]))])
    a, b, label = list(own["tokens"][:cut]), list(own["tokens"][cut:]), 0
    if int(key(Stream.IS_RANDOM)[0]) >> 63:
        begin, end = own["document"]
        elsewhere = [number for number in range(len(records)) if not begin <= number < end]
        number = elsewhere[_one(key(Stream.OTHER_RECORD), len(elsewhere))]
        other = records[number]
        stream = list(other["tokens"])
        if number + 1 < other["document"][1]:
            stream += list(records[number + 1]["tokens"])
        early = [int(place) for place in other["breaks"] if len(stream) - place >= len(b)] or [
            int(other["breaks"][0])
        ]
        start = early[_one(key(Stream.OTHER_BREAK), len(early))]
        b, label = stream[start : start + len(b)], 1
    ids = [SPECIAL.cls, *a, SPECIAL.sep, *b, SPECIAL.sep]
    types = [0] * (len(a) + 2) + [1] * (len(b) + 1)
    fill = [0] * (LENGTH - len(ids))
    return {
        "input_ids": [int(i) for i in ids] + fill,
        "token_type_ids": types + fill,
        "attention_mask": [1] * len(ids) + fill,
        "starts": [1, len(a) + 2],
        "nsp_labels": [label],
    }


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_equals_a_loop_over_rows(seed: int) -> None:
    table, records = _table(seed)
    record = np.tile(np.arange(len(table)), 6)
    epoch = np.repeat(np.arange(6), len(table))
    rows = _make(table, record, epoch)
    for row in range(len(record)):
        expected = _reference(records, int(record[row]), int(epoch[row]))
        for name in ("input_ids", "token_type_ids", "attention_mask"):
            assert getattr(rows, name)[row].tolist() == expected[name], (name, row)
        assert rows.nsp_labels[row] == expected["nsp_labels"][0]
        assert np.flatnonzero(rows.segment_starts[row]).tolist() == expected["starts"]
        assert rows.is_text[row].tolist() == [token >= 100 for token in expected["input_ids"]]


def test_labels_are_balanced_and_a_random_next_is_of_another_document() -> None:
    table, records = _table(documents=30)
    document_of = {int(t): int(r["document"][0]) for r in records for t in r["tokens"]}
    epochs = 60
    record = np.tile(np.arange(len(table)), epochs)
    rows = _make(table, record, np.repeat(np.arange(epochs), len(table)))
    assert abs(rows.nsp_labels.mean() - 0.5) < 0.03
    for row in range(len(record)):
        a, b = (
            rows.input_ids[row][rows.is_text[row] & (rows.token_type_ids[row] == kind)]
            for kind in (0, 1)
        )
        same = document_of[int(a[0])] == document_of[int(b[0])]
        assert same == (rows.nsp_labels[row] == 0)
        if same:
            assert b[0] == a[-1] + 1
        assert len({document_of[int(token)] for token in b}) == 1


def test_random_records_come_from_the_whole_corpus_evenly() -> None:
    table, _ = _table(documents=8)
    count = 40_000
    record = np.full(count, 3)
    drawn = pairs.draw_other_records(
        table.document_begin[record],
        table.document_end[record],
        len(table),
        0,
        np.arange(count),
        record,
    )
    begin, end = int(table.document_begin[3]), int(table.document_end[3])
    counts = np.bincount(drawn, minlength=len(table))
    assert counts[begin:end].sum() == 0
    outside = np.delete(counts, np.arange(begin, end))
    assert outside.min() > 0.85 * outside.mean() and outside.max() < 1.15 * outside.mean()


def test_single_segments() -> None:
    table, records = _table()
    rows = pairs.make_singles(table, np.arange(len(table)), length=LENGTH, special=SPECIAL)
    for row, record in enumerate(records):
        size = len(record["tokens"])
        expected = [SPECIAL.cls, *record["tokens"].tolist(), SPECIAL.sep] + [0] * (
            LENGTH - size - 2
        )
        assert rows.input_ids[row].tolist() == expected
        assert rows.attention_mask[row].sum() == size + 2
    assert rows.token_type_ids.sum() == 0 and rows.nsp_labels.sum() == 0
