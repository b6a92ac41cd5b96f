from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdistill.data import masking, randomness
from jaxdistill.data.randomness import Stream

PAD, CLS, SEP, MASK = 0, 2, 3, 4
VOCAB = 200
ORDINARY = np.arange(5, VOCAB, dtype=np.int32)


def _rows(batch: int, length: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows [CLS] text [SEP] text [SEP] [PAD]… of random sizes; a token divisible by 3 continues a
    word."""
    random = np.random.default_rng(seed)
    ids = np.full((batch, length), PAD, np.int32)
    for row in ids:
        size = random.integers(5, length + 1)
        row[:size] = random.choice(ORDINARY, size)
        row[0], row[random.integers(2, size - 2)], row[size - 1] = CLS, SEP, SEP
    is_text = ids >= 5
    return ids, is_text, (ids != PAD).sum(axis=1)


def _word_starts(ids: np.ndarray) -> np.ndarray:
    after_special = np.zeros_like(ids, bool)
    after_special[:, 1:] = ids[:, :-1] < 5
    return (ids % 3 != 0) | after_special


def _mask(
    ids: np.ndarray, is_text: np.ndarray, count: np.ndarray, **options: Any
) -> masking.Masked:
    defaults: dict[str, Any] = {
        "seed": 1,
        "epoch": np.zeros(len(ids), np.int64),
        "record": np.arange(len(ids)),
        "max_predictions": 10,
        "mask_rate": 0.15,
        "mask_id": MASK,
        "ordinary_ids": ORDINARY,
    }
    return masking.mask_tokens(ids, is_text, count, **(defaults | options))


def _reference(
    ids: np.ndarray, is_text: np.ndarray, count: np.ndarray, options: dict[str, Any]
) -> list[list[Any]]:
    """One row and one token at a time: for each row the masked positions and the row after
    masking."""
    results = []
    for row in range(len(ids)):
        keys = [
            randomness.position_bits(
                randomness.row_keys(1, stream, options["epoch"][row], options["record"][row]),
                ids.shape[1],
            )[0]
            for stream in (Stream.MASK_ORDER, Stream.MASK_ACTION, Stream.MASK_REPLACEMENT)
        ]
        budget = max(1, min(round(0.15 * int(count[row])), options["max_predictions"]))
        words: list[list[int]] = []
        for place in np.flatnonzero(is_text[row]):
            if options["word_starts"] is None or options["word_starts"][row, place]:
                words.append([])
            words[-1].append(int(place))
        if options["word_starts"] is None:
            order = sorted(words, key=lambda word: keys[0][word[0]])
        else:
            order = [
                words[number]
                for number in sorted(range(len(words)), key=lambda number: keys[0][number])
            ]
        shortest = min(map(len, words))
        if shortest <= options["max_predictions"]:
            budget = max(budget, shortest)
        chosen: list[int] = []
        for word in order:
            if len(chosen) + len(word) <= budget:
                chosen += word
        chosen.sort()
        masked = ids[row].copy()
        for slot, place in enumerate(chosen):
            action = randomness.to_uniform(keys[1][slot : slot + 1])[0]
            if action < 0.8:
                masked[place] = MASK
            elif action < 0.9:
                masked[place] = ORDINARY[(int(keys[2][slot]) >> 32) * len(ORDINARY) >> 32]
        results.append([chosen, masked])
    return results


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    length=st.integers(8, 70),
    predictions=st.integers(1, 12),
    whole=st.booleans(),
)
def test_equals_a_loop_over_rows(seed: int, length: int, predictions: int, whole: bool) -> None:
    ids, is_text, count = _rows(6, length, seed)
    options: dict[str, Any] = {
        "max_predictions": predictions,
        "record": np.arange(6) + seed,
        "epoch": np.arange(6) % 3,
        "word_starts": _word_starts(ids) if whole else None,
    }
    result = _mask(ids, is_text, count, **options)
    for row, (chosen, masked) in enumerate(_reference(ids, is_text, count, options)):
        filling = [0] * (predictions - len(chosen))
        assert result.mlm_positions[row].tolist() == chosen + filling
        assert result.mlm_labels[row].tolist() == ids[row, chosen].tolist() + filling
        assert result.mlm_weights[row].tolist() == [1.0] * len(chosen) + filling
        assert result.input_ids[row].tolist() == masked.tolist()


def test_shapes_and_types() -> None:
    ids, is_text, count = _rows(4, 32, 0)
    result = _mask(ids, is_text, count)
    assert (
        result.input_ids.dtype == result.mlm_positions.dtype == result.mlm_labels.dtype == np.int32
    )
    assert result.mlm_weights.dtype == np.float32
    assert (
        result.mlm_positions.shape == result.mlm_labels.shape == result.mlm_weights.shape == (4, 10)
    )


def test_statistics() -> None:
    ids, is_text, count = _rows(3000, 64, 0)
    result = _mask(ids, is_text, count)
    rows, slots = np.nonzero(result.mlm_weights)
    after = result.input_ids[rows, result.mlm_positions[rows, slots]]
    before = result.mlm_labels[rows, slots]
    assert abs((after == MASK).mean() - 0.8) < 0.01
    assert abs((after == before).mean() - 0.1) < 0.01
    replaced = after[(after != MASK) & (after != before)]
    assert abs(len(replaced) / len(after) - 0.1) < 0.01
    assert replaced.min() >= 5 and len(set(replaced.tolist())) > 150
    numbers = result.mlm_weights.sum(axis=1)
    assert (numbers == np.clip(np.rint(0.15 * count), 1, 10)).all()
    # Every position of the text is as likely as any other: first against last third of what may be
    # masked.
    share = np.zeros(2)
    for row in range(len(ids)):
        places = np.flatnonzero(is_text[row])
        chosen = result.mlm_positions[row][result.mlm_weights[row] > 0]
        share += (
            np.isin(places[: len(places) // 3], chosen).sum(),
            np.isin(places[-(len(places) // 3) :], chosen).sum(),
        )
    assert abs(share[0] / share[1] - 1) < 0.1


@pytest.mark.parametrize("whole", [False, True])
def test_only_text_is_masked(whole: bool) -> None:
    ids, is_text, count = _rows(500, 40, 1)
    result = _mask(
        ids,
        is_text,
        count,
        mask_rate=0.9,
        max_predictions=40,
        word_starts=_word_starts(ids) if whole else None,
    )
    assert (result.input_ids[~is_text] == ids[~is_text]).all()
    rows, slots = np.nonzero(result.mlm_weights)
    assert is_text[rows, result.mlm_positions[rows, slots]].all()


def test_whole_words_are_never_split() -> None:
    ids, is_text, count = _rows(1000, 64, 2)
    starts = _word_starts(ids)
    result = _mask(ids, is_text, count, word_starts=starts)
    chosen = np.zeros_like(is_text)
    rows, slots = np.nonzero(result.mlm_weights)
    chosen[rows, result.mlm_positions[rows, slots]] = True
    continues = is_text[:, 1:] & ~starts[:, 1:]
    assert continues.sum() > 1000
    assert (chosen[:, 1:] == chosen[:, :-1])[continues].all()
    numbers, wanted = result.mlm_weights.sum(axis=1), np.clip(np.rint(0.15 * count), 1, 10)
    assert numbers.min() >= 1 and (numbers == wanted).mean() > 0.9


def test_a_word_too_long_for_its_row_is_left_alone() -> None:
    ids = np.array([[CLS, 10, 12, 15, 18, 21, SEP, PAD]], np.int32)
    starts = np.array([[0, 1, 0, 0, 0, 0, 0, 0]], bool)
    is_text = ids >= 5
    too_long = _mask(ids, is_text, np.array([7]), max_predictions=4, word_starts=starts)
    assert too_long.mlm_weights.sum() == 0 and (too_long.input_ids == ids).all()
    just_fits = _mask(ids, is_text, np.array([7]), max_predictions=5, word_starts=starts)
    assert just_fits.mlm_positions.tolist() == [[1, 2, 3, 4, 5]]


def test_other_epochs_mask_otherwise() -> None:
    ids, is_text, count = _rows(50, 64, 3)
    first, same = _mask(ids, is_text, count), _mask(ids, is_text, count)
    other = _mask(ids, is_text, count, epoch=np.ones(50, np.int64))
    assert (first.input_ids == same.input_ids).all()
    assert (first.mlm_positions != other.mlm_positions).any(axis=1).mean() > 0.9
