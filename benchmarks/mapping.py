"""Every monotone map of 3 layers onto 6, evaluated once; then how well searches do on that table.

    python benchmarks/mapping.py --data=FOLDER --workdir=DIR --teacher=FOLDER [--budget=30] [--seeds=20]

The recipe is configs/mapping_search.py with three tasks: CoLA, MRPC and STS-B, as `SETS` of tasks.py has them. A
map is judged by the rows to choose by; the reported ones are not read. Each evaluation goes at once into
benchmarks/mapping.json, and the same command goes on where it was stopped. When all are there, the genetic search and
one at random are played on the table, `--budget` evaluations each, once for each of `--seeds` seeds: which rank does
the best map have that they found?"""

from __future__ import annotations

import argparse
import pathlib
import statistics

import numpy as np
import rows
import tasks
from etils import epath
from ml_collections import ConfigDict

from jaxdistill import allocation, defaults, inputs, run
from jaxdistill.configuration import load_config
from jaxdistill.search import mapping
from jaxdistill.search.genetic import Map, Settings, Space, known_maps, pending, ranked

ROWS = rows.HERE / "mapping.json"
TASKS = ("cola", "mrpc", "stsb")
STEPS = 150  # of fine-tuning on each task


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("data", "workdir", "teacher"):
        parser.add_argument(f"--{name}", required=True, type=pathlib.Path)
    parser.add_argument("--budget", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=20)
    options = parser.parse_args()
    allocation.reuse_freed_memory()  # as the command does
    config = recipe(options)
    space, judged = mapping.outlined(config, epath.Path(options.workdir))
    job = mapping.Job(run.train, config.to_dict(), judged, str(options.workdir))
    for layer_map in space.all():
        if not rows.finished(ROWS, {"map": list(layer_map)}):
            found = mapping.evaluate(job, 0, layer_map)._asdict()
            rows.add(
                ROWS, {**found, "map": list(layer_map), "hardware": inputs.hardware()}, ("map",)
            )
    rows.put("mapping", summary(space, rows.read(ROWS), options.budget, options.seeds))


def recipe(options: argparse.Namespace) -> ConfigDict:
    """The shipped recipe with this teacher and these tasks."""
    config = load_config("mapping_search").unlock()
    config.networks.teacher = defaults.network(init=str(options.teacher), heads=())
    learner, stage = config.networks.task, config.stages.task
    del config.feeds["task"], config.networks["task"], config.stages["task"]
    for name in TASKS:
        row = tasks.SETS[name]
        train, heldout, _ = (str(options.data / file) if file else "" for file in row.files)
        config.feeds[name] = defaults.task(row.task, source=train, heldout=heldout, **row.settings)
        config.networks[name] = learner.copy_and_resolve_references()
        config.networks[name].heads = (name,)
        config.stages[name] = stage.copy_and_resolve_references()
        config.stages[name].update({"network": name, "feed": name, "steps": STEPS})
    config.order = ("transfer", *TASKS)
    config.data.source = str(options.data / "text" / "wiki_en")
    config.evaluation.max_examples = 1024
    return config


def summary(space: Space, found: list[rows.Row], budget: int, seeds: int) -> list[str]:
    """The best and the usual maps, and what searches find."""
    fitness = {tuple(row["map"]): row["fitness"] for row in found}
    order = [layer_map for layer_map, _ in ranked(fitness)]
    lines = []
    scores = {tuple(row["map"]): row["scores"] for row in found}
    usual = [layer_map for layer_map in known_maps(space) if layer_map in fitness]
    for layer_map in dict.fromkeys([*order[:5], *usual, order[-1]]):
        numbers = [f"{scores[layer_map][name]:.3f}" for name in TASKS]
        place = str(order.index(layer_map) + 1)
        lines.append([place, mapping.shown(layer_map), f"{fitness[layer_map]:.4f}", *numbers])
    said = rows.table(["rank", "map", "fitness", *TASKS], lines) + [""]
    for name, ranks in (
        ("genetic", [order.index(genetic(space, fitness, budget, s)) + 1 for s in range(seeds)]),
        ("random", [order.index(at_random(fitness, budget, s)) + 1 for s in range(seeds)]),
    ):
        said.append(
            f"* {name}: rank {statistics.median(ranks):g} of {len(order)} after {budget} evaluations, median of {seeds} seeds "
            f"({min(ranks)} to {max(ranks)}; the best map in {ranks.count(1)})"
        )
    return said


def genetic(space: Space, fitness: dict[Map, float], budget: int, seed: int) -> Map:
    """The best map that the search finds on the table."""
    settings = Settings(population=10, generations=budget, patience=budget)
    found: list[tuple[int, Map, float]] = []
    while len(found) < budget and (step := pending(space, settings, seed, found))[1]:
        number, maps = step
        found += [(number, each, fitness[each]) for each in maps[: budget - len(found)]]
    return ranked({each: score for _, each, score in found})[0][0]


def at_random(fitness: dict[Map, float], budget: int, seed: int) -> Map:
    """The best of as many different maps."""
    maps = sorted(fitness)
    chosen = np.random.default_rng(seed).choice(len(maps), min(budget, len(maps)), replace=False)
    return ranked({maps[i]: fitness[maps[i]] for i in chosen})[0][0]


if __name__ == "__main__":
    main()
