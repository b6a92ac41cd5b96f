"""The loop: phases recorded, stopped and resumed to the bit, given up in time."""

import dataclasses
import functools
import itertools
import os
import pathlib
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdistill.errors import Interrupted, Preempted, TrainingStopped
from jaxdistill.training import hosts, loop, sharding, state
from jaxdistill.training.checkpoints import Checkpoints
from tests.conftest import (
    STUDENT,
    TEACHER,
    cast_of,
    make_stage,
    pretraining_batch,
    random_params,
    rarely,
)
from tests.conftest import given as step_given

ROOT = pathlib.Path(__file__).parent.parent.parent
PRETRAIN = make_stage("pretrain", steps=7, learning_rate=0.01, dropout=True)
TRANSFER = make_stage("progressive", steps=7, learning_rate=0.01, freezing="strict")


def batches(first=0, signal_at=None, number=signal.SIGINT, bad_from=None):
    """Batch k is a function of k; before number `signal_at` a signal arrives; from `bad_from` on
    nothing is finite."""
    for k in itertools.count(first):
        batch = pretraining_batch(seed=k)
        if k == signal_at:
            os.kill(os.getpid(), number)
        if bad_from is not None and k >= bad_from:
            batch["mlm_weights"] = batch["mlm_weights"] * np.float32(np.nan)
        yield batch


class Log:
    """Collects what the loop reports."""

    def __init__(self, every=1):
        self.rows, self.shown = [], []
        self.reporting = loop.Reporting(
            write=lambda step, x: self.rows.append((step, x)),
            show=lambda step, _: self.shown.append(step),
            every=every,
        )

    def losses(self):
        return [(step, row["loss"]) for step, row in self.rows]


def run(folder, given, stage=PRETRAIN, log=None, page=None, evaluate=None, **limits):
    """One call of the loop: resumes if there is a checkpoint. `given`: first example -> batches."""
    mesh, checkpoints = sharding.make_mesh(1), Checkpoints(folder, best=stage.until is not None)
    page, cast = {} if page is None else page, cast_of(stage)
    now = state.create(cast_of(stage), random_params(STUDENT, 2))
    if checkpoints.latest() is not None:
        now, held = checkpoints.restore(now, mesh)
        page |= held
    log = log or Log()
    try:
        return loop.run_stage(
            cast,
            now,
            step_given(cast, random_params(TEACHER, 1), seed=5),
            given(int(now.step)),
            mesh=mesh,
            checkpoints=checkpoints,
            page=page,
            reporting=log.reporting,
            limits=loop.Limits(**{"checkpoint_every": 100, **limits}),
            evaluate=evaluate,
        )
    finally:
        checkpoints.close()


def equal(a, b):
    return all(
        np.asarray(x).tobytes() == np.asarray(y).tobytes()
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b))
    )


@pytest.mark.parametrize(
    "number, error, code", [(signal.SIGINT, Interrupted, 130), (signal.SIGTERM, Preempted, 75)]
)
def test_a_signal_saves_and_the_resumed_run_is_the_uninterrupted_one(tmp_path, number, error, code):
    """To the bit, in parameters, moments and counters; and no report is lost or made twice."""
    whole = Log()
    expected = run(tmp_path / "a", batches, log=whole)
    log = Log()
    before = signal.getsignal(number)
    with pytest.raises(error, match="after 4 of 7 steps; everything is saved") as caught:
        run(tmp_path / "b", lambda first: batches(first, signal_at=3, number=number), log=log)
    assert caught.value.exit_code == code and signal.getsignal(number) is before
    assert Checkpoints(tmp_path / "b").latest() == 4
    found = run(tmp_path / "b", batches, log=log)
    assert equal(found, expected) and int(found.step) == 7
    assert (
        log.losses() == whole.losses()
        and [step for step, _ in log.rows] == list(range(1, 8)) == log.shown
    )


@pytest.mark.parametrize("at, error", [(0, KeyboardInterrupt), (1, Interrupted), (6, Interrupted)])
def test_a_signal_at_the_first_and_the_last_step(tmp_path, at, error):
    """Before the first there is nothing to save, and it would have to be compiled first."""
    expected = run(tmp_path / "a", batches)
    with pytest.raises(error, match=f"after {at + 1} of 7" if at else None):
        run(tmp_path / "b", lambda first: batches(first, signal_at=at))
    assert Checkpoints(tmp_path / "b").latest() == (at + 1 if at else None)
    assert equal(run(tmp_path / "b", batches), expected)


def test_a_closed_terminal_saves_and_under_nohup_it_is_nothing(tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert (
            int(
                run(
                    tmp_path / "a", lambda first: batches(first, signal_at=3, number=signal.SIGHUP)
                ).step
            )
            == 7
        )
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        with pytest.raises(Preempted, match="after 4 of 7 steps; everything is saved"):
            run(tmp_path / "b", lambda first: batches(first, signal_at=3, number=signal.SIGHUP))
    finally:
        signal.signal(signal.SIGHUP, before)
    assert Checkpoints(tmp_path / "b").latest() == 4


def test_a_signal_after_the_loop_has_asked_for_the_last_time_is_not_lost():
    """It is delivered to whom it would have met outside."""
    with pytest.raises(KeyboardInterrupt), loop.StopRequest() as stop:
        assert not stop.agreed()
        os.kill(os.getpid(), signal.SIGINT)
    with loop.StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.agreed()


def test_a_signal_while_processes_ask_each_other_is_not_lost(tmp_path, monkeypatch):
    """The answer of the others is older than the signal."""
    asked = []

    def largest(value):
        asked.append(value)
        if len(asked) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return value

    monkeypatch.setattr(hosts, "largest", largest)
    with pytest.raises(Preempted, match="after 4 of 7"):
        run(tmp_path, batches)
    assert asked[:4] == [0, 0, 0, signal.SIGTERM]


def test_a_second_ctrl_c_interrupts_at_once(tmp_path):
    def impatient(first):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        yield from batches(first)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, impatient)


def test_checkpoints_come_at_their_steps_and_a_killed_run_goes_on_from_the_last(tmp_path):
    """Neither before the first nor after the end; a crash loses the steps since, and nothing
    else."""
    expected = run(tmp_path / "a", batches)

    def crashing(first, steps):
        yield from itertools.islice(batches(first), steps)
        raise RuntimeError("power cut")

    for steps, saved in (
        (3, 2),
        (1, 2),
        (2, 4),
    ):  # the second and the third go on from the one before
        log = Log()
        with pytest.raises(RuntimeError, match="power cut"):
            run(
                tmp_path / "b",
                functools.partial(crashing, steps=steps),
                checkpoint_every=2,
                log=log,
            )
        assert Checkpoints(tmp_path / "b").latest() == saved
    assert [step for step, _ in log.rows] == [
        3,
        4,
    ]  # what a checkpoint has behind it is reported before it is saved
    assert equal(run(tmp_path / "b", batches), expected)


@pytest.mark.parametrize("seconds, saved", [(0.0, set()), (2.0, {3, 5}), (100.0, set())])
def test_checkpoints_come_by_time_too(tmp_path, monkeypatch, seconds, saved):
    """The clock begins anew with each save, by step or by time."""
    now, found = [0.0], set()
    monkeypatch.setattr(loop.time, "monotonic", lambda: now[0])
    real = Checkpoints.save
    monkeypatch.setattr(
        Checkpoints,
        "save",
        lambda self, state, *_, **o: (found.add(int(state.step)), real(self, state, *_, **o)),
    )

    def slowly(first):
        for batch in batches(first):
            yield batch
            now[0] += 1.0  # the first step takes none, each other one a second

    run(tmp_path, slowly, checkpoint_seconds=seconds)
    assert found == saved


def test_time_is_the_first_process_s(monkeypatch):
    """The others do as it says, whatever their clocks do, and a signal anywhere goes first."""
    for mine, theirs, first, expected in (
        (True, 0, True, (False, True)),
        (True, 0, False, (False, False)),
        (False, 1, False, (False, True)),
        (True, signal.SIGTERM, True, (True, False)),
    ):
        monkeypatch.setattr(hosts, "first", lambda first=first: first)
        monkeypatch.setattr(hosts, "largest", lambda value, theirs=theirs: max(value, theirs))
        stop = loop.StopRequest()
        assert (stop.agreed(10, mine), stop.save) == expected


@pytest.mark.parametrize(
    "mine, other, asked",
    [
        (0.01, 0.01, [1, 2, 12, 22, 32]),
        (0.01, 1.0, [1, 2, 7, 12, 17, 22, 27, 32]),
        (9.0, 1.0, list(range(1, 33))),
    ],
)
def test_processes_with_slow_steps_ask_each_other_more_often(monkeypatch, mine, other, asked):
    """A preempted machine must be heard in time, and all must ask after the same step."""
    now, answers = [0.0], []
    monkeypatch.setattr(loop.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(
        hosts,
        "largest",
        lambda value: (answers.append(value), max(value, int(value * other / mine)))[1],
    )
    stop, found = loop.StopRequest(), []
    for step in range(1, 33):
        now[0] += mine
        before = len(answers)
        assert not stop.agreed(500 + step)  # a run that was resumed
        found += [step] * (len(answers) > before)
    assert found == asked


BEST = make_stage("pretrain", steps=7, learning_rate=0.01, best="mlm")


@pytest.fixture(scope="module")
def fourth(tmp_path_factory):
    """Parameters after four steps."""
    folder = tmp_path_factory.mktemp("fourth")
    plain = make_stage("pretrain", steps=7, learning_rate=0.01)
    with pytest.raises(Interrupted):
        run(folder, lambda first: batches(first, signal_at=3), stage=plain)
    held, _ = Checkpoints(folder).restore(
        state.create(cast_of(plain), random_params(STUDENT, 2)), sharding.make_mesh(1)
    )
    return held.params


@pytest.mark.parametrize("stop", rarely([None, 3, 4, 6], 3, 6))
def test_the_best_state_is_handed_on(tmp_path, fourth, stop):
    """That of step 4, where the held-out loss is lowest, and not the last; also when the run is
    stopped there or later. Each saved step is measured once."""
    log, page, calls = Log(), {}, []

    def evaluate(layer, params):
        apart = sum(
            float(jnp.sum(jnp.abs(a - b)))
            for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(fourth))
        )
        calls.append(apart)
        return {"loss": 0.0, "mlm": 1.0 + apart}

    if stop is not None:
        with pytest.raises(Interrupted):
            run(
                tmp_path,
                lambda first: batches(first, signal_at=stop),
                stage=BEST,
                evaluate=evaluate,
                checkpoint_every=2,
                log=log,
            )
    found = run(
        tmp_path, batches, stage=BEST, evaluate=evaluate, checkpoint_every=2, log=log, page=page
    )
    told = {step: row["heldout/mlm"] for step, row in log.rows if "heldout/mlm" in row}
    assert told.keys() == {2, 4, 6, 7} and len(calls) == 4
    assert int(found.step) == page["best"] == min(told, key=told.get) == 4 and equal(
        found.params, fourth
    )


@pytest.mark.parametrize("stop", rarely([None, 2, 3, 4], None, 2, 4))
def test_patience_ends_a_stage_and_hands_on_the_best_state(tmp_path, stop):
    """After two numbers no better than the best, also when the run is stopped before, between or
    at them; the state is that of the uninterrupted run, to the bit."""
    stage = dataclasses.replace(BEST, until=dataclasses.replace(BEST.until, evaluations=2))

    def evaluate(layer, params):
        calls.append(layer)
        return {"loss": 0.0, "mlm": {1: 5.0, 2: 4.0, 3: 4.5, 4: 4.2, 5: 1.0}[len(calls)]}

    def go(folder, given, page):
        return run(folder, given, stage=stage, evaluate=evaluate, checkpoint_every=1, page=page)

    calls, page = [], {}
    expected = go(tmp_path / "whole", batches, page)
    assert [step for step, _ in page["measured"]] == [1, 2, 3, 4] and page["steps"] == 4
    assert int(expected.step) == page["best"] == 2
    if stop is not None:
        calls, page = [], {}
        with pytest.raises(Interrupted):
            go(tmp_path / "parts", lambda first: batches(first, signal_at=stop - 1), {})
        found = go(tmp_path / "parts", batches, page)
        assert equal(found, expected) and len(calls) == 4 and page["steps"] == 4


def test_steps_are_the_most_that_patience_waits_for(tmp_path):
    page, values = {}, iter([5.0, 4.0, 4.5, 3.0, 3.5, 2.0, 2.5])
    stage = dataclasses.replace(BEST, until=dataclasses.replace(BEST.until, evaluations=2))
    found = run(
        tmp_path,
        batches,
        stage=stage,
        evaluate=lambda *_: {"mlm": next(values)},
        checkpoint_every=1,
        page=page,
    )
    assert page["steps"] == 7 and int(found.step) == page["best"] == 6


@pytest.mark.parametrize("best", [0, 3])
@pytest.mark.parametrize("stop", rarely([None, 2], 2))
def test_the_state_a_stage_begins_with_may_be_the_best(tmp_path, best, stop):
    """It is measured once, before the first step, also of a run that is stopped and resumed."""
    stage = dataclasses.replace(BEST, until=dataclasses.replace(BEST.until, start=True))
    calls, page = [], {}

    def evaluate(layer, params):
        calls.append(jax.device_get(params))
        return {"mlm": abs(3 * (len(calls) - 1) - best)}  # after 0, 3, 6 and 7 steps

    def go(given, page):
        return run(tmp_path, given, stage=stage, evaluate=evaluate, checkpoint_every=3, page=page)

    if stop is not None:
        with pytest.raises(Interrupted):
            go(lambda first: batches(first, signal_at=stop - 1), {})
    found = go(batches, page)
    assert [step for step, _ in page["measured"]] == [0, 3, 6, 7] and len(calls) == 4
    assert int(found.step) == page["best"] == best
    assert equal(jax.device_get(found.params), calls[best // 3])


def test_without_a_finite_number_the_last_state_is_handed_on(tmp_path):
    page = {}
    found = run(
        tmp_path,
        batches,
        stage=BEST,
        evaluate=lambda *_: {"mlm": np.nan},
        checkpoint_every=2,
        page=page,
    )
    assert int(found.step) == page["best"] == 7


def test_a_step_that_hangs_ends_the_process(tmp_path):
    """The loop tells its watchdog of steps, not of compilation; a loader that stops is a hang."""
    code = f"""
import itertools, time
from tests.training.test_loop import batches, run

def stops(first):
    yield from itertools.islice(batches(first), 3)
    time.sleep(120)

run({str(tmp_path)!r}, stops, checkpoint_every=2, hang_seconds=5.0)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=100, cwd=ROOT
    )
    assert (
        done.returncode == 1
        and "no step of stage 'it' ended for 5 s" in done.stderr
        and "in stops" in done.stderr
    )
    assert Checkpoints(tmp_path).latest() == 2


def test_a_profile_of_some_steps(tmp_path):
    run(tmp_path / "run", batches, profile=((2, 4), tmp_path / "trace"))
    assert list((tmp_path / "trace").glob("plugins/profile/*/*.xplane.pb"))


def test_too_many_bad_updates_stop_it_and_the_last_good_checkpoint_stays(tmp_path):
    log = Log()
    with pytest.raises(
        TrainingStopped, match="last 3 updates were not finite .*config.stages.it.learning_rate"
    ) as caught:
        run(
            tmp_path,
            lambda first: batches(first, bad_from=4),
            log=log,
            checkpoint_every=3,
            skipped_in_a_row=3,
            stage=make_stage("pretrain", steps=20, learning_rate=0.01, dropout=True),
        )
    assert caught.value.exit_code == 3 and 7 <= log.rows[-1][0] <= 8
    held, _ = Checkpoints(tmp_path).restore(
        state.create(cast_of(PRETRAIN), random_params(STUDENT, 2)), sharding.make_mesh(1)
    )
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(held))


def test_reports_come_every_so_often_and_at_the_end(tmp_path):
    log = Log(every=3)
    run(tmp_path, batches, log=log, checkpoint_every=3)
    assert [step for step, _ in log.rows] == [3, 6, 7]


def test_each_phase_is_recorded_before_and_after_once_also_across_a_stop(tmp_path):
    """`before` of a layer when its phase begins, `after` when it ends, with the parameters of that
    moment."""

    def evaluate(layer, params):
        calls.append(layer)
        return {
            "loss": float(
                sum(jnp.sum(jnp.abs(leaf[layer])) for leaf in jax.tree.leaves(params["layers"]))
            )
        }

    calls, page = [], {}
    run(tmp_path / "a", batches, stage=TRANSFER, page=page, evaluate=evaluate)
    rows = page["layers"]
    assert [row["layer"] for row in rows] == [0, 1, 2] and sorted(calls) == [0, 0, 1, 1, 2, 2]
    assert all(row["before"] != row["after"] for row in rows)
    for stop in range(7):  # the border between two phases is at 2 and 4
        calls, again = [], {}
        if stop in (1, 3, 6):
            with pytest.raises(Interrupted):
                run(
                    tmp_path / str(stop),
                    lambda first, stop=stop: batches(first, signal_at=stop),
                    stage=TRANSFER,
                    page=again,
                    evaluate=evaluate,
                )
            resumed = {}
            run(tmp_path / str(stop), batches, stage=TRANSFER, page=resumed, evaluate=evaluate)
            assert resumed["layers"] == rows and sorted(calls) == [0, 0, 1, 1, 2, 2], stop


def test_a_signal_during_the_last_evaluation_is_not_lost(tmp_path):
    """After the last step there is no next one to look at the flag."""

    def evaluate(layer, params):
        calls.append(layer)
        if len(calls) == 6:
            os.kill(os.getpid(), signal.SIGINT)
        return {"loss": 1.0}

    calls = []
    with pytest.raises(Interrupted, match="after 7 of 7 steps"):
        run(tmp_path, batches, stage=TRANSFER, evaluate=evaluate)
    assert (
        int(run(tmp_path, batches, stage=TRANSFER, evaluate=evaluate).step) == 7 and len(calls) == 6
    )


def test_a_signal_while_the_last_state_is_measured_is_not_lost(tmp_path):
    """A stage with a best one is measured once more at its end, which may take minutes; the next
    stage must not begin."""

    def evaluate(_, params):
        calls.append(0)
        if len(calls) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return {"mlm": 1.0}

    calls = []
    with pytest.raises(Preempted, match="after 7 of 7 steps"):
        run(tmp_path, batches, stage=BEST, evaluate=evaluate)
    assert int(run(tmp_path, batches, stage=BEST, evaluate=evaluate).step) == 7 and len(calls) == 1


@pytest.mark.parametrize("seconds, most", [(0.01, 17), (0.2, 6), (0.7, 2), (1.5, 1), (60.0, 1)])
def test_the_device_is_given_a_second_s_work_ahead(monkeypatch, seconds, most):
    """The step in progress included; and when steps become slow, the next is soon waited for
    alone."""
    device = Device(monkeypatch, seconds)
    depths = [device.step() for _ in range(60)]
    assert depths[0] == 1 and most - 1 <= depths[-1] <= most
    assert [step for step, _ in device.ended] == list(range(1, len(device.ended) + 1))
    device.seconds = 5.0
    depths = [device.step() for _ in range(30)]
    assert depths[-1] == 1
    list(device.ahead.wait(0))
    assert not device.ahead._steps


class Device:
    """Runs steps one after the other, on a clock that moves while the loop sleeps."""

    def __init__(self, monkeypatch, seconds):
        self.seconds, self.now, self.free, self.ahead, self.ended = (
            seconds,
            0.0,
            0.0,
            loop.Ahead(),
            [],
        )
        monkeypatch.setattr(loop.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(
            loop.time, "sleep", lambda seconds: setattr(self, "now", self.now + seconds)
        )

    def step(self):
        """How many were under way once this one was handed over."""
        self.now += 1e-4
        self.free = max(self.now, self.free) + self.seconds
        self.ahead.add(len(self.ended) + len(self.ahead._steps) + 1, Metric(self, self.free))
        under_way = len(self.ahead._steps)
        self.ended += self.ahead.wait()
        return under_way


class Metric:
    def __init__(self, device, end):
        self.is_ready = lambda: device.now >= end


def test_the_clock_leaves_pauses_out(monkeypatch):
    """Seconds of training alone, and a rate that does not count what was spent evaluating."""
    now = [100.0]
    monkeypatch.setattr(loop.time, "perf_counter", lambda: now[0])
    clock = loop.Clock(spent=5.0)
    assert clock.rate(10) == 0.0
    now[0] += 2
    with clock.paused():
        now[0] += 50
    now[0] += 2
    assert clock.seconds == 9.0 and clock.rate(18) == 2.0
