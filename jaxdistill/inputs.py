"""What a run reads before it trains: the tokenizer, prepared text, and models given by folder.
Called by run.

The first call makes or finds them; `binding` records them, and later calls find them by what it
holds."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from jaxdistill import binding, interop, remote
from jaxdistill.binding import Inputs, Text
from jaxdistill.data import tfds_text
from jaxdistill.data.default_corpus import default_corpus, installed_versions
from jaxdistill.data.documents import BLANK_LINES
from jaxdistill.data.files import cache_directory, digest_of
from jaxdistill.data.loader import heldout_batches, make_loader, packing_plan
from jaxdistill.data.prepare import prepare
from jaxdistill.data.prepared import PreparedText, find_prepared
from jaxdistill.data.sources import check, is_default, more_documents, read_documents, source_digest
from jaxdistill.data.tokenizers import (
    describe,
    load_tokenizer,
    save_tokenizer,
    tokenizer_digest,
    train_wordpiece,
)
from jaxdistill.defaults import given_folder
from jaxdistill.errors import BadInput
from jaxdistill.models import Model, Params
from jaxdistill.training import hosts
from jaxdistill.training.progress import Progress

Given = dict[
    str, tuple[Model, Params]
]  # "teacher" and "student", as far as a recipe gives them by folder or name
PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "tokenizers",
    "transformers",
    "numpy",
)


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Tokenizer, training text and held-out text of a run. `documentation`: as in
    `binding.Inputs`."""

    tokenizer: Any
    vocab_size: int
    train: PreparedText
    heldout: PreparedText
    documentation: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def bound(self, config: ConfigDict, models: Mapping[str, str]) -> Inputs:
        """What a run with this text and these given models is bound to."""
        text = {
            split: Text(source, part.source_digest, part.digest)
            for (split, source), part in zip(
                named_sources(config).items(), (self.train, self.heldout)
            )
        }
        return Inputs(tokenizer_digest(self.tokenizer), text, models, self.documentation)

    def describe(self, config: ConfigDict) -> dict[str, Any]:
        """What `results.json` says about the text: digests, sizes, and the versions of what wrote
        and read it."""
        facts: dict[str, Any] = {
            "source": config.data.source,
            "heldout": config.data.heldout or "a part kept apart",
        }
        for name in ("train", "heldout"):
            part: PreparedText = getattr(self, name)
            facts[name] = {
                "digest": part.digest,
                "source_digest": part.source_digest,
                "documents": part.num_documents,
                "records": part.num_records,
                "tokens": part.num_tokens,
            }
        return {**facts, "tokenizer_digest": self.train.tokenizer_digest, **self.documentation}


def named_sources(config: ConfigDict) -> dict[str, str]:
    """The source of each part of the text, as the recipe names it."""
    return {"train": config.data.source, "heldout": config.data.heldout or config.data.source}


def load_corpus(config: ConfigDict, workdir: epath.Path, beam_options: str | None = None) -> Corpus:
    """Tokenizer and both parts of the text, made (with `beam_options` by Apache Beam) or found. In
    a workdir where something was trained they are those that it was trained with.

    Raises `BadInput` for unusable text or vocabulary, and where those of a run that goes on cannot
    be had again."""
    d = config.data
    sources = named_sources(config)
    held = binding.read(workdir)
    for source in sources.values():
        if beam_options is not None and source.startswith("tfds:"):
            tfds_text.ready(source, beam_options)
    if held is None and d.source.startswith("default"):
        with Progress(None, "reading the installed documentation", unit="files") as bar:
            default_corpus(progress=bar.reach)
    tokenizer = (
        find_tokenizer(config, tokenizer_home(config, workdir))
        if held is None
        else binding.bound_tokenizer(workdir, held)
    )
    folder = data_folder(config, workdir)
    options: dict[str, Any] = {
        "sequence_length": d.sequence_length,
        "heldout_fraction": d.heldout_fraction,
        "seed": config.seed,
        "documents": d.documents,
        "beam_options": beam_options,
    }
    found = {}
    for split, source in sources.items():
        kept = None if held is None else find_prepared(folder, held.text[split].digest)
        if kept is not None:
            found[split] = kept
            continue
        part = "all" if d.heldout else split
        with Progress(None, f"preparing {split} text", unit="documents") as bar:
            found[split] = prepare(
                source,
                tokenizer,
                folder,
                split=part,
                progress=bar.reach,
                **options,
                expected=None if held is None else held.text[split].digest,
            )
    for split, text in found.items():
        check_several(text.num_documents, split, d.documents)
    documentation: Mapping[str, Any] = {} if held is None else held.documentation
    if held is None and is_default(d.source):
        corpus = default_corpus()
        documentation = {"digest": corpus.digest, "documentation_of": dict(corpus.versions)}
    return Corpus(
        tokenizer, describe(tokenizer).size, found["train"], found["heldout"], documentation
    )


def check_sources(config: ConfigDict, workdir: epath.Path) -> None:
    """Says what is odd about the recipe's text. Raises `BadInput` if it cannot be used or, in a
    workdir whose run has its own, is another one; all before anything is written."""
    held = binding.read(workdir)
    for notice in check_text(config) if held is None else check_kept(config, held):
        if hosts.first():
            print(f"jaxdistill: {notice}", file=sys.stderr, flush=True)
    if held is None:
        check_parts(config)


def check_kept(config: ConfigDict, held: Inputs) -> list[str]:
    """Compares what a recipe names now with what its run is bound to. Text that has changed where
    it stood is a notice: the run keeps its own. Raises `BadInput` for text under another name, or a
    named tokenizer, that is another one."""
    notices = []
    for split, source in named_sources(config).items():
        before = held.text[split]
        changed = changes(source, before, held.documentation)
        if changed and source != before.source:
            raise BadInput(
                f"the {split} text of this workdir's run is {before.source!r}, and {source!r} holds another one; use "
                "another workdir, or give the same text to resume"
            )
        if changed:
            notices.append(
                f"{source!r} is not what it was when this run began ({changed}); the run keeps the text and the "
                "tokenizer that it began with, a new workdir takes the new ones"
            )
    place = config.data.tokenizer or given_folder(config)
    if (
        place
        and epath.Path(place).expanduser().exists()
        and tokenizer_digest(given_tokenizer(config)) != held.tokenizer
    ):
        raise BadInput(
            f"the tokenizer in {place!r} is not the one that this run began with; use another workdir, or give the "
            "same one to resume"
        )
    return list(dict.fromkeys(notices))


def changes(source: str, before: Text, documentation: Mapping[str, Any]) -> str:
    """What has become of a source since a run read it, in a few words; "" if it is the same."""
    if (
        source == before.source and is_default(source) and documentation
    ):  # without reading it all again
        then, now = documentation.get("documentation_of", {}), installed_versions()
        moved = [
            f"{name} {then.get(name, 'none')} -> {now.get(name, 'none')}"
            for name in sorted(then.keys() | now.keys())
            if then.get(name) != now.get(name)
        ]
        return ", ".join([*moved[:4], *(["..."] if len(moved) > 4 else [])])
    try:
        now_there = source_digest(source)
    except BadInput as error:
        return str(error).partition(";")[0]
    return (
        ""
        if now_there == before.source_digest
        else f"digest {before.source_digest[:12]}, now {now_there[:12]}"
    )


def check_text(config: ConfigDict) -> list[str]:
    """Notices about the recipe's text. Raises `BadInput` for a source, or a place for prepared
    text, that cannot be used."""
    d = config.data
    if d.path and not remote.is_remote(d.path):
        place = epath.Path(d.path).expanduser()
        if place.exists() and not place.is_dir():
            raise BadInput(
                f"config.data.path={d.path!r} is a file; give a folder for prepared text, or leave it out"
            )
    return check(dict.fromkeys(named_sources(config).values()), d.documents)


def check_parts(config: ConfigDict) -> None:
    """Reads as far as the second document of each part of the text, if it is files. Raises
    `BadInput` if there is none."""
    d = config.data
    for split, source in named_sources(config).items():
        if not source.startswith(("default", "tfds:")):
            check_several(
                len(
                    list(
                        itertools.islice(
                            read_documents(
                                source,
                                "all" if d.heldout else split,
                                d.heldout_fraction,
                                d.documents,
                            ),
                            2,
                        )
                    )
                ),
                split,
                d.documents,
            )


def check_several(number: int, split: str, documents: str) -> None:
    """Raises `BadInput` unless a part of the text has several documents: a random next sentence is
    another one's."""
    if number < 2:
        raise BadInput(
            f"the {split} text is a single document, so a random next sentence has nowhere to come from: "
            f"{more_documents(documents)}"
        )


def data_folder(config: ConfigDict, workdir: epath.Path) -> epath.Path:
    """Where prepared text (and, of a local run, a tokenizer trained here) is kept. ArrayRecord
    reads local files only, so for a remote workdir it is this machine's cache: every host prepares
    its own, and digests are compared."""
    if remote.is_remote(config.data.path):
        raise BadInput(
            f"config.data.path={config.data.path!r}: prepared text is read in place, from local files; give a "
            "folder of this machine"
        )
    if config.data.path:
        return epath.Path(config.data.path).expanduser()
    return cache_directory() / "prepared" if remote.is_remote(workdir) else workdir / "data"


def tokenizer_home(config: ConfigDict, workdir: epath.Path) -> epath.Path:
    """Where a tokenizer trained by a run is kept: beside the rest of a remote run, unlike its text,
    since the next machine must not train another."""
    remote_run = remote.is_remote(workdir) and not config.data.path
    return workdir / "data" if remote_run else data_folder(config, workdir)


def trained_with(config: ConfigDict, workdir: epath.Path) -> Any:
    """The tokenizer that a run in `workdir` was trained with; its text may have changed or gone
    since, so none is trained.

    Raises `BadInput` when the run's folder no longer says which one it was.
    """
    if (held := binding.read(workdir)) is not None:
        return binding.bound_tokenizer(workdir, held)
    if (
        given := given_tokenizer(config)
    ) is not None:  # here and below: of a version that did not record it
        return given
    if (workdir / "student" / "vocab.txt").exists():
        return load_tokenizer(workdir / "student")
    raise BadInput(
        f"{workdir} does not say with which tokenizer it was trained (no {binding.FILE}); load the stage's folder "
        "with jaxdistill.from_pretrained, and save it with the tokenizer that you know to be its own"
    )


def _kind(config: ConfigDict) -> str:
    return f"-{config.data.vocab_size}{'' if config.data.lowercase else '-cased'}"


def given_tokenizer(config: ConfigDict) -> Any | None:
    """The tokenizer named by the recipe, or else that of a given model's folder; None if one is to
    be trained."""
    d = config.data
    place = d.tokenizer or given_folder(config)
    if not place:
        return None
    where = epath.Path(place).expanduser()
    try:
        return load_tokenizer(where if where.is_file() else interop.locate(place), d.lowercase)
    except BadInput as error:
        if d.tokenizer:
            raise
        raise BadInput(
            f"{error}. A given model brings its tokenizer; another one is named by config.data.tokenizer"
        ) from error


def known_tokenizer(config: ConfigDict, workdir: epath.Path) -> Any | None:
    """The tokenizer that a run is bound to, or that its recipe gives; None if one is to be
    trained."""
    held = binding.read(workdir)
    return given_tokenizer(config) if held is None else binding.bound_tokenizer(workdir, held)


def find_tokenizer(config: ConfigDict, folder: epath.Path) -> Any:
    """`given_tokenizer`, or one trained on the source (kept in `folder`)."""
    d = config.data
    if (given := given_tokenizer(config)) is not None:
        return given
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


def batches(
    config: ConfigDict, prepared: PreparedText, *, batch_size: int, start_example: int
) -> Iterator[dict[str, np.ndarray]]:
    """Training batches from global example (with packing: packed row) `start_example` on; this
    host's rows."""
    return make_loader(
        prepared,
        batch_size=batch_size,
        start_example=start_example,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        pack=config.data.packing,
        **row_options(config),
    )


def rows_an_epoch(config: ConfigDict, prepared: PreparedText) -> int:
    """How many rows of training batches hold the whole text once."""
    return (
        packing_plan(prepared, seed=config.seed).num_bins
        if config.data.packing
        else prepared.num_records
    )


def heldout(
    config: ConfigDict, prepared: PreparedText, max_examples: int | None = None
) -> list[dict[str, np.ndarray]]:
    """The held-out rows that every network is measured on: all of them, or a fixed shuffled sample;
    this host's part. Never packed, so that numbers compare."""
    return list(
        heldout_batches(
            prepared,
            batch_size=config.evaluation.batch_size,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            **row_options(config),
            max_examples=max_examples or config.evaluation.max_examples,
        )
    )


def row_options(config: ConfigDict) -> dict[str, Any]:
    d = config.data
    return {
        "seed": config.seed,
        "max_predictions": d.max_predictions,
        "mask_rate": d.mask_rate,
        "whole_word": d.whole_word,
    }


def load_models(config: ConfigDict) -> Given:
    """The networks that the recipe gives by folder or name."""
    return {
        name: interop.from_pretrained(section.init)
        for name, section in config.networks.items()
        if section.init
    }


def check_vocabulary(config: ConfigDict, models: Mapping[str, Model], corpus_size: int) -> None:
    """Raises `BadInput` if the tokenizer has words that a given model does not know."""
    for whose, model in models.items():
        if model.config.vocab_size < corpus_size:
            init = config.networks[whose].init
            raise BadInput(
                f"the tokenizer has {corpus_size} words but the {whose} in {init!r} knows "
                f"{model.config.vocab_size}; use the tokenizer of that folder (config.data.tokenizer={init!r})"
            )


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a result depends on."""
    return installed_versions(PACKAGES)


def hardware() -> str:
    """One line: how many of which devices, and the host's processor and cores."""
    devices = jax.devices()
    return (
        f"{len(devices)} x {devices[0].device_kind}, {os.cpu_count()} host cores ({_processor()})"
    )


def _processor() -> str:
    """'x86_64', or where Linux tells more 'AMD EPYC, family 25, model 17': a name alone may be that
    of unlike generations."""
    told: dict[str, str] = {}
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        for line in file:
            name, _, value = line.partition(":")
            told.setdefault(name.strip(), value.strip())
    numbers = [
        f"{word} {told[name]}"
        for word, name in (("family", "cpu family"), ("model", "model"))
        if name in told
    ]
    return ", ".join([told.get("model name") or platform.machine(), *numbers])
