"""The loop: every stage of every method, teacher or student, pre-training or fine-tuning, runs through `run_stage`.

It is handed plain data (the stage), two models, and callables; it knows no method, no corpus and no file format.
Metrics are read one step late, so the device does not wait for the host (with several processes it does, every tenth
step, to agree on stopping).
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from jaxdistill.errors import TrainingStopped
from jaxdistill.methods.base import Stage
from jaxdistill.models import Model, Params
from jaxdistill.training import schedules, sharding
from jaxdistill.training.checkpoints import Checkpoints
from jaxdistill.training.interruption import StopRequest
from jaxdistill.training.profiling import Profile
from jaxdistill.training.state import TrainState
from jaxdistill.training.step import make_step
from jaxdistill.training.watchdog import Watchdog

HostBatches = Iterator[dict[str, np.ndarray]]
# (layer, parameters) -> losses on held-out text: of that layer, before and after each progressive phase; of other stages
# (where it is ignored), at the checkpoints that are told apart by them.
Evaluator = Callable[[int, Params], dict[str, float]]


@dataclasses.dataclass
class Reporting:
    """Where a stage's numbers go. `write(step, scalars)`; `show(steps done, scalars)` moves the progress bar; `flush()`
    makes what was written safe, before each checkpoint: a run resumed from there does not report those steps again."""

    write: Callable[[int, dict[str, float]], None]
    show: Callable[[int, dict[str, float]], None]
    rates: Callable[[float], dict[str, float]] = lambda steps_per_second: {}
    every: int = 20
    flush: Callable[[], None] = lambda: None


@dataclasses.dataclass
class Limits:
    """When to save, after how many steps or seconds since the last time (0: not by time); when to give up: after how many
    skipped updates, or seconds without a step (0: never). `profile`: the steps to trace, and the folder for it."""

    checkpoint_every: int = 500
    checkpoint_seconds: float = 0.0
    skipped_in_a_row: int = 20
    hang_seconds: float = 0.0
    profile: tuple[tuple[int, ...], epath.PathLike] = ((), "")


def run_stage(stage: Stage, model: Model, state: TrainState, teacher: Model | None, teacher_params: Params,
              batches: HostBatches, *, mesh: Mesh, seed: int, checkpoints: Checkpoints, page: dict[str, Any],
              reporting: Reporting, limits: Limits, evaluate: Evaluator | None = None) -> TrainState:
    """Runs `stage` from `state.step` to its end; `batches` must begin at that step's first example.

    `page` is saved with each checkpoint; its `seconds` (training time alone) and `layers` (what `evaluate` returned for the
    phases of a progressive stage) are kept up to date here. The result is the last state, or of a stage with a `best` the
    one that `evaluate` found so, its step then in `page`. Raises `TrainingStopped` after too many skipped updates in
    a row, `Interrupted` or `Preempted` when asked to stop; the state is saved before the latter two.
    """
    state, teacher_params = sharding.place(mesh, state), sharding.place(mesh, teacher_params)
    step_fn = compile_step(stage, model, teacher, mesh, seed, state, teacher_params)
    done = int(state.step)
    pending: tuple[int, Any] | None = None
    clock = Clock(page.get("seconds", 0.0))
    watchdog = Watchdog(limits.hang_seconds, f"stage {stage.name!r}")
    phases = evaluate if stage.progressive else None

    def report() -> None:
        nonlocal pending
        if pending is not None:
            _report(stage, *pending, reporting, limits, clock)
            pending = None

    def save(measure: bool = False, wait: bool = False) -> None:
        report()  # a resumed run reports only what comes after
        jax.block_until_ready(state)
        page["seconds"] = clock.seconds
        with clock.paused():
            metric = None
            if measure and stage.best and evaluate is not None and not checkpoints.holds(done):
                with watchdog.paused():
                    found = evaluate(0, state.params)
                reporting.write(done, {f"heldout/{name}": value for name, value in found.items()})
                metric = found[stage.best] if np.isfinite(found[stage.best]) else None
            reporting.flush()
            with watchdog.paused() if not saves.restarts else contextlib.nullcontext():  # the first one compiles checksums
                checkpoints.save(state, page, metric=metric, wait=wait)
            saves.restart()

    saves = Timer(limits.checkpoint_seconds)
    with StopRequest() as stop, watchdog, Profile(*limits.profile) as profile:
        while done < stage.steps:
            if phases is not None and at_border(stage, model, done):
                jax.block_until_ready(state)  # steps still under way are training time
                with clock.paused(), watchdog.paused():
                    record_phase(stage, model, page, done, state.params, phases)
            batch = sharding.put_batch(mesh, next(batches))
            profile.before(done, state)
            with jax.transfer_guard("disallow"):  # nothing may cross between host and device unasked
                state, metrics = step_fn(state, teacher_params, batch)
            done += 1
            report()
            watchdog.step_ended()
            pending = (done, metrics) if done % reporting.every == 0 or done == stage.steps else None
            page["seconds"] = clock.seconds
            by_step = done % limits.checkpoint_every == 0
            if stop.agreed(done, saves.due()):
                break
            if (by_step or stop.save) and done < stage.steps:
                save(measure=by_step)
        report()
        jax.block_until_ready(state)
        page["seconds"] = clock.seconds
        if phases is not None and done == stage.steps:
            with watchdog.paused():
                record_phase(stage, model, page, done, state.params, phases)
        if stop.agreed():  # perhaps only now, during the last evaluation
            save(measure=done % limits.checkpoint_every == 0 or done == stage.steps, wait=True)
            raise stop.error(f"in stage {stage.name!r} after {done} of {stage.steps} steps")
        if stage.best and evaluate is not None:
            save(measure=True, wait=True)
            best = checkpoints.restore_best(state, mesh)
            state = state if best is None else best  # no held-out loss was finite
            page["best"] = int(state.step)
            if stop.agreed():  # meanwhile: all is saved
                raise stop.error(f"in stage {stage.name!r} after {done} of {stage.steps} steps")
    return state


def compile_step(stage: Stage, model: Model, teacher: Model | None, mesh: Mesh, seed: int, state: Any, teacher_params: Params
                 ) -> jax.stages.Wrapped:
    """The jitted step with every array's place on the mesh; the state is donated. Arguments may be abstract."""
    where, rows = sharding.shardings(mesh, state), sharding.over_batch(mesh)
    # Beside a teacher, the student's second forward pass costs little and saves much. A CPU has memory, not operations.
    remat = "full" if teacher is not None and mesh.devices.flat[0].platform != "cpu" else "dots"
    model = dataclasses.replace(model, batch_sharding=rows, remat=remat)
    teacher = teacher and dataclasses.replace(teacher, batch_sharding=rows)
    return jax.jit(make_step(stage, model, teacher, seed), donate_argnums=0,
                   in_shardings=(where, sharding.shardings(mesh, teacher_params), rows),
                   out_shardings=(where, sharding.replicated(mesh)))


def at_border(stage: Stage, model: Model, done: int) -> bool:
    """Whether a phase begins after `done` steps."""
    return done % schedules.phase_steps(stage, model.config.num_layers) == 0


def record_phase(stage: Stage, model: Model, page: dict[str, Any], done: int, params: Params,
                 evaluate: Evaluator) -> None:
    """At a phase's border: the finished layer's losses go to `after`, the next one's to `before`; once each."""
    layers, period = model.config.num_layers, schedules.phase_steps(stage, model.config.num_layers)
    rows: list[dict[str, Any]] = page.setdefault("layers", [])
    if done == stage.steps or (done % period == 0 and 0 < done // period < layers):
        finished = layers - 1 if done == stage.steps else done // period - 1
        if "after" not in rows[finished]:
            rows[finished]["after"] = evaluate(finished, params)
    if done % period == 0 and done // period < layers and done < stage.steps and len(rows) <= done // period:
        rows.append({"layer": done // period, "before": evaluate(done // period, params)})


def _report(stage: Stage, step: int, metrics: Any, reporting: Reporting, limits: Limits, clock: Clock) -> None:
    scalars = {name: float(value) for name, value in jax.device_get(metrics).items()}
    scalars |= reporting.rates(clock.rate(step))
    reporting.write(step, scalars)
    reporting.show(step, scalars)
    if scalars["skipped_in_a_row"] >= min(limits.skipped_in_a_row, stage.steps):
        raise TrainingStopped(
            f"stage {stage.name!r}: the last {int(scalars['skipped_in_a_row'])} updates were not finite"
            + (" or their losses spikes" if stage.skip_above else "") + f" (step {step}); parameters are as before them; in a "
            f"new workdir, lower config.stages.{stage.name}.learning_rate or lengthen its warm-up"
            + (", or raise its skip_above" if stage.skip_above else ""))


class Timer:
    """Whether `seconds` have passed since the last restart; never, if they are 0."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._began = seconds, time.monotonic()
        self.restarts = 0

    def restart(self) -> None:
        self._began = time.monotonic()
        self.restarts += 1

    def due(self) -> bool:
        return 0 < self._seconds <= time.monotonic() - self._began


class Clock:
    """Training seconds, evaluation and saving left out, and the rate since the last report."""

    def __init__(self, spent: float) -> None:
        self._start = time.perf_counter() - spent
        self._last: tuple[int, float] | None = None
        self._pause = 0.0

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._start

    def paused(self) -> Clock:
        return self

    def __enter__(self) -> None:
        self._pause = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        lost = time.perf_counter() - self._pause
        self._start += lost
        if self._last is not None:
            self._last = (self._last[0], self._last[1] + lost)

    def rate(self, step: int) -> float:
        """Steps per second since the last call (0.0 the first time)."""
        now, last = time.perf_counter(), self._last
        self._last = (step, now)
        return 0.0 if last is None else (step - last[0]) / max(now - last[1], 1e-9)
