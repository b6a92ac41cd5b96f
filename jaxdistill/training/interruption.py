"""Ctrl-C and preemption as a flag that the loop looks at between steps, so that what is saved is
always whole.

Outside a loop nothing needs to be saved first: `signals` says what happens there."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

import jax

from jaxdistill import signals
from jaxdistill.errors import Interrupted, JaxDistillError, Preempted
from jaxdistill.training import hosts

# How often processes ask each other: a preempted machine has half a minute, and asking costs a
# round trip.
ASK_EVERY, ASK_SECONDS = 10, 5.0  # steps at most, and of these no more than take so long
SAVE = 1  # what the processes tell each other when nobody was asked to stop; signals that we hear of have higher numbers


class StopRequest:
    """While entered, the first SIGINT, SIGTERM or SIGHUP (the same as SIGTERM) only sets `signal`;
    a second SIGINT interrupts at once. With `unsaved` False signals do what they did before, until
    `hold` says that there is something to save: a step that is still being compiled is not waited
    for.

    Outside the main thread (a notebook's worker, say) Python cannot set handlers: then it does
    nothing."""

    def __init__(self, unsaved: bool = True) -> None:
        self.signal: int | None = None
        self._unsaved = unsaved
        self._held = False
        self._told: int | None = None  # the signal that the loop knows of
        self.save = False
        self._previous: dict[int, Any] = {}
        self._asked: tuple[int, float] | None = None  # after which step, and when
        self._next = 0

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in filter(signals.heeded, signals.CODES):
                self._previous[number] = signal.signal(number, self._handle)
            if self._unsaved:
                self.hold()
        return self

    def hold(self) -> None:
        """From now on there is something to save."""
        if not self._held and self._previous:
            self._held = True
            signals.unsaved += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._held:
            signals.unsaved -= 1
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if (
            kind is None and self.signal != self._told
        ):  # it came after the loop had asked for the last time
            os.kill(os.getpid(), self.signal or 0)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        previous = self._previous.get(number)
        if not self._held and callable(previous):
            previous(number, frame)
        signals.heard()
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = signal.SIGINT if number == signal.SIGINT else signal.SIGTERM

    def agreed(self, step: int = 0, save: bool = False) -> bool:
        """Whether to stop after `step`: the same answer on every process, who ask each other after
        each `ASK_EVERY`th, or more often if steps are slow; without a `step` at once.

        The first process's `save`, whether it is time for a checkpoint, is handed on to all as the
        attribute of that name."""
        self.save = False
        if 0 < step < self._next and jax.process_count() > 1:
            return False
        # Never the other way round: a signal may come while the processes wait for each other.
        due = SAVE if save and hosts.first() else 0
        asked = hosts.largest(self.signal or due)
        self.save = asked == SAVE
        if step and jax.process_count() > 1:
            now, self._next = time.monotonic(), step + 1
            if self._asked is not None:
                before, then = self._asked
                slowest = hosts.largest(
                    round(1e3 * (now - then))
                )  # milliseconds, of all: so all ask again after the same step
                self._next = step + max(
                    1, min(ASK_EVERY, int(1e3 * ASK_SECONDS * (step - before) / max(1, slowest)))
                )
            self._asked = step, now
        if asked > SAVE:
            self.signal = self._told = asked
        return asked > SAVE

    def error(self, where: str) -> JaxDistillError:
        """The exception to raise once everything is saved."""
        kind = Preempted if self.signal == signal.SIGTERM else Interrupted
        return kind(f"stopped {where}; everything is saved, run the same command to resume")
