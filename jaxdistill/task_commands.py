"""The commands on labelled tasks, as functions: finetune, and evaluate with a task. Called by cli and by
users."""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from jaxdistill import conversion, defaults, interop, report, run
from jaxdistill.commands import parse_seeds
from jaxdistill.configuration import Overrides, as_config, as_folder, load_config, shipped_recipes
from jaxdistill.data import tasks
from jaxdistill.data.feeds import ALONE, Feed
from jaxdistill.data.files import write_whole
from jaxdistill.errors import BadInput, TrainingStopped, listed, shortened
from jaxdistill.evaluation.details import details, uncertainty
from jaxdistill.evaluation.predictions import predict
from jaxdistill.evaluation.scores import SCORES, metric_of
from jaxdistill.interop.hf_torch import read_json
from jaxdistill.models.heads import HEADS
from jaxdistill.training import sharding
from jaxdistill.workdir import Workdir


def finetune(
    model_dir: conversion.PathLike,
    data: conversion.PathLike,
    workdir: epath.PathLike,
    *,
    task: str = "classification",
    heldout: conversion.PathLike | None = None,
    test: conversion.PathLike | None = None,
    text_column: str | int | None = None,
    label_column: str | int | None = None,
    pair_column: str | int | None = None,
    epochs: float = 3.0,
    batch_size: int = 32,
    learning_rate: float = 1e-4,
    sequence_length: int | None = None,
    seed: int = 0,
    grid: Sequence[float] = (),
    seeds: Sequence[int] = (),
    network: str | None = None,
    overrides: Overrides = (),
) -> dict[str, Any]:
    """Fine-tunes the model of `model_dir` on a labelled task: the recipe `finetune`, run in `workdir`.

    Returns the scores of the held-out and the test rows and where everything was written: `model/` (a
    folder with the task's head) and the answers to those rows; `warnings` say what makes the result doubtful.
    AdamW with bias correction, linear decay, 10 % warm-up, clip 1.0. A classifier that the
    model has for the same labels goes on learning; else the head is new, and a line on standard error
    says why. Called again on the same workdir it resumes, and reports what is finished as it was. Files
    are known by content: they may be moved, but other texts, labels or weights are refused.

    Args:
        model_dir: a folder, a Hub name, or the workdir of a run, of which `network` is taken (default as in
            `conversion.locate`).
        data: the training rows: a file, a set by name, as "hf:NAME:train", or of GLUE's tasks their folder.
        task: a name in `jaxdistill.data.tasks.TASKS`, as "classification", "tagging" or "mrpc".
        heldout: another such file, to choose by; default a part of `data`, kept apart, or the task's own dev
            file.
        test: another such file, of which nothing is chosen: the numbers to report.
        text_column, label_column, pair_column: names or numbers; default those of the task.
        sequence_length: default that of the task, or what the model can take.
        grid: learning rates to choose from by the held-out rows, each tried with the first seed.
        seeds: runs of the chosen one, in folders of their own; the scores of all, their median, lowest and
            highest are returned, and the model with the best held-out score.
        overrides: of any field of the recipe, as `train` takes them: "feeds.task.header=no".

    Raises:
        BadInput: a file, column or setting cannot be used, or the workdir was begun with others.
        TrainingStopped: updates were skipped because they were not finite.
    """
    columns = {"text_column": text_column, "label_column": label_column, "pair_column": pair_column}
    for name, column in columns.items():
        if not isinstance(column, str | int | None):
            raise BadInput(
                f"{name}={column!r}: expected the name of a column, or its number from 0"
            )
    for name, file in (("data", data), ("heldout", heldout), ("test", test)):
        given = isinstance(file, str | os.PathLike) and bool(os.fspath(file))
        if not given and (file is not None or name == "data"):
            raise BadInput(
                f"{name}={file!r}: expected a file with labelled rows, hf:NAME, tfds:NAME, or the folder of a GLUE task"
            )
    if not isinstance(epochs, int | float) or not 0 < epochs < math.inf:
        raise BadInput(f"epochs={shortened(epochs)}: expected a number above 0")
    workdir = as_folder(workdir, "workdir")
    if task in tasks.MEASURED_ONLY:
        raise BadInput(
            f"task {task!r} is evaluated, not learned: jaxdistill evaluate --task={task}"
        )
    folder = conversion.locate(model_dir, network)
    config = load_config(shipped_recipes()["finetune"])
    config.feeds.task = defaults.task(task, source=os.fspath(data))
    given_settings = {
        **{name: str(column) for name, column in columns.items() if column is not None},
        **({} if heldout is None else {"heldout": os.fspath(heldout)}),
        **({} if test is None else {"test": os.fspath(test)}),
    }
    for name, value in given_settings.items():
        tasks.check_setting(task, name, f"task {task!r}")
        config.feeds.task[name] = value
    if sequence_length is None and "sequence_length" in config.feeds.task:
        most = interop.read_config(folder).max_positions
        sequence_length = min(config.feeds.task.sequence_length, most)
    stage = config.stages.finetune
    for section, field, value in (
        (config.networks.model, "init", os.fspath(folder)),
        *(
            ((config.feeds.task, "sequence_length", sequence_length),)
            if sequence_length is not None
            else ()
        ),
        (stage, "epochs", epochs),
        (stage, "batch_size", batch_size),
        (stage, "learning_rate", learning_rate),
        (config.evaluation, "batch_size", batch_size),
        (config, "seed", seed),
    ):
        try:
            section[field] = value
        except TypeError as error:
            raise BadInput(f"{field}={shortened(value)!r}: expected a number") from error
    config.mesh.data = devices_for(batch_size)
    config = as_config(config, overrides)
    feed = tasks.open_task("task", config.feeds.task, config.seed)
    config.networks.model.heads = (feed.head,)
    if not grid and not seeds:
        return _one(config, feed, workdir)
    if (workdir / "config.json").exists():
        raise BadInput(
            f"{os.fspath(workdir)!r} holds a run or a model already, and several runs have folders of their own; give "
            "another workdir"
        )
    own_rate, own_seed = config.stages.finetune.learning_rate, config.seed
    for name, nothing in (
        ("stages.finetune.learning_rate", bool(grid) and own_rate != learning_rate),
        ("seed", bool(seeds) and own_seed != seed),
    ):
        if nothing:
            raise BadInput(f"config.{name} would do nothing beside several of them; leave it out")
    rates = _rates(grid) if grid else (own_rate,)
    numbers = parse_seeds(",".join(map(str, seeds))) if seeds else (own_seed,)
    return _several(config, feed, workdir, rates, numbers)


def _rates(grid: Sequence[float]) -> tuple[float, ...]:
    """Learning rates to try. Raises `BadInput` for one that is none, or there twice."""
    for rate in grid:
        is_rate = isinstance(rate, int | float) and bool(0 < rate < math.inf)
        if not is_rate or sum(f"{rate:g}" == f"{other:g}" for other in grid) > 1:
            raise BadInput(
                f"grid={listed(map(str, grid))}: expected different learning rates, as 3e-5,1e-4"
            )
    return tuple(map(float, grid))


def _one(config: ConfigDict, feed: Feed, workdir: epath.Path) -> dict[str, Any]:
    """One run of the recipe."""
    results = run.train(config, workdir)
    row, facts = results["networks"]["model"], results["tasks"]["task"]
    stage, test = results["stages"]["finetune"], "task" + tasks.TEST
    written = [Workdir(workdir).predictions(name) for name in ("task", test) if name in row]
    found = {
        "task": config.feeds.task.kind,
        "data": facts["train"],
        "train_examples": facts["rows"],
        "heldout_examples": facts["heldout_rows"],
        "labels": facts["labels"],
        "head": row.get("heads", {}).get(feed.head, "the model's own"),
        **{name: stage[name] for name in ("steps", "seconds", "skipped")},
        "metric": metric_of(feed),
        "heldout": row["task"],
    }
    if test in row:
        found |= {"test_examples": results["tasks"][test]["heldout_rows"], "test": row[test]}
    return {
        **found,
        **{name: results[name] for name in ("hardware", "versions", "seed", "warnings")},
        "model": os.fspath(workdir / "model"),
        "predictions": [
            os.fspath(path)
            for folder in written
            for path in sorted(folder.iterdir())
            if path.name.startswith("model.")
        ],
    }


def _several(
    config: ConfigDict,
    feed: Feed,
    workdir: epath.Path,
    rates: tuple[float, ...],
    seeds: tuple[int, ...],
) -> dict[str, Any]:
    """The best of several learning rates, by the held-out rows, and that one with several seeds."""
    metric = metric_of(feed)
    better = 1 if metric in SCORES[feed.score].higher else -1
    diverged: list[str] = []

    def one(rate: float, seed: int) -> dict[str, Any]:
        own = as_config(config, {"stages.finetune.learning_rate": rate, "seed": seed})
        return _one(own, feed, workdir / f"learning_rate-{rate:g}" / f"seed-{seed}")

    def tried(rate: float, seed: int) -> dict[str, Any] | None:
        try:
            return one(rate, seed)
        except TrainingStopped as error:
            diverged.append(f"learning rate {rate:g}, seed {seed}: {error}")
            return None

    def worth(found: Mapping[str, Any]) -> float:
        value = found["heldout"][metric]
        return better * value if math.isfinite(value) else -math.inf

    found = {rate: results for rate in rates if (results := tried(rate, seeds[0])) is not None}
    if not found:
        raise TrainingStopped("; ".join(diverged))
    chosen = max(found, key=lambda rate: worth(found[rate]))
    runs = [found[chosen]]
    runs += [run for seed in seeds[1:] if (run := tried(chosen, seed)) is not None]
    best = max(runs, key=worth)
    facts = ("task", "data", "train_examples", "heldout_examples", "test_examples", "labels")
    more = ("hardware", "versions", "model", "predictions")
    results = {
        **{name: best[name] for name in (*facts, "metric") if name in best},
        "learning_rate": chosen,
        "grid": {f"{rate:g}": run["heldout"][metric] for rate, run in found.items()},
        "seeds": [run["seed"] for run in runs],
        "heldout": _spreads([run["heldout"] for run in runs]),
        **({"test": _spreads([run["test"] for run in runs])} if "test" in best else {}),
        "seconds": [run["seconds"] for run in runs],
        **{name: best[name] for name in more},
        "warnings": [*diverged, *dict.fromkeys(line for run in runs for line in run["warnings"])],
    }
    report.write_results(workdir, results, conversion.SEVERAL)
    return results


def _spreads(rows: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Of each number of several runs the median, the lowest and the highest."""
    found = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        ends = {"low": min(values), "high": max(values)}
        found[name] = {"median": statistics.median(values), **ends, "by_seed": values}
    return found


def evaluate_task(
    model_dir: conversion.PathLike,
    task: str,
    data: conversion.PathLike = "",
    *,
    sequence_length: int | None = None,
    network: str | None = None,
    batch_size: int = 32,
    out: epath.PathLike = "",
    overrides: Overrides = (),
) -> dict[str, Any]:
    """The scores of a model on a labelled task, by the labels that its own config.json names.

    Args:
        model_dir: as in `finetune`; it must have the task's head.
        task: a name in `jaxdistill.data.tasks.TASKS`.
        data: the rows: a file, a set by name, or of GLUE's tasks their folder, whose dev file is taken.
        sequence_length: default that of the task, or what the model can take.
        out: a folder for the answers to each row; "": none are written.
        overrides: of the task's settings, as "feeds.task.text_column=sentence".

    Raises:
        BadInput: a file or setting cannot be used; the model lacks the head, or its labels are not the file's.
    """
    model, params, tokenizer = conversion.load(model_dir, network)
    folder = conversion.locate(model_dir, network)
    positions = model.config.max_positions
    config = load_config(shipped_recipes()["finetune"])
    config.feeds.task = section = defaults.task(task)
    if "source" in section:
        section.source = os.fspath(data)
    if "sequence_length" in section:
        most = min(section.sequence_length, positions)
        section.sequence_length = most if sequence_length is None else sequence_length
    section = as_config(config, overrides).feeds.task
    for name, default in tasks.default_settings(task).items():
        if name.startswith(("heldout", "test")) and section[name] != default:
            raise BadInput(
                f"task.{name}={shortened(repr(section[name]))} would do nothing: all rows of --data are measured"
            )
    section.update(tasks.measured_alone(section))
    if section.get("sequence_length", 0) > positions:
        raise BadInput(
            f"sequence_length={section.sequence_length} exceeds the max_positions={positions} of "
            f"{os.fspath(model_dir)!r}"
        )
    names = interop.labels(read_json(folder / "config.json"), model.config)
    if names and "labels" in section and not section.labels and not section.get("label_file"):
        section.labels = tuple(names)
    feed = tasks.open_task("task", section, 0)
    check_answers(feed, model.config, names, os.fspath(model_dir))
    reader = feed.read(tokenizer)
    assert reader.answers is not None
    rows, mesh = (
        reader.heldout(batch_size, None, ALONE),
        sharding.make_mesh(devices_for(batch_size)),
    )
    answers = reader.answers(predict(model, params, rows, feed.head, mesh))
    more = details(answers, feed)
    said = [line] if (line := uncertainty(more, feed)) else []
    written = []
    if out:
        for ending, text in answers.files.items():
            path = as_folder(out, "out") / f"answers.{ending}"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, text)
            written.append(os.fspath(path))
    return {
        "task": task,
        "data": feed.tables["heldout"],
        "examples": feed.heldout_rows,
        "labels": list(feed.labels),
        "metric": metric_of(feed),
        **SCORES[feed.score].of(answers, feed),
        "details": more,
        "notices": list(dict.fromkeys((*feed.notices, *reader.notices, *said))),
        **({"answers": written} if out else {}),
    }


def devices_for(batch_size: int) -> int:
    """Every device (-1), or one if the batch does not split over them."""
    return -1 if isinstance(batch_size, int) and batch_size % len(jax.devices()) == 0 else 1


def check_answers(feed: Feed, config: Any, names: Any, shown: str) -> None:
    """Raises `BadInput` unless a model has the head of a task, for its labels in their order."""
    if feed.head not in config.heads:
        raise BadInput(
            f"{shown!r} has no head {feed.head!r} (heads: {listed(config.heads)}), so it cannot answer; "
            "fine-tune it on the task first: jaxdistill finetune"
        )
    if not HEADS[feed.head].by_label:
        return
    if bool(feed.labels) == config.regression:
        gives, asks = ("a number", "classes") if config.regression else ("classes", "a number")
        raise BadInput(f"{shown!r} gives {gives}, and the task asks for {asks}; take another task")
    if feed.labels and list(feed.labels) != list(names or ()):
        raise BadInput(
            f"{shown!r} is for the labels {listed(names or ())}, the task has {listed(feed.labels)}; fine-tune "
            "the model on it, or name its labels in config.json (id2label)"
        )
