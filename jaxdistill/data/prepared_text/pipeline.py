"""Prepares text with Apache Beam, through TFDS: the records of `prepare` in its order, on one
machine or many.

Imports apache_beam: only `prepare` imports it, in a function. How a record comes out depends on its
place in the whole text (the document's number draws which spans are short; a record says where its
document begins and ends), so places are counted first, and a block that a runner lost is missed
there, since every part ends in a last one:

    parts -> blocks of documents -> tokens      a part of the source at a time (`sources.parts`), then a block at a time
          -> documents in each block            few numbers, summed up in order: each block's first document
          -> records                            a block at a time
          -> records in each block              summed up likewise: each block's first record
          -> (number, record) -> TFDS           which sorts by number, since the builder does not shuffle

Workers write below `working` or, if that cannot be seen by them all, below Beam's `temp_location`
(gs://…), from where the finished set is copied."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
from collections.abc import Iterator
from typing import Any

import apache_beam as beam
import numpy as np
import tensorflow_datasets as tfds
from apache_beam.options.pipeline_options import GoogleCloudOptions
from apache_beam.pvalue import AsSingleton
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from etils import epath

from jaxdistill import remote
from jaxdistill.data import files, sources, tokenizers
from jaxdistill.data.beam_options import is_ours, one_line, parse_options
from jaxdistill.data.cutting import Cutter
from jaxdistill.data.prepared import write_sizes
from jaxdistill.data.prepared_text import builder as builders
from jaxdistill.errors import BadInput

Place = tuple[
    int, int, bool
]  # of a block: the part's number, the block's number in it, whether it is the part's last
Records = list[dict[str, np.ndarray]]
_TOTALS = "totals"
_OTHER_RUNNER = "use another runner, or no more than one worker process"


def write(
    working: epath.Path, source: str, tokenizer: Any, settings: dict[str, Any], beam_options: str
) -> tuple[epath.Path, dict[str, int]]:
    """Writes the records and their sizes below `working`: (the data set's folder, its counts).

    Raises:
        BadInput: unusable options or text, or a pipeline that failed.
    """
    runner, options = parse_options(beam_options)
    shared = options.view_as(GoogleCloudOptions).temp_location or ""
    place = epath.Path(shared) / working.name if remote.is_remote(shared) else working
    cut = Cutter(tokenizer, settings)
    examples = PrepareText(
        sources.parts(source, settings["split"], sources.separator(settings)),
        tokenizer,
        cut,
        place / _TOTALS,
    )
    builder = builders.PreparedText(
        examples=examples, token_dtype=cut.dtype, data_dir=os.fspath(place)
    )
    # What its worker threads log is the error that is raised here; of other runners it is where the
    # job is to be seen.
    quiet = files.quiet_logging() if isinstance(runner, FnApiRunner) else contextlib.nullcontext()
    try:
        with files.quiet_tfds(), quiet:
            builder.download_and_prepare(
                download_config=tfds.download.DownloadConfig(
                    beam_runner=runner, beam_options=options
                )
            )
        counts = json.loads((place / _TOTALS / "counts.json").read_text())
        sizes = np.lib.format.read_array(
            io.BytesIO((place / _TOTALS / "sizes.npy").read_bytes()), allow_pickle=False
        )
        written = builder.info.splits["text"].num_examples
        if written != counts["num_records"]:  # seen of Beam's direct runner with several processes
            raise BadInput(
                f"Beam (beam_options {beam_options!r}) lost records of {source!r} on the way: {written:,} of "
                f"{counts['num_records']:,} were written; {_OTHER_RUNNER}"
            )
        records = working / epath.Path(builder.data_dir).relative_to(place)
        if place != working:
            remote.fetch(epath.Path(builder.data_dir), records)
    except Exception as error:
        if isinstance(error, ImportError) or (isinstance(error, OSError) and error.errno):
            raise
        if is_ours(error):
            raise BadInput(one_line(error)) from error
        raise BadInput(
            f"Beam could not prepare {source!r} (beam_options {beam_options!r}): {one_line(error)}"
        ) from error
    finally:
        if place != working and place.exists():
            place.rmtree()
    write_sizes(records, sizes)
    return records, counts


class PrepareText(beam.PTransform):
    """Parts of a source as (number, record); writes counts and sizes into the folder `totals`."""

    def __init__(
        self, parts: list[sources.Part], tokenizer: Any, cut: Cutter, totals: epath.Path
    ) -> None:
        super().__init__()
        self._parts, self._tokenizer, self._cut, self._totals = parts, tokenizer, cut, totals

    def expand(self, pipeline: Any) -> Any:
        settings, parts = self._cut.settings, len(self._parts)
        blocks = (
            pipeline
            | "Parts" >> beam.Create(list(enumerate(self._parts)))
            | "SpreadParts" >> beam.Reshuffle()
            | "Read" >> beam.FlatMap(_read, settings["split"], settings["heldout_fraction"])
            | "SpreadBlocks" >> beam.Reshuffle()
            | "Tokenise" >> beam.ParDo(_Tokenise(self._tokenizer))
        )
        cut = blocks | "Cut" >> beam.Map(
            _cut, self._cut, first=_firsts(blocks, "Documents", parts, settings)
        )
        _ = (
            cut
            | "Sizes" >> beam.Map(_sizes)
            | "AllSizes" >> beam.combiners.ToList()
            | "Totals" >> beam.Map(_write_totals, os.fspath(self._totals), parts)
        )
        return cut | "Number" >> beam.FlatMap(
            _number, first=_firsts(cut, "Records", parts, settings)
        )


def _read(
    part: tuple[int, sources.Part], split: str, heldout_fraction: float
) -> Iterator[tuple[Place, list[str]]]:
    """The blocks of a part; the last is empty, so that a part without documents has one too."""
    number, place = part
    blocks = tokenizers.by_size(sources.read_part(place, split, heldout_fraction))
    for block, documents in enumerate(itertools.chain(blocks, [[]])):
        yield (number, block, not documents), [document.text for document in documents]


class _Tokenise(beam.DoFn):
    """A block's documents as their tokens and sentence starts; those too short for a record are
    left out."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__()
        self._tokenizer = tokenizer

    def setup(self) -> None:
        self._backend = tokenizers.plain_backend(self._tokenizer)

    def process(self, block: tuple[Place, list[str]]) -> Iterator[Any]:
        place, texts = block
        yield (
            place,
            [
                document
                for document in tokenizers.encode_batch(self._backend, texts)
                if len(document[0]) >= 2
            ],
        )


def _firsts(blocks: Any, what: str, parts: int, settings: dict[str, Any]) -> Any:
    """What there is in all earlier blocks, by block, as a side input."""
    return AsSingleton(
        blocks
        | f"Count{what}" >> beam.MapTuple(_length)
        | f"All{what}" >> beam.combiners.ToList()
        | f"First{what}" >> beam.Map(_sum_up, parts, settings)
    )


def _length(place: Place, held: list[Any]) -> tuple[Place, int]:
    return place, len(held)


def _sum_up(
    counts: list[tuple[Place, int]], parts: int, settings: dict[str, Any]
) -> dict[Place, int]:
    _require_all([place for place, _ in counts], parts)
    firsts, total = {}, 0
    for place, count in sorted(counts):
        firsts[place] = total
        total += count
    if not total:
        raise sources.no_documents(settings)
    return firsts


def _require_all(places: list[Place], parts: int) -> None:
    """Raises BadInput unless these are all blocks of parts 0 to `parts` - 1, each once."""
    due = (0, 0)
    for part, block, is_last in sorted(places):
        if (part, block) != due:
            break
        due = (part + 1, 0) if is_last else (part, block + 1)
    else:
        if due == (parts, 0):
            return
    raise BadInput(
        f"Beam lost text on the way, or made some twice, at block {due[1]} of part {due[0]} (both from 0; "
        f"{parts} parts); {_OTHER_RUNNER}"
    )


def _cut(
    block: tuple[Place, list[Any]], cut: Cutter, first: dict[Place, int]
) -> tuple[Place, Records]:
    """The records of a block; their `document` counts from its first record."""
    place, documents = block
    records: Records = []
    for number, (tokens, sentence_starts) in enumerate(documents, start=first[place]):
        begin = len(records)
        records += [
            {**record, "document": record["document"] + begin}
            for record in cut(tokens, sentence_starts, number)
        ]
    return place, records


def _number(
    block: tuple[Place, Records], first: dict[Place, int]
) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    place, records = block
    for number, record in enumerate(records, start=first[place]):
        yield number, {**record, "document": record["document"] + first[place]}


def _sizes(block: tuple[Place, Records]) -> tuple[Place, int, np.ndarray]:
    """(place, documents, tokens of each record)."""
    place, records = block
    documents = len({int(record["document"][0]) for record in records})
    return place, documents, np.array([len(record["tokens"]) for record in records], np.int32)


def _write_totals(blocks: list[tuple[Place, int, np.ndarray]], folder: str, parts: int) -> None:
    """A second attempt of a worker writes the same again."""
    _require_all([place for place, _, _ in blocks], parts)
    blocks = sorted(blocks, key=lambda block: block[0])
    sizes = np.concatenate([block[2] for block in blocks])
    counts = {
        "num_records": len(sizes),
        "num_documents": sum(block[1] for block in blocks),
        "num_tokens": int(sizes.sum()),
    }
    content = io.BytesIO()
    np.save(content, sizes)
    epath.Path(folder).mkdir(parents=True, exist_ok=True)
    (epath.Path(folder) / "sizes.npy").write_bytes(content.getvalue())
    (epath.Path(folder) / "counts.json").write_text(json.dumps(counts))
