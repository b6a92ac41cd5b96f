"""Fine-tuning on one text classification file: a `classify` stage through the same loop, then
accuracy and predictions.

The cheapest proof that one loop serves all. Called by the command line and by users.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import sys
from typing import Any

import jax
import numpy as np
from etils import epath

from jaxdistill import conversion, defaults, health, inputs, interop, report
from jaxdistill.binding import model_digest
from jaxdistill.configuration import as_folder
from jaxdistill.data.classification import (
    LabelledText,
    TokenizedTask,
    classification_batches,
    classification_eval_batches,
    read_classification_tsv,
    split_examples,
    tokenize_examples,
)
from jaxdistill.data.files import digest_of
from jaxdistill.data.tokenizers import tokenizer_digest
from jaxdistill.errors import BadInput, listed, shortened
from jaxdistill.interop.hf_torch import read_json
from jaxdistill.methods.base import Cast, Stage
from jaxdistill.methods.settings import LARGEST_COUNT
from jaxdistill.models import Model, Params
from jaxdistill.models.parameters import digest
from jaxdistill.resolve import build_stage, check_seed, stage_seed
from jaxdistill.students.copying import random_start
from jaxdistill.training import loop, memory, sharding, state
from jaxdistill.training.checkpoints import Checkpoints, disk_errors
from jaxdistill.training.metrics import MetricWriter
from jaxdistill.training.progress import Progress
from jaxdistill.training.step import Given
from jaxdistill.workdir import begun, claim, lock, read_page, refuse_links

NAME = "finetune"
HEAD = "sequence_classification"
PathLike = conversion.PathLike


@dataclasses.dataclass(frozen=True)
class Start:
    """What is trained: `given` are the parameters that the model brings (the others are drawn), and
    `head` says whether its classifier is among them."""

    model: Model
    given: Params
    head: str
    tokenizer: Any


def finetune(
    model_dir: PathLike,
    task_file: PathLike,
    workdir: epath.PathLike,
    *,
    dev_file: PathLike | None = None,
    text_column: str | int = 0,
    label_column: str | int = 1,
    pair_column: str | int | None = None,
    epochs: float = 3.0,
    batch_size: int = 32,
    learning_rate: float = 1e-4,
    sequence_length: int | None = None,
    seed: int = 0,
    network: str | None = None,
) -> dict[str, Any]:
    """Fine-tunes the model of `model_dir` on `task_file`; returns accuracies and where everything
    was written.

    Writes `model/` (a folder with a classification head), `predictions.tsv` (dev rows: label,
    prediction, text) and `results.json`, whose `warnings` say what makes the result doubtful.
    AdamW, linear decay, 10 % warm-up, clip 1.0 (as MobileBERT's code fine-tunes). A classifier that
    the model has for the same labels goes on learning; else the head is new, and a line on standard
    error says why. Called again on the same workdir it resumes, and reports what is finished as it
    was. Files are known by content: they may be moved, but other texts, labels or weights are
    refused.

    Args:
        model_dir: a folder, a Hub name, or the workdir of a run, of which `network` (default "student") is taken.
        dev_file: default a part of the task file, kept apart.
        sequence_length: default 128, or what the model can take.

    Raises:
        BadInput: a file, column or setting cannot be used, or the workdir was begun with others.
        TrainingStopped: more than half of the updates were skipped; everything is written.
    """
    columns = {"text_column": text_column, "label_column": label_column, "pair_column": pair_column}
    for name, column in columns.items():
        if not isinstance(column, str | int) and (name, column) != ("pair_column", None):
            raise BadInput(
                f"{name}={column!r}: expected the name of a column, or its number from 0"
            )
    settings: dict[str, Any] = {
        name: None if column is None else str(column) for name, column in columns.items()
    }
    settings |= {
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "seed": seed,
        "sequence_length": sequence_length,
    }
    places = {"model": model_dir, "task_file": task_file, "dev_file": dev_file}
    _check(settings, places)
    folder = as_folder(workdir, "workdir")
    conversion.locate(model_dir, network)  # before much is read
    texts = _read(task_file, dev_file, text_column, label_column, pair_column)
    start = _start(model_dir, network, texts[0].label_names)
    positions = start.model.config.max_positions
    length = settings["sequence_length"] = (
        min(128, positions) if sequence_length is None else sequence_length
    )
    if length > positions:
        raise BadInput(f"sequence_length={length} exceeds the model's max_positions={positions}")
    stage = _stage(settings, len(texts[0].texts), start.model)
    _check_memory(stage, start.model, length)
    settings["labels"] = list(texts[0].label_names)
    settings["digests"] = {
        "model": model_digest(start.model, start.given),
        "tokenizer": tokenizer_digest(start.tokenizer),
        **{
            name: digest_of([text.texts, text.pairs, text.labels.tolist(), text.label_names])
            for name, text in zip(("task_file", "dev_file"), texts)
        },
    }
    _refuse_other(folder, settings, places)
    interop.check_replaceable(folder / "model")
    claim(folder, settings)
    with lock(folder), disk_errors(folder):
        claim(folder, settings, locked=True)  # another call may have come between
        results = _reported(folder, settings)
        if results is None:
            results = _finetune(settings, places, stage, start, texts, folder)
    health.check_trained(NAME, steps=results["steps"], skipped=results["skipped"])
    return results


def _check(settings: dict[str, Any], places: dict[str, Any]) -> None:
    """Raises `BadInput` for numbers and paths that cannot be meant, before anything is read."""
    for name, least, most in (
        ("epochs", 0, sys.float_info.max),
        ("learning_rate", 0, float(np.finfo(np.float32).max)),
        ("batch_size", 1, LARGEST_COUNT),
        ("sequence_length", 8, LARGEST_COUNT),
    ):
        value, kind = settings[name], int | float if name in ("epochs", "learning_rate") else int
        if name == "sequence_length" and value is None:
            continue
        if (
            not isinstance(value, kind)
            or isinstance(value, bool)
            or not least <= value <= most
            or (name, value) == ("epochs", 0)
        ):
            raise BadInput(
                f"{name}={shortened(value)}: expected a {'whole ' if kind is int else ''}number "
                + ("above 0" if name == "epochs" else f"from {least} to {most}")
            )
    if not isinstance(settings["seed"], int):
        raise BadInput(f"seed={settings['seed']!r}: expected a whole number")
    check_seed(settings["seed"], "seed")
    for name in ("task_file", "dev_file"):
        path = places[name]
        if not (isinstance(path, str | os.PathLike) and os.fspath(path)) and (name, path) != (
            "dev_file",
            None,
        ):
            raise BadInput(
                f"{name}={path!r}: expected the path of a table with a text and a label in each row"
            )


def _start(model_dir: PathLike, network: str | None, names: tuple[str, ...]) -> Start:
    """The model with a head for the labels `names`: its own if that is for the same ones, in
    whatever order."""
    folder = conversion.locate(model_dir, network)
    base, given, tokenizer = _load(
        model_dir, network, announced=HEAD in interop.read_config(folder).heads
    )
    theirs, head = None, "new: the model has none"
    if HEAD in base.config.heads:
        theirs = interop.labels(read_json(folder / "config.json"), base.config)
        head = (
            "new: that of the model names no labels"
            if theirs is None
            else (
                f"new: that of the model is for other labels ({listed(theirs)}) than the task ({listed(names)})"
            )
        )
    given = {
        name: tree
        for name, tree in given.items()
        if name != HEAD or sorted(theirs or ()) == sorted(names)
    }
    if HEAD in given:
        assert theirs is not None
        order = np.array([theirs.index(name) for name in names])
        given[HEAD] = jax.tree.map(
            lambda x: x[..., order], given[HEAD]
        )  # kernel [D, C] and bias [C]
        head = "the model's own, which has the same labels"
    model = Model(base.config.replace(heads=(HEAD,), num_labels=len(names), regression=False))
    return Start(model, given, head, tokenizer)


def _load(model_dir: PathLike, network: str | None, announced: bool) -> tuple[Model, Params, Any]:
    """The encoder and, if config.json announces one that the weights hold, its classifier."""
    if announced:
        try:
            return conversion.load(model_dir, network, heads=(HEAD,))
        except BadInput:  # the encoder alone may be whole; if not, that is said next
            pass
    return conversion.load(model_dir, network, heads=())


def _stage(settings: dict[str, Any], examples: int, model: Model) -> Stage:
    batch_size = settings["batch_size"]
    steps = settings["epochs"] * examples / batch_size
    if steps > LARGEST_COUNT:
        raise BadInput(
            f"epochs={settings['epochs']}: {examples:,} examples give {steps:.3g} steps of batch_size={batch_size}; "
            f"expected at most {LARGEST_COUNT:,} steps"
        )
    count = max(1, round(steps))
    section = defaults.stage(
        "classify",
        NAME,
        steps=count,
        batch_size=batch_size,
        optimizer="adamw",
        dropout=True,
        learning_rate=float(settings["learning_rate"]),
        warmup_steps=count // 10,
    )
    return build_stage(NAME, section, examples, model.config.num_layers)


def _mesh(stage: Stage) -> jax.sharding.Mesh:
    """Every device, or one if the batch does not split over them."""
    return sharding.make_mesh(1 if stage.batch_size % len(jax.devices()) else -1)


def _check_memory(stage: Stage, model: Model, length: int) -> None:
    """Raises `BadInput` for a batch that no memory here can hold."""
    rows, mesh = stage.batch_size, _mesh(stage)
    batch = {
        name: jax.ShapeDtypeStruct((rows, length), np.int32)
        for name in ("input_ids", "attention_mask", "token_type_ids")
    }
    memory.check(
        "fine-tuning",
        memory.step_bytes(Cast(stage, model), batch, mesh),
        mesh,
        f"batch_size={rows} or sequence_length={length}",
    )


def _refuse_other(folder: epath.Path, settings: dict[str, Any], places: dict[str, Any]) -> None:
    """Raises `BadInput` if the workdir was begun with something else than what is read now, naming
    what differs."""
    refuse_links(folder)
    if not ((folder / "config.json").exists() and begun(folder)):  # nothing depends on it yet
        return
    held = read_page(folder / "config.json", "put back a copy of it")
    before = held.get("digests")
    if not isinstance(before, dict):
        who = (
            "an earlier version of jaxdistill, which did not record what it read"
            if "task_file" in held
            else "another command"
        )
        raise BadInput(f"workdir {str(folder)!r} was begun by {who}; give a new one")
    labels = held.get("labels")
    if labels != settings["labels"]:
        raise BadInput(
            f"workdir {str(folder)!r} was begun with the labels {listed(labels or ())}, and {places['task_file']!s} now "
            f"has {listed(settings['labels'])}; use another workdir, or give back the labels to resume"
        )
    changed = [
        f"the {name.replace('_', ' ')} ({places.get(name) or places['task_file' if name == 'dev_file' else 'model']})"
        for name, now in settings["digests"].items()
        if before.get(name) != now
    ]
    if changed:
        raise BadInput(
            f"workdir {str(folder)!r} was begun with other contents of {' and '.join(changed)}; use another workdir, "
            "or give back what was there to resume"
        )


def _reported(folder: epath.Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """What a finished call with the same settings wrote, if all of it is there."""
    file = folder / report.RESULTS_FILE
    whole = (
        file.exists()
        and interop.has_weights(folder / "model")
        and (folder / "predictions.tsv").exists()
    )
    results = read_page(file, "delete it") if whole else {}
    if results.get("settings") != json.loads(json.dumps(settings)):
        return None
    if said := interop.damage(folder / "model"):
        print(f"jaxdistill: {said}", file=sys.stderr, flush=True)
    return {**results, **_written(folder)}


def _written(folder: epath.Path) -> dict[str, Any]:
    return {"model": str(folder / "model"), "predictions": str(folder / "predictions.tsv")}


def _finetune(
    settings: dict[str, Any],
    places: dict[str, Any],
    stage: Stage,
    start: Start,
    texts: tuple[LabelledText, LabelledText],
    folder: epath.Path,
) -> dict[str, Any]:
    print(f"jaxdistill: the classifier is {start.head}", file=sys.stderr, flush=True)
    seed, names, model = settings["seed"], texts[0].label_names, start.model
    train_task, dev_task = (
        tokenize_examples(text, start.tokenizer, settings["sequence_length"]) for text in texts
    )
    params = {**random_start(model, seed), **start.given}
    before = digest(params)  # the step takes them over
    params, page = _train(stage, model, params, train_task, folder, seed)

    predictions, accuracy = _predict(model, params, dev_task, stage.batch_size)
    _write_predictions(folder, texts[1], predictions)
    majority = float(np.mean(dev_task.labels == np.bincount(train_task.labels).argmax()))
    warnings = health.stage_warnings(
        NAME,
        steps=stage.steps,
        skipped=page["skipped"],
        moved=digest(params) != before,
        last_loss=float(page["last_loss"]) if "last_loss" in page else None,
    )
    if accuracy <= majority:
        warnings.append(
            f"the accuracy on the {len(dev_task)} dev examples, {accuracy:.4f}, is not above that of always answering "
            f"the most frequent label, {majority:.4f}"
        )
    results = {
        "task_file": os.fspath(places["task_file"]),
        "train_examples": len(train_task),
        "dev_examples": len(dev_task),
        "labels": list(names),
        "classifier": start.head,
        "steps": stage.steps,
        "seconds": round(page["seconds"], 1),
        "accuracy": accuracy,
        "majority_accuracy": majority,
        "skipped": page["skipped"],
        "hardware": inputs.hardware(),
        "versions": inputs.versions(),
        "seed": seed,
    }
    title = f"{epath.Path(places['model']).name} on {epath.Path(places['task_file']).name}"
    card = interop.model_card(
        {**results, "config_name": title},
        config=model.config,
        license=None,
        reason=interop.why_not_huggingface(model.config),
    )
    interop.save_pretrained(
        folder / "model", model, params, start.tokenizer, card=card, labels=names, overwrite=True
    )
    results |= {**_written(folder), "settings": settings, "warnings": warnings}
    report.write_results(folder, results)
    return results


def _read(
    task_file: PathLike,
    dev_file: PathLike | None,
    text_column: str | int,
    label_column: str | int,
    pair_column: str | int | None,
) -> tuple[LabelledText, LabelledText]:
    whole = read_classification_tsv(task_file, text_column, label_column, pair_column)
    if dev_file is None:
        return split_examples(whole)
    return whole, read_classification_tsv(
        dev_file, text_column, label_column, pair_column, whole.label_names
    )


def _train(
    stage: Stage, model: Model, params: Params, task: TokenizedTask, folder: epath.Path, seed: int
) -> tuple[Params, dict[str, Any]]:
    mesh = _mesh(stage)
    checkpoints = Checkpoints(folder / "checkpoints" / stage.name)
    train_state, page = state.create(Cast(stage, model), params), dict[str, Any](seconds=0.0)
    if checkpoints.latest() is not None:
        train_state, held = checkpoints.restore(train_state, mesh)
        page |= {name: held[name] for name in ("seconds", "last_loss") if name in held}
    done = int(train_state.step)
    batches = classification_batches(
        task,
        batch_size=stage.batch_size,
        seed=seed,
        start_example=done * stage.batch_size,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    with MetricWriter(folder) as writer, Progress(stage.steps, stage.name, initial=done) as bar:
        writer.rewind(stage.name, done, stage.network)

        def show(step: int, scalars: dict[str, float]) -> None:
            page["last_loss"] = str(scalars["loss"])  # JSON has no NaN
            bar.reach(step, loss=scalars["loss"])

        reporting = loop.Reporting(
            write=lambda step, scalars: writer.write(stage.name, step, scalars, stage.network),
            show=show,
            flush=writer.flush,
        )
        try:
            train_state = loop.run_stage(
                Cast(stage, model),
                train_state,
                Given({}, np.int32(stage_seed(seed, stage.name))),
                batches,
                mesh=mesh,
                checkpoints=checkpoints,
                page=page,
                reporting=reporting,
                limits=loop.Limits(checkpoint_seconds=600, hang_seconds=1800),
            )
        except BaseException:  # Ctrl-C too: saves under way must end before Python does
            checkpoints.close()
            raise
    checkpoints.save(train_state, page, wait=True)  # what a second call on this workdir finds
    checkpoints.close()
    return jax.device_get(train_state.params), {**page, "skipped": int(train_state.skipped)}


@functools.lru_cache(16)
def _compile_logits(model: Model) -> jax.stages.Wrapped:
    return jax.jit(lambda params, batch: model.apply(params, batch)[0]["logits"])


def _predict(
    model: Model, params: Params, task: TokenizedTask, batch_size: int
) -> tuple[np.ndarray, float]:
    logits = _compile_logits(model)
    found, kept = [], []
    for batch in classification_eval_batches(task, batch_size=batch_size):
        found.append(np.argmax(jax.device_get(logits(params, batch)), -1))
        kept.append(batch["example_weights"] > 0)
    predictions = np.concatenate(found)[np.concatenate(kept)]
    return predictions, float(np.mean(predictions == task.labels))


def _write_predictions(folder: epath.Path, text: LabelledText, predictions: np.ndarray) -> None:
    lines = ["label\tprediction\ttext"]
    for label, predicted, sentence in zip(text.labels, predictions, text.texts):
        cells = (text.label_names[label], text.label_names[predicted], sentence)
        lines.append(
            "\t".join(" ".join(cell.split()) for cell in cells)
        )  # a quoted cell may hold tabs and line ends
    (folder / "predictions.tsv").write_text("\n".join(lines) + "\n")
