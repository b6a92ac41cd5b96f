"""BERT's sentence pairs, made when a batch is read: A = a record up to a random break, B = what
follows or not.

After Devlin et al. 2019 (arXiv:1810.04805, section 3.1 task 2 and appendix A.2) and its data
script, with these departures, all so that nothing but the text itself tells a true next from a
random one:

* Records are filled to the last token and the text goes on in the next record, instead of cutting the tail off. So
  A's start and B's end may be in mid-sentence, for both labels alike; B's start is a sentence start for both.
* Half of *all* rows are random, also those of one sentence: such a record is split between words (the script makes all
  of these random).
* A random B is as long as the true one would have been (the script fills up to the length limit), unless its document
  is shorter. It starts at a uniformly drawn break, of those that leave enough text, of a uniformly drawn record of the
  whole corpus (the script draws a document first, so that short documents count as much as long ones), never of A's
  own document.
* The true continuation that a random B displaces is not put back into the same epoch; it is seen in other epochs,
  when the row draws the other label.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from jaxdistill.data import randomness
from jaxdistill.data.randomness import Stream
from jaxdistill.data.spans import SpanTable


@dataclasses.dataclass(frozen=True)
class Rows:
    """B rows of L tokens, before masking: [CLS] A [SEP] B [SEP] [PAD]… (without pairs: [CLS] A
    [SEP] [PAD]…).

    `input_ids`, `attention_mask`, `token_type_ids`: int32 [B, L]. `is_text`: bool [B, L], true
    where a token of the text stands (neither [CLS], [SEP] nor [PAD]). `segment_starts`: bool [B,
    L], true at the first token of A and of B. `nsp_labels`: int32 [B], 0 = B follows A, 1 = B is
    from elsewhere."""

    input_ids: np.ndarray
    attention_mask: np.ndarray
    token_type_ids: np.ndarray
    is_text: np.ndarray
    segment_starts: np.ndarray
    nsp_labels: np.ndarray


@dataclasses.dataclass(frozen=True)
class SpecialIds:
    """The vocabulary's ids of the tokens that BERT's inputs are made with."""

    pad: int
    unk: int
    cls: int
    sep: int
    mask: int


def draw_other_records(
    document_begin: np.ndarray,
    document_end: np.ndarray,
    num_records: int,
    seed: int,
    epoch: np.ndarray,
    record: np.ndarray,
) -> np.ndarray:
    """For each row, a record drawn uniformly from the corpus without the row's own document: int64
    [B].

    Args:
        document_begin, document_end: int64 [B], the records of the row's document; must not be the whole corpus.
        num_records: how many records the corpus has.
        seed, epoch, record: what the draw is a function of.
    """
    own = document_end - document_begin
    bits = randomness.row_keys(seed, Stream.OTHER_RECORD, epoch, record)
    drawn = randomness.to_integers(bits, num_records - own)
    return np.where(
        drawn >= document_begin, drawn + own, drawn
    )  # steps over the document's own range


def draw_is_random(seed: int, epoch: np.ndarray, record: np.ndarray) -> np.ndarray:
    """Which rows get a random next: bool [B], true for half of them."""
    return (randomness.row_keys(seed, Stream.IS_RANDOM, epoch, record) >> np.uint64(63)).astype(
        bool
    )


def _draw_break(
    table: SpanTable, rows: np.ndarray, latest: np.ndarray | None, bits: np.ndarray
) -> np.ndarray:
    """One of each record's breaks, not after `latest` unless there is no other: its place in the
    tokens, int64 [B]."""
    begin, end = table.break_offsets[rows], table.break_offsets[rows + 1]
    if latest is not None:
        end = np.clip(np.searchsorted(table.breaks, latest, side="right"), begin + 1, end)
    return table.breaks[begin + randomness.to_integers(bits, end - begin)]


def make_pairs(
    table: SpanTable,
    rows: np.ndarray,
    other_table: SpanTable,
    other_rows: np.ndarray,
    other_records: np.ndarray,
    *,
    is_random: np.ndarray,
    length: int,
    special: SpecialIds,
    seed: int,
    epoch: np.ndarray,
    record: np.ndarray,
) -> Rows:
    """Splits each record at a random break and puts the rest, or a random span where `is_random`,
    behind it.

    Args:
        table, rows: where each row's own record stands: `rows` int64 [B] are places in `table`.
        other_table, other_rows, other_records: the records to take a random next from: their places in `other_table`
            (where the corpus's following record, if it is of the same document, stands right behind) and their numbers
            in the corpus, int64 [B]. Ignored where `is_random` is false.
        is_random: bool [B].
        length: L; no record is longer than L - 3.
        special: the ids to frame the text with.
        seed, epoch, record: what the draws are a function of; int64 [B].
    """
    start_a = table.token_offsets[rows]
    size = table.token_offsets[rows + 1] - start_a
    size_a = (
        _draw_break(table, rows, None, randomness.row_keys(seed, Stream.BREAK, epoch, record))
        - start_a
    )
    rest = size - size_a

    # A random B is to be as long as the true one: it may run on into the next record of its
    # document, and starts early enough at the document's end.
    runs_on = other_records + 1 < other_table.document_end[other_rows]
    end_other = other_table.token_offsets[np.where(runs_on, other_rows + 2, other_rows + 1)]
    other_bits = randomness.row_keys(seed, Stream.OTHER_BREAK, epoch, record)
    start_other = _draw_break(other_table, other_rows, end_other - rest, other_bits)
    size_b = np.where(is_random, np.minimum(rest, end_other - start_other), rest)

    places = np.arange(length)[None, :]
    in_a = (places >= 1) & (places <= size_a[:, None])
    place_b = (size_a + 2)[:, None]
    in_b = (places >= place_b) & (places < place_b + size_b[:, None])
    input_ids = np.full((len(rows), length), special.pad, np.int32)
    own = in_a | (in_b & ~is_random[:, None])
    # Behind A stands [SEP], so within one record B's tokens come one place later than A's.
    sources = (start_a[:, None] + places - 1) - (places > size_a[:, None])
    input_ids[own] = table.tokens[sources[own]]
    foreign = in_b & is_random[:, None]
    input_ids[foreign] = other_table.tokens[((start_other - size_a - 2)[:, None] + places)[foreign]]

    every = np.arange(len(rows))
    input_ids[:, 0] = special.cls
    input_ids[every, size_a + 1] = special.sep
    input_ids[every, size_a + size_b + 2] = special.sep
    total = (size_a + size_b + 3)[:, None]
    return Rows(
        input_ids=input_ids,
        attention_mask=(places < total).astype(np.int32),
        token_type_ids=((places >= place_b) & (places < total)).astype(np.int32),
        is_text=in_a | in_b,
        segment_starts=(places == 1) | (places == place_b),
        nsp_labels=is_random.astype(np.int32),
    )


def make_singles(table: SpanTable, rows: np.ndarray, *, length: int, special: SpecialIds) -> Rows:
    """Rows of one segment, for objectives without next-sentence prediction. Arguments as in
    `make_pairs`."""
    start = table.token_offsets[rows]
    size = table.token_offsets[rows + 1] - start
    places = np.arange(length)[None, :]
    is_text = (places >= 1) & (places <= size[:, None])
    input_ids = np.full((len(rows), length), special.pad, np.int32)
    input_ids[is_text] = table.tokens[(start[:, None] + places - 1)[is_text]]
    input_ids[:, 0] = special.cls
    input_ids[np.arange(len(rows)), size + 1] = special.sep
    return Rows(
        input_ids=input_ids,
        attention_mask=(places < (size + 2)[:, None]).astype(np.int32),
        token_type_ids=np.zeros((len(rows), length), np.int32),
        is_text=is_text,
        segment_starts=np.broadcast_to(places == 1, is_text.shape),
        nsp_labels=np.zeros(len(rows), np.int32),
    )
