"""One step of any stage, as one pure function: (state, given, batch) -> (state, metrics).

Counts first, over the whole global batch; then teacher and student side by side, micro-batch by
micro-batch; then one update. The stage and both models are static. The seed is data, and the active
layer of a progressive stage is computed from `state.step`, so that one executable serves every seed
and every phase. Called by programs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdistill.methods.base import Stage
from jaxdistill.models import Arrays, Batch, Model, Params
from jaxdistill.objectives.terms import count_everything
from jaxdistill.training import optimizers, schedules, spikes
from jaxdistill.training.forward import weighted_sums
from jaxdistill.training.state import Flat, TrainState, merge, split

Metrics = dict[str, jax.Array]


class Given(NamedTuple):
    """What a step reads and never changes: the teacher's parameters ({} if none), and the seed of
    dropout, int32[]."""

    teacher: Params
    seed: Any


Step = Callable[[TrainState, Given, Batch], tuple[TrainState, Metrics]]


def make_step(stage: Stage, model: Model, teacher: Model | None) -> Step:
    """The step of `stage` on `model`; jit it with `state` donated. A non-finite loss or gradient,
    and a loss that `stage.skip_above` calls a spike, leaves parameters and moments as they were and
    is counted."""
    layers = model.config.num_layers

    def step(state: TrainState, given: Given, batch: Batch) -> tuple[TrainState, Metrics]:
        layer = (
            schedules.active_layer(stage, layers, state.step) if stage.progressive else jnp.int32(0)
        )
        counts = count_terms(stage, batch)
        scales = {term.name: term.weight / counts[term.name] for term in stage.terms}
        moving, frozen = split(stage, state.params, layer)
        key = jax.random.fold_in(jax.random.key(given.seed), state.step) if stage.dropout else None

        def micro_gradients(micro: Batch, micro_key: jax.Array | None) -> tuple[Flat, Arrays]:
            def weighted(moving: Flat) -> tuple[jax.Array, Arrays]:
                return weighted_sums(
                    stage,
                    model,
                    teacher,
                    moving,
                    frozen,
                    given.teacher,
                    micro,
                    layer,
                    micro_key,
                    scales,
                )

            (_, sums), gradients = jax.value_and_grad(weighted, has_aux=True)(moving)
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
        loss = sum((term.weight * raw[term.name] for term in stage.terms), jnp.float32(0))

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
        metrics |= {f"weighted/{term.name}": term.weight * raw[term.name] for term in stage.terms}
        if stage.progressive:
            metrics["layer"] = layer
        return new_state, metrics

    return step


def make_losses(
    stage: Stage, model: Model, teacher: Model | None
) -> Callable[[Params, Params, Batch, jax.Array], tuple[Arrays, Arrays]]:
    """(student, teacher parameters, batch, layer) -> (sums, counts) by term: what the stage, or its
    phase, brings down."""

    def losses(
        params: Params, teacher_params: Params, batch: Batch, layer: jax.Array
    ) -> tuple[Arrays, Arrays]:
        moving, frozen = split(stage, params, layer)
        ones = {term.name: jnp.float32(1) for term in stage.terms}
        _, sums = weighted_sums(
            stage, model, teacher, moving, frozen, teacher_params, batch, layer, None, ones
        )
        return sums, count_terms(stage, batch)

    return losses


def count_terms(stage: Stage, batch: Batch) -> Arrays:
    """What each term's sum is divided by, from the masks of the global batch; never 0."""
    masks = count_everything(batch) if stage.tf1_unmasked else batch
    counts = {term.name: term.count(masks) for term in stage.terms}
    if stage.tf1_unmasked:  # the released code adds 1e-5 to the number of masked words
        counts |= {
            term.name: counts[term.name] + 1e-5
            for term in stage.terms
            if term.loss.startswith("mlm")
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
