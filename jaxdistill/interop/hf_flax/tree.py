"""Our stacked parameters <-> the per-layer tree that transformers' Flax classes hold. Called by
`module`.

Nothing here knows a name: leaves and shapes follow from the table in `names` and from Flax's leaf
names in `hf_msgpack`. A Flax leaf is one layer's array of ours reshaped, never transposed: Flax
stores projections as we do, [in, out]."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp

from jaxdistill.errors import BadInput
from jaxdistill.interop import convert, names
from jaxdistill.interop.hf_msgpack import flax_path
from jaxdistill.models import ModelConfig, Params, parameters

Path = tuple[str, ...]
Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One of our parameters: where it lies in the tree (a path a layer, or one), its shape there
    and one layer's here."""

    ours: str
    paths: tuple[Path, ...]
    theirs: Shape
    one: Shape


@functools.lru_cache(maxsize=32)
def leaves(config: ModelConfig, prefix: str | None) -> tuple[Leaf, ...]:
    """Every parameter of `config`. `prefix`: what a model with heads puts before the base model's
    names; None: nothing."""
    found = []
    for row in names.rows(config):
        one = convert.our_shapes(config)[row.ours]
        one = one[1:] if row.stacked else one
        theirs = names.LAYOUTS[row.layout].shape(one)
        layers = range(config.num_layers) if row.stacked else range(1)
        paths = tuple(place(row.theirs.format(i=i), prefix) for i in layers)
        found.append(
            Leaf(
                row.ours,
                paths,
                theirs[::-1] if names.LAYOUTS[row.layout].transposed else theirs,
                one,
            )
        )
    return tuple(found)


def place(name: str, prefix: str | None) -> Path:
    """The path in the tree of a PyTorch name in base-model form."""
    return flax_path(
        f"{prefix}.{name}" if prefix is not None and name.startswith(names.BASE) else name
    )


def unread(config: ModelConfig, prefix: str | None, shared_bottleneck: bool) -> dict[Path, Shape]:
    """{path: shape} of what PyTorch's MobileBERT owns but never reads, so that no key is missing in
    either direction.

    `shared_bottleneck`: whether it owns one beside bottlenecked attention, which takes precedence
    over it."""
    shapes = dict(names.unused(config))
    if shared_bottleneck:
        other = config.replace(attention_input="shared_bottleneck")
        for row in names.SHARED_BOTTLENECK:
            shape = names.LAYOUTS[row.layout].shape(convert.our_shapes(other)[row.ours][1:])
            shapes |= {row.theirs.format(i=i): shape for i in range(config.num_layers)}
    found = {place(name, prefix): shape for name, shape in shapes.items()}
    return {path: shape[::-1] if path[-1] == "kernel" else shape for path, shape in found.items()}


def to_tree(config: ModelConfig, params: Params, prefix: str | None) -> dict[Path, jax.Array]:
    """Our parameters as {path: array}, layers apart."""
    flat, found = parameters.flatten(params), {}
    for leaf in leaves(config, prefix):
        layers = flat[leaf.ours] if parameters.is_stacked(leaf.ours) else [flat[leaf.ours]]
        found.update({path: layers[i].reshape(leaf.theirs) for i, path in enumerate(leaf.paths)})
    return found


def from_tree(config: ModelConfig, tree: Mapping[str, Any], prefix: str | None) -> Params:
    """The inverse, in float32 whatever the leaves are stored in: layers stacked, heads' axes back.
    For use inside `jit`."""
    flat = flax.traverse_util.flatten_dict(tree)
    found = {}
    for leaf in leaves(config, prefix):
        layers = [flat[path].reshape(leaf.one).astype(jnp.float32) for path in leaf.paths]
        found[leaf.ours] = jnp.stack(layers) if parameters.is_stacked(leaf.ours) else layers[0]
    return parameters.unflatten(found)


def check(config: ModelConfig, tree: Mapping[str, Any], prefix: str | None) -> None:
    """Raises `BadInput` naming the first parameters that `tree` lacks or that have another shape
    than `config` says."""
    flat = flax.traverse_util.flatten_dict(tree)
    wanted = {path: leaf.theirs for leaf in leaves(config, prefix) for path in leaf.paths}
    convert.complain(
        "lacks",
        ["/".join(path) for path in wanted if path not in flat],
        "params",
        "give the whole tree of this class: model.params, or what from_pretrained returned",
    )
    for path, shape in wanted.items():
        if flat[path].shape != shape:
            raise BadInput(
                f"params: {'/'.join(path)} has shape {list(flat[path].shape)} but the config says {list(shape)}; "
                "give the parameters of this model"
            )
