"""One line that says how far a long loop is, how fast it goes and when it ends: training,
tokenising, evaluating.

On a terminal it is a bar that is redrawn in place; in a log file a plain line every ten seconds.
Both end in the same words: `transfer 120/720 (16%) loss 3.21 12.3 it/s 41k tok/s ETA 0:48, of the
run 5:12`. `JAXDISTILL_PROGRESS=0` silences it, and so does a terminal that is gone."""

from __future__ import annotations

import collections
import contextlib
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, TextIO

WINDOW_SECONDS = 30.0  # the rate is that of the recent past: the first steps compile
REDRAW_SECONDS = 0.1


class Progress:
    """`with Progress(720, "transfer", tokens_per_unit=8 * 128) as bar: ... bar.update(1,
    loss=3.21)`.

    `total`: how many units, None when not known beforehand. `initial`: units done by an earlier
    process. `unit`: what is counted, for the rate. `tokens_per_unit`: also show tokens a second.
    `later`: how many of these units the stages after this one are worth, for the time that the
    whole run needs. `quiet`: print nothing (default: what the environment variable says).
    `interval`: seconds between plain lines. `stream`: default standard error. `clock`: seconds, for
    tests."""

    def __init__(
        self,
        total: int | None,
        name: str,
        *,
        unit: str = "it",
        initial: int = 0,
        tokens_per_unit: float | None = None,
        later: float = 0.0,
        quiet: bool | None = None,
        interval: float = 10.0,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total, self.name, self.unit, self.done = total, name, unit, initial
        self._tokens_per_unit, self._later = tokens_per_unit, later
        self._interval, self._clock = interval, clock
        self._stream = sys.stderr if stream is None else stream
        self._quiet = os.environ.get("JAXDISTILL_PROGRESS", "1") == "0" if quiet is None else quiet
        self._fields: dict[str, Any] = {}
        self._history: collections.deque[tuple[float, int]] = collections.deque()
        self._next_line = 0.0
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Progress:
        self._started = self._clock()
        self._started_at = self.done
        self._next_line = self._started + self._interval
        if not self._quiet and self._stream.isatty():
            with self._or_silence():
                self._bar = _rich_bar(self._stream)
                self._task = self._bar.add_task(
                    "", total=self.total, completed=self.done, text=self.line()
                )
                self._bar.start()
            self._next_line = self._started
        return self

    def update(self, n: int = 1, **fields: Any) -> None:
        """`n` more units are done; `fields` (numbers or text) are shown until they are given
        again."""
        if self._quiet:
            self.done += n
            return
        now = self._clock()
        self.done += n
        self._fields |= fields
        if len(self._history) > 1 and now - self._history[-2][0] < REDRAW_SECONDS:
            self._history.pop()  # a fast loop: keep the window short
        self._history.append((now, self.done))
        while now - self._history[0][0] > WINDOW_SECONDS and len(self._history) > 2:
            self._history.popleft()
        if now < self._next_line:
            return
        self._next_line = now + (self._interval if self._bar is None else REDRAW_SECONDS)
        with self._or_silence():
            if self._bar is not None:
                self._bar.update(self._task, completed=self.done, text=self.line())
            else:
                print(self.line(), file=self._stream, flush=True)

    def reach(self, done: int, **fields: Any) -> None:
        """As `update`, given how many units are done in all."""
        self.update(done - self.done, **fields)

    def __exit__(self, *_: object) -> None:
        if self._quiet:
            return
        with self._or_silence():
            if self._bar is not None:
                self._bar.update(self._task, completed=self.done, text=self.line(final=True))
                self._bar.stop()
            else:
                print(self.line(final=True), file=self._stream, flush=True)

    @contextlib.contextmanager
    def _or_silence(self) -> Iterator[None]:
        """A closed terminal or pipe ends what is shown, and not what is trained: that must still be
        saved."""
        try:
            yield
        except OSError:
            self._quiet = True

    def rate(self) -> float | None:
        """Units a second over the last `WINDOW_SECONDS`; None before the second update."""
        if len(self._history) < 2:
            return None
        (first, before), (last, after) = self._history[0], self._history[-1]
        return (after - before) / (last - first) if last > first else None

    def line(self, final: bool = False) -> str:
        """The words of the bar and of the plain line; the `final` one has the time taken instead of
        the time left."""
        parts = [self.name]
        if self.total is None:
            parts.append(f"{self.done:,}")
        else:
            parts += [f"{self.done}/{self.total}", f"({100 * self.done // max(self.total, 1)}%)"]
        parts += [f"{name} {_number(value)}" for name, value in self._fields.items()]
        elapsed = self._clock() - self._started
        # The last word on the speed is the whole loop's, compilation included: it is what a reader
        # multiplies by.
        rate = (self.done - self._started_at) / elapsed if final and elapsed > 0 else self.rate()
        if rate:
            parts.append(f"{_short(rate)} {self.unit}/s")
            if self._tokens_per_unit is not None:
                parts.append(f"{_short(rate * self._tokens_per_unit)} tok/s")
        if final:
            parts.append(f"in {_duration(elapsed)}")
        elif rate and self.total is not None:
            left = max(self.total - self.done, 0)
            parts.append(f"ETA {_duration(left / rate)}")
            if self._later:
                parts[-1] += f", of the run {_duration((left + self._later) / rate)}"
        return " ".join(parts)


def _rich_bar(stream: TextIO) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as RichProgress
    from rich.table import Column

    text = TextColumn(
        "{task.fields[text]}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")
    )
    return RichProgress(
        BarColumn(bar_width=24), text, console=Console(file=stream), refresh_per_second=4
    )


def _number(value: Any) -> str:
    """Three significant digits or so; text as it is."""
    if isinstance(value, str):
        return value
    number = float(value)
    if number.is_integer() and abs(number) < 1e6:
        return str(int(number))
    return f"{number:.2f}" if 1 <= abs(number) < 1000 else f"{number:.3g}"


def _short(rate: float) -> str:
    """12.34 -> "12.3", 41000 -> "41k"."""
    for limit, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if rate >= limit:
            scaled = rate / limit
            return (f"{scaled:.1f}" if scaled < 10 else f"{scaled:.0f}") + suffix
    return f"{rate:.0f}" if rate >= 100 else f"{rate:.1f}" if rate >= 1 else f"{rate:.2g}"


def _duration(seconds: float) -> str:
    """48 -> "0:48", 3905 -> "1:05:05"."""
    minutes, left = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{left:02d}" if hours else f"{minutes}:{left:02d}"
