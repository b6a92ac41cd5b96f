"""model.safetensors, whole or sharded, with PyTorch's names, read and written without PyTorch.
Called by `pretrained`.

Pickled weights (pytorch_model.bin) are never opened: unpickling runs whatever code the file holds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from etils import epath

from jaxdistill import remote
from jaxdistill.errors import BadInput
from jaxdistill.interop.convert import State

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
LARGEST_JSON = 2**26  # bytes


def read_state(directory: epath.Path, largest: int) -> State | None:
    """All tensors of the folder by their stored names and dtypes; None if it has no safetensors.

    `largest`: how many bytes the described model can need at most. Raises `BadInput` for larger
    files (before they are read), a damaged file, a missing shard, or an index that points out of
    the folder."""
    state = read_whole(directory, largest)
    return read_shards(directory, largest) if state is None else state


def read_whole(directory: epath.Path, largest: int) -> State | None:
    """`read_state` of model.safetensors alone."""
    if not (directory / WEIGHTS).exists():
        return None
    check_size(directory, [WEIGHTS], largest)
    return read_file(directory / WEIGHTS)


def read_shards(directory: epath.Path, largest: int) -> State | None:
    """`read_state` of the shards that model.safetensors.index.json lists."""
    if not (directory / INDEX).exists():
        return None
    files, promised = read_index(directory, INDEX, ".safetensors")
    check_size(directory, files, largest)
    state: State = {}
    for file in files:
        state |= read_file(directory / file)
    lost = sorted(promised - set(state))
    if lost:
        raise BadInput(
            f"{directory}: {INDEX} promises {len(lost)} tensors that no shard holds, such as {lost[0]}; "
            "fetch the folder again, whole"
        )
    return state


def check_size(directory: epath.Path, files: list[str], largest: int) -> None:
    """Raises `BadInput` if the files together are larger than that."""
    size = sum((directory / file).stat().length for file in files)
    if size > largest:
        raise BadInput(
            f"{directory / files[0]} has {size:,} bytes, shards counted together, but the model in config.json "
            f"needs {largest:,} at most; weights and config.json are of different models"
        )


def read_index(directory: epath.Path, index: str, suffix: str) -> tuple[list[str], set[str]]:
    """(the shards that an index names, the tensors it promises). Raises `BadInput` unless every
    shard is a file with that suffix beside it."""
    weight_map = read_json(directory / index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(
        isinstance(file, str) for file in weight_map.values()
    ):
        raise BadInput(
            f"{directory / index} has no weight_map from tensors to files; fetch it again"
        )
    files = sorted(set(weight_map.values()))
    for file in files:
        if epath.Path(file).name != file or not file.endswith(suffix):
            raise BadInput(
                f"{directory / index} names the shard {file!r}; expected a {suffix} file beside it"
            )
        if not (directory / file).exists():
            raise BadInput(
                f"{directory} lacks the shard {file} that {index} names; fetch the folder again, whole"
            )
    return files, set(weight_map)


def read_file(path: epath.Path) -> State:
    """The tensors of one safetensors file; integers (old `position_ids` buffers) are kept for the
    caller to judge."""
    with remote.local(path) as local:  # safetensors maps local files only
        return _read_local(str(local), path)


def _read_local(local: str, path: epath.Path) -> State:
    try:
        with safetensors.safe_open(local, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it has keys, but is no mapping)
    except (
        safetensors.SafetensorError,
        OSError,
        TypeError,
        AttributeError,
    ) as error:  # the last two: exotic dtypes
        raise BadInput(
            f"{path} cannot be read as safetensors ({error}); it is damaged, cut short or of an unsupported "
            "dtype: fetch or export it again"
        ) from error


def write_file(
    path: epath.Path, arrays: Mapping[str, np.ndarray], metadata: dict[str, str]
) -> None:
    """One safetensors file. safetensors writes the memory as it lies, so every array is made
    contiguous first."""
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    path.write_bytes(safetensors.numpy.save(contiguous, metadata=metadata))


def write_state(directory: epath.Path, state: State) -> None:
    """model.safetensors as transformers writes it; it refuses files without this metadata."""
    write_file(directory / WEIGHTS, state, {"format": "pt"})


def read_json(path: epath.Path) -> dict[str, Any]:
    """A JSON object; `BadInput` if the file is anything else."""
    try:
        if (size := path.stat().length) > LARGEST_JSON:
            raise BadInput(
                f"{path} has {size:,} bytes, at most {LARGEST_JSON:,} are read; fetch or export it again"
            )
        values = json.loads(path.read_text())
    except BadInput:
        raise
    except (OSError, ValueError, RecursionError) as error:  # ValueError: not JSON, or not UTF-8
        raise BadInput(
            f"{path} cannot be read as JSON ({error}); fetch or export it again"
        ) from error
    if not isinstance(values, dict):
        raise BadInput(
            f"{path} holds a {type(values).__name__}; expected a JSON object. Fetch or export it again"
        )
    return values
