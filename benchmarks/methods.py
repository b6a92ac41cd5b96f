"""A student distilled on every task by every method, as docs/results.md has it, beside the rows of tasks.py.

    python benchmarks/methods.py --data=FOLDER --teachers=DIR --workdir=DIR --pretrained=FOLDER --words=FOLDER
                                 [--layers=0,2,5] [--alone="3 of its layers"] [--only=cola,mrpc]
                                 [--methods=kd,pkd,tinybert] [--minutes=10]

`--teachers` is the workdir of tasks.py: the model fine-tuned there with the first seed teaches here (it is made if
it is not there). The student begins as `--layers` of `--pretrained`, the same model before it was fine-tuned, as
the student `--alone` that tasks.py fine-tunes does; it takes as many steps, at the learning rate that was chosen
for that one. `--words` has an MLM head and replaces words for TinyBERT: two copies of every row, of at most 20,000.
Finished rows go at once into benchmarks/methods.json and the table; the same command goes on where it was stopped."""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import time
from typing import Any

import rows
import tasks
from ml_collections import ConfigDict

from jaxdistill import allocation, defaults, run
from jaxdistill.data.feeds import MANY
from jaxdistill.data.files import digest_of
from jaxdistill.data.tasks import open_task

ROWS = rows.HERE / "methods.json"
METHODS = ("kd", "pkd", "tinybert")
COPIES, MOST = 2, 20_000


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("data", "teachers", "workdir", "pretrained"):
        parser.add_argument(f"--{name}", required=True, type=pathlib.Path)
    parser.add_argument("--words", type=pathlib.Path, help="needed for tinybert")
    parser.add_argument("--layers", default="0,2,5")
    parser.add_argument("--alone", default="3 of its layers", help="the student in tasks.json")
    parser.add_argument("--only", default=",".join(tasks.SETS))
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--minutes", type=float, default=10.0)
    options = parser.parse_args()
    if "tinybert" in options.methods.split(",") and options.words is None:
        parser.error("tinybert needs --words=FOLDER, a model with an MLM head; or --methods=kd,pkd")
    allocation.reuse_freed_memory()  # as the command does
    for name in options.only.split(","):
        for method in options.methods.split(","):
            row = {
                "task": name,
                "method": method,
                "set": digest_of([tasks.SETS[name], tasks.RATES]),
            }
            if not rows.finished(ROWS, row):
                row |= row_of(name, method, options)
                write_table(rows.add(ROWS, row, ("task", "method")))


def row_of(name: str, method: str, options: argparse.Namespace) -> dict[str, Any]:
    """The scores of a student on a set, of three seeds if a run takes less than `--minutes`."""
    workdir = options.workdir / f"{name}-{method}"

    def once(seed: int) -> dict[str, Any]:
        config = recipe(name, method, options)
        config.seed = seed
        begun = time.perf_counter()
        found = run.train(config, workdir / f"seed-{seed}")
        student, stages = found["networks"]["student"], found["stages"].values()
        training = sum(stage["seconds"] for stage in stages)
        kept = workdir / f"seed-{seed}" / "seconds.json"
        if not kept.exists():  # a finished run is only read again
            making = max(0.0, time.perf_counter() - begun - training)
            kept.write_text(json.dumps([round(training, 1), round(making, 1)]))
        return {
            "test": student["task.test"],
            "heldout": student["task"],
            "seconds": json.loads(kept.read_text()),
            "teacher_flops": sum(stage["teacher_flops"] for stage in stages),
            "parameters": student["parameters"],
            "hardware": found["hardware"],
        }

    found = [once(tasks.SEEDS[0])]
    if found[0]["seconds"][0] < 60 * options.minutes:
        found += [once(seed) for seed in tasks.SEEDS[1:]]
    metric = tasks.SETS[name].metric
    return {
        "metric": metric,
        "parameters": found[0]["parameters"],
        "chosen_by": [one["heldout"][metric] for one in found],
        "test": [one["test"][metric] for one in found],
        "seconds": [one["seconds"][0] for one in found],
        "beside_seconds": [one["seconds"][1] for one in found],
        "teacher_flops": found[0]["teacher_flops"],
        "hardware": found[0]["hardware"],
    }


def recipe(name: str, method: str, options: argparse.Namespace) -> ConfigDict:
    """The recipe of a method on a set."""
    row = tasks.SETS[name]
    train, heldout, test = (str(options.data / file) if file else "" for file in row.files)
    settings = {
        key: str(options.data / value) if key.endswith("_of") else value
        for key, value in row.settings.items()
    }
    config = defaults.recipe(f"{name}_{method}")
    config.feeds.task = defaults.task(
        row.task, source=train, heldout=heldout, test=test, **settings
    )
    layers = tuple(int(layer) for layer in options.layers.split(","))
    config.networks.teacher = defaults.network(init=str(teacher_of(name, options)))
    config.networks.pretrained = defaults.network(init=str(options.pretrained), heads=())
    config.networks.student = defaults.network(
        like="pretrained", start="layers", of="pretrained", layers=layers, heads=("task",)
    )
    learning: dict[str, Any] = dict(
        defaults.LEARNING,
        learning_rate=rate_of(name, options),
        epochs=row.epochs,
        best=row.metric,
        best_every=500,
    )
    stages = config.stages
    if method == "kd":
        stages.distill = defaults.stage(
            "soft_labels", "student", temperature=2.0, hard_labels=0.5, **learning
        )
    elif method == "pkd":
        follow = (*layers[:-1], -1)  # the layers that it began as, but for the last
        stages.distill = defaults.stage(
            "patient", "student", layer_map=follow, temperature=10.0, hard_labels=0.5,
            first_token_mse=0.026, **learning,
        )  # fmt: skip
    else:
        config.networks.words = defaults.network(init=str(options.words), heads=("mlm",))
        config.feeds.more = defaults.derived(
            "augmented", of="task", by="words", copies=COPIES, most=MOST
        )
        # As many steps in all as the others: half to follow, half to answer.
        number = open_task("task", config.feeds.task, 0).rows
        sampled = number / MOST if MOST < number < MANY else 1.0
        half = dict(learning, epochs=row.epochs / 2 / (1 + COPIES) * sampled, feed="more")
        stages.intermediate = defaults.stage(
            "intermediate", "student", layer_map=layers, projection=False,
            **dict(half, best="", best_every=0, decay="constant", warmup_ratio=0.0),
        )  # fmt: skip
        stages.distill = defaults.stage(
            "soft_labels", "student", temperature=1.0, hard_labels=0.0, **dict(half, best_on="task")
        )
    config.order = ("intermediate", "distill") if "intermediate" in stages else ("distill",)
    config.export = False
    return config


def teacher_of(name: str, options: argparse.Namespace) -> pathlib.Path:
    """The fine-tuned model of tasks.py, of its first seed; made now if it is not there."""
    folder, seeds = str(options.pretrained), tasks.SEEDS[:1]
    workdir = tasks.workdir_of(options.teachers, name, folder)
    found = tasks.fine_tuned(tasks.SETS[name], folder, options.data, workdir, seeds)
    return pathlib.Path(found["model"])


def rate_of(name: str, options: argparse.Namespace) -> float:
    """The learning rate that tasks.py chose for the student alone."""
    alone = rows.read(tasks.ROWS)
    rates = [r["learning_rate"] for r in alone if (r["task"], r["model"]) == (name, options.alone)]
    if not rates:
        raise SystemExit(
            f"{tasks.ROWS.name} has no row of {options.alone!r} on {name}; run tasks.py first"
        )
    return float(rates[0])


def write_table(done: list[rows.Row]) -> None:
    """The table of docs/results.md, with the columns of tasks.py beside."""
    alone = rows.read(tasks.ROWS)
    models = list(dict.fromkeys(row["model"] for row in alone))
    heads = ["task", "score", *(f"{model}, alone" for model in models)]
    for method in METHODS:
        heads += [method, "s a run (and beside)", "teacher's TFLOP"]
    lines = []
    for name in tasks.SETS:
        of = {row["method"]: row for row in done if row["task"] == name}
        if not of:
            continue
        metric = next(iter(of.values()))["metric"].replace("_", " ")
        cells = [name, metric]
        for model in models:
            found = [r for r in alone if (r["task"], r["model"]) == (name, model)]
            cells.append(tasks.cells_of(found[0])[0] if found else "")
        for method in METHODS:
            if method not in of:
                cells += ["", "", ""]
                continue
            score, seconds = tasks.cells_of(of[method])
            beside = statistics.median(of[method]["beside_seconds"])
            cells += [score, f"{seconds} (+{beside:,.0f})"]
            cells.append(f"{of[method]['teacher_flops'] / 1e12:,.0f}")
        lines.append(cells)
    rows.put("methods", rows.table(heads, lines))


if __name__ == "__main__":
    main()
