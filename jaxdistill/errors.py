"""The ways a command can end, as exceptions the command line turns into one line and an exit code.

Everything below the roof raises these; only `cli.main` catches them. A library user sees an ordinary exception.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

MOST_LISTED = 10
LONGEST_NAME = 80  # characters of a value or name in a message
LONGEST_LINE = 700


class JaxDistillError(Exception):
    """Base of every error that ends a command with one clear line. `exit_code` is what the shell sees."""

    exit_code = 1


class BadInput(JaxDistillError, ValueError):
    """What was given cannot be used; the message says what was given, what was expected and what to change."""

    exit_code = 2


class TrainingStopped(JaxDistillError):
    """Training cannot go on (non-finite losses, a full disk); the last good checkpoint is intact."""

    exit_code = 3


class Preempted(JaxDistillError):
    """The machine is being taken away; everything is saved and the same command resumes."""

    exit_code = 75


class Interrupted(JaxDistillError):
    """Ctrl-C; everything is saved and the same command resumes."""

    exit_code = 130


class PreemptedNow(KeyboardInterrupt):
    """Preempted while no loop listens: like Ctrl-C no `Exception`, so that nothing on the way takes it for one."""

    exit_code = 75


def nearest(given: object, valid: Iterable[object], otherwise: str = "") -> str:
    """A half-sentence naming the closest valid name, then at most ten of them: for the end of a `BadInput` message.

    `otherwise`: say this where no name is close, and never list them. A number is not corrected: the nearest of other
    numbers says nothing about what was meant.
    """
    names = sorted({str(name) for name in valid})
    close = [] if _is_number(given) else difflib.get_close_matches(str(given), names, n=MOST_LISTED, cutoff=0.6)
    hint = f"did you mean {shortened(close[0])!r}? " if close else ""
    if otherwise:
        return hint.strip() or otherwise
    if len(names) > MOST_LISTED:  # the nearest of them first
        names = [*close, *(name for name in names if name not in close)]
    return f"{hint}valid: {listed(names)}"


def listed(names: Iterable[object], most: int = MOST_LISTED) -> str:
    """"a, b, c and 4 more": at most so many of the names, each cut where it is long; "(none)" without any."""
    shown = [shortened(name) for name in names]
    more = f" and {len(shown) - most:,} more" if len(shown) > most else ""
    return (", ".join(shown[:most]) or "(none)") + more


def shortened(value: object, longest: int = LONGEST_NAME) -> str:
    """The text of a value on one line, its middle left out if it has more than `longest` characters."""
    text = " ".join(str(value).split())
    if len(text) <= longest:
        return text
    end = longest // 3
    return f"{text[: longest - end - 5]} ... {text[len(text) - end :]}"


def _is_number(given: object) -> bool:
    try:
        float(str(given))
    except ValueError:
        return False
    return True
