"""Learning rates as functions of a stage's step: warm-up and decay, and the layer-wise multiplier
of progressive transfer (MobileBERT's released code; the paper, section 3.6, only says that lower
layers learn slowly or not at all)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from jaxdistill.methods.base import Stage


def learning_rate(stage: Stage, step: jax.Array) -> jax.Array:
    """float32[]: the base rate at `step` of `stage`.

    The decay line runs over the whole stage and the warm-up replaces its beginning, so at the end
    of the warm-up the rate drops onto the line (as in BERT's code), rather than starting the line
    there."""
    s = stage.schedule
    if s.decay == "linear":
        line = optax.linear_schedule(s.peak, s.peak * s.end_ratio, stage.steps)(step)
    else:
        line = jnp.float32(s.peak)
    warm = s.peak * step / max(s.warmup_steps, 1)
    return jnp.where(step < s.warmup_steps, warm, line).astype(jnp.float32)


def phase_steps(stage: Stage, num_layers: int) -> int:
    """P: how many steps one layer is active."""
    return stage.steps // num_layers


def active_layer(stage: Stage, num_layers: int, step: jax.Array) -> jax.Array:
    """int32[]: the layer that `step` trains; steps left over after the last whole phase go to the
    last layer."""
    return jnp.minimum(step // phase_steps(stage, num_layers), num_layers - 1).astype(jnp.int32)


def begins_phase(stage: Stage, num_layers: int, step: jax.Array) -> jax.Array:
    """bool[]: whether `step` is the first that trains its layer."""
    return step == active_layer(stage, num_layers, step) * phase_steps(stage, num_layers)


def phase_profile(stage: Stage, num_layers: int, step: jax.Array) -> jax.Array:
    """float32[]: bg(t) = min(0.9 + 0.1 sqrt(1 - t / P), 10 t / P), t the step within its phase.

    0 at the start of each phase (no update, moments cleared), a warm-up over its first tenth, then
    a slow decay."""
    period = phase_steps(stage, num_layers)
    t = step - active_layer(stage, num_layers, step) * period
    fraction = jnp.minimum(t / period, 1.0)
    return jnp.minimum(0.9 + 0.1 * jnp.sqrt(1.0 - fraction), 10.0 * fraction).astype(jnp.float32)


def layer_multipliers(stage: Stage, num_layers: int, step: jax.Array) -> jax.Array:
    """float32[N]: `active_multiplier` x bg(t) x {1 for the active layer, 0.1 below it (soft) or 0
    (strict), 0 above}."""
    active = active_layer(stage, num_layers, step)
    layers = jnp.arange(num_layers)
    lower = 0.1 if stage.depth == "progressive_soft" else 0.0
    place = jnp.where(layers == active, 1.0, jnp.where(layers < active, lower, 0.0))
    return stage.active_multiplier * phase_profile(stage, num_layers, step) * place
