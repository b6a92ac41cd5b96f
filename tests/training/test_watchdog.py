"""The watchdog, in processes of its own: it ends them."""

import subprocess
import sys
import time

import pytest

from jaxdistill.training.watchdog import Watchdog

HEAD = """
import ctypes, sys, threading, time
from jaxdistill.training.watchdog import Watchdog

def stuck_in_a_collective():
    time.sleep(60)

def stuck_with_the_lock():
    ctypes.PyDLL(None).sleep(60)  # unlike CDLL it keeps the interpreter's lock

threading.Thread(target=lambda: time.sleep(60), name="loader", daemon=True).start()
with Watchdog(0.5, "stage 'distill'") as dog:
"""


def ended(body, timeout=30, seconds="0.5"):
    began = time.monotonic()
    code = HEAD.replace("0.5", seconds) + "".join(f"    {line}\n" for line in body.splitlines())
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=timeout
    )
    return done.returncode, done.stderr, time.monotonic() - began


def test_a_step_that_does_not_end_ends_the_process_with_all_stacks():
    code, err, seconds = ended("dog.step_ended(); stuck_in_a_collective()")
    assert code == 1 and seconds < 20
    assert "no step of stage 'distill' ended for 0.5 s (config.watchdog_minutes)" in err
    assert (
        "in stuck_in_a_collective" in err and err.count("hread 0x") >= 3
    )  # the loop, the loader, the watchdog
    assert err.rstrip().endswith("run the same command to resume from the last checkpoint")


def test_also_when_nothing_in_python_can_run():
    code, err, seconds = ended("dog.step_ended(); time.sleep(0.2); stuck_with_the_lock()")
    assert code == 1 and seconds < 20 and "in stuck_with_the_lock" in err


def test_compilation_pauses_and_what_comes_after_are_no_hang():
    code, err, _ = ended(
        "time.sleep(0.8)  # the first step compiles\n"
        "for _ in range(4): dog.step_ended(); time.sleep(0.25)\n"
        "with dog.paused(): time.sleep(0.8)\n"
        "time.sleep(0.25)\n"
        "dog.__exit__(); time.sleep(1.5); print('done', file=sys.stderr)"
    )
    assert (code, err) == (0, "done\n")


def test_a_process_that_was_stopped_and_goes_on_is_no_hang():
    """Ctrl-Z, then fg. The timer below Python has twice the time."""
    code, err, _ = ended(
        "import os, signal, subprocess\n"
        "dog.step_ended()\n"
        "subprocess.Popen(['sh', '-c', f'sleep 2.5; kill -CONT {os.getpid()}'])\n"
        "os.kill(os.getpid(), signal.SIGSTOP)\n"
        "time.sleep(0.2); dog.step_ended(); dog.__exit__(); print('done', file=sys.stderr)",
        seconds="2.0",
    )
    assert (code, err) == (0, "done\n")


@pytest.mark.parametrize("seconds", [0, 0.0])
def test_it_can_be_off(seconds):
    with Watchdog(seconds, "x") as dog:
        dog.step_ended()
        with dog.paused():
            pass
        time.sleep(0.05)
