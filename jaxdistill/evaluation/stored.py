"""What a teacher says of the rows of a task, on disk: an ArrayRecord file with one record for each row,
and beside it `NAME.index.json` and `NAME.index.npy`, written last.

A record is the row's arrays one after the other, as bytes; those of tokens have as many entries as the
row has tokens, so that no pads are stored. The index says which arrays there are, which record is which
row's, and by a fingerprint what they were made of. Called by readers, through `derived`."""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from etils import epath

from jaxdistill import remote
from jaxdistill.data.feeds import Batch, Shape
from jaxdistill.data.files import write_whole
from jaxdistill.errors import BadInput
from jaxdistill.training.checkpoints import disk_errors

_FINGERPRINT = "fingerprint"
Fetch = Callable[[np.ndarray, int], Batch]


class Layout(NamedTuple):
    """The arrays of a row, by name, without the axis of tokens where there is one; `by_token`: those
    that have one."""

    row: Mapping[str, Shape]
    by_token: frozenset[str]

    def page(self) -> dict[str, Any]:
        """As the index holds it."""
        return {
            name: [list(shape), dtype, name in self.by_token]
            for name, (shape, dtype) in sorted(self.row.items())
        }


# Of some rows: their numbers int64[B], how many tokens each has, and their arrays [B, ...].
Part = tuple[np.ndarray, np.ndarray, Mapping[str, np.ndarray]]


def write(
    path: epath.Path, layout: Layout, parts: Iterable[Part], number: int, fingerprint: str
) -> None:
    """Stores the arrays of `number` rows, which come in any order."""
    from array_record.python.array_record_module import ArrayRecordWriter

    names = sorted(layout.row)
    place, written = np.full(number, -1, np.int64), 0
    with contextlib.ExitStack() as held:
        held.enter_context(disk_errors(path.parent))
        path.parent.mkdir(parents=True, exist_ok=True)
        _index(path, "json").unlink(missing_ok=True)
        here = held.enter_context(tempfile.TemporaryDirectory()) if remote.is_remote(path) else ""
        file = f"{here}/records" if here else str(path)  # the library knows local files alone
        writer = ArrayRecordWriter(file, "group_size:1")
        try:
            for rows, lengths, arrays in parts:
                for i, (row, length) in enumerate(zip(rows, lengths)):
                    if place[row] >= 0:
                        continue
                    record = [
                        np.ascontiguousarray(
                            arrays[name][i, :length] if name in layout.by_token else arrays[name][i]
                        ).tobytes()
                        for name in names
                    ]
                    writer.write(b"".join(record))
                    place[row], written = written, written + 1
        finally:
            writer.close()
        if here:
            remote.fetch(epath.Path(file), path)
        buffer = io.BytesIO()
        np.lib.format.write_array(buffer, place, allow_pickle=False)
        _index(path, "npy").write_bytes(buffer.getvalue())
        _index(path, "json").write_text(
            json.dumps(_page(path, layout, number, fingerprint), indent=1)
        )


def there(path: epath.Path, layout: Layout, number: int, fingerprint: str) -> bool:
    """Whether the arrays of just these rows are stored in `path` as a whole."""
    try:
        page = json.loads(_index(path, "json").read_text())
        return page == _page(path, layout, number, fingerprint)
    except (OSError, ValueError):
        return False


def _page(path: epath.Path, layout: Layout, number: int, fingerprint: str) -> dict[str, Any]:
    """What the index says."""
    sizes = [file.stat().length for file in (path, _index(path, "npy"))]
    return {"fingerprint": fingerprint, "rows": number, "arrays": layout.page(), "bytes": sizes}


def read(path: epath.Path, layout: Layout, lengths: np.ndarray) -> Fetch:
    """Reads rows by number: (int64[B], length) -> their arrays [B, ...], those of tokens padded with
    zeros to `length`. Raises `BadInput` for a file that is damaged."""
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    held = contextlib.ExitStack()
    try:
        place = np.lib.format.read_array(
            io.BytesIO(_index(path, "npy").read_bytes()), allow_pickle=False
        )
        source = ArrayRecordDataSource([str(held.enter_context(remote.local(path)))])
        whole = len(source) == np.sum(place >= 0) and len(place) == len(lengths)
    except (OSError, ValueError, RuntimeError):
        whole = False
    if not whole:
        raise BadInput(f"{str(path)!r} is damaged; delete it, and it is made again")
    names = sorted(layout.row)
    # By jax's own dtypes, which know bfloat16.
    dtypes = {name: jnp.dtype(layout.row[name].dtype) for name in names}

    def fetch(numbers: np.ndarray, length: int) -> Batch:
        found = {
            name: np.zeros(
                (
                    len(numbers),
                    *((length,) if name in layout.by_token else ()),
                    *layout.row[name].shape,
                ),
                dtypes[name],
            )
            for name in names
        }
        _ = held  # a copy of a remote file is there as long as this function is
        records = source.__getitems__(place[numbers].tolist())
        for i, (row, record) in enumerate(zip(numbers, records)):
            begin = 0
            for name in names:
                tokens = int(lengths[row]) if name in layout.by_token else None
                shape = (*(() if tokens is None else (tokens,)), *layout.row[name].shape)
                count = int(np.prod(shape))
                values = np.frombuffer(record, dtypes[name], count, begin).reshape(shape)
                begin += count * dtypes[name].itemsize
                if tokens is None:
                    found[name][i] = values
                else:
                    found[name][i, :tokens] = values
        return found

    return fetch


def _index(path: epath.Path, ending: str) -> epath.Path:
    return path.with_name(f"{path.name}.index.{ending}")


def write_arrays(path: epath.Path, arrays: Mapping[str, np.ndarray], fingerprint: str) -> None:
    """Stores whole arrays, in one safetensors file."""
    held = {name: np.ascontiguousarray(x) for name, x in arrays.items()}
    held[_FINGERPRINT] = np.frombuffer(fingerprint.encode(), np.uint8)
    with disk_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, safetensors.numpy.save(held))


def read_arrays(path: epath.Path, fingerprint: str) -> dict[str, np.ndarray] | None:
    """What `write_arrays` stored under this fingerprint; None if there is none, or it is damaged."""
    try:
        found = safetensors.numpy.load(path.read_bytes())
        held = bytes(found.pop(_FINGERPRINT)).decode()
    except (OSError, ValueError, KeyError, safetensors.SafetensorError):
        return None
    return found if held == fingerprint else None
