"""Where parameters lie on a mesh, by the names of their axes.

Mesh axes: `data` (whole copies), `fsdp` (parameters split, gathered where they are used) and `tensor`
(attention heads and feed-forward neurons split). Called by training/sharding.py and by forwards."""

from __future__ import annotations

import re

import jax
from jax.sharding import NamedSharding, PartitionSpec

from jaxdistill.errors import BadInput
from jaxdistill.models.axes import axes_of
from jaxdistill.models.encoder import Model, Params
from jaxdistill.models.parameters import flatten, is_stacked, unflatten

# Split over `tensor`: heads, and neurons. Over `fsdp`: of a matrix the first of these that it has; vectors are
# whole. The layer axis is never split: it is indexed with a traced layer number.
TENSOR = r"heads|ffn_\d+"
FSDP = (
    "projected",
    "query_input",
    "value_input",
    "pools",
    "hidden",
    "word",
    "extra",
    "inner",
    "pooled",
    "token",
)
# Beside the table of axes: heads and projections of one's own, [in, out].
OTHERS = (
    (r"(?!layers/)[^/]+(/.+)?/kernel", ("in", "out")),
    (r"(?!layers/)[^/]+(/.+)?/(bias|scale)", ("out",)),
)


def spec(name: str, ndim: int) -> PartitionSpec:
    """The mesh axis of each axis of the parameter `name`; one axis fewer when a stacked array is given
    as one layer's slice.

    Raises `BadInput` for a name without known axes.
    """
    axes = _axes(name)
    if is_stacked(name) and ndim == len(axes) - 1:
        axes = axes[1:]
    if ndim != len(axes):
        raise BadInput(
            f"the parameter {name!r} has {ndim} axes, and models/axes.py names {len(axes)}"
        )
    wide = (
        [axis for axis in (*FSDP, "in") if axis in axes] if len(set(axes) - {"layer"}) > 1 else []
    )
    return PartitionSpec(
        *(
            "tensor" if re.fullmatch(TENSOR, axis) else "fsdp" if axis in wide[:1] else None
            for axis in axes
        )
    )


def _axes(name: str) -> tuple[str, ...]:
    try:
        return axes_of(name)
    except BadInput:
        for pattern, axes in OTHERS:
            if re.fullmatch(pattern, name):
                return axes
        raise


def gathered_layer(model: Model, layer: Params) -> Params:
    """One layer's parameters, no longer split over `fsdp`: asked for ahead of a loop that needs
    them in every turn, where the compiler for TPUs would fetch them anew each time."""
    where = model.batch_sharding
    if where is None or where.mesh.shape["fsdp"] == 1:
        return layer
    places = {
        name: PartitionSpec(
            *(None if axis == "fsdp" else axis for axis in spec(f"layers/{name}", leaf.ndim))
        )
        for name, leaf in flatten(layer).items()
    }
    return unflatten(
        {
            name: jax.lax.with_sharding_constraint(leaf, NamedSharding(where.mesh, places[name]))
            for name, leaf in flatten(layer).items()
        }
    )
