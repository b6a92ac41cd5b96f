"""flax_model.msgpack: the per-layer tree that transformers' Flax classes hold. Called by
`weight_files` and `hf_flax`.

It is the PyTorch state with Flax's leaf names, the tree that
`transformers.modeling_flax_pytorch_utils` makes of it: tables are called `embedding`, norm scales
`scale`, and projections `kernel`, transposed. transformers has no Flax MobileBERT; its tree follows
the same rules."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import flax.serialization
import flax.traverse_util
import msgpack
import numpy as np
from etils import epath

from jaxdistill.errors import BadInput
from jaxdistill.interop import hf_torch
from jaxdistill.interop.convert import State

WEIGHTS = "flax_model.msgpack"
INDEX = "flax_model.msgpack.index.json"
_MOST_ENTRIES = 1_000_000
_MOST_CHILDREN = 4096  # of one node of the tree


def tree_from_state(state: State) -> dict[str, Any]:
    """PyTorch names and layouts -> the nested Flax tree."""
    flat = {}
    for name, array in state.items():
        path = flax_path(name)
        flat[path] = np.ascontiguousarray(array.T) if path[-1] == "kernel" else array
    return flax.traverse_util.unflatten_dict(flat)


def flax_path(name: str) -> tuple[str, ...]:
    """Where the tensor `name` of PyTorch lies in the Flax tree; what ends in "kernel" lies there
    transposed."""
    *path, leaf = name.split(".")
    if leaf == "weight":
        leaf = (
            "embedding"
            if path[-1].endswith("_embeddings")
            else "scale"
            if path[-1] == "LayerNorm"
            else "kernel"
        )
    return (*path, leaf)


def state_from_tree(tree: dict[str, Any]) -> State:
    """The inverse of `tree_from_state`."""
    state: State = {}
    for path, array in flax.traverse_util.flatten_dict(tree).items():
        leaf = "weight" if path[-1] in ("kernel", "scale", "embedding") else path[-1]
        state[".".join((*path[:-1], leaf))] = array.T if path[-1] == "kernel" else array
    return state


def write_state(directory: epath.Path, state: State) -> None:
    """flax_model.msgpack of a PyTorch-named state."""
    (directory / WEIGHTS).write_bytes(flax.serialization.msgpack_serialize(tree_from_state(state)))


def read_whole(directory: epath.Path, largest: int) -> State | None:
    """The folder's flax_model.msgpack under PyTorch names; None if there is none.

    `largest`: how many bytes the described model can need at most. Raises `BadInput` for a larger
    file (before it is read), a damaged one, and one that holds anything but arrays under names."""
    if not (directory / WEIGHTS).exists():
        return None
    hf_torch.check_size(directory, [WEIGHTS], largest)
    return state_from_tree(read_tree(directory / WEIGHTS))


def read_shards(directory: epath.Path, largest: int) -> State | None:
    """`read_whole` of the shards that flax_model.msgpack.index.json lists; `BadInput` for a missing
    one too."""
    if not (directory / INDEX).exists():
        return None
    files, promised = hf_torch.read_index(directory, INDEX, ".msgpack")
    hf_torch.check_size(directory, files, largest)
    tree = read_trees([directory / file for file in files])
    lost = sorted(promised - set(flax.traverse_util.flatten_dict(tree, sep="/")))
    if lost:
        raise BadInput(
            f"{directory}: {INDEX} promises {len(lost)} tensors that no shard holds, such as {lost[0]}; "
            "fetch the folder again, whole"
        )
    return state_from_tree(tree)


def read_trees(paths: Iterable[epath.Path]) -> dict[str, Any]:
    """The one tree whose parts lie in several files."""
    flat: dict[tuple[str, ...], np.ndarray] = {}
    for path in paths:
        flat |= flax.traverse_util.flatten_dict(read_tree(path))
    return flax.traverse_util.unflatten_dict(flat)


def read_tree(path: epath.Path) -> dict[str, Any]:
    """The tree of one msgpack file. Raises `BadInput` if it is damaged or holds anything but arrays
    under names."""
    content = path.read_bytes()
    try:
        _check_entries(content)
        tree = flax.serialization.msgpack_restore(content)
    except (
        Exception
    ) as error:  # msgpack, NumPy and flax raise a dozen kinds on damaged bytes; all mean the same
        raise BadInput(
            f"{path} cannot be read as msgpack ({str(error) or type(error).__name__}); it is damaged or cut short: "
            "fetch or export it again"
        ) from error
    if not _is_tree(tree):
        raise BadInput(
            f"{path} does not hold arrays under names; expected the parameters of a Flax model"
        )
    return tree


def _check_entries(content: bytes) -> None:
    """Raises ValueError for more entries than any model has: an empty one takes a byte in the file
    and 64 in memory."""
    left = _MOST_ENTRIES
    sizes = {"max_array_len": _MOST_CHILDREN, "max_map_len": _MOST_CHILDREN}

    def count(container: Collection[Any]) -> None:
        nonlocal left
        left -= 1 + len(container)
        if left < 0:
            raise ValueError(f"it has more than {_MOST_ENTRIES:,} entries")

    def look_into(code: int, data: bytes) -> None:
        msgpack.unpackb(
            data, raw=True, list_hook=count, object_hook=count, ext_hook=refuse, **sizes
        )

    def refuse(code: int, data: bytes) -> None:
        raise ValueError("an array holds something else than its shape, type and numbers")

    msgpack.unpackb(
        content,
        ext_hook=look_into,
        list_hook=count,
        object_hook=count,
        strict_map_key=False,
        **sizes,
    )


def in_pytorch_names(state: State) -> State:
    """A safetensors file's tensors under PyTorch names: Flax classes write theirs under Flax names,
    joined by dots."""
    if not any(name.endswith((".kernel", ".embedding")) for name in state):
        return state
    return state_from_tree(
        flax.traverse_util.unflatten_dict(
            {tuple(name.split(".")): array for name, array in state.items()}
        )
    )


def _is_tree(tree: Any) -> bool:
    """Whether `tree` is nested dicts of arrays with string keys; walks without recursion, so depth
    cannot hurt."""
    pending = [tree]
    while pending:
        node = pending.pop()
        if not isinstance(node, dict) or not all(isinstance(key, str) for key in node):
            return False
        pending += [child for child in node.values() if not isinstance(child, np.ndarray)]
    return True
