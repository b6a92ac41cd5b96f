"""A text that `prepare` wrote: where its records are, and what makes batches of them. `records`
reads them."""

from __future__ import annotations

import dataclasses
import json
import os

import numpy as np
from etils import epath

from jaxdistill.data.pairs import SpecialIds
from jaxdistill.errors import BadInput

MARKER = "prepared.json"  # written last
SIZES_FILE = "record_sizes.npy"  # beside the records: the number of tokens of each, int32


@dataclasses.dataclass(frozen=True)
class PreparedText:
    """A prepared set of records, and everything needed to make batches of it.

    `path`: its folder (as given to `load_prepared`); `records_path`: the TFDS data set in it.
    `ordinary_ids` are not stored but follow from `vocab_size` and `special_ids`; `continuation_ids`
    are the ids of '##' pieces."""

    path: str
    records_path: str
    digest: str
    source: str
    split: str
    sequence_length: int
    num_records: int
    num_documents: int
    num_tokens: int
    vocab_size: int
    special: SpecialIds
    special_ids: tuple[int, ...]
    continuation_ids: tuple[int, ...]
    tokenizer_digest: str
    source_digest: str


def find_prepared(out_dir: epath.PathLike, digest: str) -> PreparedText | None:
    """The set of that digest below `out_dir`, whatever has become of its source; None if it is not
    there."""
    folder = epath.Path(out_dir).expanduser() / digest
    return load_prepared(folder) if (folder / MARKER).exists() else None


def load_prepared(path: epath.PathLike) -> PreparedText:
    """Finds what `prepare` wrote. `path`: the folder that holds prepared.json; moving the folder is
    fine.

    Raises:
        BadInput: there is no complete prepared set there.
    """
    folder = epath.Path(path).expanduser()
    marker = folder / MARKER
    if not marker.exists():
        raise BadInput(
            f"{os.fspath(folder)!r} holds no complete prepared text ({MARKER} is missing): prepare it again"
        )
    try:
        stored = json.loads(marker.read_text())
        records = folder / stored.pop("records")
        special = SpecialIds(**stored.pop("special"))
        stored |= {key: tuple(stored[key]) for key in ("special_ids", "continuation_ids")}
        prepared = PreparedText(
            path=os.fspath(folder), records_path=os.fspath(records), special=special, **stored
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadInput(
            f"{os.fspath(marker)!r} cannot be read ({error}): delete its folder and prepare it again"
        ) from error
    if not records.exists():
        raise BadInput(
            f"{os.fspath(records)!r} is missing: delete {os.fspath(folder)!r} and prepare it again"
        )
    return prepared


def write_sizes(folder: epath.Path, sizes: np.ndarray) -> None:
    """Writes int32 [num_records] into the folder of the records."""
    with (folder / SIZES_FILE).open("wb") as file:
        np.save(file, sizes)
