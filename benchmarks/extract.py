"""Does a student that is cut out of its teacher need less training? Scores on tasks over the FLOPs of distillation, for
a start at random, parts at random (ETD-Rand) and parts by importance (ETD-Impt).

    python benchmarks/extract.py --data=FOLDER --workdir=DIR --teacher=FOLDER [--steps=0,50,200,800] [--seeds=0]
                                 [--sizes=3x192,6x192] [--methods=tinybert,minilm] [--plot=FILE]

`--teacher` has an MLM head (configs/word_teachers.py makes one), which importance is for. Every run distils on Wikipedia
for so many steps, by TinyBERT's losses on the last layer or by MiniLMv2's relations of it, and is then fine-tuned on
CoLA, MRPC and STS-B as benchmarks/mapping.py does it. Their mean, on the rows to choose by, is the score. FLOPs are the
student's, as the paper counts, and beside them all: with the teacher's, in distillation and for importance. Each run
goes at once into benchmarks/extract.json, and the same command goes on where it was stopped. At the end: the part of
the FLOPs after which each start has the score that a random one has at the last number of steps."""

from __future__ import annotations

import argparse
import pathlib
import shutil
import statistics
from collections.abc import Sequence
from typing import Any

import mapping as mapping_benchmark
import rows
from ml_collections import ConfigDict

from jaxdistill import allocation, defaults, inputs, interop, run
from jaxdistill.models.sizes import TRAINING_FLOPS_PER_FORWARD_FLOP, forward_flops

ROWS = rows.HERE / "extract.json"
STARTS: dict[str, dict[str, Any]] = {
    "random": dict(start="random"),
    "chance": dict(start="extract"),
    "importance": dict(start="extract", importance="text"),
}
METRICS = {"cola": "matthews", "mrpc": "f1", "stsb": "pearson"}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("data", "workdir", "teacher"):
        parser.add_argument(f"--{name}", required=True, type=pathlib.Path)
    parser.add_argument("--steps", default="0,50,200,800")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--sizes", default="3x192,6x192")
    parser.add_argument("--methods", default="tinybert,minilm")
    parser.add_argument("--plot", type=pathlib.Path)
    options = parser.parse_args()
    allocation.reuse_freed_memory()  # as the command does
    for seed in map(int, options.seeds.split(",")):
        for size in options.sizes.split(","):
            for method in options.methods.split(","):
                for start in STARTS:
                    for steps in map(int, options.steps.split(",")):
                        row = dict(size=size, method=method, start=start, steps=steps, seed=seed)
                        if not rows.finished(ROWS, row):
                            rows.add(ROWS, row | measured(row, options), tuple(row))
    found = rows.read(ROWS)
    rows.put("extract", summary(found))
    if options.plot:
        draw(found, options.plot)


def measured(row: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """The scores of one run, in a folder that is deleted afterwards."""
    folder = options.workdir / "-".join(str(value) for value in row.values())
    found = run.train(recipe(row, options), folder)
    scores = {task: found["networks"][task][task][metric] for task, metric in METRICS.items()}
    stages = found["stages"]
    of_transfer = stages.get("transfer", {"student_flops": 0.0, "teacher_flops": 0.0})
    of_importance = importance_flops(options.teacher) if row["start"] == "importance" else 0.0
    shutil.rmtree(folder)
    return {
        "scores": scores,
        "score": statistics.mean(scores.values()),
        "student_flops": of_transfer["student_flops"],
        "teacher_flops": of_transfer["teacher_flops"] + of_importance,
        "seconds": sum(stage["seconds"] for stage in stages.values()),
        "hardware": inputs.hardware(),
    }


def importance_flops(teacher: pathlib.Path) -> float:
    """Of importance: forward and backward of the teacher, on as many rows of text as a network reads for it."""
    flops = forward_flops(interop.read_config(str(teacher)), 128, 20, ("mlm",))
    rows_read = defaults.network("bert_base").importance_rows
    return float(TRAINING_FLOPS_PER_FORWARD_FLOP * sum(flops.values()) * rows_read)


def recipe(row: dict[str, Any], options: argparse.Namespace) -> ConfigDict:
    """The tasks of the other benchmark, behind a distillation of that many steps."""
    config = mapping_benchmark.recipe(options)
    config.search = ConfigDict()
    layers, width = map(int, row["size"].split("x"))
    sizes: dict[str, Any] = dict(num_layers=layers, hidden_size=width, intermediate_size=4 * width)
    config.networks.teacher = defaults.network(init=str(options.teacher), heads=("mlm",))
    config.networks.student = defaults.network(
        like="teacher", heads=(), **STARTS[row["start"]], **sizes
    )
    for task in METRICS:
        config.networks[task] = defaults.network(
            like="teacher", heads=(task,), **begins(row), **sizes
        )
    learning: dict[str, Any] = dict(
        steps=row["steps"], batch_size=32, optimizer="adamw", bias_correction=True,
        learning_rate=1e-3, warmup_ratio=0.05,
    )  # fmt: skip
    if row["method"] == "tinybert":
        only_last = (-1,) * (layers - 1) + (5,)
        config.stages.transfer = defaults.stage(
            "intermediate", "student", layer_map=only_last, embedding_mse=0.0, **learning
        )
    else:
        config.stages.transfer = defaults.stage(
            "relations", "student", teacher_layer=5, relation_heads=12, **learning
        )
    if not row["steps"]:
        del config.stages["transfer"]
    config.order = (*(("transfer",) if row["steps"] else ()), *METRICS)
    config.data.path = str(options.workdir / "text")
    config.seed, config.export = row["seed"], False
    return config


def begins(row: dict[str, Any]) -> dict[str, Any]:
    """How the network of a task begins: as the distilled student, or as that would have begun."""
    return dict(start="extract", of="student") if row["steps"] else STARTS[row["start"]]


def summary(found: Sequence[rows.Row]) -> list[str]:
    """Scores by steps, and how much of the FLOPs each start needs for the random start's last score."""
    steps = sorted({row["steps"] for row in found})
    heads = [
        "size",
        "method",
        "start",
        *(f"{n} steps" for n in steps),
        "student's FLOPs for the random start's last",
        "all FLOPs",
    ]
    lines = []
    for size, method in sorted({(row["size"], row["method"]) for row in found}):
        curves = {start: curve(found, size=size, method=method, start=start) for start in STARTS}
        goal = curves["random"][-1][1] if curves["random"] else None
        for start, points in curves.items():
            by_steps = {n: score for n, score, _ in points}
            cells = [f"{by_steps[n]:.3f}" if n in by_steps else "" for n in steps]
            whole = curve(found, "teacher_flops", size=size, method=method, start=start)
            own_share, of_all = share(points, goal), share(whole, goal)
            lines.append([size, method, start, *cells, own_share, of_all])
    return rows.table(heads, lines)


def curve(
    all_rows: Sequence[rows.Row], beside: str = "", **which: Any
) -> list[tuple[int, float, float]]:
    """(steps, mean score over seeds, FLOPs of the student, and those `beside`), by steps."""
    found = [row for row in all_rows if which.items() <= row.items()]
    return [
        (
            steps,
            statistics.mean(row["score"] for row in found if row["steps"] == steps),
            next(
                row["student_flops"] + (row[beside] if beside else 0.0)
                for row in found
                if row["steps"] == steps
            ),
        )
        for steps in sorted({row["steps"] for row in found})
    ]


def share(points: Sequence[tuple[int, float, float]], goal: float | None) -> str:
    """The part of the last FLOPs at which the curve, straight between its points, reaches `goal`."""
    if goal is None or not points:
        return ""
    last = points[-1][2] or 1.0
    if points[0][1] >= goal:
        return f"{points[0][2] / last:.0%}"
    for (_, before, flops), (_, after, more) in zip(points, points[1:]):
        if after >= goal:
            return f"{(flops + (more - flops) * (goal - before) / (after - before)) / last:.0%}"
    return "not reached"


def draw(found: Sequence[rows.Row], path: pathlib.Path) -> None:
    """A panel for each size and method, a line for each start."""
    from matplotlib.figure import Figure

    panels = sorted({(row["size"], row["method"]) for row in found})
    figure = Figure(figsize=(4.2 * len(panels), 3.4), layout="constrained")
    for number, (size, method) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), number + 1)
        for start in STARTS:
            points = curve(found, size=size, method=method, start=start)
            axes.plot([x[2] / 1e12 for x in points], [x[1] for x in points], "o-", label=start)
        axes.set_title(f"{size}, {method}", loc="left")
        axes.set_xlabel("TFLOP of the student in distillation")
        axes.set_ylabel("mean score of three tasks")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
