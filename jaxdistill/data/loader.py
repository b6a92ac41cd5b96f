"""Batches for pre-training: shuffled, paired, masked; every batch a pure function of (records,
settings, its number).

The position is one number, the count of examples seen so far by all hosts together. Example n is in
epoch n // R (R records) and is the record that the epoch's shuffle puts at place n % R; all that is
drawn for it is a function of (seed, epoch, record). So a run resumes anywhere, and hosts, which
take equal slices of each global batch, may change in number. Batches are made and prefetched by
Grain; the arithmetic is vectorised NumPy (`pairs`, `masking`).

With packing the same holds of packed rows: the position counts them, an epoch has as many as the
plan of `packing` has bins, and each holds the rows, pairs and masks included, that its records
would have been in the same epoch."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any, SupportsIndex

import numpy as np

from jaxdistill.data import masking, packing, pairs, randomness, records, sources
from jaxdistill.data.feeds import Batch, only
from jaxdistill.data.prepared import PreparedText
from jaxdistill.errors import BadInput

_PREFETCHED_BATCHES = 8
ENDLESS = 2**62  # examples


@dataclasses.dataclass(frozen=True)
class RowSettings:
    """How a record becomes a row; the arguments of `make_loader` of the same names."""

    seed: int
    max_predictions: int
    mask_rate: float = 0.15
    whole_word: bool = False
    nsp: bool = True


class RowMaker:
    """Makes the rows of given records: pairs, then masks."""

    def __init__(
        self, prepared: PreparedText, settings: RowSettings, reader: records.RecordReader
    ) -> None:
        self._prepared, self._settings, self._reader = prepared, settings, reader
        ordinary = np.ones(prepared.vocab_size, bool)
        ordinary[list(prepared.special_ids)] = False
        self._ordinary_ids = np.flatnonzero(ordinary).astype(np.int32)
        self._is_continuation = np.zeros(prepared.vocab_size, bool)
        self._is_continuation[list(prepared.continuation_ids)] = True

    def __call__(self, record: np.ndarray, epoch: np.ndarray) -> Batch:
        """`record`, `epoch`: int64 [B]. Returns a batch as `make_loader` describes."""
        settings, special = self._settings, self._prepared.special
        rows = self._pairs(record, epoch) if settings.nsp else self._singles(record)
        word_starts = None
        if settings.whole_word:
            word_starts = rows.segment_starts | ~self._is_continuation[rows.input_ids]
        masked = masking.mask_tokens(
            rows.input_ids,
            rows.is_text,
            rows.attention_mask.sum(axis=1),
            seed=settings.seed,
            epoch=epoch,
            record=record,
            max_predictions=settings.max_predictions,
            mask_rate=settings.mask_rate,
            mask_id=special.mask,
            ordinary_ids=self._ordinary_ids,
            word_starts=word_starts,
        )
        return {
            "input_ids": masked.input_ids,
            "attention_mask": rows.attention_mask,
            "token_type_ids": rows.token_type_ids,
            "mlm_positions": masked.mlm_positions,
            "mlm_labels": masked.mlm_labels,
            "mlm_weights": masked.mlm_weights,
            "nsp_labels": rows.nsp_labels,
            "example_weights": np.ones(len(record), np.float32),
        }

    def _singles(self, record: np.ndarray) -> pairs.Rows:
        table, places = self._reader.fetch(record)
        return pairs.make_singles(
            table, places, length=self._prepared.sequence_length, special=self._prepared.special
        )

    def _pairs(self, record: np.ndarray, epoch: np.ndarray) -> pairs.Rows:
        seed, prepared = self._settings.seed, self._prepared
        table, places = self._reader.fetch(record)
        document = table.document_begin[places], table.document_end[places]
        other = pairs.draw_other_records(*document, prepared.num_records, seed, epoch, record)
        other_table, other_places = self._reader.fetch_with_next(other)
        return pairs.make_pairs(
            table,
            places,
            other_table,
            other_places,
            other,
            is_random=pairs.draw_is_random(seed, epoch, record),
            length=prepared.sequence_length,
            special=prepared.special,
            seed=seed,
            epoch=epoch,
            record=record,
        )


@dataclasses.dataclass(frozen=True)
class BatchSource:
    """Grain's random-access view of the endless training run: item k is this host's part of batch
    k."""

    rows: RowMaker
    num_records: int
    seed: int
    batch_size: int
    start_example: int
    first_row: int
    num_rows: int
    shuffle: bool
    dynamic: bool

    def __len__(self) -> int:
        return (ENDLESS - self.start_example) // self.batch_size

    def __getitem__(self, index: SupportsIndex) -> Batch:
        record, epoch = self._of_host(index)
        return self.rows(record, epoch if self.dynamic else np.zeros_like(epoch))

    def _of_host(self, index: SupportsIndex) -> tuple[np.ndarray, np.ndarray]:
        """The records (with packing: bins) of this host's part of batch `index`, and their epochs:
        int64 [B] twice."""
        first = self.start_example + int(index) * self.batch_size + self.first_row
        epoch, place = np.divmod(np.arange(first, first + self.num_rows), self.num_records)
        return randomness.permute(
            place, self.num_records, self.seed, epoch
        ) if self.shuffle else place, epoch


@dataclasses.dataclass(frozen=True)
class PackedSource(BatchSource):
    """The same of packed rows; `num_records` is the number of bins, `predictions` and `segments`
    are P and S of a row."""

    plan: packing.Plan
    predictions: int
    segments: int
    pad: int

    def __getitem__(self, index: SupportsIndex) -> Batch:
        bins, epoch = self._of_host(index)
        row, record = self.plan.records(bins, epoch, self.shuffle)
        examples = self.rows(record, epoch[row] if self.dynamic else np.zeros_like(record))
        return packing.join(
            examples,
            row,
            num_rows=self.num_rows,
            pad=self.pad,
            predictions=self.predictions,
            max_segments=self.segments,
        )


def make_loader(
    prepared: PreparedText,
    *,
    batch_size: int,
    seed: int,
    start_example: int = 0,
    max_predictions: int,
    mask_rate: float = 0.15,
    whole_word: bool = False,
    nsp: bool = True,
    process_index: int = 0,
    process_count: int = 1,
    shuffle: bool = True,
    dynamic: bool = True,
    prefetch: bool = True,
    in_memory: bool | None = None,
    pack: bool = False,
) -> Iterator[Batch]:
    """Training batches without end.

    With L = prepared.sequence_length, P = max_predictions and B = batch_size / process_count, a
    batch has

        input_ids, attention_mask, token_type_ids   int32 [B, L]   [CLS] A [SEP] B [SEP] [PAD]…
        mlm_positions, mlm_labels                   int32 [B, P]   ascending, then zeros
        mlm_weights                                 float32 [B, P] 1 for a prediction, 0 for filling
        nsp_labels                                  int32 [B]      0 = B follows A, 1 = B is from another document
        example_weights                             float32 [B]    all ones

    and with `pack`, where S = packing.segments_a_row(L) and P = packing.predictions_a_row(L,
    max_predictions, mask_rate, S),

        input_ids, attention_mask, token_type_ids   int32 [B, L]   [CLS] A [SEP] B [SEP] [CLS] A [SEP] … [PAD]…
        mlm_positions, mlm_labels, mlm_weights      as above       over the whole packed row
        segment_ids                                 int32 [B, L]   1, 2, … by example, 0 for pads
        position_ids                                int32 [B, L]   from 0 in each segment
        cls_positions                               int32 [B, S]   where segments begin, then zeros
        nsp_labels, example_weights                 … [B, S]       then zeros

    Args:
        batch_size: rows of the global batch, over all hosts.
        seed: of the shuffle and of every draw.
        start_example: how many examples have been seen by all hosts together; batch k of a run is the first batch of a
            loader with start_example = k * batch_size.
        max_predictions: P. A row predicts min(round(mask_rate * n), P) tokens, at least one; n counts the row's tokens
            with [CLS] and [SEP], as BERT's script does.
        whole_word: mask whole words only.
        nsp: make sentence pairs; else rows are [CLS] A [SEP] and nsp_labels 0.
        process_index, process_count: host p of P takes rows p B/P to (p + 1) B/P.
        shuffle: another order each epoch; else the order of the text.
        dynamic: other pairs and masks each epoch; else those of the first epoch always.
        prefetch: make batches ahead, in a background thread.
        in_memory: hold all records in memory; by default if they are not too many.
        pack: put several examples in a row, as many as fit. `batch_size` and `start_example` then count packed rows.

    Raises:
        BadInput: sizes that do not divide or fit.
    """
    _check(prepared, max_predictions, mask_rate, nsp)
    num_rows = rows_a_host(batch_size, process_index, process_count)
    if start_example < 0:
        raise BadInput(f"start_example={start_example}: expected 0 or more")
    settings = RowSettings(seed, max_predictions, mask_rate, whole_word, nsp)
    fields: dict[str, Any] = {
        "rows": RowMaker(prepared, settings, records.open_reader(prepared, in_memory)),
        "num_records": prepared.num_records,
        "seed": seed,
        "batch_size": batch_size,
        "start_example": start_example,
        "first_row": process_index * num_rows,
        "num_rows": num_rows,
        "shuffle": shuffle,
        "dynamic": dynamic,
    }
    if not pack:
        return read_through_grain(BatchSource(**fields), prefetch)
    plan = packing_plan(prepared, seed=seed, nsp=nsp)
    segments = packing.segments_a_row(prepared.sequence_length)
    predictions = packing.predictions_a_row(
        prepared.sequence_length, max_predictions, mask_rate, segments
    )
    fields |= {
        "num_records": plan.num_bins,
        "plan": plan,
        "predictions": predictions,
        "segments": segments,
    }
    return read_through_grain(PackedSource(**fields, pad=prepared.special.pad), prefetch)


def packing_plan(prepared: PreparedText, *, seed: int, nsp: bool = True) -> packing.Plan:
    """Which records share a packed row; `num_bins` is the number of packed rows in an epoch."""
    lengths = records.record_sizes(prepared) + (3 if nsp else 2)  # with [CLS] and [SEP]
    length = prepared.sequence_length
    return packing.make_plan(lengths, length, seed, packing.segments_a_row(length))


def heldout_batches(
    prepared: PreparedText,
    *,
    batch_size: int,
    seed: int,
    max_predictions: int,
    mask_rate: float = 0.15,
    whole_word: bool = False,
    nsp: bool = True,
    max_examples: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
    in_memory: bool | None = None,
) -> Iterator[Batch]:
    """Every record once, in order, with pairs and masks fixed by the seed. Arguments and batches as
    in `make_loader`.

    Of more than `max_examples` records a shuffled sample is taken, the first rows of `make_loader`.
    The last global batch is filled up with other rows whose masks and weights are 0. Every host gets the same number of batches."""
    if max_examples is not None and prepared.num_records > max_examples:
        sample = make_loader(
            prepared,
            batch_size=batch_size,
            seed=seed,
            max_predictions=max_predictions,
            mask_rate=mask_rate,
            whole_word=whole_word,
            nsp=nsp,
            process_index=process_index,
            process_count=process_count,
            prefetch=False,
            in_memory=in_memory,
        )
        first = process_index * rows_a_host(batch_size, process_index, process_count)
        for begin in range(first, _round_up(max_examples, batch_size), batch_size):
            yield only(next(sample), max_examples - begin)
        return
    _check(prepared, max_predictions, mask_rate, nsp)
    num_rows = rows_a_host(batch_size, process_index, process_count)
    rows = RowMaker(
        prepared,
        RowSettings(seed, max_predictions, mask_rate, whole_word, nsp),
        records.open_reader(prepared, in_memory),
    )
    for begin in range(
        process_index * num_rows, _round_up(prepared.num_records, batch_size), batch_size
    ):
        place = np.arange(begin, begin + num_rows)
        batch = rows(np.minimum(place, prepared.num_records - 1), np.zeros_like(place))
        yield only(batch, prepared.num_records - begin)


def rows_a_host(batch_size: int, process_index: int, process_count: int) -> int:
    """How many rows of a global batch each host has. Raises BadInput if they cannot be shared out
    equally."""
    if not 0 <= process_index < process_count:
        raise BadInput(
            f"process_index={process_index}: expected 0 to {process_count - 1}, of process_count={process_count}"
        )
    if batch_size < 1 or batch_size % process_count:
        multiple = max(_round_up(batch_size, process_count), process_count)
        raise BadInput(
            f"batch_size={batch_size} does not divide by {process_count} hosts: use a multiple, e.g. {multiple}"
        )
    return batch_size // process_count


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def read_through_grain(source: Any, prefetch: bool) -> Iterator[Batch]:
    """Through Grain, in order; one background thread is enough, and keeps a core free for the
    training loop."""
    import grain

    options = grain.ReadOptions(
        num_threads=int(prefetch), prefetch_buffer_size=_PREFETCHED_BATCHES if prefetch else 0
    )
    return iter(grain.MapDataset.source(source).to_iter_dataset(options))


def _check(prepared: PreparedText, max_predictions: int, mask_rate: float, nsp: bool) -> None:
    if not 1 <= max_predictions <= prepared.sequence_length:
        raise BadInput(
            f"max_predictions={max_predictions}: expected 1 to the sequence length {prepared.sequence_length}; "
            f"BERT uses {_usual_predictions(prepared.sequence_length)} for it"
        )
    if not 0.0 < mask_rate < 1.0:
        raise BadInput(
            f"mask_rate={mask_rate}: expected a fraction between 0 and 1; BERT uses 0.15"
        )
    if nsp and prepared.num_documents < 2:
        raise BadInput(
            "the prepared text is a single document, so a random next sentence has nowhere to come from: "
            f"{sources.more_documents()}"
        )


@functools.cache
def _usual_predictions(length: int) -> int:
    return round(0.15 * length) + (1 if length >= 128 else 0)
