"""The largest batch that fits, with few compilations: each takes minutes. Called by child."""

from __future__ import annotations

from collections.abc import Callable

# (rows) -> bytes that a step with so many rows a device needs; None when the compiler gave up
# without saying.
Measure = Callable[[int], float | None]
MOST = 1 << 16


def largest(measure: Measure, start: int, limit: float) -> int:
    """The most rows a device whose step needs at most `limit` bytes; 0 if not even one fits.

    Memory grows about linearly with rows, so each try is where the line through the last two says
    the limit is. It ends when the smallest number of rows that fails is within a sixteenth of the
    largest that fits."""
    fits: list[tuple[int, float]] = [(0, 0.0)]
    fails = MOST + 1
    rows = start
    while True:
        needs = measure(rows)
        if needs is not None and needs <= limit:
            fits.append((rows, needs))
        else:
            fails = rows
        low = fits[-1][0]
        if low >= MOST or (fails <= MOST and fails - low <= max(1, low // 16)):
            return low
        rows = max(low + 1, min(fails - 1, _next(fits, fails, limit)))


def _next(fits: list[tuple[int, float]], fails: int, limit: float) -> int:
    """The next number of rows to try."""
    low, needs = fits[-1]
    if len(fits) < 3:  # one point makes no line: arguments do not grow with rows
        return low * 2 if fails > MOST else (low + fails) // 2
    before, needed = fits[-2]
    slope = (needs - needed) / (low - before)
    guess = low + int((limit - needs) / slope) if slope > 0 else MOST
    if fails > MOST:
        return min(guess, low * 8, MOST)
    return guess if guess < fails else (low + fails) // 2
