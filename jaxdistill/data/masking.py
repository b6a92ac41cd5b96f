"""BERT's masking for masked-language modelling, over a whole batch at once, in a static width.

Devlin et al. 2019 (arXiv:1810.04805, section 3.1 task 1): of a row's n tokens, round(0.15 n) are to
be predicted; of these 80 % become [MASK], 10 % a random token, 10 % stay. n counts [CLS] and [SEP],
as BERT's data script does; those two are never masked themselves. Whole-word masking (BERT's 2019
update) chooses whole words, in random order, skipping a word that would exceed the number. Called
by `loader`."""

from __future__ import annotations

import dataclasses

import numpy as np

from jaxdistill.data import randomness
from jaxdistill.data.randomness import Stream

_NEVER = np.uint64(0xFFFFFFFFFFFFFFFF)


@dataclasses.dataclass(frozen=True)
class Masked:
    """`input_ids` int32 [B, L] after masking; `mlm_positions` int32 [B, P] ascending, then zeros;
    `mlm_labels` int32 [B, P], the ids that stood there, then zeros; `mlm_weights` float32 [B, P], 1
    for a prediction, 0 for filling."""

    input_ids: np.ndarray
    mlm_positions: np.ndarray
    mlm_labels: np.ndarray
    mlm_weights: np.ndarray


def mask_tokens(
    input_ids: np.ndarray,
    is_text: np.ndarray,
    num_tokens: np.ndarray,
    *,
    seed: int,
    epoch: np.ndarray,
    record: np.ndarray,
    max_predictions: int,
    mask_rate: float,
    mask_id: int,
    ordinary_ids: np.ndarray,
    word_starts: np.ndarray | None = None,
) -> Masked:
    """Masks min(round(mask_rate * n), max_predictions) tokens of each row, at least one where there
    is any text.

    Args:
        input_ids: int32 [B, L], [CLS] A [SEP] …
        is_text: bool [B, L], the tokens that may be masked.
        num_tokens: int [B], n: the row's tokens with [CLS] and [SEP], without pads.
        seed, epoch, record: what the draws are a function of; integer arrays [B].
        max_predictions: P, the static width.
        mask_rate: the fraction to predict.
        mask_id: the id of [MASK].
        ordinary_ids: int32 [V'], the ids a random replacement may be: all but the special tokens.
        word_starts: bool [B, L], true at the first token of each word (and of each segment); given, whole words are
            masked. A row whose shortest word is longer than its number gets that one word, if P allows.
    """
    length = input_ids.shape[1]
    budget = np.clip(np.rint(mask_rate * num_tokens), 1, max_predictions).astype(np.int64)
    bits = randomness.position_bits(
        randomness.row_keys(seed, Stream.MASK_ORDER, epoch, record), length
    )
    if word_starts is None:
        chosen = _choose_tokens(bits, is_text, budget)
    else:
        chosen = _choose_words(bits, is_text, word_starts, budget, max_predictions)

    rows, columns = np.nonzero(chosen)
    counts = np.bincount(rows, minlength=len(chosen))
    slots = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    shape = (len(chosen), max_predictions)
    positions, labels = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    weights = np.zeros(shape, np.float32)
    positions[rows, slots] = columns
    labels[rows, slots] = input_ids[rows, columns]
    weights[rows, slots] = 1.0

    action_keys = randomness.row_keys(seed, Stream.MASK_ACTION, epoch, record)
    action = randomness.to_uniform(randomness.position_bits(action_keys, max_predictions))[
        rows, slots
    ]
    word_keys = randomness.row_keys(seed, Stream.MASK_REPLACEMENT, epoch, record)
    word_bits = randomness.position_bits(word_keys, max_predictions)[rows, slots]
    replacement = ordinary_ids[randomness.to_integers(word_bits, len(ordinary_ids))]
    masked = input_ids.copy()
    kept = np.where(action < 0.9, replacement, masked[rows, columns])
    masked[rows, columns] = np.where(action < 0.8, mask_id, kept)
    return Masked(masked, positions, labels, weights)


def _choose_tokens(bits: np.ndarray, is_text: np.ndarray, budget: np.ndarray) -> np.ndarray:
    """The `budget` tokens with the smallest random keys: bool [B, L]."""
    keys = np.where(is_text, bits, _NEVER)
    last = np.minimum(budget, keys.shape[1]) - 1
    threshold = np.take_along_axis(np.sort(keys, axis=1), last[:, None], axis=1)
    # `is_text` once more: in a row with less text than its budget the threshold is the mark of a
    # non-candidate.
    return (keys <= threshold) & is_text


def _choose_words(
    bits: np.ndarray,
    is_text: np.ndarray,
    word_starts: np.ndarray,
    budget: np.ndarray,
    max_predictions: int,
) -> np.ndarray:
    """Whole words in random order, each taken if it still fits: bool [B, L]."""
    batch, length = is_text.shape
    rows = np.arange(batch)
    starts = word_starts & is_text
    word_of = np.cumsum(starts, axis=1) - 1  # the number of the word each token belongs to
    sizes = np.zeros((batch, length), np.int64)
    text_rows, text_columns = np.nonzero(is_text)
    np.add.at(sizes, (text_rows, word_of[text_rows, text_columns]), 1)
    num_words = starts.sum(axis=1)
    exists = np.arange(length)[None, :] < num_words[:, None]

    shortest = np.where(exists, sizes, length).min(axis=1)
    budget = np.maximum(budget, np.where(shortest <= max_predictions, shortest, 0))
    keys = np.where(exists, bits, _NEVER)
    order = np.argsort(keys, axis=1)
    left = budget.copy()
    taken = np.zeros((batch, length), bool)
    for rank in range(int(num_words.max(initial=0))):
        word = order[:, rank]
        size = sizes[rows, word]
        fits = (size > 0) & (size <= left)
        taken[rows, word] = fits
        left -= np.where(fits, size, 0)
        if not left.any():
            break
    return np.take_along_axis(taken, np.maximum(word_of, 0), axis=1) & is_text
