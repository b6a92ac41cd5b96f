"""What a run reads before it trains: the tokenizer, prepared text, and models given by folder. Called by run.

Each is found again on the next call: the tokenizer by its folder, prepared text by its digest.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import platform
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from jaxdistill import interop, remote
from jaxdistill.data import tfds_text
from jaxdistill.data.default_corpus import default_corpus, installed_versions
from jaxdistill.data.files import cache_directory, digest_of, write_whole
from jaxdistill.data.loader import heldout_batches, make_loader, packing_plan
from jaxdistill.data.prepare import PreparedText, prepare
from jaxdistill.data.sources import BLANK_LINES, check, more_documents, read_documents, source_digest
from jaxdistill.data.tokenizers import describe, load_tokenizer, train_wordpiece
from jaxdistill.errors import BadInput
from jaxdistill.models import Model, Params
from jaxdistill.training import hosts
from jaxdistill.training.progress import Progress

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tokenizers", "transformers", "numpy")


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Tokenizer, training text and held-out text of a run."""

    tokenizer: Any
    vocab_size: int
    train: PreparedText
    heldout: PreparedText

    def describe(self, config: ConfigDict) -> dict[str, Any]:
        """What `results.json` says about the text: digests, sizes, and the versions of what wrote and read it."""
        facts: dict[str, Any] = {"source": config.data.source, "heldout": config.data.heldout or "a part kept apart"}
        for name in ("train", "heldout"):
            part: PreparedText = getattr(self, name)
            facts[name] = {"digest": part.digest, "source_digest": part.source_digest, "documents": part.num_documents,
                           "records": part.num_records, "tokens": part.num_tokens}
        if config.data.source == "default":
            corpus = default_corpus()
            facts |= {"digest": corpus.digest, "documentation_of": dict(corpus.versions)}
        return facts


def load_corpus(config: ConfigDict, workdir: epath.Path, beam_options: str | None = None) -> Corpus:
    """Tokenizer and both parts of the text, made (with `beam_options` by Apache Beam) or found.

    Raises `BadInput` for unusable text or vocabulary.
    """
    d = config.data
    folder = data_folder(config, workdir)
    for notice in check_text(config):
        if hosts.first():
            print(f"jaxdistill: {notice}", file=sys.stderr, flush=True)
    for source in (d.source, d.heldout):
        if beam_options is not None and source.startswith("tfds:"):
            tfds_text.ready(source, beam_options)
    if d.source.startswith("default"):
        with Progress(None, "reading the installed documentation", unit="files") as bar:
            default_corpus(progress=bar.reach)
    tokenizer = find_tokenizer(config, tokenizer_home(config, workdir))
    options: dict[str, Any] = {"sequence_length": d.sequence_length, "heldout_fraction": d.heldout_fraction, "seed": config.seed,
                               "documents": d.documents, "beam_options": beam_options}
    parts = {}
    for split, source in (("train", d.source), ("heldout", d.heldout or d.source)):
        part = "all" if d.heldout else split
        with Progress(None, f"preparing {split} text", unit="documents") as bar:
            parts[split] = prepare(source, tokenizer, folder, split=part, progress=bar.reach, **options)
    for split, text in parts.items():
        check_several(text.num_documents, split, d.documents)
    return Corpus(tokenizer, describe(tokenizer).size, parts["train"], parts["heldout"])


def check_text(config: ConfigDict) -> list[str]:
    """Notices about the recipe's text. Raises `BadInput` for a source, or a place for prepared text, that cannot be used."""
    d = config.data
    if d.path and not remote.is_remote(d.path):
        place = epath.Path(d.path).expanduser()
        if place.exists() and not place.is_dir():
            raise BadInput(f"config.data.path={d.path!r} is a file; give a folder for prepared text, or leave it out")
    return check(dict.fromkeys((d.source, d.heldout or d.source)), d.documents)


def check_parts(config: ConfigDict) -> None:
    """Reads as far as the second document of each part of the text, if it is files. Raises `BadInput` if there is none."""
    d = config.data
    for split, source in (("train", d.source), ("heldout", d.heldout or d.source)):
        if not source.startswith(("default", "tfds:")):
            check_several(len(list(itertools.islice(
                read_documents(source, "all" if d.heldout else split, d.heldout_fraction, d.documents), 2))), split, d.documents)


def check_several(number: int, split: str, documents: str) -> None:
    """Raises `BadInput` unless a part of the text has several documents: a random next sentence is another one's."""
    if number < 2:
        raise BadInput(f"the {split} text is a single document, so a random next sentence has nowhere to come from: "
                       f"{more_documents(documents)}")


def data_folder(config: ConfigDict, workdir: epath.Path) -> epath.Path:
    """Where prepared text (and, of a local run, a tokenizer trained here) is kept. ArrayRecord reads local files only, so
    for a remote workdir it is this machine's cache: every host prepares its own, and digests are compared."""
    if remote.is_remote(config.data.path):
        raise BadInput(f"config.data.path={config.data.path!r}: prepared text is read in place, from local files; give a "
                       "folder of this machine")
    if config.data.path:
        return epath.Path(config.data.path).expanduser()
    return cache_directory() / "prepared" if remote.is_remote(workdir) else workdir / "data"


def tokenizer_home(config: ConfigDict, workdir: epath.Path) -> epath.Path:
    """Where a tokenizer trained by a run is kept: beside the rest of a remote run, unlike its text, since the next machine
    must not train another."""
    remote_run = remote.is_remote(workdir) and not config.data.path
    return workdir / "data" if remote_run else data_folder(config, workdir)


def trained_with(config: ConfigDict, workdir: epath.Path) -> Any:
    """The tokenizer that a run in `workdir` was trained with; its text may have changed or gone since, so none is trained.

    Raises `BadInput` when the run's folder no longer says which one it was.
    """
    if config.data.tokenizer or config.teacher.init or config.student.init:
        return find_tokenizer(config, workdir)
    home = tokenizer_home(config, workdir)
    kept = [path for path in remote.entries(home) if path.name.startswith("tokenizer-") and path.name.endswith(_kind(config))
            and (path / "vocab.txt").exists()]
    for folder in (workdir / "student", *(kept if len(kept) == 1 else ())):
        if (folder / "vocab.txt").exists():
            return load_tokenizer(folder)
    raise BadInput(f"{workdir} does not say with which tokenizer it was trained: it has no student/ yet, and {home} holds "
                   f"{len(kept)} tokenizers of its kind; finish the run, or load the stage's folder with "
                   "jaxdistill.from_pretrained")


def _kind(config: ConfigDict) -> str:
    return f"-{config.data.vocab_size}{'' if config.data.lowercase else '-cased'}"


def find_tokenizer(config: ConfigDict, folder: epath.Path) -> Any:
    """The tokenizer named by the recipe, the teacher folder's, or one trained on the source (kept in `folder`)."""
    d = config.data
    place = d.tokenizer or config.teacher.init or config.student.init
    if place:
        where = epath.Path(place).expanduser()
        try:
            return load_tokenizer(where if where.is_file() else interop.locate(place), d.lowercase)
        except BadInput as error:
            if d.tokenizer:
                raise
            raise BadInput(f"{error}. A given model brings its tokenizer; another one is named by config.data.tokenizer") from error
    split = "all" if d.heldout else "train"
    named = [source_digest(d.source), split, None if d.heldout else d.heldout_fraction]
    text = digest_of([*named, d.documents] if d.documents != BLANK_LINES else named)[:12]
    kept = folder / f"tokenizer-{text}{_kind(config)}"
    if not (kept / "vocab.txt").exists():  # which is written last

        def texts() -> Iterator[str]:
            with Progress(None, "training the WordPiece vocabulary", unit="documents") as bar:
                for document in read_documents(d.source, split, d.heldout_fraction, d.documents):
                    yield document.text
                    bar.update(1)

        trained = train_wordpiece(texts(), d.vocab_size, d.lowercase)
        save_tokenizer(trained, kept)
    return load_tokenizer(kept)


def save_tokenizer(tokenizer: Any, folder: epath.Path) -> None:
    """Its files, vocab.txt last; transformers itself writes to local folders only."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as local:
        tokenizer.save_pretrained(local)
        for path in sorted(epath.Path(local).iterdir(), key=lambda path: path.name == "vocab.txt"):
            write_whole(folder / path.name, path.read_text())


def batches(config: ConfigDict, prepared: PreparedText, *, batch_size: int, start_example: int
            ) -> Iterator[dict[str, np.ndarray]]:
    """Training batches from global example (with packing: packed row) `start_example` on; this host's rows."""
    return make_loader(prepared, batch_size=batch_size, start_example=start_example, process_index=jax.process_index(),
                       process_count=jax.process_count(), pack=config.data.packing, **row_options(config))


def rows_an_epoch(config: ConfigDict, prepared: PreparedText) -> int:
    """How many rows of training batches hold the whole text once."""
    return packing_plan(prepared, seed=config.seed).num_bins if config.data.packing else prepared.num_records


def heldout(config: ConfigDict, prepared: PreparedText, max_examples: int | None = None) -> list[dict[str, np.ndarray]]:
    """The held-out rows that every network is measured on: all of them, or a fixed shuffled sample; this host's part.
    Never packed, so that numbers compare."""
    return list(heldout_batches(prepared, batch_size=config.evaluation.batch_size, process_index=jax.process_index(),
                                process_count=jax.process_count(), **row_options(config),
                                max_examples=max_examples or config.evaluation.max_examples))


def row_options(config: ConfigDict) -> dict[str, Any]:
    d = config.data
    return {"seed": config.seed, "max_predictions": d.max_predictions, "mask_rate": d.mask_rate, "whole_word": d.whole_word}


def load_model(section: ConfigDict, corpus_size: int, whose: str) -> tuple[Model, Params] | None:
    """The model of `section.init`, if one is named; its vocabulary must hold the tokenizer's."""
    if not section.init:
        return None
    model, params = interop.from_pretrained(section.init)
    if model.config.vocab_size < corpus_size:
        raise BadInput(f"the tokenizer has {corpus_size} words but the {whose} in {section.init!r} knows "
                       f"{model.config.vocab_size}; use the tokenizer of that folder (config.data.tokenizer={section.init!r})")
    return model, params


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a result depends on."""
    return installed_versions(PACKAGES)


def hardware() -> str:
    """One line: how many of which devices, and the host's processor and cores."""
    devices = jax.devices()
    return f"{len(devices)} x {devices[0].device_kind}, {os.cpu_count()} host cores ({_processor()})"


def _processor() -> str:
    """'x86_64', or where Linux tells more 'AMD EPYC, family 25, model 17': a name alone may be that of unlike generations."""
    told: dict[str, str] = {}
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        for line in file:
            name, _, value = line.partition(":")
            told.setdefault(name.strip(), value.strip())
    numbers = [f"{word} {told[name]}" for word, name in (("family", "cpu family"), ("model", "model")) if name in told]
    return ", ".join([told.get("model name") or platform.machine(), *numbers])
