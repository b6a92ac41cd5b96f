"""What a stage needs at least, against the memory that is there: sizes that cannot be are refused
before anything is made.

A lower bound from shapes alone, so that nothing is refused that might fit; whether a stage does fit
is known once it is compiled (`jaxdistill plan`). Called by checks."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxdistill.errors import BadInput
from jaxdistill.methods.base import Cast
from jaxdistill.models import Model
from jaxdistill.models.parameters import flatten, is_stacked
from jaxdistill.models.sizes import parameter_shapes
from jaxdistill.training import sharding, state


def tree_bytes(tree: Any) -> int:
    """Bytes of all arrays of a tree of `ShapeDtypeStruct`s, in Python's numbers, which do not
    overflow."""
    return sum(
        math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(tree)
    )


def room(mesh: Mesh) -> int | None:
    """Bytes that a device may use: its own memory or, of a CPU, its part of the machine's. None:
    not known."""
    device = mesh.local_devices[0]
    if device.platform != "cpu":
        return (device.memory_stats() or {}).get("bytes_limit")
    try:
        machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows
        return None
    return machine // len(mesh.local_devices)


def check(where: str, needs: Mapping[str, int], mesh: Mesh, change: str) -> None:
    """Raises `BadInput` naming the largest of `needs` (bytes of a device by what they are for) if
    all exceed a device."""
    limit, total = room(mesh), sum(needs.values())
    if limit is not None and total > limit:
        largest = max(needs, key=lambda name: needs[name])
        raise BadInput(
            f"{where} needs {_size(total)} of memory or more on each device, {_size(needs[largest])} of it for "
            f"{largest}, and there are {_size(limit)}; lower {change}"
        )


def step_bytes(cast: Cast, batch: Any, mesh: Mesh) -> dict[str, int]:
    """The least bytes of a device that a step of a stage needs, by what they are for."""
    stage, model = cast.stage, cast.model
    shapes = flatten(parameter_shapes(model.config))
    moving = {
        name: shape for name, shape in shapes.items() if name in state.moving_names(stage, shapes)
    }
    layers = 1 if stage.progressive or not any(map(is_stacked, moving)) else model.config.num_layers
    network = tree_bytes(shapes) + (
        0 if stage.depth == "progressive_strict" else 2 * tree_bytes(moving)
    )  # two moments
    for _, other in cast.others:  # its kernels may be in its compute dtype
        network += tree_bytes(parameter_shapes(other.config)) // (
            1 if other.config.dtype == "float32" else 2
        )
    pieces = sharding.batch_parts(mesh)
    rows = stage.batch_size // stage.accumulation // pieces
    return {
        "parameters and optimizer": network // (mesh.shape["fsdp"] * mesh.shape["tensor"]),
        "a batch": tree_bytes(batch) // pieces,
        "hidden states and attention": forward_bytes(
            model, rows, batch["input_ids"].shape[1], mesh, layers
        ),
    }


def forward_bytes(model: Model, rows: int, length: int, mesh: Mesh, layers: int = 1) -> int:
    """Bytes of `layers` layers' hidden states (backward keeps all) and of one layer's attention
    scores."""
    c = model.config
    hidden = rows * length * c.hidden_size * jnp.dtype(c.residual_dtype).itemsize
    return (
        layers * hidden + rows * c.num_heads * length * length * 2 // mesh.shape["tensor"]
    )  # bfloat16 at the least


def _size(count: int) -> str:
    return f"{count / 2**30:,.3g} GiB"
