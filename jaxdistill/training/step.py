"""One step of any stage, as one pure function: (state, given, batch) -> (state, metrics).

Counts first, over the whole global batch; then the stage's forward, micro-batch by micro-batch; then
one update. The stage and both models are static. The seed is data, and the active
layer of a progressive stage is computed from `state.step`, so that one executable serves every seed
and every phase. Called by programs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdistill.forward.scene import At, Network, Scene
from jaxdistill.methods.base import Cast, Stage
from jaxdistill.models import Arrays, Batch, Params
from jaxdistill.models.parameters import unflatten
from jaxdistill.objectives import projections, ramps
from jaxdistill.objectives.terms import count_everything
from jaxdistill.training import optimizers, schedules, spikes
from jaxdistill.training.state import Flat, TrainState, joined, merge, split

Metrics = dict[str, jax.Array]


class Given(NamedTuple):
    """What a step reads and never changes: the parameters of the other networks by name, the seed
    of dropout, int32[], and layer maps that are data, int32[N] by name."""

    others: dict[str, Params]
    seed: Any
    maps: dict[str, Any] = {}


class Split(NamedTuple):
    """The parameters of the network that learns, by name: what moves and what is frozen, as
    `state.split` gives them."""

    moving: Flat
    frozen: Flat


Step = Callable[[TrainState, Given, Batch], tuple[TrainState, Metrics]]


def make_step(cast: Cast) -> Step:
    """The step of a stage; jit it with `state` donated. A non-finite loss or gradient, and a loss
    that `stage.skip_above` calls a spike, leaves parameters and moments as they were and is
    counted."""
    stage, layers = cast.stage, cast.model.config.num_layers
    run = stage.forward
    assert run is not None

    def step(state: TrainState, given: Given, batch: Batch) -> tuple[TrainState, Metrics]:
        layer = (
            schedules.active_layer(stage, layers, state.step) if stage.progressive else jnp.int32(0)
        )
        counts = count_terms(stage, batch)
        weights = {term.name: ramps.at(term.weight, state.step) for term in stage.terms}
        scales = {name: weight / counts[name] for name, weight in weights.items()}
        moving, frozen = split(stage, state.params, layer)
        key = jax.random.fold_in(jax.random.key(given.seed), state.step) if stage.dropout else None

        def micro_gradients(micro: Batch, micro_key: jax.Array | None) -> tuple[Flat, Arrays]:
            def value_and_sums(moving: Flat) -> tuple[jax.Array, Arrays]:
                ours, at = Split(moving, frozen), At(layer, micro_key, given.maps, state.step)
                return run(make_scene(cast, ours, given.others, micro, scales, at))

            (_, sums), gradients = jax.value_and_grad(value_and_sums, has_aux=True)(moving)
            return gradients, sums

        if stage.accumulation == 1:
            gradients, sums = micro_gradients(batch, key)
        else:
            zeros = (
                jax.tree.map(jnp.zeros_like, moving),
                {term.name: jnp.float32(0) for term in stage.terms},
            )
            gradients, sums = accumulate(micro_gradients, zeros, batch, stage.accumulation, key)
        raw = {name: sums[name] / counts[name] for name in sums}
        loss = sum((weights[name] * raw[name] for name in weights), jnp.float32(0))

        rate = schedules.learning_rate(stage, state.step)
        multipliers = (
            schedules.layer_multipliers(stage, layers, state.step) if stage.progressive else None
        )
        strict = stage.depth == "progressive_strict"
        if strict and multipliers is not None:
            multipliers = multipliers[layer]
        moved, optimizer, norm = optimizers.update(
            stage.optimizer,
            gradients,
            state.optimizer,
            moving,
            rate,
            multipliers,
            stacked=not strict,
        )

        # Known before the update, so that choosing between new and old costs no pass of its own
        # over parameters and moments.
        good = jnp.isfinite(loss) & jnp.isfinite(norm)
        losses = state.losses
        if stage.skip_above > 0:
            begins = (
                schedules.begins_phase(stage, layers, state.step)
                if stage.progressive
                else jnp.bool_(False)
            )
            spike, losses = spikes.judge(losses, loss, stage.skip_above, begins)
            good &= ~spike
        moved, optimizer = jax.tree.map(
            lambda new, old: jnp.where(good, new, old),
            (moved, optimizer),
            (moving, state.optimizer),
        )
        failed = jnp.where(good, 0, 1).astype(jnp.int32)
        new_state = TrainState(
            merge(stage, state.params, moved, layer),
            optimizer,
            state.step + 1,
            state.skipped + failed,
            jnp.where(good, 0, state.skipped_in_a_row + 1),
            losses,
        )
        metrics = {
            "loss": loss,
            "learning_rate": rate,
            "gradient_norm": norm,
            "skipped": new_state.skipped,
            "skipped_in_a_row": new_state.skipped_in_a_row,
        }
        metrics |= {f"raw/{name}": value for name, value in raw.items()}
        metrics |= {f"weighted/{name}": weight * raw[name] for name, weight in weights.items()}
        if stage.progressive:
            metrics["layer"] = layer
        return new_state, metrics

    return step


def make_losses(cast: Cast) -> Callable[[Params, Given, Batch, jax.Array], tuple[Arrays, Arrays]]:
    """(parameters, given, batch, layer) -> (sums, counts) by term: what the stage, or its phase,
    brings down. The seed is not read."""
    stage = cast.stage

    def losses(
        params: Params, given: Given, batch: Batch, layer: jax.Array
    ) -> tuple[Arrays, Arrays]:
        ones = {term.name: jnp.float32(1) for term in stage.terms}
        ours, at = Split(*split(stage, params, layer)), At(layer, maps=given.maps)
        assert stage.forward is not None
        found = stage.forward(make_scene(cast, ours, given.others, batch, ones, at))
        return found.sums, count_terms(stage, batch)

    return losses


def make_scene(
    cast: Cast, ours: Split, others: Mapping[str, Params], batch: Batch, scales: Arrays, at: At
) -> Scene:
    """What the forward of a stage is given; the one place where a scene is made."""
    stage, model = cast.stage, cast.model
    strict = stage.depth == "progressive_strict"
    params = unflatten(joined(stage, ours.moving, ours.frozen))
    return Scene(
        terms=tuple(term.at(at.step) for term in stage.terms),
        model=model,
        params=params,
        others={name: Network(other, others[name]) for name, other in cast.others},
        batch=batch,
        masks=count_everything(batch) if stage.tf1_unmasked else batch,
        scales=scales,
        at=at,
        fused=stage.fused,
        active=unflatten(ours.moving)["layers"] if strict else None,
        maps=projections.in_dtype(params, model.config.dtype),
    )


def count_terms(stage: Stage, batch: Batch) -> Arrays:
    """What each term's sum is divided by, from the masks of the global batch; never 0."""
    masks = count_everything(batch) if stage.tf1_unmasked else batch
    counts = {term.name: term.count(masks) for term in stage.terms}
    if stage.tf1_unmasked:  # the released code adds 1e-5 to the number of masked words
        counts |= {
            term.name: counts[term.name] + 1e-5 for term in stage.terms if term.head == "mlm"
        }
    return {name: jnp.maximum(count, 1e-5) for name, count in counts.items()}


def accumulate(
    micro_gradients: Callable[[Batch, jax.Array | None], tuple[Flat, Arrays]],
    zeros: tuple[Flat, Arrays],
    batch: Batch,
    parts: int,
    key: jax.Array | None,
) -> tuple[Flat, Arrays]:
    """Sums gradients and losses over `parts` micro-batches, from `zeros` on; row i of the batch
    goes to part i % parts, so that every part is spread over all devices as the batch is."""
    micros = {
        name: jnp.swapaxes(x.reshape(-1, parts, *x.shape[1:]), 0, 1) for name, x in batch.items()
    }

    def body(
        total: tuple[Flat, Arrays], xs: tuple[Batch, jax.Array]
    ) -> tuple[tuple[Flat, Arrays], None]:
        part_key = None if key is None else jax.random.fold_in(key, xs[1])
        return jax.tree.map(jnp.add, total, micro_gradients(xs[0], part_key)), None

    total, _ = jax.lax.scan(body, zeros, (micros, jnp.arange(parts)))
    return total
