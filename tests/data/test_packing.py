"""Bins and packed rows: every record once, nothing too long, and each segment the row that it would
have been alone."""

from __future__ import annotations

import dataclasses
import itertools
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdistill.data import packing
from jaxdistill.data.loader import Batch, make_loader, packing_plan
from jaxdistill.data.prepared import PreparedText
from jaxdistill.data.records import open_reader, record_sizes
from jaxdistill.errors import BadInput

S = packing.segments_a_row(64)


def _lengths(records: int, longest: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return np.where(random.random(records) < 0.4, longest, random.integers(4, longest + 1, records))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=80), st.integers(1, 5), st.integers(0, 3))
def test_an_epoch_holds_every_record_once(
    lengths: list[int], max_segments: int, epoch: int
) -> None:
    sizes = np.array(lengths)
    plan = packing.make_plan(sizes, 20, 7, max_segments)
    bins = np.arange(plan.num_bins)
    row, record = plan.records(bins, np.full_like(bins, epoch))
    assert sorted(record.tolist()) == list(range(len(sizes)))
    assert (np.diff(row) >= 0).all() and set(row.tolist()) == set(bins.tolist())
    assert np.bincount(row, sizes[record]).max() <= 20 and np.bincount(row).max() <= max_segments
    # A bin of one row is left over only where no earlier bin had room for it, or a slot.
    room, used = 20 - np.bincount(row, sizes[record]), np.bincount(row)
    shortest = np.array([sizes[record[row == b]].min() for b in bins])
    assert all(
        shortest[b] > room[a] or used[a] == max_segments
        for a, b in itertools.combinations(bins, 2)
        if used[b] == 1
    )


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=60), st.integers(1, 8), st.integers(1, 9))
def test_texts_are_shared_out_evenly(lengths: list[int], num_rows: int, more: int) -> None:
    sizes, most = np.array(lengths), -(-len(lengths) // num_rows) + more
    row = packing.share_out(sizes, num_rows, most)
    assert np.bincount(row, minlength=num_rows).max() <= most and row.max() < num_rows
    if (np.bincount(row) < most).all():  # no row ran out of places for texts
        best = max(sizes.max(), sizes.sum() / num_rows)  # none can do better
        assert np.bincount(row, sizes).max() <= best + sizes.max() * (1 - 1 / num_rows)


def test_bins_are_a_function_of_number_seed_and_epoch() -> None:
    lengths = _lengths(500, 64)
    plan, other = (packing.make_plan(lengths, 64, seed, S) for seed in (1, 2))

    def row(plan: packing.Plan, number: int, epoch: int) -> list[int]:
        return plan.records(np.array([number]), np.array([epoch]))[1].tolist()

    numbers = np.arange(plan.num_bins)
    every, record = plan.records(numbers[::-1], np.full_like(numbers, 5))
    for place in (0, 7, 100):  # any part, in any order, is the same
        assert record[every == place].tolist() == row(plan, plan.num_bins - 1 - place, 5)
    # Other companions in another epoch or with another seed, of the same lengths.
    several = [n for n in numbers if len(row(plan, n, 0)) > 1]
    assert np.mean([row(plan, n, 0) == row(plan, n, 1) for n in several]) < 0.2
    assert np.mean([row(plan, n, 0) == row(other, n, 0) for n in several]) < 0.2
    assert all(
        lengths[row(plan, n, 0)].tolist() == lengths[row(plan, n, 1)].tolist() for n in several
    )


def test_little_room_is_left() -> None:
    lengths = _lengths(20_000, 128)
    assert lengths.sum() / packing.make_plan(lengths, 128, 0, 8).num_bins / 128 > 0.98


@pytest.mark.parametrize("rate", [0.01, 0.15, 0.3, 0.6])
def test_predictions_always_fit(rate: float) -> None:
    """Any bin's predictions, token by token, against the bound; and the bound is not generous."""
    random = np.random.default_rng(0)
    bound = packing.predictions_a_row(64, 60, rate, S)
    for _ in range(500):
        cuts = np.sort(random.integers(0, 65, S + 1))
        sizes = np.diff(np.concatenate([cuts, [64]]))[:S]
        sizes = sizes[sizes >= 4]
        assert np.maximum(1, np.rint(rate * sizes)).sum() <= bound
    assert bound <= min(64, rate * 64 + S)


def _batches(prepared: PreparedText, count: int, **options: Any) -> list[Batch]:
    defaults: dict[str, Any] = {
        "batch_size": 16,
        "seed": 3,
        "max_predictions": 10,
        "prefetch": False,
        "pack": True,
    }
    return list(itertools.islice(make_loader(prepared, **(defaults | options)), count))


def _assert_equal(one: list[Batch], other: list[Batch]) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def _examples(batch: Batch, unpacked: bool = False) -> list[tuple[Any, ...]]:
    """Every example of a batch in a comparable form: ids, types, {masked place: word}, label."""
    found = []
    for r in range(len(batch["input_ids"])):
        segments = batch["attention_mask"][r] if unpacked else batch["segment_ids"][r]
        predicted = batch["mlm_weights"][r] > 0
        words = dict(
            zip(
                batch["mlm_positions"][r][predicted].tolist(),
                batch["mlm_labels"][r][predicted].tolist(),
            )
        )
        for s in range(segments.max()):
            places = np.flatnonzero(segments == s + 1)
            begin = 0 if unpacked else batch["cls_positions"][r, s]
            assert places.tolist() == list(range(begin, begin + len(places)))
            if not unpacked:
                assert batch["position_ids"][r, places].tolist() == list(range(len(places)))
                assert batch["example_weights"][r, s] == 1
            own = sorted((place - begin, word) for place, word in words.items() if place in places)
            label = batch["nsp_labels"][r] if unpacked else batch["nsp_labels"][r, s]
            fields = (batch[name][r, places].tolist() for name in ("input_ids", "token_type_ids"))
            found.append((*fields, own, int(label)))
    return sorted(found)


@pytest.mark.parametrize("options", [{}, {"nsp": False}, {"whole_word": True}], ids=str)
def test_an_epoch_of_packed_rows_holds_the_rows_of_an_epoch(
    prepared: PreparedText, options: dict[str, Any]
) -> None:
    """The same pairs, masks and labels as without packing, each example once: only where they stand
    differs."""
    rows = packing_plan(prepared, seed=3, nsp=options.get("nsp", True)).num_bins
    total = prepared.num_records
    assert rows < 0.9 * total
    for epoch in (0, 1):
        (packed,) = _batches(prepared, 1, batch_size=rows, start_example=epoch * rows, **options)
        (plain,) = _batches(
            prepared, 1, batch_size=total, start_example=epoch * total, pack=False, **options
        )
        assert (packed["attention_mask"] == (packed["segment_ids"] > 0)).all()
        assert (packed["input_ids"][packed["segment_ids"] == 0] == prepared.special.pad).all()
        assert packed["mlm_weights"].sum() == plain["mlm_weights"].sum()
        assert packed["example_weights"].sum() == total
        assert _examples(packed) == _examples(plain, unpacked=True)


def test_shapes_and_types(prepared: PreparedText) -> None:
    (batch,) = _batches(prepared, 1)
    predictions = packing.predictions_a_row(64, 10, 0.15, S)
    widths = dict.fromkeys(
        ("input_ids", "attention_mask", "token_type_ids", "segment_ids", "position_ids"), 64
    )
    widths |= dict.fromkeys(("mlm_positions", "mlm_labels", "mlm_weights"), predictions)
    widths |= dict.fromkeys(("cls_positions", "nsp_labels", "example_weights"), S)
    assert batch.keys() == widths.keys()
    for name, width in widths.items():
        assert batch[name].shape == (16, width), name
        assert batch[name].dtype == (np.float32 if name.endswith("weights") else np.int32), name
    assert (np.diff(batch["mlm_positions"], axis=1)[batch["mlm_weights"][:, 1:] > 0] > 0).all()


@pytest.mark.parametrize("prefetch", [False, True])
def test_resuming_continues_to_the_bit(prepared: PreparedText, prefetch: bool) -> None:
    rows = packing_plan(prepared, seed=3).num_bins
    per_epoch = -(-rows // 16)
    whole = _batches(prepared, per_epoch + 4, prefetch=prefetch)
    for k in (1, 3, per_epoch + 1):
        _assert_equal(
            _batches(prepared, 3, start_example=16 * k, prefetch=prefetch), whole[k : k + 3]
        )
    other = _batches(
        prepared, 2, batch_size=8, start_example=16
    )  # another batch size, the same rows from there on
    np.testing.assert_array_equal(
        np.concatenate([b["input_ids"] for b in other]), whole[1]["input_ids"]
    )


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_share_each_global_batch(prepared: PreparedText, hosts: int) -> None:
    whole = _batches(prepared, 3, start_example=48)
    parts = [
        _batches(prepared, 3, start_example=48, process_index=p, process_count=hosts)
        for p in range(hosts)
    ]
    joined = [
        {key: np.concatenate([part[k][key] for part in parts]) for key in whole[k]}
        for k in range(3)
    ]
    _assert_equal(joined, whole)


def test_reading_from_disk_gives_the_same_batches(prepared: PreparedText) -> None:
    _assert_equal(_batches(prepared, 4, in_memory=False), _batches(prepared, 4, in_memory=True))


def test_sizes_are_those_of_the_records(prepared: PreparedText, tmp_path: Path) -> None:
    """As written by `prepare`, or counted where an older set has no such file; a damaged one is
    refused."""
    table, _ = open_reader(prepared).fetch(np.arange(prepared.num_records))
    np.testing.assert_array_equal(record_sizes(prepared), np.diff(table.token_offsets))
    older = dataclasses.replace(
        prepared, records_path=str(tmp_path / Path(prepared.records_path).name)
    )
    shutil.copytree(prepared.records_path, older.records_path)
    file = Path(older.records_path) / "record_sizes.npy"
    whole = file.read_bytes()
    for damaged in (whole[:40], whole[:-8], b"", whole[:-1] + b"\x01"):
        file.write_bytes(damaged)
        with pytest.raises(BadInput, match="record_sizes.npy.*delete it"):
            record_sizes(older)
    file.unlink()
    np.testing.assert_array_equal(record_sizes(older), record_sizes(prepared))


def test_a_prediction_without_room_is_not_masked(prepared: PreparedText) -> None:
    """Whole words may want more predictions than a packed row has: the rest stand as they were."""
    (plain,) = _batches(prepared, 1, pack=False, batch_size=2)
    size = plain["attention_mask"].sum(axis=1)
    assert size.sum() <= 128
    wide = {
        name: np.pad(x, ((0, 0), (0, 64))) if x.shape[1:] == (64,) else x
        for name, x in plain.items()
    }
    row, total = np.zeros(2, np.int64), int(plain["mlm_weights"].sum())
    options: dict[str, Any] = {"num_rows": 1, "pad": 0, "max_segments": S}
    whole, cut = (packing.join(wide, row, predictions=p, **options) for p in (total, total - 2))
    assert whole["mlm_weights"].sum() == total and cut["mlm_weights"].sum() == total - 2
    lost = whole["mlm_positions"][0, -2:]
    assert cut["input_ids"][0, lost].tolist() == whole["mlm_labels"][0, -2:].tolist()
    kept = np.setdiff1d(np.arange(128), lost)
    assert (cut["input_ids"][0, kept] == whole["input_ids"][0, kept]).all()
    assert (cut["mlm_positions"] == whole["mlm_positions"][:, :-2]).all()


def test_bad_settings_are_refused_as_without_packing(prepared: PreparedText) -> None:
    with pytest.raises(BadInput, match="max_predictions=65"):
        _batches(prepared, 1, max_predictions=65)
