"""A whole run: recipe -> data -> models -> each stage -> evaluation -> export -> report. Everything
else is below it.

`train(config, workdir)` is the main job. Called again on the same workdir it goes on where it
stopped: finished stages are read from their folders, the stage in progress from its newest
checkpoint."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from jaxdistill import binding, health, interop, report, startup
from jaxdistill.configuration import Overrides, as_config, as_folder, as_names
from jaxdistill.data.feeds import Batch
from jaxdistill.errors import BadInput, TrainingStopped
from jaxdistill.evaluation.derived import BY_NETWORK, OF_FILES
from jaxdistill.evaluation.stored import read_arrays, write_arrays
from jaxdistill.measure import Measure, score_of
from jaxdistill.methods.base import Cast, Stage
from jaxdistill.methods.kinds import KINDS, default_settings
from jaxdistill.models import Model, Params
from jaxdistill.models.encoder import in_compute_dtype
from jaxdistill.models.parameters import digest, flatten, unflatten
from jaxdistill.models.sizes import parameter_shapes
from jaxdistill.objectives import projections, ramps
from jaxdistill.readers import Readers
from jaxdistill.recipe import TEACHER, Begin
from jaxdistill.resolve import main_network, stage_seed
from jaxdistill.startup import Start
from jaxdistill.students.copying import copy_embeddings_and_heads, random_start
from jaxdistill.students.extract import choose, extract, random_scores, uniform_layers
from jaxdistill.students.factorise import with_words
from jaxdistill.students.layers import copy_layers, taken_over
from jaxdistill.training import hosts, loop, programs, sharding, state
from jaxdistill.training.checkpoints import Checkpoints, checksums, disk_errors
from jaxdistill.training.interruption import StopRequest
from jaxdistill.training.metrics import MetricWriter
from jaxdistill.training.progress import Progress
from jaxdistill.training.speed import rates
from jaxdistill.training.step import Given

Networks = dict[str, Params]
Write = Callable[[int, dict[str, float]], None]


def train(
    config: str | os.PathLike[str] | ConfigDict,
    workdir: epath.PathLike,
    overrides: Overrides = (),
    *,
    stages: str | Sequence[str] | None = None,
) -> dict[str, Any]:
    """Runs the recipe in `workdir` and returns what `results.json` holds; the same call resumes.

    `config`, `overrides`: as `as_config` takes them, e.g. ("quickstart:smoke", {"seed": 1}).
    `stages`: run only these of `config.order` (their predecessors must be finished). Raises
    `BadInput` before anything is compiled or overwritten; `Interrupted`, `Preempted` and
    `TrainingStopped` leave a resumable workdir. A step that hangs ends the process
    (`config.watchdog_minutes`)."""
    started = time.perf_counter()
    config, path, stages = (
        as_config(config, overrides),
        as_folder(workdir, "workdir"),
        as_names(stages, "stages"),
    )
    with contextlib.ExitStack() as held:
        run = Run(startup.begin(held, config, path, stages))
        with disk_errors(path):  # a disk may fill up at any write
            return _train(run, started)


def _train(run: Run, started: float) -> dict[str, Any]:
    folder, recipe = run.folder, run.recipe
    hosts.together(lambda: folder.clear_done() if hosts.first() else None)
    for stage in recipe.stages:
        if stage in run.wanted or folder.finished(stage.name) is not None:
            run.stage(stage)
    results = run.measure.results()
    hosts.together(lambda: run.report(results, started) if hosts.first() else None)
    if len(run.pages) == len(recipe.stages):  # all of them, not only those of --stages
        hosts.together(lambda: folder.mark_done(list(run.pages)) if hosts.first() else None)
    return results


class Run:
    """The state of a run between stages: the networks trained so far."""

    def __init__(self, start: Start) -> None:
        self.config, self.folder, self.read, self.recipe, self.mesh = (
            start.config,
            start.folder,
            start.read,
            start.recipe,
            start.mesh,
        )
        self.fitted, self.bound, self.wanted = start.fitted, start.bound, start.wanted
        moved = {stage.network for stage in self.recipe.stages}
        self.networks: Networks = {
            name: self._whole(name)
            for name in self.fitted
            if self.config.networks[name].init or name not in moved
        }
        self.pages: dict[str, dict[str, Any]] = {}
        self.maps: Networks = {}  # the projections that the last stage of a network has learned
        # Of each network there is: where it is, and its digest.
        self.origins: dict[str, dict[str, str]] = {
            name: {
                "path": self.config.networks[self.recipe.begins[name].of].init,
                "sha256": digest(params),
            }
            for name, params in self.networks.items()
        }
        self.readers = Readers(start, self.networks, self.origins)
        self.measure = Measure(start, self.readers, self.networks, self.pages)

    def _whole(self, name: str) -> Params:
        """The parameters of a network that begins from a folder, heads that it lacks drawn anew."""
        params = self.fitted[name].params
        if self.fitted[name].new:
            fresh = random_start(self.recipe.networks[name], self.config.seed)
            params = {**jax.device_get(fresh), **params}
        return params

    def stage(self, stage: Stage) -> None:
        """Runs one stage, or reads its result if it is finished; its network is then in
        `networks`."""
        cast = self.recipe.cast(stage)
        page = self.folder.finished(stage.name)
        if page is not None:
            self._check_page(stage, page)
            if hosts.first():  # a run killed between saving and tidying
                self.folder.checkpoints(stage.name).rmtree(missing_ok=True)
            params = self.folder.load_stage(stage.name, cast.model)
            held = read_arrays(self._maps_file(stage), page["sha256"]) or {}
            self.maps[stage.network] = unflatten(dict(jax.tree.map(jax.numpy.asarray, held)))
        else:
            params, page = self._train(cast)
        self.networks[stage.network], self.pages[stage.name] = params, page
        self.origins[stage.network] = {
            "path": str(self.folder.stage(stage.name)),
            "sha256": page["sha256"],
        }

    def _train(self, cast: Cast) -> tuple[Params, dict[str, Any]]:
        stage = cast.stage
        checkpoints = Checkpoints(
            self.folder.checkpoints(stage.name),
            self.config.checkpoint.keep,
            stage.until is not None,
        )
        try:
            whole, page = self._train_from(checkpoints, cast)
            params = projections.drop(whole)
            self.maps[stage.network] = maps = whole.get(projections.NAME, {})
            if maps and self._goes_on(stage) and hosts.first():
                held = jax.tree.map(np.asarray, flatten(maps))
                write_arrays(self._maps_file(stage), held, digest(params))
            with StopRequest() as stop:  # what was trained is kept first
                page = hosts.together(
                    lambda: self.folder.save_stage(
                        stage.name, cast.model, params, page, self.read.tokenizer
                    )
                )
                if stop.agreed():
                    raise stop.error(f"after stage {stage.name!r}")
        except BaseException:  # Ctrl-C too: saves under way must end before Python does
            checkpoints.close()
            raise
        checkpoints.close(delete=True)
        hosts.wait(f"stage {stage.name} saved")
        return params, page

    def _train_from(self, checkpoints: Checkpoints, cast: Cast) -> tuple[Params, dict[str, Any]]:
        config, stage = self.config, cast.stage
        page: dict[str, Any] = {
            "stage": stage.name,
            "network": stage.network,
            "steps": stage.steps,
            "seed": config.seed,
            "seconds": 0.0,
            "first_example": self.recipe.first_example[stage.name],
            "lineage": self._lineage(stage),
            "teachers": {name: self.origins[name] for name in self.recipe.teachers(stage)},
            "inputs": self.bound.digest(self.recipe.base(stage.feed)),
        }
        if self.recipe.labels.get(stage.network):
            page["labels"] = list(self.recipe.labels[stage.network])
        like = state.shapes(cast)
        if checkpoints.latest() is not None:
            train_state, held = checkpoints.restore(like, self.mesh)
            self._check_page(stage, held)
            page |= {
                name: held[name]
                for name in ("seconds", "layers", "began_as", "last_loss", "measured")
                if name in held
            }
        else:
            create = programs.compile_start(cast, self.mesh)
            train_state = create(self._start(cast), stage_seed(config.seed, stage.name))
            page["began_as"] = checksums(train_state.params).tolist()
        done = int(train_state.step)
        example = page["first_example"] + done * stage.batch_size
        page["examples"] = self.recipe.first_example[stage.name] + stage.steps * stage.batch_size
        given = Given(
            {
                name: sharding.place(self.mesh, in_compute_dtype(other.config, self.networks[name]))
                for name, other in cast.others
            },
            np.int32(stage_seed(config.seed, stage.name)),
            {
                name: np.array(layer_map, np.int32)
                for name, layer_map in self.recipe.maps.get(stage.name, {}).items()
            },
        )
        batches = self.batches(stage, example)
        flops = self.readers.flops(stage)
        if (said := self.readers.pads(stage)) and hosts.first():
            print(f"jaxdistill: {said}", file=sys.stderr, flush=True)
        with self._reporting(stage, done, flops) as reporting:
            reporting = dataclasses.replace(
                reporting, write=keeping_last_loss(page, reporting.write)
            )
            limits = loop.Limits(
                config.checkpoint.every_steps,
                60 * config.checkpoint.every_minutes,
                config.max_skipped_in_a_row,
                60 * config.watchdog_minutes,
                (config.profile, self.folder.trace(stage.name, stage.network)),
            )
            measured = stage.progressive or stage.until is not None
            train_state = loop.run_stage(
                cast,
                train_state,
                given,
                batches,
                mesh=self.mesh,
                checkpoints=checkpoints,
                page=page,
                reporting=reporting,
                limits=limits,
                evaluate=self._evaluator(cast, given) if measured else None,
            )
        page["moved"] = checksums(train_state.params).tolist() != page.pop("began_as", None)
        hosts.together(lambda: self._check_trained(stage, page))
        return hosts.to_host(train_state.params), page

    def _maps_file(self, stage: Stage) -> epath.Path:
        return self.folder.stage(stage.name) / "projections.safetensors"

    def _goes_on(self, stage: Stage) -> bool:
        """Whether a later stage of the network goes on with the projections that this one has learned."""
        later = self.recipe.stages[self.recipe.stages.index(stage) + 1 :]
        return any(s.network == stage.network and s.until and s.until.start for s in later)

    def _check_trained(self, stage: Stage, page: dict[str, Any]) -> None:
        """Raises `TrainingStopped` if a stage hardly trained its network; `results.json` says so
        too."""
        try:
            health.check_trained(stage.name, steps=stage.steps, skipped=page["skipped"])
        except TrainingStopped as error:
            if hosts.first():
                before = {
                    "config_name": self.config.name,
                    "seed": self.config.seed,
                    **report.read_results(self.folder.path),
                }
                report.write_results(self.folder.path, {**before, "warnings": [str(error)]})
            raise

    @contextlib.contextmanager
    def _reporting(
        self, stage: Stage, done: int, flops: dict[str, float]
    ) -> Iterator[loop.Reporting]:
        """Metric files and a progress bar on the first process; the others are silent."""
        length, every = self.readers.length(stage), self.config.log_every
        rates(
            1.0, stage.batch_size, length, flops, self.mesh
        )  # the peak of a CPU is measured here, not beside a step
        if not hosts.first():
            yield loop.Reporting(write=lambda *_: None, show=lambda *_: None, every=every)
            return
        with (
            MetricWriter(self.folder.path) as writer,
            Progress(
                stage.steps,
                stage.name,
                initial=done,
                tokens_per_unit=stage.batch_size * length,
                later=self._later(stage) / sum(flops.values()),
            ) as bar,
        ):
            writer.rewind(stage.name, done, stage.network)
            yield loop.Reporting(
                write=lambda step, scalars: writer.write(stage.name, step, scalars, stage.network),
                show=lambda step, scalars: bar.reach(step, loss=scalars["loss"]),
                rates=lambda rate: rates(rate, stage.batch_size, length, flops, self.mesh),
                every=every,
                flush=writer.flush,
            )

    def _later(self, stage: Stage) -> float:
        """FLOPs of the stages that this call runs after `stage`."""
        after = self.recipe.stages[self.recipe.stages.index(stage) + 1 :]
        return sum(
            other.steps * sum(self.readers.flops(other).values())
            for other in after
            if other in self.wanted and self.folder.finished(other.name) is None
        )

    def _start(self, cast: Cast) -> Params:
        """Where a network's parameters come from. The order is important: an earlier stage, a
        folder, a copy, chance.

        They are copies: the step takes its state's memory over, and a CPU device may share it with
        the host's arrays."""
        name, model = cast.stage.network, cast.model
        begin = self.recipe.begins[name]
        given = self.networks.get(name)
        if given is None and begin.how == "folder":
            given = self._whole(name)
        if given is not None:
            if all(page["network"] != name for page in self.pages.values()):  # its first stage
                self._say_heads(name)
            until = cast.stage.until
            if until is not None and until.start:
                given = {**given, projections.NAME: self.maps.get(name, {})}
            return sharding.place(self.mesh, jax.tree.map(np.array, given))
        where = sharding.shardings(self.mesh, parameter_shapes(model.config))
        # All networks but the teacher from one seed, so that comparisons between them are paired.
        params = random_start(model, self.config.seed + (name != TEACHER), where)
        if begin.how == "copy":
            other = self.recipe.networks[begin.of]
            params, _ = copy_embeddings_and_heads(model, params, other, self.networks[begin.of])
        if begin.how == "layers":
            params = copy_layers(params, self.networks[begin.of], begin.layers)
        if begin.how == "factorise":
            params = with_words(params, self.networks[begin.of], model.config.word_size)
        if begin.how == "extract":
            params = self._extracted(begin, model, params)
        return params

    def _extracted(self, begin: Begin, model: Model, fresh: Params) -> Params:
        """The part of another network that a student begins as, `fresh` where it has more."""
        config, params = self.recipe.networks[begin.of].config, self.networks[begin.of]
        scores = (
            self.readers.importance(begin)
            if begin.importance
            else random_scores(config, self.config.seed)
        )
        layers = begin.layers or uniform_layers(config.num_layers, model.config.num_layers)
        found = extract(config, params, choose(config, model.config, scores, layers))
        return taken_over(fresh, found)

    def _say_heads(self, name: str) -> None:
        """Tells which heads of a network are drawn anew, and which classifier goes on learning."""
        said = self.fitted[name].said if name in self.fitted else {}
        for head, what in said.items() if hosts.first() else ():
            print(f"jaxdistill: the head {head!r} of {name!r} is {what}", file=sys.stderr)

    def _check_page(self, stage: Stage, page: dict[str, Any]) -> None:
        """Raises `BadInput` unless a stage's page, or that of its checkpoint, is of this run: text,
        teacher, stages before it."""
        reads = self.bound.digest(self.recipe.base(stage.feed))
        if page.get("inputs", reads) != reads:
            raise BadInput(
                f"stage {stage.name!r} in this workdir was run on other text, or with another tokenizer, than its "
                f"{binding.FILE} says; use another workdir"
            )
        self._check_teachers(stage, page)
        self._check_lineage(stage, page)

    def _check_teachers(self, stage: Stage, page: dict[str, Any]) -> None:
        held = page.get("teachers") or {}
        for name in self.recipe.teachers(stage):
            before, now = (held.get(name) or {}).get("sha256"), self.origins[name]["sha256"]
            if before != now:
                raise BadInput(
                    f"stage {stage.name!r} in this workdir was run with another teacher {name!r} (sha256 "
                    f"{str(before)[:12]}..., now {now[:12]}...); use another workdir, or give back that one"
                )

    def _lineage(self, stage: Stage) -> list[dict[str, Any]]:
        """What a stage's result depends on beside the recipe's fixed fields: its settings and those
        of the stages of its network before it, and how that began."""
        own = [s for s in self.recipe.stages if s.network == stage.network]
        begin = self.recipe.begins[stage.network]
        return [
            {
                "stage": s.name,
                "begins": begin.page(),
                **json.loads(json.dumps(self.config.stages[s.name].to_dict())),
                **self._chosen_by(s),
                **self._made_of(s),
            }
            for s in own[: own.index(stage) + 1]
        ]

    def _made_of(self, stage: Stage) -> dict[str, Any]:
        """The contents of the files that its derived feeds are made of; what a network makes of rows alone
        has the network's digest."""
        found = {}
        for name in set(stage.feeds) & self.recipe.derived.keys():
            made = self.recipe.derived[name]
            if made.kind not in BY_NETWORK or made.kind in OF_FILES:
                model = self.recipe.networks.get(made.by)
                found[name] = made.derivation(self.recipe.feeds[made.of], model).digest
        return {"made_of": found} if found else {}

    def _chosen_by(self, stage: Stage) -> dict[str, int]:
        """The settings that the choice of a best state depends on, beside the stage's own."""
        until, config = stage.until, self.config
        if until is None:
            return {}
        of_losses = until.metric in stage.measured
        rows = {"heldout_rows": rows_to_choose_by(config)} if of_losses else {}
        return {"checkpoint_every_steps": config.checkpoint.every_steps, **rows}

    def _check_lineage(self, stage: Stage, page: dict[str, Any]) -> None:
        now = self._lineage(stage)
        before = [{**_younger(line.get("kind")), **line} for line in page.get("lineage") or []]
        if before != now:
            names = [[s["stage"] for s in line] for line in (before, now)]
            what = (
                f"after {' -> '.join(names[0])}, now asked {' -> '.join(names[1])}"
                if names[0] != names[1]
                else (
                    "with other settings of "
                    + ", ".join(a["stage"] for a, b in zip(before, now) if a != b)
                )
            )
            raise BadInput(
                f"stage {stage.name!r} in this workdir was run {what}; use another workdir, or the same order "
                "and settings to resume"
            )

    def _evaluator(self, cast: Cast, given: Given) -> loop.Evaluator:
        """What measures a stage while it goes on: a task's score, or the losses of its terms."""
        until = cast.stage.until
        if until is not None and until.metric not in cast.stage.measured:
            feed = self.recipe.feeds[until.feed]

            def score(layer: int, params: Params) -> dict[str, float]:
                return score_of(feed, [(cast.model, params)], self.readers, self.mesh)[0]

            return score
        stage, losses = cast.stage, programs.compile_losses(cast)
        batches = list(self.readers.heldout(stage.feed, rows_to_choose_by(self.config)))

        def evaluate(layer: int, params: Params) -> dict[str, float]:
            sums: dict[str, float] = {}
            counts: dict[str, float] = {}
            for batch in batches:
                pair = jax.device_get(
                    losses(params, given, sharding.put_batch(self.mesh, batch), np.int32(layer))
                )
                for total, part in zip((sums, counts), pair):
                    total |= {
                        name: total.get(name, 0.0) + float(value) for name, value in part.items()
                    }
            raw = {name: sums[name] / counts[name] for name in sums}
            return {
                "loss": sum(ramps.at(term.weight, None) * raw[term.name] for term in stage.terms),
                **raw,
            }

        return evaluate

    def batches(self, stage: Stage, first_row: int) -> Iterator[Batch]:
        """Training batches of a stage from global row `first_row` of its feed on; this host's rows."""
        return self.readers.train(stage, first_row)

    def report(self, results: dict[str, Any], started: float) -> None:
        """Writes results, the student as a Hugging Face folder (loaded back, its outputs compared),
        and plots; of a run that was reported before only what is missing."""
        main = main_network(self.config)
        before, student = report.read_results(self.folder.path), self.folder.path / main
        again = "seconds" in results
        # What was exported is the user's: it is left alone as long as the run has no other student.
        kept = (
            before.get(f"{main}_sha256") == results.get(f"{main}_sha256")
            and "export" in before
            and interop.has_weights(student)
        )
        if kept:
            results["export"] = before["export"]
            if said := interop.damage(student):
                print(f"jaxdistill: {said}", file=sys.stderr, flush=True)
        if not again:
            results["seconds"] = round(time.perf_counter() - started, 1)
            report.write_results(
                self.folder.path, results
            )  # before the export, so that nothing measured can be lost to it
        if self.config.export and main in self.networks and not kept:
            model, params = self.recipe.networks[main], self.networks[main]
            results["export"] = export_model(
                student,
                model,
                params,
                self.read.tokenizer,
                results,
                labels=self.recipe.labels.get(main) or None,
            )
            again = False
        if again and (self.folder.path / "plots").exists():
            return
        report.write_plots(self.folder.path, results)
        results["seconds"] = round(time.perf_counter() - started, 1)
        report.write_results(self.folder.path, results)


def _younger(kind: Any) -> dict[str, Any]:
    """The settings that a stored stage may lack, since they are younger, at their defaults."""
    return json.loads(json.dumps(default_settings(kind))) if kind in KINDS else {}


def keeping_last_loss(page: dict[str, Any], write: Write) -> Write:
    """`write`, which also leaves the newest loss in `page`: None if it is not finite."""

    def keep(step: int, scalars: dict[str, float]) -> None:
        if "loss" in scalars:
            page["last_loss"] = scalars["loss"] if math.isfinite(scalars["loss"]) else None
        write(step, scalars)

    return keep


def rows_to_choose_by(config: ConfigDict) -> int:
    """How many held-out rows losses are measured on while a stage goes on."""
    return 2 * config.evaluation.batch_size


def export_model(
    directory: epath.PathLike,
    model: Model,
    params: Params,
    tokenizer: Any,
    results: dict[str, Any],
    labels: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Saves a model with its card into `directory`, in place of one that is there; loads it back and
    proves that outputs are equal. `labels`: the classes of its classifier."""
    model, params = interop.for_format(model, params)
    card = run_card(model, results)
    exported = interop.save_pretrained(
        directory, model, params, tokenizer, card=card, labels=labels, overwrite=True
    )
    verified = interop.verify_export(directory, model, params)
    return {
        "path": str(directory),
        "format": exported.format,
        "reason": exported.reason,
        **verified,
    }


def run_card(
    model: Model, results: dict[str, Any], *, name: str | None = None, reason: str | None = None
) -> str:
    """The README.md of a model folder from a run's numbers; `reason`: why it is in our own format,
    if one has been given."""
    shown = (
        {**results, "corpus": report.corpus_line(results["corpus"])}
        if "corpus" in results
        else results
    )
    return interop.model_card(
        shown,
        config=model.config,
        license=None,  # its owner chooses one
        name=name,
        reason=reason or interop.why_not_huggingface(model.config),
    )
