"""The ways a command can end, as exceptions the command line turns into one line and an exit code.

Everything below the roof raises these; only `cli.main` catches them. A library user sees an
ordinary exception."""

from __future__ import annotations

import difflib
import errno
import os
import sys
from collections.abc import Iterable

MOST_LISTED = 10
LONGEST_NAME = 80  # characters of a value or name in a message
LONGEST_LINE = 700
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_UNUSABLE = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EIO,
    errno.EMFILE,
    errno.ENFILE,
)


class JaxDistillError(Exception):
    """Base of every error that ends a command with one clear line. `exit_code` is what the shell
    sees."""

    exit_code = 1


class BadInput(JaxDistillError, ValueError):
    """What was given cannot be used; the message says what was given, what was expected and what to
    change."""

    exit_code = 2


class TrainingStopped(JaxDistillError):
    """Training cannot go on (non-finite losses, a full disk); the last good checkpoint is
    intact."""

    exit_code = 3


class Preempted(JaxDistillError):
    """The machine is being taken away; everything is saved and the same command resumes."""

    exit_code = 75


class Interrupted(JaxDistillError):
    """Ctrl-C; everything is saved and the same command resumes."""

    exit_code = 130


class PreemptedNow(KeyboardInterrupt):
    """Preempted while no loop listens: like Ctrl-C no `Exception`, so that nothing on the way takes
    it for one."""

    exit_code = 75


def nearest(given: object, valid: Iterable[object], otherwise: str = "") -> str:
    """A half-sentence naming the closest valid name, then at most ten of them: for the end of a
    `BadInput` message.

    `otherwise`: say this where no name is close, and never list them. A number is not corrected:
    the nearest of other numbers says nothing about what was meant."""
    names = sorted({str(name) for name in valid})
    close = (
        []
        if _is_number(given)
        else difflib.get_close_matches(str(given), names, n=MOST_LISTED, cutoff=0.6)
    )
    hint = f"did you mean {shortened(close[0])!r}? " if close else ""
    if otherwise:
        return hint.strip() or otherwise
    if len(names) > MOST_LISTED:  # the nearest of them first
        names = [*close, *(name for name in names if name not in close)]
    return f"{hint}valid: {listed(names)}"


def listed(names: Iterable[object], most: int = MOST_LISTED) -> str:
    """ "a, b, c and 4 more": at most so many of the names, each cut where it is long; "(none)" without any."""
    shown = [shortened(name) for name in names]
    more = f" and {len(shown) - most:,} more" if len(shown) > most else ""
    return (", ".join(shown[:most]) or "(none)") + more


def shortened(value: object, longest: int = LONGEST_NAME) -> str:
    """The text of a value on one line, its middle left out if it has more than `longest`
    characters."""
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


def explained(error: Exception) -> JaxDistillError | None:
    """The error in one line if it tells of the machine or the files, and not of a mistake in this
    code; else None."""
    said = shortened(error, 300)
    if isinstance(error, OSError) and (error.errno in _FULL or error.errno in _UNUSABLE):
        where = f" {shortened(error.filename)!r}" if error.filename else ""
        if error.errno in _FULL:
            return TrainingStopped(
                f"cannot write{where}: {os.strerror(error.errno)}; make room, or choose another place"
            )
        return BadInput(
            f"cannot use{where}: {os.strerror(error.errno or 0)}; check the path and its permissions"
        )
    if "No space left" in said:  # as libraries in other languages say it
        return TrainingStopped(f"cannot write: {said}; make room, or choose another place")
    if isinstance(error, MemoryError) or (
        type(error).__name__.endswith("RuntimeError") and "RESOURCE_EXHAUSTED" in said
    ):
        return TrainingStopped(
            f"out of memory ({said or 'MemoryError'}); give a smaller batch_size, sequence_length or network"
        )
    if (
        isinstance(error, (RuntimeError, AssertionError))
        and (jax := sys.modules.get("jax")) is not None
    ):
        try:
            jax.devices()
        except (RuntimeError, AssertionError) as no_devices:  # its own message may be empty
            return BadInput(
                f"JAX cannot use the devices of JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')!r}; set it to "
                "cpu or leave it out, or install what those devices need, e.g. pip install 'jax[cuda12]'"
                f"{f' ({shortened(no_devices, 200)})' if str(no_devices) else ''}"
            )
    return None
