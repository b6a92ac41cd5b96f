"""Ctrl-C and preemption as a flag that the loop looks at between steps, so that what is saved is always whole."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from jaxdistill.errors import Interrupted, JaxDistillError, Preempted


class StopRequest:
    """While entered, the first SIGINT or SIGTERM only sets `signal`; a second SIGINT interrupts at once.

    Outside the main thread (a notebook's worker, say) Python cannot set handlers: then it does nothing.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number

    def error(self, where: str) -> JaxDistillError:
        """The exception to raise once everything is saved."""
        kind = Preempted if self.signal == signal.SIGTERM else Interrupted
        return kind(f"stopped {where}; everything is saved, run the same command to resume")
