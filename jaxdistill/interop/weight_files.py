"""The weight files of a Hugging Face folder, and that they all say the same. Called by `pretrained`
and `hf_flax.models`.

Weights lie in safetensors or msgpack, in one file or in shards. Readers differ in which they take:
PyTorch and we prefer safetensors, Flax classes msgpack. Whoever saves over a folder replaces its
own kind of file and leaves the others, which are stale from then on. So a folder with several is
read only if they agree, and we write one."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax.numpy as jnp
import numpy as np
from etils import epath

from jaxdistill.errors import BadInput
from jaxdistill.interop import convert, hf_msgpack, hf_torch
from jaxdistill.interop.convert import State

# {a file that says that weights lie there: (what reads them, the shards it lists)}, in the order in
# which we take them.
FORMS: dict[str, tuple[Callable[[epath.Path, int], State | None], str]] = {
    hf_torch.WEIGHTS: (hf_torch.read_whole, ""),
    hf_torch.INDEX: (hf_torch.read_shards, ".safetensors"),
    hf_msgpack.WEIGHTS: (hf_msgpack.read_whole, ""),
    hf_msgpack.INDEX: (hf_msgpack.read_shards, ".msgpack"),
}


def read(directory: epath.Path, largest: int) -> State | None:
    """All tensors of the folder under PyTorch's names, as stored; None if it has no weights that we
    read.

    `largest`: how many bytes the described model can need at most. Raises `BadInput` for larger
    files (before they are read), damaged or missing ones, and for two that hold different weights.
    """
    present = _present(directory)
    if not present:
        return None
    first, state = present[0], _read(directory, present[0], largest)
    for other in present[1:]:
        try:
            also = _read(directory, other, largest)
        except (
            BadInput
        ) as error:  # nobody can take it for the truth; a pointer in place of a large file, for one
            convert.say(f"{first} is read, since the other file cannot be: {error}")
            continue
        if different := _differing(state, also):
            raise BadInput(
                f"{directory}: {first} and {other} hold different weights ({different}), so one of them is stale; "
                "delete the one that is not wanted"
            )
    return state


def several(directory: epath.Path) -> bool:
    """Whether weights lie in the folder in more than one form."""
    return len(_present(directory)) > 1


def snapshot(directory: epath.Path) -> dict[str, tuple[float, int]]:
    """{file: (time, bytes)} of the weight files in a folder: for `supersede`, before something is
    saved there."""
    if not directory.is_dir():
        return {}
    kinds = (".safetensors", ".msgpack", ".index.json")
    stats = {path.name: path.stat() for path in directory.iterdir() if path.name.endswith(kinds)}
    return {name: (stat.mtime, stat.length) for name, stat in stats.items()}


def supersede(directory: epath.Path, before: Mapping[str, tuple[float, int]], largest: int) -> None:
    """Deletes, after weights were saved over a folder, the files of earlier weights: other ones
    that differ, which it says on stderr, and shards that no list names any more."""
    after = snapshot(directory)
    written = [name for name in _present(directory) if before.get(name) != after[name]]
    kept = [name for name in _present(directory) if name not in written]
    removed = []
    for name in kept if written else []:
        if _differing(_read(directory, written[0], largest), _read(directory, name, largest)):
            removed += [name, *(_shards(directory, name) if FORMS[name][1] else [])]
    listed = {
        shard
        for name in _present(directory)
        if FORMS[name][1]
        for shard in _shards(directory, name)
    }
    stem = hf_msgpack.WEIGHTS.removesuffix(".msgpack")
    orphans = [
        name
        for name in after
        if name.startswith(f"{stem}-") and name.endswith(".msgpack") and name not in listed
    ]
    for name in {*removed, *orphans}:
        (directory / name).unlink()
    if removed:
        convert.say(
            f"{directory}: {removed[0]} held the weights from before and is deleted; {written[0]} holds those saved now"
        )


def _present(directory: epath.Path) -> list[str]:
    """Keys of `FORMS` in a folder. A list of shards that are gone is left out beside whole weights:
    PyTorch leaves it there when it saves a smaller model over a sharded one."""
    found = [name for name in FORMS if (directory / name).exists()]
    return [
        name for name in found if name == found[0] or not FORMS[name][1] or _shards(directory, name)
    ]


def _shards(directory: epath.Path, index: str) -> list[str]:
    try:
        return hf_torch.read_index(directory, index, FORMS[index][1])[0]
    except BadInput:
        return []


def _read(directory: epath.Path, form: str, largest: int) -> State:
    state = FORMS[form][0](directory, largest)
    assert state is not None  # it is there
    return hf_msgpack.in_pytorch_names(state)


def _differing(ours: State, theirs: State) -> str:
    """In which tensors two files differ, for a message; "" if they agree in all that both hold."""
    ours, theirs = convert.strip_prefix(ours), convert.strip_prefix(theirs)
    common = [
        name for name in ours if name in theirs and not name.startswith("cls.predictions.decoder.")
    ]
    if not common:
        return "they have no tensor in common"
    other = [name for name in common if not _same(ours[name], theirs[name])]
    return f"{len(other)} of {len(common)} tensors, such as {other[0]}" if other else ""


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal to the bit, or, where one is stored in fewer bits, as near as those can tell."""
    if a.shape != b.shape or a.dtype == b.dtype:
        return a.shape == b.shape and np.array_equal(a, b)
    limits = [
        jnp.finfo(array.dtype) for array in (a, b) if jnp.issubdtype(array.dtype, jnp.floating)
    ]
    eps, tiny = (
        max((float(getattr(limit, name)) for limit in limits), default=0.0)
        for name in ("eps", "tiny")
    )
    return bool(np.allclose(a.astype(np.float32), b.astype(np.float32), rtol=eps, atol=tiny))
