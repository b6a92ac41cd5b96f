"""A watchdog: when no step ends for too long, the stacks of all threads are printed and the process
ends.

A lost process leaves the others of its run waiting in a collective operation, a stuck file system
leaves the loop waiting for a batch: nothing raises, and an idle machine is paid for. An exit code
of 1 makes a launcher start again from the last checkpoint. Called by the loop."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Iterator

EXIT_CODE = 1  # neither bad input (2) nor training stopped (3), at which a launcher gives up


class Watchdog:
    """While entered, ends the process when `step_ended` was not called for `seconds` (0: never).
    `what`: for its message.

    It begins with the first call of it, once the first step is compiled, and is held off inside
    `paused`. `seconds` must be more than a step takes. faulthandler's timer, of which a process has
    one, is in use meanwhile."""

    def __init__(self, seconds: float, what: str) -> None:
        self._seconds, self._what = seconds, what
        self._last: float | None = None
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        if self._seconds > 0:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        if self._seconds > 0:
            self._thread.join()

    def step_ended(self) -> None:
        self._last = time.monotonic()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """For what compiles, or takes as long as it takes."""
        before, self._last = self._last, None
        yield
        if before is not None:
            self.step_ended()

    def _watch(self) -> None:
        look, looked = min(self._seconds / 10, 10.0), time.monotonic()
        try:
            while not self._done.wait(look):
                asleep, looked = time.monotonic() - looked - look, time.monotonic()
                if (
                    self._last is not None and asleep > self._seconds / 2
                ):  # Ctrl-Z, say: the whole process stood still
                    self.step_ended()
                # Should something hold the interpreter's lock, this thread cannot look again: C
                # code that needs no lock then prints the stacks and exits.
                faulthandler.dump_traceback_later(
                    2 * self._seconds, exit=True, file=sys.__stderr__ or 2
                )
                last = self._last
                if last is not None and time.monotonic() - last > self._seconds:
                    self._end()
        finally:
            faulthandler.cancel_dump_traceback_later()

    def _end(self) -> None:
        error = sys.__stderr__ or sys.stderr
        print(
            f"jaxdistill: no step of {self._what} ended for {self._seconds:g} s (config.watchdog_minutes): a process of the run "
            "is gone, or a device, disk or network does not answer (or a step takes longer); the threads of this one are at:",
            file=error,
            flush=True,
        )
        faulthandler.dump_traceback(file=error, all_threads=True)
        print(
            "jaxdistill: ended by its watchdog; run the same command to resume from the last checkpoint",
            file=error,
            flush=True,
        )
        os._exit(EXIT_CODE)
