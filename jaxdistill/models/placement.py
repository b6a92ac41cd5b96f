"""Where parameters lie on a mesh: ONE table from a parameter's name to its axes.

Mesh axes: `data` (whole copies), `fsdp` (parameters split, gathered where they are used) and `tensor`
(attention heads and feed-forward neurons split). Called by training/sharding.py and by forwards."""

from __future__ import annotations

import re

import jax
from jax.sharding import NamedSharding, PartitionSpec

from jaxdistill.errors import BadInput
from jaxdistill.models.encoder import Model, Params
from jaxdistill.models.parameters import flatten, is_stacked, unflatten

# (pattern of the whole name, mesh axis of each array axis). The first match counts; a name without
# a match is an error. The layer axis, always first under `layers/`, is never split: it is indexed
# with a traced layer number.
RULES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (
        r"layers/attention/(query|key|value)/kernel",
        (None, "fsdp", "tensor", None),
    ),  # [N, D or H, A, K]
    (r"layers/attention/(query|key|value)/bias", (None, "tensor", None)),  # [N, A, K]
    (r"layers/attention/out/kernel", (None, "tensor", None, "fsdp")),  # [N, A, K, H]
    (r"layers/ffn_\d+/up/kernel", (None, "fsdp", "tensor")),  # [N, H, F]
    (r"layers/ffn_\d+/up/bias", (None, "tensor")),  # [N, F]
    (r"layers/ffn_\d+/down/kernel", (None, "tensor", "fsdp")),  # [N, F, H]
    (r"layers/bottleneck_(in|qk)/dense/kernel", (None, "fsdp", None)),  # [N, D, H]
    (r"layers/bottleneck_out/kernel", (None, None, "fsdp")),  # [N, H, D]
    (r"layers/.+/(bias|scale)", (None, None)),  # [N, H or D]
    (r"embeddings/(word|position|token_type)", (None, "fsdp")),  # [V, E], [positions, D], [2, D]
    (r"mlm/extra_embedding", (None, "fsdp")),  # [V, D - E]
    (r"(?!layers/)[^/]+(/.+)?/kernel", ("fsdp", None)),  # projections outside the stack: [in, out]
    (r"(?!layers/)[^/]+(/.+)?/(bias|scale)", (None,)),
)


def spec(name: str, ndim: int) -> PartitionSpec:
    """The axes of the parameter `name` by the table; one axis fewer when a stacked array is given
    as one layer's slice.

    Raises `BadInput` for a name that the table does not cover.
    """
    for pattern, axes in RULES:
        if re.fullmatch(pattern, name):
            if is_stacked(name) and ndim == len(axes) - 1:
                axes = axes[1:]
            if ndim != len(axes):
                break
            return PartitionSpec(*axes)
    raise BadInput(
        f"no sharding rule covers the parameter {name!r} with {ndim} axes; add one to models/placement.py"
    )


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
