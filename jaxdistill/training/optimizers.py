"""LAMB and AdamW as BERT's and MobileBERT's code has them, on parameters named by path with stacked
layers.

optax's own `lamb` corrects bias, decays and adapts every leaf, and would take one norm over all
stacked layers. Here: no bias correction, biases and norms neither decayed nor adapted, and the unit
of the trust ratio is one layer's variable. The learning rate comes in at each update, with one
multiplier a layer: where it is 0 nothing changes and the moments are cleared, which is how
progressive transfer starts each phase afresh. LAMB: You et al. 2020 (arXiv 1904.00962), algorithm
2, as MobileBERT's released code simplifies it."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxdistill.methods.base import Optimizer
from jaxdistill.models.parameters import is_stacked, is_vector

Flat = dict[str, jax.Array]


class OptimizerState(NamedTuple):
    """Adam's moments by parameter name, and the number of updates made (for bias correction
    alone)."""

    mu: Flat
    nu: Flat
    updates: jax.Array


def init(moving: Flat) -> OptimizerState:
    """Zero moments for what moves, and only for that."""

    def zeros() -> (
        Flat
    ):  # called twice: the step donates its state, and a buffer can be donated only once
        return {name: jnp.zeros_like(value, dtype=jnp.float32) for name, value in moving.items()}

    return OptimizerState(zeros(), zeros(), jnp.zeros((), jnp.int32))


def update(
    settings: Optimizer,
    gradients: Flat,
    state: OptimizerState,
    moving: Flat,
    rate: jax.Array,
    multipliers: jax.Array | None,
    stacked: bool = True,
) -> tuple[Flat, OptimizerState, jax.Array]:
    """One update: (new parameters, new state, global gradient norm before clipping).

    `rate` float32[]; `multipliers` float32[N] for names under `layers/` when `stacked` (float32[]
    when those arrays are one layer's slices); other names then use 1. None: 1 everywhere."""
    norm = optax.tree.norm(gradients)
    scale = (
        jnp.minimum(1.0, settings.clip_norm / jnp.maximum(norm, 1e-30))
        if settings.clip_norm > 0
        else 1.0
    )
    count = state.updates + 1
    new, mu, nu = {}, {}, {}
    for name, w in moving.items():
        g = gradients[name].astype(jnp.float32) * scale
        m = settings.beta1 * state.mu[name] + (1 - settings.beta1) * g
        v = settings.beta2 * state.nu[name] + (1 - settings.beta2) * g * g
        m_hat, v_hat = m, v
        if settings.bias_correction:
            m_hat = optax.tree.bias_correction(m, settings.beta1, count)
            v_hat = optax.tree.bias_correction(v, settings.beta2, count)
        u = m_hat / (jnp.sqrt(v_hat) + settings.eps)
        layered = stacked and is_stacked(name)
        if not is_vector(name):
            # What nothing teaches has no direction: scaled to the length of w, its decay alone
            # would shrink it by `rate`.
            idle = jnp.all(
                u == 0, axis=tuple(range(1, w.ndim)) if layered else None, keepdims=layered
            )
            u = u + settings.weight_decay * w
            if settings.name == "lamb":
                u = u * jnp.where(idle, 1.0, trust_ratio(w, u, layered))
        if multipliers is None or not is_stacked(name):
            new[name], mu[name], nu[name] = w - rate * u, m, v
            continue
        factor = _per_layer(multipliers, w) if layered else multipliers
        new[name] = w - rate * factor * u
        mu[name], nu[name] = jnp.where(factor > 0, m, 0.0), jnp.where(factor > 0, v, 0.0)
    return new, OptimizerState(mu, nu, count), norm


def trust_ratio(w: jax.Array, u: jax.Array, layered: bool) -> jax.Array:
    """||w|| / ||u||, 1 where either is 0; over one layer's variable when the leading axis is the layer axis."""
    axes = tuple(range(1, w.ndim)) if layered else None
    w_norm = jnp.sqrt(jnp.sum(w * w, axis=axes, keepdims=layered))
    u_norm = jnp.sqrt(jnp.sum(u * u, axis=axes, keepdims=layered))
    safe = (w_norm > 0) & (u_norm > 0)
    return jnp.where(safe, w_norm / jnp.where(safe, u_norm, 1.0), 1.0)


def _per_layer(multipliers_N: jax.Array, like: jax.Array) -> jax.Array:
    return multipliers_N.reshape(-1, *(1,) * (like.ndim - 1))
