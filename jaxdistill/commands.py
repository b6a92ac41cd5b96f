"""The commands beside `train`, as functions: prepare, describe, evaluate, seeds, search.
Called by cli and by users."""

from __future__ import annotations

import json
import os
import statistics
import sys
from collections.abc import Sequence
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from jaxdistill import binding, conversion, description, inputs, interop, report, run
from jaxdistill.checks import check_seed, check_text_settings
from jaxdistill.configuration import Overrides, as_config, as_folder, load_config, shipped_recipes
from jaxdistill.data.beam_options import parse_options
from jaxdistill.data.sources import check as check_source
from jaxdistill.data.text import NAME as TEXT
from jaxdistill.data.text import Once, rows_once
from jaxdistill.data.tokenizers import tokenizer_digest
from jaxdistill.errors import BadInput, nearest, shortened
from jaxdistill.evaluation import heldout
from jaxdistill.evaluation.scores import SCORES, metric_of
from jaxdistill.models import PRESETS, Model, ModelConfig, preset
from jaxdistill.models.heads import HEADS
from jaxdistill.recipe import TEACHER
from jaxdistill.resolve import model_config, resolve, width_of, with_task_heads
from jaxdistill.search import mapping
from jaxdistill.training import sharding
from jaxdistill.workdir import Workdir, refuse_links


def prepare(
    config: str | os.PathLike[str] | ConfigDict,
    workdir: epath.PathLike,
    beam_options: str | None = None,
    *,
    overrides: Overrides = (),
) -> dict[str, Any]:
    """Prepares text and tokenizer of a recipe (with `overrides`, as `train` takes both), as `train`
    would first; returns the facts of the corpus.

    `beam_options`: Apache Beam prepares the text, with these pipeline options; the same records
    come out."""
    config, workdir = as_config(config, overrides), as_folder(workdir, "workdir")
    if beam_options is not None:
        parse_options(beam_options)  # before a vocabulary is trained
    check_text_settings(config)
    inputs.check_sources(config, workdir)
    folder = Workdir(workdir, config)
    read = inputs.read(config, folder.path, inputs.outline(config), beam_options)
    if read.corpus is None:  # only tasks
        return {"tokenizer_digest": tokenizer_digest(read.tokenizer)}
    return read.corpus.describe(config)


def describe(
    what: str | os.PathLike[str] | ConfigDict | ModelConfig | Model,
    overrides: Overrides = (),
    *,
    network: str | None = None,
) -> dict[str, Any]:
    """Parameters by part, FLOPs and taps of a network, JSON-ready (as `description.describe` says),
    or {name: the same of it} for the networks of a recipe or run.

    Args:
        what: a model or its config, the name of a preset, a model folder, a run's workdir, a recipe (loaded, or its file or
            name with `overrides`), or the name of a model on the Hub; of names that are several of these the first. A
            preset's recipe of the same name is "configs/mobilebert.py".
        network: this network of a run alone.
    """
    if isinstance(what, Model | ModelConfig):
        return description.describe(what.config if isinstance(what, Model) else what)
    if isinstance(what, ConfigDict):
        return _describe_recipe(as_config(what, overrides))
    if not isinstance(what, str | os.PathLike):
        raise BadInput(
            f"describe got a {type(what).__name__}; expected a model, its config, a recipe, or the name of one"
        )
    name = os.fspath(what)
    if name in PRESETS:
        return description.describe(preset(name))
    if epath.Path(name).expanduser().is_dir() and name:
        return describe_model(name, network)
    recipes = shipped_recipes()
    if (
        epath.Path(name.partition(":")[0]).stem in recipes
        or epath.Path(name.partition(":")[0]).expanduser().is_file()
    ):
        return _describe_recipe(load_config(name, overrides))
    if "/" in name:
        return describe_model(name, network)
    raise BadInput(
        f"{name!r} is no preset, recipe or folder; {nearest(name, [*PRESETS, *recipes])}"
    )


def describe_model(model: conversion.PathLike, network: str | None = None) -> dict[str, Any]:
    """The same of a folder, Hub name or run's workdir; of the latter all networks that have a
    finished stage, or one."""
    path = epath.Path(model).expanduser()
    several = conversion.is_run(path) and network is None
    folders = (
        conversion.finished_networks(path) if several else {"": conversion.locate(model, network)}
    )
    if not folders:
        raise BadInput(f"{str(path)!r} has no finished stage yet; describe its recipe")
    found = {
        name: description.describe(interop.from_pretrained(folder)[0].config)
        for name, folder in folders.items()
    }
    return found if several else found[""]


def _describe_recipe(config: ConfigDict) -> dict[str, Any]:
    if any(set(section.heads) - HEADS.keys() for section in config.networks.values()):
        # "task" stands for the head of the task, which its rows tell.
        config = with_task_heads(config, inputs.outline(config))
    return {
        name: description.describe(
            interop.from_pretrained(section.init)[0].config
            if section.init
            else model_config(
                section,
                config.data.vocab_size,
                width=width_of(config, section.of, {}) if section.model.projected_size == 0 else 0,
            )
        )
        for name, section in config.networks.items()
        if not section.like
    }


def describe_text(
    preset_name: str,
    config: ConfigDict | None,
    as_json: bool = False,
    model: str = "",
    network: str | None = None,
) -> str:
    """What `describe` finds of a preset, a recipe or a model, as text or JSON."""
    if [bool(preset_name), config is not None, bool(model)].count(True) != 1:
        raise BadInput(
            "describe needs one of --preset=NAME, --config=FILE and --model=DIR, and only one"
        )
    found = (
        description.describe(preset(preset_name))
        if preset_name
        else (describe_model(model, network) if model else describe(config))
    )
    if as_json:
        return json.dumps(found, indent=2)
    each = {preset_name or model: found} if "config" in found else found
    return "\n\n".join(
        f"{name}\n{description.format_description(facts)}" for name, facts in each.items()
    )


def evaluate(
    model_dir: conversion.PathLike,
    source: conversion.PathLike = "default:heldout",
    *,
    teacher: conversion.PathLike = "",
    network: str | None = None,
    split: str = "all",
    documents: str = "blank_lines",
    sequence_length: int | None = None,
    max_examples: int = 4096,
    batch_size: int = 32,
    seed: int = 0,
    cache: epath.PathLike | None = None,
) -> dict[str, float]:
    """Masked-LM and NSP numbers of a model on `source`; with `teacher` also the agreement with that
    model.

    Both are folders, Hub names or a run's workdir: then `network` (default "student") is measured,
    and the teacher is its network "teacher". `sequence_length`: default 128, or what the models can
    take. Rows and masks follow from `seed` alone, so two models with one tokenizer are measured on
    the same words. A number may be NaN, if the model's outputs are."""
    if not isinstance(source, str | os.PathLike) or not os.fspath(source):
        raise BadInput(
            f"source={source!r}: expected a file, a folder, tfds:NAME or default:heldout"
        )
    for name, value in (
        ("max_examples", max_examples),
        ("batch_size", batch_size),
        ("sequence_length", sequence_length),
    ):
        if (name, value) != ("sequence_length", None) and (not isinstance(value, int) or value < 1):
            raise BadInput(f"{name}={value!r}: expected a whole number from 1")
    for notice in check_source([os.fspath(source)], documents):
        print(f"jaxdistill: {notice}", file=sys.stderr, flush=True)
    model, params, tokenizer = conversion.load(model_dir, network)
    if not set(model.config.heads) & {"mlm", "nsp"}:
        raise BadInput(
            f"{os.fspath(model_dir)!r} has neither an MLM nor an NSP head (heads: "
            f"{', '.join(model.config.heads) or 'none'}); there is nothing to evaluate on plain text"
        )
    pair: dict[str, Any] = {}
    positions = model.config.max_positions
    if teacher:
        which = TEACHER if conversion.is_run(epath.Path(teacher).expanduser()) else None
        pair["teacher"], pair["teacher_params"], theirs = conversion.load(teacher, which)
        positions = min(positions, pair["teacher"].config.max_positions)
        if (
            tokenizer_digest(theirs) != tokenizer_digest(tokenizer)
            or pair["teacher"].config.vocab_size != model.config.vocab_size
        ):
            raise BadInput(
                f"{os.fspath(model_dir)!r} and {os.fspath(teacher)!r} have different vocabularies "
                f"({model.config.vocab_size} and {pair['teacher'].config.vocab_size} words); agreement needs one "
                "tokenizer"
            )
    length = min(128, positions) if sequence_length is None else sequence_length
    if length > positions:
        raise BadInput(
            f"sequence_length={length} exceeds the max_positions={positions} of the model or its teacher"
        )
    how = Once(
        length=length,
        batch_size=batch_size,
        max_examples=max_examples,
        seed=seed,
        split=split,
        documents=documents,
        folder=cache,
    )
    rows = rows_once(os.fspath(source), tokenizer, how)
    return heldout.evaluate(model, params, rows, mesh=sharding.make_mesh(1), **pair)


def parse_seeds(text: str) -> tuple[int, ...]:
    """ "0,1,2" -> (0, 1, 2)."""
    try:
        found = tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise BadInput(
            f"--seeds={text!r}; expected whole numbers with commas, e.g. --seeds=0,1,2"
        ) from error
    for seed in found:
        check_seed(seed, f"--seeds={shortened(text)!r}: seed")
    if len(set(found)) != len(found):
        raise BadInput(f"--seeds={text!r} names a seed twice; one run a seed")
    return found


def check_same_text(
    config: ConfigDict, first: epath.Path, folder: epath.Path, first_seed: int, seed: int
) -> None:
    """Raises `BadInput` if the run in `folder` read, or would read, another text than the `first`
    one: margins are paired."""
    before, own = binding.read(first), binding.read(folder)
    for split, source in inputs.named_sources(config).items() if before is not None else ():
        assert before is not None
        held = before.text[split]
        differs = (
            own.text[split].source_digest != held.source_digest
            if own
            else inputs.changes(source, held, before.documentation)
        )
        if differs:
            raise BadInput(
                f"seed {seed} would read another text than seed {first_seed} did: {source!r} has changed since; bring "
                "back the old text, or give a new workdir"
            )


def seeds(
    config: str | os.PathLike[str] | ConfigDict,
    workdir: epath.PathLike,
    numbers: str | Sequence[int] = (0, 1, 2),
    *,
    overrides: Overrides = (),
) -> dict[str, Any]:
    """Runs the recipe (with `overrides`, as `train` takes both) once a seed below `workdir`
    (resuming what is there) and measures the spread.

    Writes `seeds.json`: for every network the held-out MLM loss by seed, mean and range; for every
    baseline the margin student - baseline by seed (paired: one seed has one teacher, one data order
    and the same held-out rows). `tasks` has the same of the score of each task."""
    config, workdir = as_config(config, overrides), as_folder(workdir, "workdir")
    numbers = parse_seeds(numbers) if isinstance(numbers, str) else numbers
    refuse_links(workdir)
    feeds = inputs.outline(config)
    resolve(
        config,
        vocab_size=config.data.vocab_size,
        feeds=feeds,
        mesh=sharding.make_mesh(**config.mesh),
    )
    losses: dict[str, list[float]] = {}
    scores: dict[str, dict[str, list[float]]] = {name: {} for name in inputs.tasks_to_bind(feeds)}
    folders = [workdir / f"seed-{seed}" for seed in numbers]
    for seed, folder in zip(numbers, folders):
        check_same_text(config, folders[0], folder, numbers[0], seed)
        binding.check_tasks(binding.read(folders[0]), inputs.tasks_to_bind(feeds))
        seeded = config.copy_and_resolve_references()
        seeded.seed = seed
        for name, row in run.train(seeded, folder)["networks"].items():
            if "mlm_loss" in row.get(TEXT, {}):
                losses.setdefault(name, []).append(row[TEXT]["mlm_loss"])
            for task, held in scores.items():
                if task in row:
                    held.setdefault(name, []).append(row[task][metric_of(feeds[task])])
    found: dict[str, Any] = {"seeds": list(numbers), "mlm_loss": losses}
    shown = f"over seeds {', '.join(map(str, numbers))}"
    tables = []
    if losses:
        table, facts = _spread(losses, higher=False)
        tables.append(f"held-out MLM loss {shown}\n{table}")
        found |= facts
    for task, held in scores.items():
        metric = metric_of(feeds[task])
        table, facts = _spread(held, higher=metric in SCORES[feeds[task].score].higher)
        tables.append(f"held-out {metric} on {task} {shown}\n{table}")
        found.setdefault("tasks", {})[task] = {metric: held, **facts}
    found["table"] = "\n\n".join(tables)
    report.write_results(workdir, found, "seeds.json")
    return found


def search_mapping(
    config: str | os.PathLike[str] | ConfigDict,
    workdir: epath.PathLike,
    *,
    overrides: Overrides = (),
    budget: int | None = None,
    workers: int = 1,
) -> dict[str, Any]:
    """Searches for the layer map of a recipe's stage: `search.mapping.search`, each map run by `train`."""
    return mapping.search(
        config, workdir, train=run.train, overrides=overrides, budget=budget, workers=workers
    )


def _spread(values: dict[str, list[float]], higher: bool) -> tuple[str, dict[str, Any]]:
    """(lines, facts) about one number of each network, by seed: mean, range, and the student's margin
    over every other network but the teacher. `higher`: more of it is better."""
    spread = {
        name: {"mean": statistics.mean(row), "range": max(row) - min(row)}
        for name, row in values.items()
    }
    lines = [
        f"  {name:<14} mean {spread[name]['mean']:.4f}, range {spread[name]['range']:.4f}, by seed "
        + ", ".join(f"{value:.4f}" for value in row)
        for name, row in values.items()
    ]
    margin = {}
    for name, row in values.items():
        if name in ("teacher", "student") or "student" not in values:
            continue
        sign = -1 if higher else 1
        margins = [sign * (base - own) for base, own in zip(row, values["student"])]
        widest = max(spread[name]["range"], spread["student"]["range"])
        beyond = min(margins) > widest
        margin[name] = {"by_seed": margins, "smallest": min(margins), "beyond_spread": beyond}
        lines.append(
            f"  student against {name}: {'higher' if higher else 'lower'} by {min(margins):.4f} to "
            f"{max(margins):.4f}, {'beyond' if beyond else 'not beyond'} the spread over seeds ({widest:.4f})"
        )
    return "\n".join(lines), {"spread": spread, "margin": margin}
