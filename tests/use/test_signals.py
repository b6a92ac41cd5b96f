"""Stopping a command: Ctrl-C, SIGTERM and a closed terminal, at any moment, as a user meets them on
the command line."""

import functools
import io
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import pytest

from jaxdistill import cli, run, signals
from jaxdistill.training import loop, programs
from tests.conftest import write_text

ROOT = pathlib.Path(__file__).parent.parent.parent
RECIPE = """
from tests.conftest import tiny_config

def get_config(variant=""):
    config = tiny_config({source!r})
    config.order = ("teacher", "transfer")
    return config
"""
SAVED = "everything is saved, run the same command to resume"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """A recipe of toy networks, its text prepared."""
    folder = tmp_path_factory.mktemp("signals")
    (folder / "recipe.py").write_text(RECIPE.format(source=str(write_text(folder / "text.txt"))))
    return folder / "recipe.py"


def train(recipe, workdir, *settings):
    return cli.main(
        [
            "train",
            f"--config={recipe}",
            f"--workdir={workdir}",
            *(f"--config.{text}" for text in settings),
        ]
    )


def at_batch(monkeypatch, number, act):
    """Calls `act` when that batch of the first stage is asked for."""
    real = run.Run.batches

    def batches(*arguments, **options):
        for i, batch in enumerate(real(*arguments, **options)):
            if i == number:
                act()
            yield batch

    monkeypatch.setattr(run.Run, "batches", batches)


def slow_steps(monkeypatch, products):
    """Each step multiplies matrices as well, in the same executable."""
    real = programs.make_step

    def make_step(*arguments):
        step = real(*arguments)

        def longer(*given):
            state, metrics = step(*given)
            start = jnp.full((256, 256), 0.001) + 0 * metrics["loss"]
            end = jax.lax.fori_loop(0, products, lambda _, x: jnp.tanh(x @ x), start)
            return state, {**metrics, "work": end[0, 0]}

        return longer

    monkeypatch.setattr(programs, "make_step", make_step)
    uncached = programs.compile_step.__wrapped__  # neither finds one nor leaves one
    monkeypatch.setattr(loop, "compile_step", uncached)
    monkeypatch.setattr(programs, "compile_step", uncached)


def saved(workdir, stage="teacher"):
    return sorted(
        int(path.name)
        for path in (workdir / "checkpoints" / stage).glob("*")
        if path.name.isdigit()
    )


def test_sigterm_in_a_slow_step_waits_for_the_end_of_that_step(
    recipe, tmp_path, monkeypatch, capsys
):
    """Steps are not handed to the device by the dozen; progress is shown before any step is due to
    be reported, with the time left of the stage and of the run, while metrics stay by count."""
    slow_steps(monkeypatch, products=300)
    monkeypatch.setattr(loop, "AHEAD_SECONDS", 0.02, raising=False)  # so that these are slow
    monkeypatch.setattr(loop, "SHOW_SECONDS", 1e-9, raising=False)
    monkeypatch.setattr(run, "Progress", functools.partial(run.Progress, interval=0.0))
    at_batch(
        monkeypatch, 2, lambda: threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
    )
    shown = io.StringIO()
    monkeypatch.setenv("JAXDISTILL_PROGRESS", "1")
    monkeypatch.setattr(sys, "stderr", shown)
    code = train(
        recipe,
        tmp_path / "w",
        "stages.teacher.steps=30",
        "log_every=40",
        "checkpoint.every_steps=100",
    )
    text = shown.getvalue()
    done = saved(tmp_path / "w")
    assert (
        code == 75
        and len(done) == 1
        and f"in stage 'teacher' after {done[0]} of 30 steps; {SAVED}" in text
    ), text
    assert 3 <= done[0] <= 15  # all 30 would be under way by then
    assert not (tmp_path / "w" / "metrics.jsonl").read_text()
    first, second = [line for line in text.splitlines() if line.startswith("teacher ")][:2]
    assert first.startswith("teacher 1/30 (3%) loss ") and second.startswith(
        "teacher 2/30 (6%) loss "
    ), text
    assert re.search(r"ETA [\d:]+, of the run [\d:]+$", second), text


def test_a_closed_terminal_saves(recipe, tmp_path, monkeypatch, capsys):
    """SIGHUP is as SIGTERM, and that nothing can be printed any more changes nothing."""

    class Gone(io.StringIO):
        def write(self, text):
            raise OSError(5, "Input/output error")

    def closed():
        monkeypatch.setattr(sys, "stderr", Gone())
        os.kill(os.getpid(), signal.SIGHUP)

    at_batch(monkeypatch, 2, closed)
    monkeypatch.setenv("JAXDISTILL_PROGRESS", "1")
    assert train(recipe, tmp_path / "w", "checkpoint.every_steps=100") == 75
    assert saved(tmp_path / "w") == [3]


def test_under_nohup_a_closed_terminal_is_nothing(monkeypatch, capsys):
    """What a command was started to ignore it ignores."""
    monkeypatch.setattr(
        "jaxdistill.commands.describe_text", lambda *_: os.kill(os.getpid(), signal.SIGHUP)
    )
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert cli.main(["describe", "--preset=mobilebert"]) == 0
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        assert cli.main(["describe", "--preset=mobilebert"]) == 75
    finally:
        signal.signal(signal.SIGHUP, before)


def test_before_the_first_step_nothing_is_waited_for(recipe, tmp_path, monkeypatch, capsys):
    """There is nothing to save; compilation may take minutes. The next call begins there."""
    at_batch(monkeypatch, 0, lambda: os.kill(os.getpid(), signal.SIGTERM))
    monkeypatch.setattr(loop, "compile_step", lambda *_: lambda *_: pytest.fail("it was compiled"))
    assert train(recipe, tmp_path / "w") == 75
    err = capsys.readouterr().err
    assert (
        err.count("\n") == 1
        and "run the same command to resume" in err
        and not saved(tmp_path / "w")
    )


def test_signals_are_python_s_again_after_a_command(capsys):
    """A program that calls `cli.main` keeps its own handlers."""
    before = {number: signal.getsignal(number) for number in signals.CODES}
    assert cli.main(["describe", "--preset=nothing"]) == 2
    assert {number: signal.getsignal(number) for number in signals.CODES} == before
    assert "signals" not in {thread.name for thread in threading.enumerate()}


def python(code, *arguments):
    """(exit code, standard error) of a Python program."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
    )
    return done.returncode, done.stderr


IMPORTING = """
import os, runpy, signal, sys

module, how = sys.argv[1:]

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name != module:
            return None
        sys.meta_path.remove(self)
        try:
            os.kill(os.getpid(), signal.SIGINT)
            for _ in range(1000): pass
        except KeyboardInterrupt:
            if how == "raised": raise
            raise ImportError("an extension could not be loaded") from None  # what some packages make of it

sys.meta_path.insert(0, Finder())
sys.argv = ["jaxdistill", "describe", "--preset=mobilebert"]
runpy.run_module("jaxdistill", run_name="__main__")
"""


@pytest.mark.parametrize(
    "module, how", [("jaxdistill.cli", "raised"), ("jax", "raised"), ("jax", "another error")]
)
def test_ctrl_c_while_python_imports_is_one_line(module, how):
    code, err = python(IMPORTING, module, how)
    assert code == 130 and err.count("\n") == 1 and err.startswith("jaxdistill: interrupted"), err


BUSY = """
import hashlib, os, sys, threading
from jaxdistill import cli, commands, signals
from jaxdistill.training.interruption import StopRequest

unsaved, *numbers = map(int, sys.argv[1:])
signals.PATIENCE = 0.5

def busy(*_):
    if unsaved:
        StopRequest().__enter__()
    for i, number in enumerate(numbers):
        threading.Timer(0.2 + 0.1 * i, os.kill, (os.getpid(), number)).start()
    hashlib.pbkdf2_hmac("sha256", b"a", b"b", 10**9)  # minutes in C, like a compiler

commands.describe_text = busy
sys.argv = ["jaxdistill", "describe", "--preset=mobilebert"]
sys.exit(cli.main())
"""


@pytest.mark.parametrize(
    "unsaved, numbers, code", [(0, [signal.SIGTERM], 75), (1, [signal.SIGINT, signal.SIGINT], 130)]
)
def test_a_signal_is_heard_while_the_main_thread_is_not_in_python(unsaved, numbers, code):
    """With something to save, only the second Ctrl-C does not wait."""
    found, err = python(BUSY, str(unsaved), *(str(int(number)) for number in numbers))
    assert found == code and err.count("\n") == 1 and "run the same command to resume" in err, err


def test_as_a_module_it_is_the_same_command():
    done = subprocess.run(
        [sys.executable, "-m", "jaxdistill", "describe", "--preset=mobilebert", "--json"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0 and json.loads(done.stdout)["encoder_parameters"] > 0, done.stderr
    done = subprocess.run(
        [sys.executable, "-m", "jaxdistill", "describe", "--help"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0 and done.stdout.startswith("usage: python -m jaxdistill describe")
