"""Where arrays live: one mesh, the batch split over its `data` axis, parameters on every device. Called by run, loop.

Global sums come from `jit` with these shardings: a loss is written once, over the global batch.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxdistill.errors import BadInput


def make_mesh(devices: int = -1) -> Mesh:
    """A mesh of the first `devices` local devices (-1: all) with one axis, `data`."""
    available = jax.devices()
    if devices != -1 and not 1 <= devices <= len(available):
        raise BadInput(f"config.mesh.data={devices}, but {len(available)} device(s) are there; use -1 for all of them")
    chosen = available if devices == -1 else available[:devices]
    return Mesh(np.asarray(chosen), ("data",))


def replicated(mesh: Mesh) -> NamedSharding:
    """Whole on every device: parameters and optimizer state."""
    return NamedSharding(mesh, PartitionSpec())


def over_batch(mesh: Mesh) -> NamedSharding:
    """Leading axis split over `data`: every array of a batch."""
    return NamedSharding(mesh, PartitionSpec("data"))


def put_batch(mesh: Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """A host's rows of the global batch -> global arrays."""
    sharding = over_batch(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, value) for name, value in batch.items()}


def put_replicated(mesh: Mesh, tree: Any) -> Any:
    """A tree of host or device arrays -> the same on every device of the mesh."""
    return jax.device_put(tree, replicated(mesh))


def check_batch(mesh: Mesh, stage_name: str, batch_size: int, accumulation: int) -> None:
    """Raises `BadInput` when a micro-batch does not split evenly over the devices."""
    devices = mesh.shape["data"]
    if (batch_size // accumulation) % devices:
        raise BadInput(f"config.stages.{stage_name}.batch_size={batch_size} in {accumulation} micro-batch(es) does not "
                       f"divide by {devices} devices; use a multiple of {devices * accumulation}")
