"""What a stage carries from step to step, and which of it moves. Called by step, programs and
checkpoints."""

from __future__ import annotations

import re
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from jaxdistill.errors import BadInput
from jaxdistill.methods.base import Cast, Stage
from jaxdistill.models import ModelConfig, Params
from jaxdistill.models.encoder import take_layer
from jaxdistill.models.heads import HEADS, PROJECTION, projects
from jaxdistill.models.parameters import flatten, is_stacked, unflatten
from jaxdistill.models.sizes import parameter_shapes
from jaxdistill.objectives import projections
from jaxdistill.training import optimizers, spikes

Flat = dict[str, jax.Array]


@flax.struct.dataclass
class TrainState:
    """`params`: the whole network, frozen parts too. `optimizer`: moments of what moves. `step`:
    int32[], updates tried in this stage. `skipped`, `skipped_in_a_row`: int32[], updates refused
    because something was not finite, or the loss a spike; `losses`: what is remembered of losses to
    know one (`spikes`)."""

    params: Params
    optimizer: Any
    step: jax.Array
    skipped: jax.Array
    skipped_in_a_row: jax.Array
    losses: spikes.LossStatistics


def create(cast: Cast, params: Params, key: jax.Array | None = None) -> TrainState:
    """The state at the start of a stage: a network's parameters and, where losses have learned
    projections, those from `key`, but for the ones of their names and shapes that come with `params`."""
    held, params = params.get(projections.NAME, {}), projections.drop(params)
    if widths := cast.fresh_projections:
        assert key is not None
        fresh = projections.start(widths, cast.model.config, key)
        kept = {
            name: held[name]
            for name in fresh.keys() & held.keys()
            if jax.tree.map(jnp.shape, held[name]) == jax.tree.map(jnp.shape, fresh[name])
        }
        params = {**params, projections.NAME: {**fresh, **kept}}
    moving, _ = split(cast.stage, params, jnp.int32(0))
    step, skipped, in_a_row = (jnp.zeros((), jnp.int32) for _ in range(3))
    return TrainState(params, optimizers.init(moving), step, skipped, in_a_row, spikes.start())


def shapes(cast: Cast) -> TrainState:
    """Shapes and dtypes of the state at the start of a stage."""
    return jax.eval_shape(
        lambda params: create(cast, params, jax.random.key(0)), parameter_shapes(cast.model.config)
    )


def split(stage: Stage, params: Params, layer: jax.Array) -> tuple[Flat, Flat]:
    """(what moves, what is frozen) by name. Under strict freezing only layer `layer`'s slices move
    (no layer axis), and the whole stack is among the frozen; so it is where only some layers move."""
    flat = flatten(params)
    names = moving_names(stage, params)
    moving = {name: value for name, value in flat.items() if name in names}
    if stage.depth == "progressive_strict":
        return take_layer(
            {name: value for name, value in moving.items() if is_stacked(name)}, layer
        ), flat
    if stage.layers is not None:
        first, end = stage.layers
        moving = {n: value[first:end] if is_stacked(n) else value for n, value in moving.items()}
        return moving, {n: value for n, value in flat.items() if n not in moving or is_stacked(n)}
    return moving, {name: value for name, value in flat.items() if name not in moving}


def joined(stage: Stage, moving: Flat, frozen: Flat) -> Flat:
    """What `split` took apart, by name; under strict freezing as it was before `moving` moved."""
    if stage.depth == "progressive_strict":
        return frozen
    if stage.layers is not None:
        first, end = stage.layers
        moving = {
            name: jnp.concatenate([frozen[name][:first], value, frozen[name][end:]])
            if is_stacked(name)
            else value
            for name, value in moving.items()
        }
    return {**frozen, **moving}


def moving_names(stage: Stage, params: Params) -> set[str]:
    """Names that a pattern of `stage.moves` matches, and learned projections."""
    patterns = (*stage.moves, projections.NAME + "/")
    return {
        name for name in flatten(params) if any(re.match(pattern, name) for pattern in patterns)
    }


def merge(stage: Stage, params: Params, moved: Flat, layer: jax.Array) -> Params:
    """`params` with what moved put back."""
    flat = flatten(params)
    if stage.depth == "progressive_strict":
        moved = {
            name: jax.lax.dynamic_update_index_in_dim(flat[name], value, layer, 0)
            for name, value in moved.items()
        }
        return unflatten({**flat, **moved})
    return unflatten(joined(stage, moved, flat))


def check_moves(stage: Stage, params: Params, started: set[str], config: ModelConfig) -> None:
    """Raises `BadInput` for a pattern that matches nothing, and for a frozen parameter that the
    stage uses although nothing ever set it: `started` names what was copied, trained or loaded. A
    NoNorm may stay the identity."""
    flat = flatten(params)
    for pattern in stage.moves:
        try:
            re.compile(pattern)
        except re.error as error:
            raise BadInput(
                f"config.stages.{stage.name}.moves: {pattern!r} is no regular expression ({error})"
            ) from error
        if not any(re.match(pattern, name) for name in flat):
            raise BadInput(
                f"config.stages.{stage.name}.moves: {pattern!r} matches no parameter; they begin with "
                f"{', '.join(sorted({name.split('/')[0] + '/' for name in flat}))}"
            )
    used = {"embeddings", "layers", *stage.heads()} | ({"pooler"} if stage.heads() else set())
    if PROJECTION in stage.projections or any(
        projects(config, HEADS[head].reads) for head in stage.heads()
    ):
        used.add(PROJECTION)
    moving = moving_names(stage, params)
    outside = sorted(name for name in moving if not is_stacked(name))
    if stage.depth == "progressive_strict" and outside:
        raise BadInput(
            f"config.stages.{stage.name}.moves={stage.moves} lets {outside[0]!r} move, but under strict freezing "
            f"only the active layer does; name patterns under layers/, or set "
            f"config.stages.{stage.name}.freezing='soft'"
        )
    identity = (
        {"embeddings/norm/scale", "embeddings/norm/bias"} if config.norm == "no_norm" else set()
    )
    # Of a stack of which some layers move: those below them are used, and by heads those above them too.
    first, end = stage.layers or (0, config.num_layers)
    stays = first > 0 or (end < config.num_layers and bool(stage.heads()))
    lost = [
        n
        for n in flat
        if n.split("/")[0] in used
        and (n not in moving or (is_stacked(n) and stays))
        and n not in started
        and n not in identity
    ]
    if lost:
        raise BadInput(
            f"stage {stage.name!r} freezes {lost[0]!r}"
            + (f" and {len(lost) - 1} more" if lost[1:] else "")
            + f", which nothing has set; let {stage.network!r} begin with a copy "
            f"(config.networks.{stage.network}.start='copy', which takes what has the other network's "
            f"shapes and heads), or let it move with config.stages.{stage.name}.moves"
        )
