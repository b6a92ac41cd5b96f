"""Where text comes from: the default corpus, local files and folders, TFDS. `read_documents` reads
any of them.

    "default", "default:heldout"        the prose installed with Python (see `default_corpus`)
    a file or a folder                  .txt and .jsonl, each also as .xz or .gz; a folder is read recursively, sorted
    "tfds:NAME[/CONFIG][:VERSION][:SPLIT]"   a text set by its TFDS name, e.g. "tfds:wikipedia/20230601.en:train"

A document's text is lines: each is a sentence, a heading or a paragraph. In .txt a blank line
separates documents, or with `documents="lines"` each line is one; in .jsonl each line is an object
with a "text". Text in the form of WikiText ("@-@", "= Title =") is recognised and turned back into
plain text, one article a document."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Iterable, Iterator
from typing import Any

from etils import epath

from jaxdistill import remote
from jaxdistill.data import files, text_files
from jaxdistill.data.documents import BLANK_LINES, DOCUMENTS, LINES, Document
from jaxdistill.errors import BadInput, nearest, shortened

HELDOUT_FRACTION = 0.02
SPLITS = ("train", "heldout", "all")


def read_documents(
    source: str,
    split: str = "all",
    heldout_fraction: float = HELDOUT_FRACTION,
    documents: str = BLANK_LINES,
) -> Iterator[Document]:
    """The documents of a source, always in the same order, read as they are asked for.

    Args:
        source: see the module's text.
        split: "train", "heldout" or "all". Files and TFDS sets are divided by a digest of each document's text, so
            that equal documents stay together and adding documents moves none; the default corpus by module.
        heldout_fraction: how much is held out, on average. The default corpus has its own, about 5 %.
        documents: "blank_lines" or "lines", what separates the documents of a .txt file.

    Raises:
        BadInput: the source does not exist, cannot be read or decoded, or holds no text.
    """
    check_split(split, heldout_fraction)
    return _read(source, split, heldout_fraction, documents)


def _read(source: str, split: str, heldout_fraction: float, documents: str) -> Iterator[Document]:
    any_text = False
    for part in parts(source, split, documents):
        for document in read_part(part, split, heldout_fraction):
            any_text = True
            yield document
    if not any_text:
        raise BadInput(
            f"source {source!r} holds no text in the part {split!r}: {more_documents(documents)}"
        )


def more_documents(documents: str = BLANK_LINES) -> str:
    """For the end of an error about text with too few documents: what can be done about it."""
    lines = (
        ""
        if documents == LINES
        else "separate documents by blank lines, or set documents='lines' if each line is one; else "
    )
    return f"{lines}give more text, or name held-out text of its own (config.data.heldout)"


def check(sources: Iterable[str], documents: str = BLANK_LINES) -> list[str]:
    """Looks at sources without reading them all; returns notices of what is read otherwise than
    might be meant.

    Raises BadInput for a source that does not exist or is of a kind that cannot be read, or
    `documents` that do nothing."""
    if documents not in DOCUMENTS:
        raise BadInput(f"documents={documents!r} is unknown; {nearest(documents, DOCUMENTS)}")
    notices: list[str] = []
    any_plain = False
    for source in sources:
        if not is_default(source) and not source.startswith("tfds:"):
            found, plain = text_files.check(_place(source))
            notices += found
            any_plain = any_plain or plain
    if documents != BLANK_LINES and not any_plain:
        raise BadInput(
            f"documents={documents!r} would do nothing: there is no .txt file among the sources; leave it out"
        )
    return notices


def _place(source: str) -> epath.Path:
    """The path of a source that is one. Raises BadInput for what is none."""
    if not source.strip():
        raise BadInput(
            "the text source is empty (a variable that is not set?); give a file, a folder, 'default' or 'tfds:…'"
        )
    scheme = source.partition("://")[0].lower()
    if "://" in source and scheme not in remote.SCHEMES:
        raise BadInput(
            f"text source {shortened(source)!r}: {scheme}:// cannot be read in place; download it first, and give the "
            "file or folder"
        )
    return epath.Path(source).expanduser()


def check_split(split: str, heldout_fraction: float, shown: str = "heldout_fraction") -> None:
    """Raises BadInput unless there can be such a split."""
    if split not in SPLITS:
        raise BadInput(f"split={split!r}: {nearest(split, SPLITS)}")
    if not 0.0 < heldout_fraction < 1.0:
        raise BadInput(
            f"{shown}={heldout_fraction}: expected a number between 0 and 1, e.g. {HELDOUT_FRACTION}"
        )


def source_digest(source: str) -> str:
    """A digest of what a source holds: of files their names, sizes and contents; of TFDS the name,
    version and checksums; of the default corpus its text. Raises as `read_documents`."""
    if is_default(source):
        from jaxdistill.data.default_corpus import default_corpus

        return files.digest_of([source, default_corpus().digest])
    if source.startswith("tfds:"):
        from jaxdistill.data import tfds_text

        return tfds_text.digest(source)
    return text_files.digest(_place(source))


def is_default(source: str) -> bool:
    """Whether a source is the default corpus, or a part of it. Raises BadInput for a part that
    there is not."""
    name, _, part = source.partition(":")
    if name != "default":
        return False
    if part not in ("", "train", "heldout", "all"):
        raise BadInput(f"source {source!r}: {nearest(part, SPLITS)}; e.g. 'default:heldout'")
    return True


@dataclasses.dataclass(frozen=True)
class Part:
    """What is read by itself, maybe on another machine: a text file, or the records `begin` to
    `end` of a TFDS set.

    `divided`: whether a split is a part of its documents; the default corpus has a file for each.
    `documents`: what separates them in a .txt file."""

    place: str
    begin: int = 0
    end: int = 0
    divided: bool = True
    documents: str = BLANK_LINES


def parts(source: str, split: str = "all", documents: str = BLANK_LINES) -> list[Part]:
    """The parts of a source in order: read one after another they are what `read_documents` gives.
    Raises as it does."""
    if is_default(source):
        from jaxdistill.data.default_corpus import default_corpus

        corpus = default_corpus()
        chosen = source.partition(":")[2] or split
        paths = {"train": corpus.train_path, "heldout": corpus.heldout_path}
        return [
            Part(os.fspath(path), divided=False)
            for name, path in paths.items()
            if chosen in (name, "all")
        ]
    if source.startswith("tfds:"):
        from jaxdistill.data import tfds_text

        return [Part(source, begin, end) for begin, end in tfds_text.ranges(source)]
    return [Part(os.fspath(file), documents=documents) for file in text_files.find(_place(source))]


def read_part(part: Part, split: str, heldout_fraction: float) -> Iterator[Document]:
    """The documents of a part that belong to the split and hold text, in order."""
    from jaxdistill.data import tfds_text

    is_tfds = part.place.startswith("tfds:")
    documents = (
        tfds_text.read(part.place, part.begin, part.end)
        if is_tfds
        else text_files.read(epath.Path(part.place), part.documents)
    )
    for document in documents:
        if (
            part.divided
            and split != "all"
            and (split == "heldout") != _is_held_out(document.text, heldout_fraction)
        ):
            continue
        if document.text.strip():
            yield document


def _is_held_out(text: str, fraction: float) -> bool:
    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    return number < fraction * 2.0**64


def no_documents(settings: dict[str, Any]) -> BadInput:
    """The error when a text makes no record at all."""
    return BadInput(
        f"the split {settings['split']!r} of the text holds no document of two tokens or more: "
        f"{more_documents(separator(settings))}"
    )


def separator(settings: dict[str, Any]) -> str:
    """What separates the documents of a .txt file, from the settings that name a prepared set."""
    return settings.get("documents", BLANK_LINES)
