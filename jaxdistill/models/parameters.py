"""Parameter trees as flat names: what the optimizer's patterns, the digests and the file formats
share.

A parameter's name is its path joined by "/", e.g. `layers/attention/query/kernel`. Names under
`layers/` carry a leading layer axis, so one such array is `num_layers` variables of an unstacked
implementation."""

from __future__ import annotations

import hashlib

import flax.traverse_util
import jax
import numpy as np

from jaxdistill.models.encoder import Params

STACKED = "layers/"


def flatten(params: Params) -> dict[str, jax.Array]:
    """Nested tree -> {"a/b/c": leaf}, in sorted order of names."""
    return dict(sorted(flax.traverse_util.flatten_dict(params, sep="/").items()))


def unflatten(flat: dict[str, jax.Array]) -> Params:
    """The inverse of `flatten`."""
    return flax.traverse_util.unflatten_dict(flat, sep="/")


def is_stacked(name: str) -> bool:
    """Whether the leading axis of the parameter `name` is the layer axis."""
    return name.startswith(STACKED)


def is_vector(name: str) -> bool:
    """Biases and norm scales, by name: what BERT's optimizers neither decay nor adapt (their names
    in TF1: `bias`, `beta`, `gamma`, `output_bias`)."""
    return name.rsplit("/", 1)[-1] in ("bias", "scale")


def digest(params: Params) -> str:
    """SHA-256 over names, dtypes, shapes and values: equal if and only if the parameters are equal
    to the bit."""
    sha = hashlib.sha256()
    for name, value in flatten(params).items():
        array = np.asarray(value)
        sha.update(f"{name}:{array.dtype.name}:{array.shape};".encode())
        sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()


def count(params: Params) -> int:
    """How many numbers the tree holds (arrays or `ShapeDtypeStruct`s)."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))
