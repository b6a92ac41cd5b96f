"""`export`: a model from any format we read into any we write, proved equal. Called by the command
line and by users.

    Hugging Face folder or Hub name (safetensors, msgpack), our own folder, a run's workdir, Google's TF1 checkpoint
        -> Hugging Face folder (either kind of weights), our own folder

The source says itself what it is, but for TF1. What is written is loaded back: every tensor must be
equal to the bit and outputs too, or nothing is left behind."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from jaxdistill import inputs, interop, report, run
from jaxdistill.configuration import as_folder, load_config
from jaxdistill.data.sources import check as check_source
from jaxdistill.data.text import Once, rows_once
from jaxdistill.data.tokenizers import describe, load_tokenizer, mended_settings
from jaxdistill.defaults import check_schema
from jaxdistill.errors import BadInput, listed, shortened
from jaxdistill.evaluation.importance import importance
from jaxdistill.interop import tf1
from jaxdistill.interop.hf_torch import read_json
from jaxdistill.models import Model, Params
from jaxdistill.models.parameters import count
from jaxdistill.resolve import active_order, main_network
from jaxdistill.students import extract as extraction
from jaxdistill.students.layers import take_layers
from jaxdistill.training import sharding
from jaxdistill.workdir import Workdir, is_recipe

PathLike = str | os.PathLike[str]
ROWS = 4096  # of the text that places are chosen by
SEVERAL = "finetune.json"  # of a workdir with several runs: their scores, and the best model


@dataclasses.dataclass(frozen=True)
class Source:
    """A loaded model with what belongs to it: for the card its `title` and a run's `results`, or
    the `card` of a folder, which holds for folders of its own kind (`own`: our format), and what it
    `said` besides; `shown` and `notes` are for messages, `facts` for a program."""

    model: Model
    params: Params
    title: str
    shown: str
    tokenizer: Any = None
    labels: Sequence[str] | None = None
    problem_type: str | None = None
    results: dict[str, Any] = dataclasses.field(default_factory=dict)
    card: str | None = None
    own: bool = False
    said: interop.Said | None = None
    notes: tuple[str, ...] = ()
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)


class Line(str):
    """What was written, in words; `facts` says it to a program, JSON-ready."""

    facts: dict[str, Any]

    def __new__(cls, text: str, facts: dict[str, Any]) -> Line:
        made = super().__new__(cls, text)
        made.facts = facts
        return made


def export(
    model: PathLike | None,
    out: PathLike,
    *,
    format: str | None = None,
    network: str | None = None,
    layers: Sequence[int] | None = None,
    sizes: Mapping[str, int] = MappingProxyType({}),
    importance_from: PathLike | None = None,
    from_tf1: PathLike | None = None,
    config: PathLike | None = None,
    vocab: PathLike | None = None,
) -> Line:
    """Writes a model with its tokenizer, names of labels and card as the new folder `out`; returns a
    line that says what was done.

    Args:
        model: a folder or Hub name, as `from_pretrained` takes it, or the workdir of a run, of which `network` (default
            as in `locate`) is taken as of its last finished stage. None with `from_tf1`.
        out: a folder that does not exist or is empty.
        format: "huggingface" (the default wherever a class of transformers holds the model; the same as "safetensors"),
            "msgpack" (Flax's weights), or "jaxdistill" (our own format).
        layers: a model of these layers alone, counted from 0, in this order; default all.
        sizes: a part of the model that is smaller in these fields of `ModelConfig`, as `{"hidden_size": 192}`
            (Extract-Then-Distill; `students.extract`): its places at random, or with `importance_from`, a text as
            `evaluate` takes one, those that matter most to the MLM head's loss there.
        from_tf1: a TF1 checkpoint of Google's BERT or MobileBERT instead of a model: its prefix, such as
            `DIR/bert_model.ckpt`, or its folder; with it `config`, the `bert_config.json` that came with it, and `vocab`
            (default `vocab.txt` beside either of them, if there is one), which makes a tokenizer that keeps case if it
            has capital letters.

    Raises:
        BadInput: the source cannot be read, has no such layers, or `format` cannot hold it; `out` is not free; what was
            written is not equal.
    """
    where = as_folder(out, "out")
    if from_tf1 is None:
        _refuse(
            {"config": config, "vocab": vocab}, "describes a checkpoint, and from_tf1 names none"
        )
        source = _from_model(model, network)
    else:
        _refuse({"model": model, "network": network}, "does not go with from_tf1")
        source = _from_tf1(from_tf1, config, vocab)
    if sizes or importance_from is not None:
        source = _part(source, layers, sizes, importance_from)
    elif layers is not None:
        source = _of_layers(source, layers)
    return _write(where, source, format)


def _refuse(given: dict[str, PathLike | None], why: str) -> None:
    """Raises `BadInput` for an argument that would do nothing."""
    for name, value in given.items():
        if value is not None:
            raise BadInput(f"{name}={shortened(value)!r} {why}; leave it away")


def _from_model(model: PathLike | None, network: str | None) -> Source:
    if model is None:
        raise BadInput(
            "neither model nor from_tf1 is given; expected a model (a folder, a Hub name or a run's workdir) or a TF1 "
            "checkpoint"
        )
    folder, path = locate(model, network), epath.Path(model).expanduser()
    if is_run(path):
        return _from_run(path, folder, network or main_network(_recipe(path)))
    return _from_folder(model, folder)


def _from_tf1(checkpoint: PathLike, config: PathLike | None, vocab: PathLike | None) -> Source:
    if config is None:
        raise BadInput(
            "from_tf1 needs config=FILE: the bert_config.json that came with the checkpoint"
        )
    imported = tf1.load(checkpoint, config)
    prefix = tf1.find(checkpoint)
    beside = [
        place / "vocab.txt" for place in (epath.Path(config).expanduser().parent, prefix.parent)
    ]
    found = vocab or next((file for file in beside if file.exists()), None)
    notes = [] if found else ["no vocab.txt beside it, so no tokenizer was written"]
    if imported.skipped:
        notes.append(f"{len(imported.skipped)} variables of training (teacher, optimizer) skipped")
    if imported.unknown:
        notes.append(
            f"not used, as no part of the model has that name: {', '.join(imported.unknown)}"
        )
    return Source(
        imported.model,
        imported.params,
        prefix.name,
        str(prefix),
        load_vocabulary(found) if found else None,
        notes=tuple(notes),
        facts={"skipped": list(imported.skipped), "unknown": list(imported.unknown)},
    )


def _of_layers(source: Source, layers: Sequence[int]) -> Source:
    """The source with these layers alone; card and results tell of the whole model, so they go."""
    model, params = take_layers(source.model, source.params, layers)
    names = ", ".join(map(str, layers))
    return dataclasses.replace(
        source,
        model=model,
        params=params,
        title=f"{source.title}, layers {names}",
        shown=f"layers {names} of {source.shown}",
        results={},
        card=None,
        facts={**source.facts, "model": source.shown, "layers": list(layers)},
    )


def _part(
    source: Source,
    layers: Sequence[int] | None,
    sizes: Mapping[str, int],
    importance_from: PathLike | None,
) -> Source:
    """The part of the source that has these sizes, of these layers."""
    config, params = source.model.config, source.params
    if not sizes:
        raise BadInput(
            f"importance_from={shortened(importance_from)!r} would do nothing: whole layers are taken as they are; "
            "give a smaller size too, as --hidden_size"
        )
    if layers is not None:
        take_layers(source.model, params, layers)  # refuses what there is not
        sizes = {**sizes, "num_layers": len(layers)}
    student = extraction.smaller(config, **sizes)
    extraction.check(config, student, "a part of these sizes")
    scores, chosen = extraction.random_scores(config, 0), "at random"
    if importance_from is not None:
        scores = _importance(source, importance_from)
        chosen = f"by importance on {os.fspath(importance_from)}"
    rows = layers or extraction.uniform_layers(config.num_layers, student.num_layers)
    keep = extraction.choose(config, student, scores, rows)
    names = ", ".join(f"{field} {size}" for field, size in sorted(sizes.items()))
    return dataclasses.replace(
        source,
        model=Model(student),
        params=extraction.extract(config, params, keep),
        title=f"{source.title}, a part of it",
        shown=f"layers {', '.join(map(str, rows))}, {names}, chosen {chosen}, of {source.shown}",
        results={},
        card=None,
        facts={
            **source.facts,
            "model": source.shown,
            "layers": list(rows),
            "sizes": dict(sizes),
            "chosen": chosen,
        },
    )


def _importance(source: Source, text: PathLike) -> Mapping[str, np.ndarray]:
    """What each place of the source's axes is worth to its MLM head on a text, of which `ROWS` rows are
    read."""
    if "mlm" not in source.model.config.heads:
        raise BadInput(
            f"importance_from={os.fspath(text)!r} is what places are worth to the MLM head, and {source.shown} has none "
            f"(heads: {listed(source.model.config.heads)}); leave it away, and places are chosen at random"
        )
    if source.tokenizer is None:
        raise BadInput(
            f"{source.shown} has no tokenizer, and importance_from is text; put its files there"
        )
    for notice in check_source([os.fspath(text)], "blank_lines"):
        print(f"jaxdistill: {notice}", file=sys.stderr, flush=True)
    tokenizer = source.tokenizer
    if isinstance(tokenizer, epath.Path):
        tokenizer = load_tokenizer(tokenizer)
    length = min(128, source.model.config.max_positions)
    rows = rows_once(
        os.fspath(text), tokenizer, Once(length=length, batch_size=16, max_examples=ROWS)
    )
    mesh = sharding.make_mesh(1)
    return importance(source.model, source.params, ("mlm",), rows, mesh=mesh)


def load_vocabulary(file: PathLike) -> Any:
    """The tokenizer of a bare vocab.txt, which keeps case if the vocabulary does: it has words with
    capitals then."""
    folded = load_tokenizer(file, lowercase=True)
    cased = any(
        token != token.lower()
        for token in folded.get_vocab()
        if token not in folded.all_special_tokens
    )
    return load_tokenizer(file, lowercase=False) if cased else folded


def kept_tokenizer(folder: epath.Path) -> Any:
    """The folder itself, whose tokenizer files are copied, or what they load as where transformers
    could not read them."""
    return folder if mended_settings(folder) is None else load_tokenizer(folder)


def is_run(path: epath.Path) -> bool:
    """Whether a folder is the workdir of `train`: its config.json is a recipe."""
    if not (path / "config.json").exists():
        return False
    return is_recipe(read_json(path / "config.json"))


def locate(model: PathLike, network: str | None = None) -> epath.Path:
    """The folder of a model however it is given: a folder or Hub name, as `from_pretrained` takes
    it; or the workdir of a run, of which `network` (default "student" or, where none is called so,
    that of the last stage) is taken as of its last finished stage.

    Raises `BadInput` if it is none of these, and for `network` of what is no run.
    """
    if not isinstance(model, str | os.PathLike) or not os.fspath(model):
        raise BadInput(
            f"model={str(model)[:60]!r} ({type(model).__name__}): expected a folder, a name of the Hugging Face Hub, or "
            "a run's workdir"
        )
    path = epath.Path(model).expanduser()
    if not network and (path / SEVERAL).exists():  # below it, wherever the workdir is now
        best = epath.Path(str(read_json(path / SEVERAL).get("model", "")))
        return interop.locate(path.joinpath(*best.parts[-3:]))
    if is_run(path):
        done, wanted = finished_networks(path), network or main_network(_recipe(path))
        if wanted not in done:
            raise BadInput(
                f"network {wanted!r} has no finished stage in {str(path)!r}; finished: "
                f"{', '.join(done) or '(none)'}"
            )
        return done[wanted]
    if network:
        raise BadInput(
            f"network={network!r} was given, but {os.fspath(model)!r} is no workdir of a run: leave it away"
        )
    return interop.locate(model)


def finished_networks(path: epath.Path) -> dict[str, epath.Path]:
    """Of a run's workdir: each network that has a finished stage, and the folder of its last
    one."""
    folder, config = Workdir(path), _recipe(path)
    return {
        config.stages[name].network: folder.stage(name)
        for name in active_order(config)
        if folder.finished(name)
    }


def load(
    model: PathLike, network: str | None = None, heads: Sequence[str] | None = None
) -> tuple[Model, Params, Any]:
    """(model, parameters, tokenizer) of what `locate` takes; `heads` as in `from_pretrained`.
    Raises `BadInput` if they do not belong together: an id that the model has no row for gives no
    error in a network, but NaN."""
    folder = locate(model, network)
    found, params = interop.from_pretrained(folder, heads=heads)
    path = epath.Path(model).expanduser()
    tokenizer = inputs.trained_with(_recipe(path), path) if is_run(path) else load_tokenizer(folder)
    if (size := describe(tokenizer).size) > (rows := found.config.vocab_size):
        raise BadInput(
            f"the tokenizer of {os.fspath(model)!r} has {size:,} words, but its model knows {rows:,}; put the "
            "tokenizer there that the model was trained with"
        )
    return found, params, tokenizer


def _from_run(path: epath.Path, stage: epath.Path, network: str) -> Source:
    model, params = interop.from_pretrained(stage)
    results_file = path / report.RESULTS_FILE
    results = read_json(results_file) if results_file.exists() else {}
    return Source(
        model,
        params,
        network,
        f"{network} of {path}",
        inputs.trained_with(_recipe(path), path),
        interop.labels(read_json(stage / "config.json"), model.config),
        results=results,
    )


def _recipe(path: epath.Path) -> ConfigDict:
    values = read_json(path / "config.json")
    if values.get("code"):  # which is not run here: networks and text are read without it
        check_schema(values, f"the run in workdir {os.fspath(path)!r}")
        return ConfigDict(values)
    return load_config(path / "config.json")


def _from_folder(model: PathLike, folder: epath.Path) -> Source:
    loaded, params = interop.from_pretrained(folder)
    values = read_json(folder / "config.json")
    own = values.get("model_type") == interop.OWN_FORMAT
    has_tokenizer = any((folder / name).exists() for name in ("vocab.txt", "tokenizer.json"))
    try:
        card = (folder / "README.md").read_text()
    except (OSError, UnicodeDecodeError):  # none, or none that can be read: a fresh one is written
        card = None
    return Source(
        loaded,
        params,
        epath.Path(os.fspath(model)).name,
        os.fspath(model),
        kept_tokenizer(folder) if has_tokenizer else None,
        interop.labels(values, loaded.config),
        values.get("problem_type") or "",
        card=card,
        own=own,
        said=interop.said_by(folder, loaded.config),
    )


def _write(out: PathLike, source: Source, format: str | None) -> Line:
    model, params = interop.for_format(source.model, source.params, format)
    source = dataclasses.replace(source, model=model, params=params)
    reason = interop.why_own_format(source.model.config, format)
    card = source.card if source.own == (reason is not None) else None
    if card is None:
        card = run.run_card(
            source.model,
            source.results,
            name=None if source.results else source.title,
            reason=reason,
        )
    written = interop.save_pretrained(
        out,
        source.model,
        source.params,
        source.tokenizer,
        labels=source.labels,
        format=format,
        card=card,
        problem_type=source.problem_type,
        source=source.said,
    )
    try:
        interop.verify_export(written.path, source.model, source.params)
    except BaseException:
        written.path.rmtree()  # it did not exist before
        raise
    why = f" ({reason})" if reason and format is None else ""
    if source.said is not None and source.said.left_out:
        why += f" without {' and '.join(source.said.left_out)} of config.json"
    form = format or written.format
    facts = {
        "model": source.shown,
        "path": str(written.path),
        "format": form,
        "reason": reason if format is None else None,
        "parameters": count(source.params),
        "verified": True,
        **source.facts,
    }
    line = (
        f"{source.shown} -> {written.path}: {form} format{why}, {facts['parameters']:,} parameters, every tensor and all "
        "outputs equal when loaded back"
    )
    return Line("; ".join([line, *source.notes]), facts)
