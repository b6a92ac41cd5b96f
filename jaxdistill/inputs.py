"""What a run reads before it trains: the tokenizer, prepared text, and tasks. Called by startup.

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
from etils import epath
from ml_collections import ConfigDict

from jaxdistill import binding, interop, remote
from jaxdistill.binding import Inputs, Task, Text
from jaxdistill.data import tfds_text
from jaxdistill.data.default_corpus import default_corpus, installed_versions
from jaxdistill.data.documents import BLANK_LINES
from jaxdistill.data.feeds import Feed
from jaxdistill.data.files import cache_directory, digest_of
from jaxdistill.data.loader import RowSettings
from jaxdistill.data.prepare import prepare
from jaxdistill.data.prepared import find_prepared
from jaxdistill.data.sources import check, is_default, more_documents, read_documents, source_digest
from jaxdistill.data.tasks import open_task, test_of
from jaxdistill.data.text import NAME as TEXT
from jaxdistill.data.text import Parts, text_feed
from jaxdistill.data.tokenizers import (
    describe,
    load_tokenizer,
    save_tokenizer,
    tokenizer_digest,
    train_wordpiece,
)
from jaxdistill.defaults import given_folder
from jaxdistill.errors import BadInput
from jaxdistill.models import Model
from jaxdistill.resolve import active_order
from jaxdistill.training import hosts
from jaxdistill.training.progress import Progress

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
    """The prepared text of a run. `documentation`: as in `binding.Inputs`."""

    parts: Parts
    documentation: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def describe(self, config: ConfigDict) -> dict[str, Any]:
        """What `results.json` says about the text: digests, sizes, and the versions of what wrote
        and read it."""
        facts: dict[str, Any] = {
            "source": config.data.source,
            "heldout": config.data.heldout or "a part kept apart",
        }
        for name, part in self.parts._asdict().items():
            facts[name] = {
                "digest": part.digest,
                "source_digest": part.source_digest,
                "documents": part.num_documents,
                "records": part.num_records,
                "tokens": part.num_tokens,
            }
        digest = self.parts.train.tokenizer_digest
        return {**facts, "tokenizer_digest": digest, **self.documentation}


@dataclasses.dataclass(frozen=True)
class Read:
    """All that a run reads, given models apart. `corpus`: None if no stage reads text."""

    tokenizer: Any
    feeds: Mapping[str, Feed]
    corpus: Corpus | None = None

    @property
    def vocab_size(self) -> int:
        return describe(self.tokenizer).size

    def bound(self, config: ConfigDict, models: Mapping[str, str]) -> Inputs:
        """What a run that reads this, and has these given models, is bound to."""
        text: dict[str, Text] = {}
        documentation: Mapping[str, Any] = {}
        if self.corpus is not None:
            documentation = self.corpus.documentation
            text = {
                split: Text(source, part.source_digest, part.digest)
                for (split, source), part in zip(named_sources(config).items(), self.corpus.parts)
            }
        digest = tokenizer_digest(self.tokenizer)
        return Inputs(digest, text, models, documentation, tasks_to_bind(self.feeds))


def tasks_to_bind(feeds: Mapping[str, Feed]) -> dict[str, Task]:
    """The tasks among `feeds`, as `binding` keeps them."""
    return {
        name: Task(dict(feed.tables), dict(feed.digests), list(feed.labels))
        for name, feed in feeds.items()
        if name != TEXT
    }


def outline(config: ConfigDict) -> dict[str, Feed]:
    """The feeds of a recipe as known before its text is read; the tables of tasks that a stage reads
    are. Raises `BadInput` for tables that cannot be used."""
    named = feeds_read(config)
    feeds = {TEXT: feed_of_text(config)}
    for name, section in config.feeds.items():
        if name in named and "derived" not in section:
            feeds[name] = open_task(name, section, config.seed)
            if (test := test_of(feeds[name], section, config.seed)) is not None:
                check_apart(name, feeds[name], test)
                feeds[test.name] = test
    return feeds


def check_apart(name: str, feed: Feed, test: Feed) -> None:
    """Raises `BadInput` if test rows are those that a task learns from or chooses by."""
    for part, digest in feed.digests.items():
        if digest == test.digests["test"]:
            what = {"train": "learned from", "heldout": "chosen by"}.get(part, part)
            raise BadInput(
                f"config.feeds.{name}.test: its rows are those that are {what}; what is reported must be apart, so "
                "give other rows, or leave test out"
            )


def feeds_read(config: ConfigDict) -> set[str]:
    """The feeds that stages read, and that their networks are cut out by, by name, and those that these
    are made of."""
    stages = [config.stages[name] for name in active_order(config)]
    named = {name for stage in stages for name in (stage.feed, stage.best_on or stage.feed)}
    networks = [config.networks.get(stage.network, {}) for stage in stages]
    named |= {section["importance"] for section in networks if section.get("importance")}
    sections = [config.feeds[name] for name in named if name in config.feeds]
    return named | {section.of for section in sections if "derived" in section}


def reads_text(config: ConfigDict) -> bool:
    """Whether any stage does."""
    return TEXT in feeds_read(config)


def feed_of_text(config: ConfigDict, parts: Parts | None = None) -> Feed:
    """The feed that `config.data` describes, with its text if that is prepared."""
    d = config.data
    settings = RowSettings(config.seed, d.max_predictions, d.mask_rate, d.whole_word)
    return text_feed(settings, d.sequence_length, d.packing, parts)


def named_sources(config: ConfigDict) -> dict[str, str]:
    """The source of each part of the text, as the recipe names it; none if no stage reads text."""
    if not reads_text(config):
        return {}
    return {"train": config.data.source, "heldout": config.data.heldout or config.data.source}


def read(
    config: ConfigDict,
    workdir: epath.Path,
    feeds: Mapping[str, Feed],
    beam_options: str | None = None,
) -> Read:
    """All that a run reads, made (text with `beam_options` by Apache Beam) or found; `feeds` are those
    of `outline`. In a workdir where something was trained it is what that was trained with.

    Raises `BadInput` for unusable text or vocabulary, and where those of a run that goes on cannot
    be had again."""
    sources = named_sources(config)
    held = binding.read(workdir)
    for source in sources.values():
        if beam_options is not None and source.startswith("tfds:"):
            tfds_text.ready(source, beam_options)
    if held is None:
        wanted = sources or not (config.data.tokenizer or given_folder(config))
        if wanted and config.data.source.startswith("default"):
            with Progress(None, "reading the installed documentation", unit="files") as bar:
                default_corpus(progress=bar.reach)
        tokenizer = find_tokenizer(config, tokenizer_home(config, workdir))
    else:
        tokenizer = binding.bound_tokenizer(workdir, held)
    feeds = {name: _tokenized(feed, tokenizer) for name, feed in feeds.items()}
    if not sources:
        return Read(tokenizer, feeds)
    corpus = read_corpus(config, workdir, tokenizer, beam_options)
    return Read(tokenizer, {**feeds, TEXT: feed_of_text(config, corpus.parts)}, corpus)


def _tokenized(feed: Feed, tokenizer: Any) -> Feed:
    """A task with the number of its rows, which the tokenizer tells: a long text may be several."""
    if feed.name == TEXT:
        return feed
    reader = feed.read(tokenizer)
    rows = feed.rows if reader.parts is None else reader.parts.train.number
    return dataclasses.replace(feed, rows=rows, read=lambda _: reader)


def read_corpus(
    config: ConfigDict, workdir: epath.Path, tokenizer: Any, beam_options: str | None = None
) -> Corpus:
    """Both parts of the text, prepared now or found. Raises as `read`."""
    d = config.data
    held = binding.read(workdir)
    folder = data_folder(config, workdir)
    options: dict[str, Any] = {
        "sequence_length": d.sequence_length,
        "heldout_fraction": d.heldout_fraction,
        "seed": config.seed,
        "documents": d.documents,
        "beam_options": beam_options,
    }
    found = {}
    for split, source in named_sources(config).items():
        before = None if held is None else held.text.get(split)
        kept = None if before is None else find_prepared(folder, before.digest)
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
                expected=None if before is None else before.digest,
            )
    for split, text in found.items():
        check_several(text.num_documents, split, d.documents)
    documentation: Mapping[str, Any] = {} if held is None else held.documentation
    if not documentation and is_default(d.source):
        corpus = default_corpus()
        documentation = {"digest": corpus.digest, "documentation_of": dict(corpus.versions)}
    return Corpus(Parts(**found), documentation)


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
        if (before := held.text.get(split)) is None:  # no stage read text when it began
            continue
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
