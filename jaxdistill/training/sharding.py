"""Where arrays live: one mesh, the batch split over its devices, and ONE table from a parameter's
name to its axes.

Mesh axes: `data` (whole copies of the parameters), `fsdp` (parameters and optimizer state split,
gathered where they are used; the batch is split over it too) and `tensor` (attention heads and
feed-forward neurons split). Global sums come from `jit` with these shardings: a loss is written
once, over the global batch. Called by run, loop, programs, evaluation."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxdistill.errors import BadInput
from jaxdistill.models import Model
from jaxdistill.models.parameters import flatten
from jaxdistill.models.placement import spec
from jaxdistill.models.sizes import parameter_shapes

AXES = ("data", "fsdp", "tensor")
BATCH = ("data", "fsdp")


def make_mesh(
    data: int = -1, fsdp: int = 1, tensor: int = 1, devices: Sequence[Any] | None = None
) -> Mesh:
    """A mesh of the axes `AXES`; one of them may be -1: all devices that the others leave.

    Without a -1 the first data x fsdp x tensor devices are used. `devices`: others than this
    machine's, to plan for. Raises `BadInput` when the sizes do not fit."""
    devices = jax.devices() if devices is None else devices
    sizes = dict(zip(AXES, (data, fsdp, tensor)))
    given = ", ".join(f"config.mesh.{axis}={size}" for axis, size in sizes.items())
    open_axes = [axis for axis, size in sizes.items() if size == -1]
    if len(open_axes) > 1 or any(size < 1 and size != -1 for size in sizes.values()):
        raise BadInput(
            f"{given}: expected 1 or more each, and at most one -1 (the devices that the others leave)"
        )
    fixed = int(np.prod([size for size in sizes.values() if size != -1]))
    if fixed > len(devices) or (open_axes and len(devices) % fixed):
        raise BadInput(
            f"{given}: {fixed} device(s) for the fixed axes, but {len(devices)} device(s) are there; their "
            "product must divide that number" + ("" if open_axes else ", or be less")
        )
    if open_axes:
        sizes[open_axes[0]] = len(devices) // fixed
    shape = tuple(sizes.values())
    if jax.process_count() > 1 and int(np.prod(shape)) != len(devices):
        raise BadInput(
            f"{given}: several processes must use all of their {len(devices)} devices; leave one axis at -1"
        )
    return Mesh(np.asarray(devices[: int(np.prod(shape))]).reshape(shape), AXES)


def batch_parts(mesh: Mesh) -> int:
    """Into how many parts a batch is split."""
    return int(np.prod([mesh.shape[axis] for axis in BATCH]))


def over_batch(mesh: Mesh) -> NamedSharding:
    """Leading axis split over `data` and `fsdp`: every array of a batch."""
    return NamedSharding(mesh, PartitionSpec(BATCH))


def replicated(mesh: Mesh) -> NamedSharding:
    """Whole on every device: numbers and metrics."""
    return NamedSharding(mesh, PartitionSpec())


def put_batch(mesh: Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """A host's rows of the global batch -> global arrays."""
    sharding, processes = over_batch(mesh), jax.process_count()
    return {
        name: jax.make_array_from_process_local_data(
            sharding, value, (len(value) * processes, *value.shape[1:])
        )
        for name, value in batch.items()
    }


def shardings(mesh: Mesh, tree: Any) -> Any:
    """The sharding of every leaf of a parameter tree, of a train state or of what a step is given:
    moments lie where their parameters do, and what is no parameter (counters, layer maps) is on
    every device."""

    def of(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        where = jax.tree_util.keystr(path, simple=True, separator="/")
        if not leaf.ndim or where.startswith("maps/"):
            return replicated(mesh)
        name = re.sub(r"^(params|optimizer/(mu|nu)|others/[^/]+)/", "", where)
        return NamedSharding(mesh, spec(name, leaf.ndim))

    return jax.tree_util.tree_map_with_path(of, tree)


def place(mesh: Mesh, tree: Any) -> Any:
    """A parameter tree or train state of host or device arrays -> where the table wants it."""
    return jax.device_put(tree, shardings(mesh, tree))


def placed_shapes(mesh: Mesh, tree: Any) -> Any:
    """A tree of shapes and dtypes as that of the arrays which `place` makes."""
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        tree,
        shardings(mesh, tree),
    )


def check_batch(
    mesh: Mesh, stage_name: str, batch_size: int, accumulation: int, packed: int = 1
) -> None:
    """Raises `BadInput` when a micro-batch does not split evenly over the devices, in rows of `packed`
    texts."""
    parts = batch_parts(mesh)
    if batch_size % (parts * accumulation * packed):
        texts = f" and {packed} texts to a row" if packed > 1 else ""
        raise BadInput(
            f"config.stages.{stage_name}.batch_size={batch_size} in {accumulation} micro-batch(es) does not "
            f"divide by {parts} (mesh data x fsdp){texts}; use a multiple of {parts * accumulation * packed}"
        )


def check_model(mesh: Mesh, model: Model, whose: str) -> None:
    """Raises `BadInput` unless the table covers every parameter of `model` and the mesh divides
    every axis it splits."""
    heads, tensor = model.config.num_heads, mesh.shape["tensor"]
    if heads % tensor:
        raise BadInput(
            f"config.mesh.tensor={tensor} does not divide the {heads} attention heads of the {whose}; use a "
            f"divisor of {heads}"
        )
    for name, leaf in flatten(parameter_shapes(model.config)).items():
        for size, axis in zip(leaf.shape, spec(name, leaf.ndim)):
            if axis is not None and size % mesh.shape[axis]:
                raise BadInput(
                    f"config.mesh.{axis}={mesh.shape[axis]} does not divide {size}, an axis of {name!r} "
                    f"{list(leaf.shape)} of the {whose}; use a divisor of {size}"
                )
