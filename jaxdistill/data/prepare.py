"""Turns a text source into records on disk, once: `prepare` writes a TFDS ArrayRecord set, `load_prepared` finds it.

A record is a span of consecutive tokens of one document, as long as a row has room for ([CLS], two [SEP] and L - 3
tokens); a tenth of them are shorter (BERT, arXiv:1810.04805, appendix A.2), with a uniformly drawn length. Spans follow
one another without gap or overlap, cut between words. Everything that makes the records what they are (source,
tokenizer, settings) is in a digest, and the digest names the folder:

    out_dir/DIGEST/prepared.json     written last, in one piece: its presence is what makes the set readable
    out_dir/DIGEST/records-…/        the TFDS data set that prepared.json names

so a set is complete or not there, and two processes that prepare the same text at once do not disturb each other.
With `beam_options` Apache Beam does it (`prepared_text/pipeline.py`), and the same records come out in the same order.
"""

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

from jaxdistill.data import files, randomness, sources, tokenizers
from jaxdistill.data.pairs import SpecialIds
from jaxdistill.data.randomness import Stream
from jaxdistill.data.sources import Document
from jaxdistill.errors import BadInput

SHORT_FRACTION = 0.1
_FORMAT_VERSION = 1  # goes into the digest: raise it whenever the records of an unchanged source would change
_DOCUMENTS_A_REPORT = 64
_MARKER = "prepared.json"
SIZES_FILE = "record_sizes.npy"  # beside the records: the number of tokens of each, int32
_STALE_SECONDS = 24 * 3600.0


@dataclasses.dataclass(frozen=True)
class PreparedText:
    """A prepared set of records, and everything needed to make batches of it.

    `path`: its folder (as given to `load_prepared`); `records_path`: the TFDS data set in it. `ordinary_ids` are not
    stored but follow from `vocab_size` and `special_ids`; `continuation_ids` are the ids of '##' pieces.
    """

    path: str
    records_path: str
    digest: str
    source: str
    split: str
    sequence_length: int
    num_records: int
    num_documents: int
    num_tokens: int
    vocab_size: int
    special: SpecialIds
    special_ids: tuple[int, ...]
    continuation_ids: tuple[int, ...]
    tokenizer_digest: str
    source_digest: str


def prepare(
    source: str,
    tokenizer: Any,
    out_dir: epath.PathLike,
    *,
    sequence_length: int,
    split: str = "train",
    heldout_fraction: float = sources.HELDOUT_FRACTION,
    documents: str = sources.BLANK_LINES,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
    beam_options: str | None = None,
    expected: str | None = None,
) -> PreparedText:
    """Writes the records of a source below `out_dir`, or finds them there from an earlier call with the same settings.

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
    if documents != sources.BLANK_LINES:  # younger than sets that must still be found
        settings["documents"] = documents
    digest = files.digest_of(settings)
    if expected not in (None, digest):
        raise BadInput(f"the prepared {split} text of this run (digest {expected}) is not in {os.fspath(out_dir)!r} any more, and "
                       f"{source!r} would make another one ({digest}): bring back the old text or its prepared folder, or use "
                       "another workdir")
    folder = epath.Path(out_dir).expanduser() / digest
    with files.clear_errors("writing the prepared text to", folder):
        if not (folder / _MARKER).exists():
            sources.check_split(split, heldout_fraction)
            _write(folder, source, tokenizer, settings, digest, progress, beam_options)
    return load_prepared(folder)


def find_prepared(out_dir: epath.PathLike, digest: str) -> PreparedText | None:
    """The set of that digest below `out_dir`, whatever has become of its source; None if it is not there."""
    folder = epath.Path(out_dir).expanduser() / digest
    return load_prepared(folder) if (folder / _MARKER).exists() else None


def check_length(sequence_length: int, shown: str = "sequence_length") -> None:
    """Raises BadInput unless rows can have that length."""
    if not 8 <= sequence_length < 2**31:
        raise BadInput(f"{shown}={sequence_length}; a pair needs at least 8 tokens, use 8 or more (BERT: 128, 512)")


def load_prepared(path: epath.PathLike) -> PreparedText:
    """Finds what `prepare` wrote. `path`: the folder that holds prepared.json; moving the folder is fine.

    Raises:
        BadInput: there is no complete prepared set there.
    """
    folder = epath.Path(path).expanduser()
    marker = folder / _MARKER
    if not marker.exists():
        raise BadInput(
            f"{os.fspath(folder)!r} holds no complete prepared text ({_MARKER} is missing): prepare it again"
        )
    try:
        stored = json.loads(marker.read_text())
        records = folder / stored.pop("records")
        special = SpecialIds(**stored.pop("special"))
        stored |= {key: tuple(stored[key]) for key in ("special_ids", "continuation_ids")}
        prepared = PreparedText(path=os.fspath(folder), records_path=os.fspath(records), special=special, **stored)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadInput(
            f"{os.fspath(marker)!r} cannot be read ({error}): delete its folder and prepare it again"
        ) from error
    if not records.exists():
        raise BadInput(f"{os.fspath(records)!r} is missing: delete {os.fspath(folder)!r} and prepare it again")
    return prepared


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
            records, counts = beam_pipeline().write(working, source, tokenizer, settings, beam_options)
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
        if (folder / _MARKER).exists():  # another process was quicker: its records are the same
            working.rmtree()
        else:
            files.write_whole(folder / _MARKER, json.dumps(marker, indent=1))
    except BaseException:
        if working.exists():
            working.rmtree()
        raise
    _remove_stale(folder)


def beam_pipeline() -> Any:
    """The module that prepares text with Apache Beam. Raises BadInput if that is not installed."""
    try:
        with files.quiet_logging():  # Beam says which of its extras are not there
            from jaxdistill.data.prepared_text import pipeline
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "apache_beam":
            raise
        raise BadInput("beam_options were given, but Apache Beam is not installed: pip install apache-beam, or leave "
                       "them out to prepare the text in this process") from error
    return pipeline


def _remove_stale(folder: epath.Path) -> None:
    """Removes what killed preparations left, once it is old enough not to be another process at work."""
    current = json.loads((folder / _MARKER).read_text())["records"].split("/")[0]
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
    """Writes the records and their sizes below `working`, in this process: (the data set's folder, its counts)."""
    from jaxdistill.data.prepared_text import builder as builders  # imports tensorflow_datasets

    documents = sources.read_documents(source, settings["split"], settings["heldout_fraction"], separator(settings))
    counts = {"num_records": 0, "num_documents": 0, "num_tokens": 0}
    sizes = array.array("i")
    cut = Cutter(tokenizer, settings)
    examples = enumerate(_records(documents, tokenizer, cut, counts, sizes, progress))
    builder = builders.PreparedText(examples=examples, token_dtype=cut.dtype, data_dir=os.fspath(working))
    with files.quiet_tfds():
        builder.download_and_prepare()
    records = epath.Path(builder.data_dir)
    write_sizes(records, np.array(sizes, np.int32))
    return records, counts


def write_sizes(folder: epath.Path, sizes: np.ndarray) -> None:
    """Writes int32 [num_records] into the folder of the records."""
    with (folder / SIZES_FILE).open("wb") as file:
        np.save(file, sizes)


def _records(
    documents: Iterable[Document],
    tokenizer: Any,
    cut: Cutter,
    counts: dict[str, int],
    sizes: array.array[int],
    progress: Callable[[int], None] | None,
) -> Iterator[dict[str, np.ndarray]]:
    """The records of all documents in order; keeps `counts` and `sizes`. Raises BadInput at the end if there were none."""
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
        raise no_documents(cut.settings)


def no_documents(settings: dict[str, Any]) -> BadInput:
    """The error when a text makes no record at all."""
    return BadInput(f"the split {settings['split']!r} of the text holds no document of two tokens or more: "
                    f"{sources.more_documents(separator(settings))}")


def separator(settings: dict[str, Any]) -> str:
    """What separates the documents of a .txt file, from the settings that name a prepared set."""
    return settings.get("documents", sources.BLANK_LINES)


class Cutter:
    """Makes the records of one document; may be pickled. `dtype`: that of tokens, "uint16" or "int32"."""

    def __init__(self, tokenizer: Any, settings: dict[str, Any]) -> None:
        vocabulary = tokenizers.describe(tokenizer)
        self.settings = settings
        self.dtype = "uint16" if vocabulary.size <= 65536 else "int32"
        self._is_continuation = np.zeros(vocabulary.size, bool)
        self._is_continuation[list(vocabulary.continuation_ids)] = True

    def __call__(self, tokens: np.ndarray, sentence_starts: np.ndarray, number: int) -> list[dict[str, np.ndarray]]:
        """The records of document `number` (of those with two tokens or more, from 0); `document` counts from its first."""
        word_starts = ~self._is_continuation[tokens]
        longest = self.settings["sequence_length"] - 3
        seed = self.settings["seed"]
        spans = list(cut_spans(tokens, sentence_starts, word_starts, longest, seed=seed, document=number))
        document = np.array([0, len(spans)], np.int64)
        return [{"tokens": tokens[begin:end].astype(self.dtype), "breaks": breaks, "document": document}
                for begin, end, breaks in spans]


def cut_spans(
    tokens: np.ndarray, sentence_starts: np.ndarray, word_starts: np.ndarray, longest: int, *, seed: int, document: int
) -> Iterator[tuple[int, int, np.ndarray]]:
    """Cuts one document into spans of at most `longest` tokens: (begin, end, breaks), breaks relative to begin.

    Spans follow each other without gap; each has at least two tokens, so a single token left at the end is dropped.
    The breaks are the sentence starts inside a span; in a span of one sentence, its word starts; in a span of one
    word, every token.

    Args:
        tokens: int32 [N].
        sentence_starts, word_starts: bool [N].
        longest: at least 2.
        seed, document: what the lengths of short spans are a function of.
    """
    begin, number = 0, 0
    total = len(tokens)
    words = np.flatnonzero(word_starts)
    sentences = np.flatnonzero(sentence_starts)
    most = total // 2 + 1
    is_short = randomness.to_uniform(_draws(seed, Stream.SHORT, document, most)) < SHORT_FRACTION
    short_length = 2 + randomness.to_integers(_draws(seed, Stream.SHORT_LENGTH, document, most), longest - 1)
    while total - begin >= 2:
        end = min(begin + (int(short_length[number]) if is_short[number] else longest), total)
        if end < total and not word_starts[end]:
            word = int(words[np.searchsorted(words, end) - 1]) if len(words) else 0
            end = word if word >= begin + 2 else end
        for starts in (sentences, words, None):
            breaks = np.arange(begin + 1, end) if starts is None else _between(starts, begin, end)
            if len(breaks):
                break
        yield begin, end, (breaks - begin).astype(np.int32)
        begin, number = end, number + 1


def _between(starts: np.ndarray, begin: int, end: int) -> np.ndarray:
    """The starts strictly inside (begin, end)."""
    return starts[np.searchsorted(starts, begin, side="right") : np.searchsorted(starts, end)]


def _draws(seed: int, stream: Stream, document: int, count: int) -> np.ndarray:
    return randomness.position_bits(randomness.row_keys(seed, stream, 0, document), count)[0]
