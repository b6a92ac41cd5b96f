"""Turns a text source into records on disk, once: `prepare` writes a TFDS ArrayRecord set, or finds
it.

A record is a span of consecutive tokens of one document, as long as a row has room for ([CLS], two
[SEP] and L - 3 tokens); a tenth of them are shorter (BERT, arXiv:1810.04805, appendix A.2), with a
uniformly drawn length. Spans follow one another without gap or overlap, cut between words.
Everything that makes the records what they are (source, tokenizer, settings) is in a digest, and
the digest names the folder:

    out_dir/DIGEST/prepared.json     written last, in one piece: its presence is what makes the set readable
    out_dir/DIGEST/records-…/        the TFDS data set that prepared.json names

so a set is complete or not there, and two processes that prepare the same text at once do not
disturb each other. With `beam_options` Apache Beam does it (`prepared_text/pipeline.py`), and the
same records come out in the same order."""

from __future__ import annotations

import array
import dataclasses
import json
import os
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from etils import epath

from jaxdistill.data import beam_options as beam
from jaxdistill.data import files, sources, tokenizers
from jaxdistill.data.cutting import SHORT_FRACTION, Cutter
from jaxdistill.data.documents import BLANK_LINES, Document
from jaxdistill.data.prepared import MARKER, PreparedText, load_prepared, write_sizes
from jaxdistill.errors import BadInput

_FORMAT_VERSION = (
    1  # goes into the digest: raise it whenever the records of an unchanged source would change
)
_DOCUMENTS_A_REPORT = 64
_STALE_SECONDS = 24 * 3600.0


def prepare(
    source: str,
    tokenizer: Any,
    out_dir: epath.PathLike,
    *,
    sequence_length: int,
    split: str = "train",
    heldout_fraction: float = sources.HELDOUT_FRACTION,
    documents: str = BLANK_LINES,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
    beam_options: str | None = None,
    expected: str | None = None,
) -> PreparedText:
    """Writes the records of a source below `out_dir`, or finds them there from an earlier call with
    the same settings.

    Args:
        source: as `sources.read_documents` takes it.
        tokenizer: from `tokenizers`.
        out_dir: where prepared sets are kept.
        sequence_length: L, the length of a row; a record has at most L - 3 tokens.
        split, heldout_fraction, documents: as `sources.read_documents` takes them.
        seed: draws which records are short.
        progress: called with the number of documents done so far, now and then; not by Beam.
        beam_options: prepare with Apache Beam, with these pipeline options ("runner=FlinkRunner,flink_master=HOST:PORT";
            "" is its direct runner in one process). None: here.
        expected: the digest that the set must have; another one is not prepared.

    Raises:
        BadInput: the source is unusable or holds no text, `out_dir` cannot be written, Beam cannot do it, or the set would
            not be the one that is expected.
    """
    check_length(sequence_length)
    settings = {
        "format": _FORMAT_VERSION,
        "source": sources.source_digest(source),
        "tokenizer": tokenizers.tokenizer_digest(tokenizer),
        "sequence_length": sequence_length,
        "split": split,
        "heldout_fraction": heldout_fraction,
        "short_fraction": SHORT_FRACTION,
        "seed": seed,
    }
    if documents != BLANK_LINES:  # younger than sets that must still be found
        settings["documents"] = documents
    digest = files.digest_of(settings)
    if expected not in (None, digest):
        raise BadInput(
            f"the prepared {split} text of this run (digest {expected}) is not in {os.fspath(out_dir)!r} any more, and "
            f"{source!r} would make another one ({digest}): bring back the old text or its prepared folder, or use "
            "another workdir"
        )
    folder = epath.Path(out_dir).expanduser() / digest
    with files.clear_errors("writing the prepared text to", folder):
        if not (folder / MARKER).exists():
            sources.check_split(split, heldout_fraction)
            _write(folder, source, tokenizer, settings, digest, progress, beam_options)
    return load_prepared(folder)


def check_length(sequence_length: int, shown: str = "sequence_length") -> None:
    """Raises BadInput unless rows can have that length."""
    if not 8 <= sequence_length < 2**31:
        raise BadInput(
            f"{shown}={sequence_length}; a pair needs at least 8 tokens, use 8 or more (BERT: 128, 512)"
        )


def _write(
    folder: epath.Path,
    source: str,
    tokenizer: Any,
    settings: dict[str, Any],
    digest: str,
    progress: Callable[[int], None] | None,
    beam_options: str | None,
) -> None:
    vocabulary = tokenizers.describe(tokenizer)
    working = folder / f"records-{uuid.uuid4().hex[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        if beam_options is None:
            records, counts = _write_here(working, source, tokenizer, settings, progress)
        else:
            records, counts = _pipeline().write(working, source, tokenizer, settings, beam_options)
        marker = {
            "records": os.fspath(records.relative_to(folder)),
            "digest": digest,
            "source": source,
            "split": settings["split"],
            "sequence_length": settings["sequence_length"],
            "vocab_size": vocabulary.size,
            "special": dataclasses.asdict(vocabulary.special),
            "special_ids": list(vocabulary.special_ids),
            "continuation_ids": list(vocabulary.continuation_ids),
            "tokenizer_digest": settings["tokenizer"],
            "source_digest": settings["source"],
            **counts,
        }
        if (folder / MARKER).exists():  # another process was quicker: its records are the same
            working.rmtree()
        else:
            files.write_whole(folder / MARKER, json.dumps(marker, indent=1))
    except BaseException:
        if working.exists():
            working.rmtree()
        raise
    _remove_stale(folder)


def _pipeline() -> Any:
    """The module that prepares text with Apache Beam."""
    beam.require()
    with files.quiet_logging():  # Beam says which of its extras are not there
        from jaxdistill.data.prepared_text import pipeline
    return pipeline


def _remove_stale(folder: epath.Path) -> None:
    """Removes what killed preparations left, once it is old enough not to be another process at
    work."""
    current = json.loads((folder / MARKER).read_text())["records"].split("/")[0]
    for path in folder.glob("records-*"):
        if path.name != current and time.time() - path.stat().mtime > _STALE_SECONDS:
            path.rmtree()


def _write_here(
    working: epath.Path,
    source: str,
    tokenizer: Any,
    settings: dict[str, Any],
    progress: Callable[[int], None] | None,
) -> tuple[epath.Path, dict[str, int]]:
    """Writes the records and their sizes below `working`, in this process: (the data set's folder,
    its counts)."""
    from jaxdistill.data.prepared_text import builder as builders  # imports tensorflow_datasets

    documents = sources.read_documents(
        source, settings["split"], settings["heldout_fraction"], sources.separator(settings)
    )
    counts = {"num_records": 0, "num_documents": 0, "num_tokens": 0}
    sizes = array.array("i")
    cut = Cutter(tokenizer, settings)
    examples = enumerate(_records(documents, tokenizer, cut, counts, sizes, progress))
    builder = builders.PreparedText(
        examples=examples, token_dtype=cut.dtype, data_dir=os.fspath(working)
    )
    with files.quiet_tfds():
        builder.download_and_prepare()
    records = epath.Path(builder.data_dir)
    write_sizes(records, np.array(sizes, np.int32))
    return records, counts


def _records(
    documents: Iterable[Document],
    tokenizer: Any,
    cut: Cutter,
    counts: dict[str, int],
    sizes: array.array[int],
    progress: Callable[[int], None] | None,
) -> Iterator[dict[str, np.ndarray]]:
    """The records of all documents in order; keeps `counts` and `sizes`. Raises BadInput at the end
    if there were none."""
    for tokens, sentence_starts in tokenizers.encode_documents(tokenizer, documents):
        number = counts["num_documents"]
        records = cut(tokens, sentence_starts, number)
        if not records:
            continue
        first = counts["num_records"]
        counts["num_documents"] += 1
        counts["num_records"] += len(records)
        for record in records:
            counts["num_tokens"] += len(record["tokens"])
            sizes.append(len(record["tokens"]))
            yield record | {"document": record["document"] + first}
        if progress is not None and number % _DOCUMENTS_A_REPORT == 0:
            progress(number)
    if not counts["num_records"]:
        raise sources.no_documents(cut.settings)
