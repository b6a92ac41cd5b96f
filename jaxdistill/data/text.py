"""Plain text as a feed: masked words and sentence pairs, packed or one text a row. Called by inputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

from etils import epath

from jaxdistill.data import files, packing
from jaxdistill.data.feeds import Batch, Feed, Reader, Shape, Share
from jaxdistill.data.loader import RowSettings, heldout_batches, make_loader, packing_plan
from jaxdistill.data.prepare import prepare
from jaxdistill.data.prepared import PreparedText

NAME = "text"  # the feed that `config.data` describes


class Parts(NamedTuple):
    """Prepared text."""

    train: PreparedText
    heldout: PreparedText


@dataclasses.dataclass(frozen=True, kw_only=True)
class Once:
    """How a text is read once, whole or a sample of `max_examples` rows of it, of `length` tokens. `folder`: where
    prepared text is kept; None: the user's cache."""

    length: int
    batch_size: int
    max_examples: int | None
    seed: int = 0
    split: str = "all"
    documents: str = "blank_lines"
    folder: epath.PathLike | None = None


def rows_once(source: str, tokenizer: Any, how: Once) -> Iterator[Batch]:
    """Batches of a text that no stage reads, with 15 % of the words masked: which follows from the seed alone."""
    prepared = prepare(
        source,
        tokenizer,
        how.folder or files.cache_directory() / "prepared",
        sequence_length=how.length,
        split=how.split,
        documents=how.documents,
    )
    return heldout_batches(
        prepared,
        batch_size=how.batch_size,
        seed=how.seed,
        max_examples=how.max_examples,
        max_predictions=max(1, round(0.15 * how.length)),
    )


def text_feed(settings: RowSettings, length: int, pack: bool, parts: Parts | None = None) -> Feed:
    """The feed of `parts` in rows of `length` tokens; without them, as known before text is read.

    `pack`: several texts in a training row. Held-out rows are never packed, so that numbers compare."""
    segments = packing.segments_a_row(length) if pack else None
    predictions = settings.max_predictions
    if segments is not None:
        predictions = packing.predictions_a_row(length, predictions, settings.mask_rate, segments)
    row = pretraining_row(length, predictions, segments)
    if parts is None:
        return Feed(NAME, row, _not_yet)
    options = dataclasses.asdict(settings)

    def train(batch_size: int, first_row: int, share: Share) -> Iterator[Batch]:
        return make_loader(
            parts.train,
            batch_size=batch_size,
            start_example=first_row,
            process_index=share.process,
            process_count=share.processes,
            pack=pack,
            **options,
        )

    def heldout(batch_size: int, most: int | None, share: Share) -> Iterator[Batch]:
        return heldout_batches(
            parts.heldout,
            batch_size=batch_size,
            max_examples=most,
            process_index=share.process,
            process_count=share.processes,
            **options,
        )

    plan = packing_plan(parts.train, seed=settings.seed, nsp=settings.nsp) if pack else None
    return Feed(
        NAME,
        row,
        lambda _: Reader(train, heldout),  # its tokens were made when it was prepared
        rows=parts.train.num_records if plan is None else plan.num_bins,
        heldout_rows=parts.heldout.num_records,
        digests={"train": parts.train.digest, "heldout": parts.heldout.digest},
    )


def _not_yet(_: object) -> Reader:
    raise AssertionError("the text is not read yet")


def pretraining_row(length: int, predictions: int, segments: int | None = None) -> dict[str, Shape]:
    """Shapes of a pre-training row; `segments`: how many texts a packed row has room for."""
    ids, picks = Shape((length,), "int32"), Shape((predictions,), "int32")
    texts = () if segments is None else (segments,)
    row = {
        "input_ids": ids,
        "attention_mask": ids,
        "token_type_ids": ids,
        "mlm_positions": picks,
        "mlm_labels": picks,
        "mlm_weights": Shape((predictions,), "float32"),
        "nsp_labels": Shape(texts, "int32"),
        "example_weights": Shape(texts, "float32"),
    }
    if segments is not None:
        row |= {"segment_ids": ids, "position_ids": ids, "cls_positions": Shape(texts, "int32")}
    return row
