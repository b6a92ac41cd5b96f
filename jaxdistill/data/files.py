"""Small things about files that the whole room needs: digests, whole-or-nothing writes, errors in
one line."""

from __future__ import annotations

import contextlib
import errno
import gzip
import hashlib
import io
import json
import logging
import lzma
import os
import uuid
import zlib
from collections.abc import Collection, Iterator
from typing import Any

from etils import epath

from jaxdistill import remote
from jaxdistill.errors import BadInput, listed, nearest, shortened

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_NO_PERMISSION = (errno.EACCES, errno.EPERM, errno.EROFS)


def digest_of(value: Any) -> str:
    """A short stable digest (20 hex digits) of anything JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:20]


def cache_directory(cache_dir: epath.PathLike | None = None) -> epath.Path:
    """Where caches live: the argument, else $JAXDISTILL_CACHE, else ~/.cache/jaxdistill."""
    chosen = cache_dir or os.environ.get("JAXDISTILL_CACHE") or "~/.cache/jaxdistill"
    return epath.Path(chosen).expanduser()


def write_whole(path: epath.Path, content: str | bytes) -> None:
    """Writes a file so that a reader finds all of it or nothing, whoever dies or writes at the same
    time."""
    with whole_file(path) as stream:
        stream.write(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def whole_file(path: epath.Path) -> Iterator[Any]:
    """A stream of bytes that becomes the file at its end, as `write_whole`; after an error there is
    none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex}"
    try:
        with temporary.open("wb") as stream:
            yield stream
        temporary.replace(path)
    finally:
        if temporary.exists():
            temporary.unlink()


def walk(
    folder: epath.Path, left_out: Collection[str] = (), above: tuple[str, ...] = ()
) -> Iterator[epath.Path]:
    """All files in a folder and the folders in it, but for folders of the names `left_out`; in no
    particular order.

    A link to one of the folders around it (`above`, by their real paths) is not followed: it would
    lead in a circle."""
    above = (*above, os.path.realpath(folder))
    for path in folder.iterdir():
        if not path.is_dir():
            yield path
        elif path.name not in left_out and os.path.realpath(path) not in above:
            yield from walk(path, left_out, above)


@contextlib.contextmanager
def clear_errors(doing: str, path: epath.PathLike) -> Iterator[None]:
    """Turns an operating-system error into one line: what was being done, where, why not, what to
    change."""
    try:
        yield
    except OSError as error:
        if (
            error.errno is None
        ):  # raised by a library for reasons of its own, not by the operating system
            raise
        raise BadInput(_explain(error.errno, str(error), doing, path)) from error
    except (
        RuntimeError
    ) as error:  # as which ArrayRecord's C++ reports the operating system's errors
        for number in (*_NO_SPACE, *_NO_PERMISSION):
            if os.strerror(number) in str(error):
                raise BadInput(_explain(number, str(error), doing, path)) from error
        raise


def find(path: epath.PathLike, what: str) -> epath.Path:
    """The file at a path. Raises BadInput, which says `what` it should be, if there is none: it is
    read more than once, so it may be no pipe."""
    file = epath.Path(path).expanduser()
    shown = os.fspath(file)
    if not file.exists() or file.is_dir():
        raise BadInput(f"{what} {shown!r} does not exist or is a folder; {nearest_beside(file)}")
    if not remote.is_remote(file) and not os.path.isfile(file):
        raise BadInput(f"{what} {shown!r} is no regular file (a pipe or a device): give a file")
    return file


def in_folder(folder: epath.Path, name: str, advice: str) -> epath.Path:
    """The file of this name in a folder, plain or packed. Raises BadInput, which ends in `advice`, if it
    has none."""
    for ending in ("", ".xz", ".gz"):
        if (folder / f"{name}{ending}").exists():
            return folder / f"{name}{ending}"
    there = sorted(file.name for file in folder.iterdir()) if folder.is_dir() else []
    raise BadInput(f"{os.fspath(folder)!r} has no {name}; it holds {listed(there)}; {advice}")


@contextlib.contextmanager
def unpacked(path: epath.Path) -> Iterator[Any]:
    """A stream of a file's bytes that can be peeked at, .xz and .gz unpacked. Raises BadInput in one
    line if it cannot be read."""
    name = path.name.lower()
    try:
        with clear_errors("reading", path), contextlib.ExitStack() as stack:
            # A bucket's file has neither peek nor readline(size).
            stream: Any = stack.enter_context(io.BufferedReader(path.open("rb")))
            if name.endswith(".xz"):
                stream = stack.enter_context(lzma.open(stream, "rb"))
            elif name.endswith(".gz"):
                stream = stack.enter_context(gzip.open(stream, "rb"))
            yield stream
    except (EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile) as error:
        raise BadInput(
            f"{os.fspath(path)!r} is cut short or damaged ({error}): fetch or pack it again"
        ) from error


def _explain(number: int, error: str, doing: str, path: epath.PathLike) -> str:
    where = os.fspath(path)
    if number in _NO_SPACE:
        return (
            f"{doing} {where!r} failed: no space left there; free some, or choose another directory"
        )
    if number in _NO_PERMISSION:
        return f"{doing} {where!r} failed: no permission; change its permissions or choose another directory"
    if number in (errno.ENOTDIR, errno.EEXIST):
        return f"{doing} {where!r} failed: a file stands where a directory is needed; choose another path"
    return f"{doing} {where!r} failed: {error}"


def nearest_beside(path: epath.Path) -> str:
    """For the end of an error about a missing path: the closest name in the nearest folder that
    exists."""
    if os.path.islink(path):
        return f"it is a symbolic link to {shortened(os.readlink(path))!r}, which leads nowhere or in a circle"
    folder = path.parent
    name = path.name
    while not folder.exists() and folder.parent != folder:
        folder, name = folder.parent, folder.name
    try:
        siblings = sorted(child.name for child in folder.iterdir())
    except OSError:
        siblings = []
    return f"in {os.fspath(folder)!r}: {nearest(name, siblings)}"


def check_features(folder: epath.Path) -> None:
    """Raises BadInput if the TFDS set in a folder has features that TFDS does not bring: it imports
    whatever module their names begin with."""
    file = folder / "features.json"
    if not file.exists():
        return
    try:
        classes = list(_feature_classes(json.loads(file.read_text())))
    except (ValueError, RecursionError) as error:
        raise BadInput(
            f"{os.fspath(file)!r} is damaged ({error}): prepare the set again"
        ) from error
    for name in classes:
        if not str(name).startswith("tensorflow_datasets."):
            raise BadInput(
                f"{os.fspath(file)!r} names the feature {name!r}, which is none of TFDS: prepare the set again"
            )


def _feature_classes(value: Any) -> Iterator[Any]:
    for key, held in value.items() if isinstance(value, dict) else ():
        if key in ("pythonClassName", "python_class_name", "type") and isinstance(held, str):
            yield held
        yield from _feature_classes(held)
    for held in value if isinstance(value, list) else ():
        yield from _feature_classes(held)


@contextlib.contextmanager
def quiet_tfds() -> Iterator[None]:
    """Silences TFDS's progress bars and its notices on standard output."""
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            yield
    finally:
        tfds.enable_progress_bar()


@contextlib.contextmanager
def quiet_logging() -> Iterator[None]:
    """Silences what libraries log, errors too: those that matter are raised."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.ERROR))
    try:
        yield
    finally:
        logging.disable(before)


def is_apart(text: str, fraction: float) -> bool:
    """Whether `text` belongs to the `fraction` of all texts that is kept apart, by its digest: the
    same everywhere, and equal texts stay together."""
    digest = hashlib.sha256(text.encode()).digest()[:8]
    return int.from_bytes(digest, "big") < fraction * 2.0**64
