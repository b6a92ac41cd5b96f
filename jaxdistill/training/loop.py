"""The loop: every stage of every method, teacher or student, pre-training or fine-tuning, runs
through `run_stage`.

It is handed plain data (the stage), two models, and callables; it knows no method, no corpus and no
file format. Fast steps are handed to the device ahead of time, and metrics read one step late, so
that it does not wait for the host (with several processes it does, every tenth step, to agree on
stopping). Slow ones are waited for, each of them, by a main thread that can hear signals: whatever
goes by the clock (stopping, saving, showing) need not wait for a count."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from jaxdistill.errors import TrainingStopped
from jaxdistill.methods.base import Cast, Patience, Stage
from jaxdistill.models import Model, Params
from jaxdistill.training import schedules, sharding
from jaxdistill.training.checkpoints import Checkpoints
from jaxdistill.training.interruption import StopRequest
from jaxdistill.training.profiling import Profile
from jaxdistill.training.programs import compile_step
from jaxdistill.training.state import TrainState
from jaxdistill.training.step import Given
from jaxdistill.training.watchdog import Watchdog

HostBatches = Iterator[dict[str, np.ndarray]]
Ended = tuple[int, Any]  # (steps done, metrics) of a step
AHEAD_SECONDS, AHEAD_STEPS = 1.0, 16  # how much work the device is given ahead: no more than either
SHOW_SECONDS = 1.0  # between reports, how often the newest step is shown
# (layer, parameters) -> losses on held-out text: of that layer, before and after each progressive
# phase; of other stages (where it is ignored), at the checkpoints that are told apart by them.
Evaluator = Callable[[int, Params], dict[str, float]]


@dataclasses.dataclass
class Reporting:
    """Where a stage's numbers go. `write(step, scalars)`, of each `every`-th step and the last;
    `show(steps done, scalars)` moves the progress bar, after the first step and every few seconds
    too; `flush()` makes what was written safe, before each checkpoint: a run resumed from there
    does not report those steps again."""

    write: Callable[[int, dict[str, float]], None]
    show: Callable[[int, dict[str, float]], None]
    rates: Callable[[float], dict[str, float]] = lambda steps_per_second: {}
    every: int = 20
    flush: Callable[[], None] = lambda: None


@dataclasses.dataclass
class Limits:
    """When to save, after how many steps or seconds since the last time (0: not by time); when to
    give up: after how many skipped updates, or seconds without a step (0: never). `profile`: the
    steps to trace, and the folder for it."""

    checkpoint_every: int = 500
    checkpoint_seconds: float = 0.0
    skipped_in_a_row: int = 20
    hang_seconds: float = 0.0
    profile: tuple[tuple[int, ...], epath.PathLike] = ((), "")


def run_stage(
    cast: Cast,
    state: TrainState,
    given: Given,
    batches: HostBatches,
    *,
    mesh: Mesh,
    checkpoints: Checkpoints,
    page: dict[str, Any],
    reporting: Reporting,
    limits: Limits,
    evaluate: Evaluator | None = None,
) -> TrainState:
    """Runs a stage from `state.step` to its end; `batches` must begin at that step's first example.

    `page` is saved with each checkpoint; its `seconds` (training time alone), `steps` (how many there
    were), `measured` (held-out numbers by step, of a stage with an `until`) and `layers` (what
    `evaluate` returned for the phases of a progressive stage) are kept up to date here. The result
    is the last state, or of a stage with an `until` the best that `evaluate` found, its step then
    in `page`. Raises `TrainingStopped` after too many skipped updates in a row, `Interrupted` or
    `Preempted` when asked to stop; the state is saved before the latter two."""
    stage, model, until = cast.stage, cast.model, cast.stage.until
    state, given = sharding.place(mesh, state), sharding.place(mesh, given)
    step_fn = compile_step(cast, mesh)
    measure_every = (until and until.every) or limits.checkpoint_every
    done = int(state.step)
    pending: Ended | None = None
    ahead = Ahead()
    clock = Clock(page.get("seconds", 0.0))
    watchdog = Watchdog(limits.hang_seconds, f"stage {stage.name!r}")
    phases = evaluate if stage.progressive else None

    def wait(left: int | None = None) -> None:
        """Until no more than `left` steps are under way (default: a second's worth)."""
        for step, metrics in ahead.wait(left):
            watchdog.step_ended()
            if shows.due() and not reported(step):
                reporting.show(
                    step, {name: float(value) for name, value in jax.device_get(metrics).items()}
                )
                shows.restart()

    def reported(step: int) -> bool:
        return step % reporting.every == 0 or step == stage.steps

    def report() -> None:
        nonlocal pending
        if pending is not None:
            wait(done - pending[0])
            _report(stage, *pending, reporting, limits, clock)
            shows.restart()
            pending = None

    def save(measure: bool = False, wait_for_it: bool = False) -> None:
        report()  # a resumed run reports only what comes after
        wait(0)
        page["seconds"] = clock.seconds
        with clock.paused():
            metric = None
            if (
                measure
                and until is not None
                and evaluate is not None
                and not checkpoints.holds(done)
            ):
                with watchdog.paused():
                    found = evaluate(0, state.params)
                reporting.write(done, {f"heldout/{name}": value for name, value in found.items()})
                value = found[until.metric] if np.isfinite(found[until.metric]) else None
                page.setdefault("measured", []).append([done, value])
                metric = None if value is None else until.cost(value)
            reporting.flush()
            with (
                watchdog.paused() if not saves.restarts else contextlib.nullcontext()
            ):  # the first one compiles checksums
                checkpoints.save(state, page, metric=metric, wait=wait_for_it)
            saves.restart()

    saves, shows = Timer(limits.checkpoint_seconds), Timer(SHOW_SECONDS, first=True)
    # Until the first step is compiled one process alone has nothing to save; several stop together.
    with (
        StopRequest(unsaved=jax.process_count() > 1) as stop,
        watchdog,
        Profile(*limits.profile) as profile,
    ):
        if done == 0 and until is not None and until.start:
            save(measure=True)
        while done < stage.steps and not worn_out(until, page):
            if phases is not None and at_border(stage, model, done):
                wait(0)  # steps still under way are training time
                with clock.paused(), watchdog.paused():
                    record_phase(stage, model, page, done, state.params, phases)
            batch = sharding.put_batch(mesh, next(batches))
            profile.before(done, state)
            with jax.transfer_guard(
                "disallow"
            ):  # nothing may cross between host and device unasked
                state, metrics = step_fn(state, given, batch)
            if not ahead.used:
                stop.hold()
                watchdog.step_ended()  # it is compiled, so its time counts
            done += 1
            ahead.add(done, metrics)
            report()
            wait()
            pending = (done, metrics) if reported(done) else None
            page["seconds"] = clock.seconds
            by_step = done % limits.checkpoint_every == 0
            measured = done % measure_every == 0
            if stop.agreed(done, saves.due()):
                break
            if (by_step or measured or stop.save) and done < stage.steps:
                save(measure=measured)
        report()
        wait(0)
        page["seconds"], page["steps"] = clock.seconds, done
        page["skipped"] = int(state.skipped)  # of all steps, whichever state is handed on
        if phases is not None and done == stage.steps:
            with watchdog.paused():
                record_phase(stage, model, page, done, state.params, phases)
        if stop.agreed():  # perhaps only now, during the last evaluation
            save(measure=done % measure_every == 0 or done == stage.steps, wait_for_it=True)
            raise stop.error(f"in stage {stage.name!r} after {done} of {stage.steps} steps")
        if until is not None and evaluate is not None:
            save(measure=True, wait_for_it=True)
            best = checkpoints.restore_best(state, mesh)
            state = state if best is None else best  # no held-out loss was finite
            page["best"] = int(state.step)
            if stop.agreed():  # meanwhile: all is saved
                raise stop.error(f"in stage {stage.name!r} after {done} of {stage.steps} steps")
    return state


def worn_out(until: Patience | None, page: dict[str, Any]) -> bool:
    """Whether the held-out numbers so far end a stage early."""
    return until is not None and until.worn_out([value for _, value in page.get("measured", ())])


def at_border(stage: Stage, model: Model, done: int) -> bool:
    """Whether a phase begins after `done` steps."""
    return done % schedules.phase_steps(stage, model.config.num_layers) == 0


def record_phase(
    stage: Stage, model: Model, page: dict[str, Any], done: int, params: Params, evaluate: Evaluator
) -> None:
    """At a phase's border: the finished layer's losses go to `after`, the next one's to `before`;
    once each."""
    layers, period = model.config.num_layers, schedules.phase_steps(stage, model.config.num_layers)
    rows: list[dict[str, Any]] = page.setdefault("layers", [])
    if done == stage.steps or (done % period == 0 and 0 < done // period < layers):
        finished = layers - 1 if done == stage.steps else done // period - 1
        if "after" not in rows[finished]:
            rows[finished]["after"] = evaluate(finished, params)
    if (
        done % period == 0
        and done // period < layers
        and done < stage.steps
        and len(rows) <= done // period
    ):
        rows.append({"layer": done // period, "before": evaluate(done // period, params)})


def _report(
    stage: Stage, step: int, metrics: Any, reporting: Reporting, limits: Limits, clock: Clock
) -> None:
    scalars = {name: float(value) for name, value in jax.device_get(metrics).items()}
    scalars |= reporting.rates(clock.rate(step))
    reporting.write(step, scalars)
    reporting.show(step, scalars)
    if scalars["skipped_in_a_row"] >= min(limits.skipped_in_a_row, stage.steps):
        raise TrainingStopped(
            f"stage {stage.name!r}: the last {int(scalars['skipped_in_a_row'])} updates were not finite"
            + (" or their losses spikes" if stage.skip_above else "")
            + f" (step {step}); parameters are as before them; in a "
            f"new workdir, lower config.stages.{stage.name}.learning_rate or lengthen its warm-up"
            + (", or raise its skip_above" if stage.skip_above else "")
        )


class Ahead:
    """The steps that the device was given and that have not ended, as far as is known. `used`: it
    was given any."""

    def __init__(self) -> None:
        self._steps: collections.deque[tuple[int, Any, float]] = (
            collections.deque()
        )  # the last: when it was handed over
        self._seconds = math.inf  # that a step takes, as seen last
        self._last = -math.inf  # when one was seen to end
        self.used = False

    def add(self, step: int, metrics: Any) -> None:
        """A step was handed over; it has ended once its metrics are there."""
        self._steps.append((step, metrics, time.monotonic()))
        self.used = True

    def wait(self, left: int | None = None) -> Iterator[Ended]:
        """The steps that ended since the last call, until no more than `left` have not. Default: as
        many as the device needs a second for, none if a step takes longer. Signals are heard
        meanwhile, as they would not be inside JAX."""
        while True:
            ended = []
            while self._steps and all(
                leaf.is_ready() for leaf in jax.tree.leaves(self._steps[0][1])
            ):
                ended.append(self._steps.popleft())
            if ended:
                now = time.monotonic()
                seconds = (now - max(self._last, ended[0][2])) / len(ended)
                # Slower is believed at once, faster by and by.
                self._seconds = max(
                    seconds, seconds if math.isinf(self._seconds) else (self._seconds + seconds) / 2
                )
                self._last = now
                yield from (step[:2] for step in ended)
            allowed = (
                min(AHEAD_STEPS, int(AHEAD_SECONDS / max(self._seconds, 1e-6)))
                if left is None
                else left
            )
            if len(self._steps) <= allowed:
                return
            time.sleep(min(max(self._seconds / 8, 1e-4), 5e-3))


class Timer:
    """Whether `seconds` have passed since the last restart; never, if they are 0. `first`: the
    first time at once."""

    def __init__(self, seconds: float, first: bool = False) -> None:
        self._seconds, self._began = seconds, -math.inf if first else time.monotonic()
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
