"""The search for a layer map (Jiao et al. 2020, arXiv 2012.06153): which layer of the teacher each layer of a
student had best follow. Called by the command line and by users.

A map is worth what the recipe, run with it, scores on the tasks that its later stages learn. Each evaluation is
a line of `evaluations.jsonl`, written when it is finished; which maps come next follows from those lines and the
seed alone (`genetic`). So a killed search goes on, and loses what was under way at most. The map is data of the
step (`config.objectives.traced_maps`): a process compiles each stage once, whatever the maps."""

from __future__ import annotations

import concurrent.futures
import contextlib
import io
import json
import math
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from etils import epath
from ml_collections import ConfigDict

from jaxdistill import plots, startup
from jaxdistill.configuration import Overrides, as_config, as_folder
from jaxdistill.data.files import write_whole
from jaxdistill.errors import BadInput, JaxDistillError, TrainingStopped, nearest
from jaxdistill.evaluation.scores import metric_of
from jaxdistill.objectives.terms import BATCH
from jaxdistill.search.genetic import NONE, Map, Settings, Space, pending, ranked
from jaxdistill.settings import check as check_values
from jaxdistill.settings import settings_of
from jaxdistill.training import sharding
from jaxdistill.training.progress import Progress

FAILED = -1.0  # what a map is worth with which training fails: no correlation is lower

LINES, RECIPE, BEST, RESULTS = "evaluations.jsonl", "search.json", "best.json", "results.json"
PLOTS = "plots"


class Evaluation(NamedTuple):
    """One line: a map, the generation it is of, what it is worth and by which scores, the seconds that took, and
    how many programs were compiled for it."""

    generation: int
    map: Map
    fitness: float
    scores: Mapping[str, float]
    seconds: float
    compiled: int


class Job(NamedTuple):
    """What an evaluation needs: `train`, which runs a recipe; the recipe; of each task the networks that learn
    it and the number that counts; where to run."""

    train: Callable[..., dict[str, Any]]
    config: dict[str, Any]
    tasks: Mapping[str, tuple[Sequence[str], str]]
    folder: str


def search(
    config: str | os.PathLike[str] | ConfigDict,
    workdir: epath.PathLike,
    *,
    train: Callable[..., dict[str, Any]],
    overrides: Overrides = (),
    budget: int | None = None,
    workers: int = 1,
) -> dict[str, Any]:
    """Searches for the layer map of the recipe's stage `config.search.stage`, or goes on; returns what
    `results.json` holds: the best map, its fitness, and all that were tried.

    Writes `best.json`, the recipe with that map, for `train`, and plots.

    Args:
        config, overrides: a recipe, as `train` takes both; its `search` says what is looked for, and how.
        train: what runs a recipe: `jaxdistill.train`, importable, if there are several workers.
        budget: evaluations at most, those of earlier calls among them; None: as many as the settings ask for.
        workers: processes that evaluate at a time, each with a GPU or a TPU chip of its own where there are some.

    Raises:
        BadInput: a recipe without a search or that cannot be run; another one was begun in the workdir.
    """
    config, workdir = as_config(config, overrides), as_folder(workdir, "workdir")
    if workers < 1 or (budget is not None and budget < 1):
        raise BadInput(f"workers={workers}, budget={budget}: expected 1 or more of each")
    check(config)
    space, tasks = outlined(config, workdir)
    _claim(workdir, config)
    settings = Settings(**{name: config.search[name] for name in settings_of(Settings)})
    job = Job(train, config.to_dict(), tasks, os.fspath(workdir))
    found = read(workdir)
    with Progress(budget, "search", initial=len(found), unit="maps") as bar, _pool(workers) as run:
        while True:
            lines = [(each.generation, each.map, each.fitness) for each in found]
            number, maps = pending(space, settings, config.seed, lines)
            maps = maps if budget is None else maps[: max(0, budget - len(found))]
            if not maps:
                break
            for one in run(job, number, maps):
                _append(workdir, one)
                found.append(one)
                bar.update(1, **_told(found, number))
    return _reported(workdir, config, found, space)


def check(config: ConfigDict) -> None:
    """Raises `BadInput` for a recipe that does not say what it searches for, or wrongly."""
    if not config.search:
        raise BadInput(
            "this recipe has no search; set config.search = jaxdistill.defaults.mapping_search(STAGE) in it, as "
            "configs/mapping_search.py does"
        )
    check_values(Settings, config.search, "config.search")
    stage = config.search.stage
    if stage not in config.order:
        raise BadInput(
            f"config.search.stage={stage!r} is no stage of config.order; {nearest(stage, config.order)}"
        )
    if "layer_map" not in config.stages[stage]:
        raise BadInput(
            f"config.search.stage={stage!r} is of kind {config.stages[stage].kind!r}, which has no layer_map"
        )
    section = config.stages[stage]
    if section.kind == "progressive" or section.teacher == BATCH:
        what = "kind='progressive'" if section.kind == "progressive" else f"teacher={BATCH!r}"
        raise BadInput(
            f"config.search.stage={stage!r}: a stage of {what} cannot be searched, since maps in which some layers follow "
            "none are tried too, on a teacher beside the student; take 'joint' or 'intermediate', and a network"
        )
    if config.search.elites >= config.search.population:
        raise BadInput(
            f"config.search.elites={config.search.elites} leaves no place in a population of "
            f"{config.search.population}; take fewer"
        )


def outlined(
    config: ConfigDict, workdir: epath.Path
) -> tuple[Space, dict[str, tuple[list[str], str]]]:
    """The maps to search among, and what says how good one is: by task the networks that later stages fine-tune
    on it, and the number that counts. Raises `BadInput` for what a run would refuse."""
    mesh = sharding.make_mesh(**config.mesh)
    first = workdir / "evaluations" / "first"
    _, feeds, recipe = startup.check_before(config, first, mesh, None)
    stage = next(each for each in recipe.stages if each.name == config.search.stage)
    behind = recipe.stages[recipe.stages.index(stage) + 1 :]
    tasks: dict[str, tuple[list[str], str]] = {}
    for later in behind:
        feed = recipe.feed(later)
        if feed.head:
            name = recipe.base(feed.name)
            tasks.setdefault(name, ([], metric_of(feeds[name])))[0].append(later.network)
    if not tasks:
        raise BadInput(
            f"no stage after {stage.name!r} learns a task, and a map is worth what it gives there; add one to "
            "config.order"
        )
    for name in config.search.teacher_scores:
        if name not in tasks:
            raise BadInput(
                f"config.search.teacher_scores: {name!r} is no task that is learned; {nearest(name, tasks)}"
            )
    teacher = recipe.networks[stage.teachers[0]].config
    ours = recipe.networks[stage.network].config
    return Space(ours.num_layers, teacher.num_layers, config.search.monotone), tasks


def evaluate(job: Job, generation: int, layer_map: Map) -> Evaluation:
    """Runs the recipe with a map, once a seed, in a folder that is deleted afterwards. A map with which training
    stops, or a score is not finite, is worth `FAILED`."""
    compiled: list[str] = []

    def heard(event: str, duration_secs: float, **_: Any) -> None:
        if event.endswith("backend_compile_duration"):
            compiled.append(event)

    held = contextlib.ExitStack()
    jax.monitoring.register_event_duration_secs_listener(heard)
    begun = time.perf_counter()
    scores: dict[str, list[float]] = {name: [] for name in job.tasks}
    folder = epath.Path(job.folder) / "evaluations" / shown(layer_map).replace(" ", "_")
    try:
        held.enter_context(contextlib.redirect_stderr(_once))
        held.enter_context(_without_bars())
        for seed in job.config["search"]["seeds"]:
            config = with_map(as_config(ConfigDict(job.config)), layer_map)
            config.seed, config.export = seed, False
            config.objectives.update({"traced_maps": True, "fused": False})
            config.data.path = config.data.path or str(epath.Path(job.folder) / "text")
            networks = job.train(config, folder / f"seed-{seed}")["networks"]
            for name, (learners, metric) in job.tasks.items():
                scores[name] += [networks[learner][name][metric] for learner in learners]
    except TrainingStopped as error:
        print(f"jaxdistill: map ({shown(layer_map)}): {error}", file=sys.stderr, flush=True)
        scores = {}
    finally:
        held.close()
        jax.monitoring.unregister_event_duration_listener(heard)
    folder.rmtree()
    means = {name: statistics.mean(values) for name, values in scores.items()}
    of_teacher = job.config["search"]["teacher_scores"]
    parts = [score / of_teacher.get(name, 1.0) for name, score in means.items()]
    fitness = statistics.mean(parts) if parts and all(map(math.isfinite, parts)) else FAILED
    means = {name: score if math.isfinite(score) else 0.0 for name, score in means.items()}
    seconds = round(time.perf_counter() - begun, 1)
    return Evaluation(generation, layer_map, fitness, means, seconds, len(compiled))


class _Once(io.TextIOBase):
    """Standard error, where a line that every evaluation says is shown once."""

    def __init__(self) -> None:
        self._said: set[str] = set()
        self._line = ""

    def write(self, text: str) -> int:
        *lines, self._line = (self._line + text).split("\n")
        for line in dict.fromkeys(lines):
            if line not in self._said:
                self._said.add(line)
                print(line, file=sys.__stderr__, flush=True)
        return len(text)


_once = _Once()


@contextlib.contextmanager
def _without_bars() -> Iterator[None]:
    """Progress is that of the search alone."""
    before = os.environ.get("JAXDISTILL_PROGRESS")
    os.environ["JAXDISTILL_PROGRESS"] = "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ["JAXDISTILL_PROGRESS"]
        else:
            os.environ["JAXDISTILL_PROGRESS"] = before


def with_map(config: ConfigDict, layer_map: Map) -> ConfigDict:
    """A copy of the recipe with that map in the stage that is searched for."""
    config = ConfigDict(config.copy_and_resolve_references())
    config.stages[config.search.stage].layer_map = tuple(layer_map)
    return config


@contextlib.contextmanager
def _pool(workers: int) -> Iterator[Callable[[Job, int, Sequence[Map]], Iterator[Evaluation]]]:
    if workers == 1:
        yield lambda job, number, maps: (evaluate(job, number, each) for each in maps)
        return
    context = multiprocessing.get_context("spawn")  # JAX does not survive a fork
    numbers = context.Queue()
    for number in range(workers):
        numbers.put(number)
    with concurrent.futures.ProcessPoolExecutor(
        workers, context, initializer=_take_device, initargs=(numbers,)
    ) as pool:

        def run(job: Job, number: int, maps: Sequence[Map]) -> Iterator[Evaluation]:
            futures = [pool.submit(evaluate, job, number, each) for each in maps]
            try:
                for future in concurrent.futures.as_completed(futures):
                    yield future.result()
            except concurrent.futures.process.BrokenProcessPool as error:
                raise JaxDistillError(
                    "a worker of the search died; what was evaluated is kept, run the same command to go on, perhaps with "
                    "fewer --workers"
                ) from error
            finally:
                for future in futures:
                    future.cancel()

        yield run


def _take_device(numbers: Any) -> None:
    """Shows a worker one GPU or TPU chip alone, of those that the process was given, before JAX looks for
    them."""
    number = numbers.get()
    for name in ("CUDA_VISIBLE_DEVICES", "TPU_VISIBLE_CHIPS"):
        given = [each for each in os.environ.get(name, "").split(",") if each]
        os.environ[name] = given[number % len(given)] if given else str(number)
    os.environ.update({"TPU_CHIPS_PER_PROCESS_BOUNDS": "1,1,1", "TPU_PROCESS_BOUNDS": "1,1,1"})


def read(workdir: epath.Path) -> list[Evaluation]:
    """The evaluations so far. A last line that a kill has torn is left out."""
    path, found = workdir / LINES, []
    for line in path.read_text().splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError, TypeError):
            values = json.loads(line)
            found.append(Evaluation(**{**values, "map": tuple(values["map"])}))
    return found


def _append(workdir: epath.Path, one: Evaluation) -> None:
    """Adds a line, which is on disk when this returns."""
    path = workdir / LINES
    before = path.read_text() if path.exists() else ""
    whole = before[: before.rfind("\n") + 1]  # without a torn line
    write_whole(path, whole + json.dumps(one._asdict()) + "\n")


def _claim(workdir: epath.Path, config: ConfigDict) -> None:
    """Makes the workdir that of this search. Raises `BadInput` if it is another's."""
    path, wanted = workdir / RECIPE, json.loads(json.dumps(config.to_dict()))
    if path.exists():
        held = json.loads(path.read_text())
        if held != wanted:
            other = sorted(
                name for name in held.keys() | wanted.keys() if held.get(name) != wanted.get(name)
            )
            raise BadInput(
                f"workdir {str(workdir)!r} is that of a search with another recipe (unlike: {', '.join(other)}); go on "
                "with that one, or give a new workdir"
            )
        return
    if workdir.exists() and any(workdir.iterdir()):
        raise BadInput(
            f"workdir {str(workdir)!r} is not empty and holds no search; give a new or empty folder"
        )
    workdir.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(wanted, indent=2) + "\n")


def shown(layer_map: Map) -> str:
    """ "0 - 5": a layer of the teacher for each of the student's, or none."""
    return " ".join("-" if layer == NONE else str(layer) for layer in layer_map)


def _told(found: Sequence[Evaluation], number: int) -> dict[str, Any]:
    """What the progress line says."""
    best, fitness = ranked({each.map: each.fitness for each in found})[0]
    mean = statistics.mean(each.fitness for each in found if each.generation == number)
    return {
        "generation": number,
        "best": f"({shown(best)})",
        "fitness": f"{fitness:.4f}",
        "mean": f"{mean:.4f}",
    }


def _reported(
    workdir: epath.Path, config: ConfigDict, found: Sequence[Evaluation], space: Space
) -> dict[str, Any]:
    """Writes and returns the results, with the recipe of the best map and the plots."""
    best = ranked({each.map: each.fitness for each in found})[0][0]
    one = next(each for each in found if each.map == best)
    winner = with_map(config, best)
    winner.search = {}
    write_whole(workdir / BEST, json.dumps(winner.to_dict(), indent=2) + "\n")
    (workdir / PLOTS).mkdir(exist_ok=True)
    plots.save(plots.search([each._asdict() for each in found]), workdir / PLOTS / "search.png")
    plots.save(plots.layer_map(best, space.teacher), workdir / PLOTS / "best_map.png")
    results = {
        "stage": config.search.stage,
        "best_map": list(best),
        "fitness": one.fitness,
        "scores": dict(one.scores),
        "evaluations": len(found),
        "generations": max(each.generation for each in found) + 1,
        "seconds": round(sum(each.seconds for each in found), 1),
        "compiled": [each.compiled for each in found],
        "recipe": str(workdir / BEST),
    }
    write_whole(workdir / RESULTS, json.dumps(results, indent=2) + "\n")
    return results
