"""Folders that are not on this machine (gs://…), for the libraries that only know local files.
Called from everywhere.

`etils.epath` reads and writes them; an object store has no empty folders, no append and no locks.
Google's buckets need the `gcs` extra."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator

from etils import epath

from jaxdistill.errors import BadInput

SCHEMES = ("gs", "s3", "az")  # of the stores that epath reads


def is_remote(path: epath.PathLike) -> bool:
    """Whether a path is a URL, not a place in this machine's file system."""
    return "://" in str(path)


def lacks(error: ImportError) -> BadInput | None:
    """The error in one line if it came from a remote path whose package is not installed."""
    for scheme, package in (("gs", "gcsfs"), ("s3", "s3fs"), ("az", "adlfs")):
        if package in str(error):
            return BadInput(
                f"a {scheme}:// path was given, but {package} is not installed: pip install {package}, or give a "
                "folder of this machine"
            )
    return None


def refused(error: Exception) -> BadInput | None:
    """The error in one line if a remote store gave it: no network, no credentials, no permission,
    no such bucket."""
    theirs = type(error).__module__.split(".")[0] in ("gcsfs", "google", "aiohttp")
    if not theirs and not (
        isinstance(error, OSError) and error.errno is None and "Forbidden" in str(error)
    ):
        return None
    first = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return BadInput(
        f"the remote folder cannot be used ({type(error).__name__}: {first[:200]}); check its name, the "
        "network and your credentials (gcloud auth application-default login)"
    )


def entries(folder: epath.Path) -> list[epath.Path]:
    """What a folder holds; nothing if it does not exist, as an empty one in a bucket does not."""
    return sorted(folder.iterdir()) if folder.exists() else []


@contextlib.contextmanager
def local(path: epath.Path) -> Iterator[epath.Path]:
    """The file or folder itself or, if it is remote, a copy on this machine for as long as the
    context lasts."""
    if not is_remote(path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="jaxdistill-") as folder:
        copy = epath.Path(folder) / path.name
        fetch(path, copy)
        yield copy


def fetch(source: epath.Path, target: epath.Path) -> None:
    """Copies a file or folder; `target` must not exist."""
    if not source.is_dir():
        target.write_bytes(source.read_bytes())
        return
    target.mkdir(parents=True)
    for path in source.iterdir():
        fetch(path, target / path.name)
