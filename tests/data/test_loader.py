from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from jaxdistill.data.loader import Batch, heldout_batches, make_loader
from jaxdistill.data.prepared import PreparedText
from jaxdistill.data.records import open_reader
from jaxdistill.errors import BadInput

SHAPES = {
    "input_ids": (np.int32, 64), "attention_mask": (np.int32, 64), "token_type_ids": (np.int32, 64),
    "mlm_positions": (np.int32, 10), "mlm_labels": (np.int32, 10), "mlm_weights": (np.float32, 10),
    "nsp_labels": (np.int32, None), "example_weights": (np.float32, None),
}  # fmt: skip


def _batches(prepared: PreparedText, count: int, **options: Any) -> list[Batch]:
    defaults: dict[str, Any] = {
        "batch_size": 16,
        "seed": 3,
        "max_predictions": 10,
        "prefetch": False,
    }
    return list(itertools.islice(make_loader(prepared, **(defaults | options)), count))


def _assert_equal(one: list[Batch], other: list[Batch]) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def _unmasked(batch: Batch) -> np.ndarray:
    ids = batch["input_ids"].copy()
    rows, slots = np.nonzero(batch["mlm_weights"])
    ids[rows, batch["mlm_positions"][rows, slots]] = batch["mlm_labels"][rows, slots]
    return ids


def test_shapes_and_types(prepared: PreparedText) -> None:
    (batch,) = _batches(prepared, 1)
    assert batch.keys() == SHAPES.keys()
    for key, (dtype, width) in SHAPES.items():
        assert batch[key].dtype == dtype, key
        assert batch[key].shape == ((16,) if width is None else (16, width)), key
    assert (batch["example_weights"] == 1).all()
    special = prepared.special
    assert (batch["input_ids"][:, 0] == special.cls).all()
    ids = _unmasked(batch)
    assert ((ids == special.sep).sum(axis=1) == 2).all()
    assert ((ids != special.pad) == (batch["attention_mask"] == 1)).all()


@pytest.mark.parametrize("prefetch", [False, True])
def test_resuming_continues_to_the_bit(prepared: PreparedText, prefetch: bool) -> None:
    per_epoch = -(-prepared.num_records // 16)
    whole = _batches(prepared, per_epoch + 4, prefetch=prefetch)
    for k in (1, 3, per_epoch + 1):
        _assert_equal(
            _batches(prepared, 3, start_example=16 * k, prefetch=prefetch), whole[k : k + 3]
        )
    # Another batch size sees the same examples from there on.
    other = _batches(prepared, 2, batch_size=8, start_example=16)
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
    for nsp in (True, False):
        in_memory = _batches(prepared, 6, in_memory=True, nsp=nsp)
        _assert_equal(_batches(prepared, 6, in_memory=False, nsp=nsp), in_memory)


def test_an_epoch_holds_every_record_once(prepared: PreparedText) -> None:
    total = prepared.num_records
    table, _ = open_reader(prepared).fetch(np.arange(total))
    wanted = sorted(
        tuple(table.tokens[a:b].tolist()) for a, b in itertools.pairwise(table.token_offsets)
    )
    orders = []
    for epoch in (0, 1):
        (batch,) = _batches(prepared, 1, batch_size=total, start_example=epoch * total, nsp=False)
        ids = _unmasked(batch)
        seen = [
            tuple(row[1 : int(n) - 1].tolist())
            for row, n in zip(ids, batch["attention_mask"].sum(axis=1))
        ]
        assert sorted(seen) == wanted
        orders.append(seen)
    assert orders[0] != orders[1] and orders[0] != wanted


def test_epochs_differ_only_if_dynamic(prepared: PreparedText) -> None:
    total = prepared.num_records

    def epoch(number: int, **options: Any) -> Batch:
        return _batches(
            prepared, 1, batch_size=total, start_example=number * total, shuffle=False, **options
        )[0]

    first, second = epoch(0), epoch(1)
    assert (first["mlm_positions"] != second["mlm_positions"]).any(axis=1).mean() > 0.9
    assert 0.3 < (first["nsp_labels"] != second["nsp_labels"]).mean() < 0.7
    _assert_equal([epoch(0, dynamic=False)], [first])
    _assert_equal([epoch(1, dynamic=False)], [first])


def test_statistics(prepared: PreparedText) -> None:
    batches = _batches(prepared, 60, batch_size=64)
    labels = np.concatenate([b["nsp_labels"] for b in batches])
    assert abs(labels.mean() - 0.5) < 0.03
    for batch in batches:
        n = batch["attention_mask"].sum(axis=1)
        wanted = np.minimum(np.clip(np.rint(0.15 * n), 1, 10), n - 3)
        assert (batch["mlm_weights"].sum(axis=1) == wanted).all()
    # The label hardly shows in the length of B, though these documents are short (0.16 if B started
    # anywhere).
    sizes = np.concatenate([(b["token_type_ids"]).sum(axis=1) for b in batches])
    assert abs(sizes[labels == 0].mean() / sizes[labels == 1].mean() - 1) < 0.13


def test_whole_words(prepared: PreparedText) -> None:
    continuation = np.isin(np.arange(prepared.vocab_size), prepared.continuation_ids)
    split = 0
    for batch in _batches(prepared, 10, whole_word=True):
        ids = _unmasked(batch)
        chosen = np.zeros(ids.shape, bool)
        rows, slots = np.nonzero(batch["mlm_weights"])
        chosen[rows, batch["mlm_positions"][rows, slots]] = True
        inside = continuation[ids[:, 1:]] & ~np.isin(ids[:, :-1], prepared.special_ids)
        split += inside.sum()
        assert (chosen[:, 1:] == chosen[:, :-1])[inside].all()
    assert split > 100


def test_seeds_differ(prepared: PreparedText) -> None:
    (one,), (other,) = _batches(prepared, 1), _batches(prepared, 1, seed=4)
    assert (one["input_ids"] != other["input_ids"]).any(axis=1).all()


@pytest.mark.parametrize("hosts", [1, 2])
def test_heldout_is_one_pass(prepared: PreparedText, hosts: int) -> None:
    options: dict[str, Any] = {"batch_size": 32, "seed": 3, "max_predictions": 10}
    parts = [
        list(heldout_batches(prepared, process_index=p, process_count=hosts, **options))
        for p in range(hosts)
    ]
    assert {len(part) for part in parts} == {-(-prepared.num_records // 32)}
    joined = [
        {key: np.concatenate([part[k][key] for part in parts]) for key in parts[0][k]}
        for k in range(len(parts[0]))
    ]
    weights = np.concatenate([batch["example_weights"] for batch in joined])
    assert weights.sum() == prepared.num_records and (np.diff(weights) <= 0).all()
    assert joined[-1]["mlm_weights"][joined[-1]["example_weights"] == 0].sum() == 0
    assert all(len(batch["input_ids"]) == 32 for batch in joined)
    # The same records in the same order as an unshuffled loader's first epoch.
    for batch, train in zip(
        joined[:-1], _batches(prepared, len(joined) - 1, batch_size=32, shuffle=False)
    ):
        _assert_equal([batch], [train])
    _assert_equal(list(heldout_batches(prepared, **options)), joined)


def test_a_large_heldout_set_is_sampled(prepared: PreparedText) -> None:
    options: dict[str, Any] = {"batch_size": 16, "seed": 3, "max_predictions": 10}
    few = list(heldout_batches(prepared, max_examples=50, **options))
    assert [batch["example_weights"].sum() for batch in few] == [16, 16, 16, 2]
    assert few[-1]["example_weights"][:2].all() and not few[-1]["mlm_weights"][2:].any()
    _assert_equal(few[:3], _batches(prepared, 3, batch_size=16, seed=3, max_predictions=10))
    whole = list(heldout_batches(prepared, max_examples=prepared.num_records, **options))
    _assert_equal(whole, list(heldout_batches(prepared, **options)))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"process_count": 3}, ["batch_size=16", "3 hosts", "18"]),
        ({"process_index": 2, "process_count": 2}, ["process_index=2"]),
        ({"max_predictions": 0}, ["max_predictions=0"]),
        ({"max_predictions": 65}, ["max_predictions=65", "64"]),
        ({"mask_rate": 15}, ["mask_rate=15", "0.15"]),
        ({"start_example": -1}, ["start_example=-1"]),
    ],
)
def test_bad_settings(prepared: PreparedText, options: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(BadInput) as error:
        _batches(prepared, 1, **options)
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)
