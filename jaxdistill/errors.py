"""The ways a command can end, as exceptions the command line turns into one line and an exit code.

Everything below the roof raises these; only `cli.main` catches them. A library user sees an ordinary exception.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


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


def nearest(given: str, valid: Iterable[str]) -> str:
    """A half-sentence naming the closest valid name, then all of them: for the end of a `BadInput` message."""
    names = sorted(str(name) for name in valid)
    close = difflib.get_close_matches(str(given), names, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}valid: {', '.join(names) or '(none)'}"
