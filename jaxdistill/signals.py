"""What Ctrl-C, SIGTERM and SIGHUP (a closed terminal, a lost ssh) do to a command, from its first
moment to its exit code.

Where nothing unsaved would be lost, Python's handler raises, and `cli.main` prints one line. While
a stage trains, the loop's `StopRequest` takes the handlers over and saves first. Python runs
handlers between its own instructions only: a compilation or a vocabulary in training would keep the
process for minutes. So a thread hears of signals as well, and ends the process where the main
thread does not: what is on disk is whole at any time. Light, since it is imported first of all.
Called by __main__, cli and interruption."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from jaxdistill.errors import PreemptedNow

CODES: dict[int, int] = {signal.SIGTERM: 75, signal.SIGINT: 130}
if hasattr(signal, "SIGHUP"):  # Windows has none
    CODES[signal.SIGHUP] = 75
PATIENCE = 5.0  # seconds that the main thread has to run its handler
_HEARD, _END = b"\xff", b"\xfe"  # beside the signals' numbers in the pipe that the thread reads

asked: int | None = None  # the first signal whose handler raised
ignoring = False  # the process is ending by a signal
unsaved = 0  # how many `StopRequest`s have something to save first
_pipe: tuple[int, int] | None = None


def listen() -> Callable[[], None]:
    """Sets the handlers, and starts the thread; returns what undoes it. Only the main thread can:
    in others nothing is done.

    What the process was started to ignore it goes on to ignore: SIGHUP under nohup, SIGINT in a
    shell's background job."""
    global _pipe, asked
    if threading.current_thread() is not threading.main_thread() or _pipe is not None:
        return lambda: None
    before: dict[int, Any] = {}
    for number in CODES:
        if heeded(number):
            before[number] = signal.signal(number, _asked_to_stop)
    asked, _pipe = None, os.pipe()
    os.set_blocking(_pipe[1], False)
    woken = signal.set_wakeup_fd(_pipe[1], warn_on_full_buffer=False)
    thread = threading.Thread(target=_watch, args=(_pipe[0],), name="signals", daemon=True)
    thread.start()

    def undo() -> None:
        global _pipe
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        signal.set_wakeup_fd(woken)
        if _pipe is not None:
            ends, _pipe = _pipe, None
            os.write(ends[1], _END)
            thread.join()
            for end in ends:
                os.close(end)

    return undo


def heeded(number: int) -> bool:
    """Whether a handler may be set: not where whoever started this process had the signal
    ignored."""
    return number == signal.SIGTERM or signal.getsignal(number) is not signal.SIG_IGN


def ignore() -> None:
    """The process ends with the code of the first signal; a second would end it with another, or in
    a traceback."""
    global ignoring
    ignoring = True
    for number in CODES:
        signal.signal(number, signal.SIG_IGN)


def leave(code: int) -> None:
    """Ends the process: what a signal broke off may still run below Python (a step, a compilation),
    and would crash in the interpreter's own end."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(code)


def heard() -> None:
    """To be called by every handler: the main thread knows, so the other one need not act."""
    if _pipe is not None:
        with contextlib.suppress(OSError):
            os.write(_pipe[1], _HEARD)


def line(code: int) -> str:
    """What is said at the end."""
    return (
        f"jaxdistill: {'interrupted' if code == 130 else 'preempted'}; what was finished or saved is kept, run the same "
        "command to resume"
    )


def say(text: str) -> None:
    """To standard error, if that is still there: a closed terminal must not change how the process
    ends."""
    try:
        print(text, file=sys.stderr, flush=True)
    except (OSError, ValueError):
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115  Python flushes it once more at exit


def _asked_to_stop(number: int, frame: FrameType | None) -> None:
    global asked
    heard()
    asked = asked or number
    shown = sys.unraisablehook

    def once_more(ignored: Any) -> None:
        """A destructor or a callback of the garbage collector lets no exception out: the signal
        would be lost."""
        if not issubclass(ignored.exc_type, KeyboardInterrupt):
            return shown(ignored)
        _send_again(number)

    while frame is not None:
        if frame.f_code is once_more.__code__:  # which lets none out either
            return _send_again(number)
        frame = frame.f_back
    sys.unraisablehook = once_more
    raise KeyboardInterrupt if number == signal.SIGINT else PreemptedNow


def _send_again(number: int) -> None:
    again = threading.Timer(0.05, os.kill, (os.getpid(), number))
    again.daemon = True
    again.start()


def _watch(pipe: int) -> None:
    """Reads which signals came (Python writes them at once, whatever the main thread does) and
    which were heard."""
    number, since, interrupts = 0, 0.0, 0
    while True:
        ready, _, _ = select.select([pipe], [], [], 0.1 if number else None)
        for byte in os.read(pipe, 64) if ready else b"":
            if byte == _END[0]:
                return
            if byte == _HEARD[0]:
                number = 0
            elif byte in CODES:
                since = since if number else time.monotonic()
                number = number or byte
                interrupts += byte == signal.SIGINT
        # Whoever presses Ctrl-C again does not want to wait for what is being saved.
        if number and time.monotonic() - since > PATIENCE and (not unsaved or interrupts > 1):
            code = CODES[number]
            shows_cursor = "\x1b[?25h" if os.isatty(2) else ""  # a progress bar hides it
            with contextlib.suppress(OSError):
                os.write(2, f"{shows_cursor}{line(code)}\n".encode())
            os._exit(code)


def _leave_alone() -> None:
    """A forked child has handlers of its own to set, and must not speak through its parent's
    pipe."""
    global _pipe
    if _pipe is not None:
        with contextlib.suppress(ValueError):
            signal.set_wakeup_fd(-1)
        _pipe = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_alone)
