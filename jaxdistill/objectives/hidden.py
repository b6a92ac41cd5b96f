"""Feature-map transfer: the hidden states of one layer, compared token by token (MobileBERT section 3.5, eq. 2).

The published code splits the mean squared error in a normalised part and two parts on the statistics, which is what
keeps it stable; the three are here. All are sums over real tokens of means over the width (`terms.py` has the counts).
Letters: B batch, L sequence length, D inter-block width, N teacher layers.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxdistill.models import Batch
from jaxdistill.models.encoder import attention_mask

EPS = 1e-12


def feature_map(student_BxLxD: jax.Array, teacher_BxLxD: jax.Array, batch: Batch) -> jax.Array:
    """Mean over D of (LN(teacher) - LN(student))^2, LN without scale and bias."""
    difference = normalize(jax.lax.stop_gradient(teacher_BxLxD)) - normalize(student_BxLxD)
    return masked_sum(jnp.mean(difference**2, axis=-1), batch)


def mean(student_BxLxD: jax.Array, teacher_BxLxD: jax.Array, batch: Batch) -> jax.Array:
    """(mean over D of the teacher's - of the student's)^2."""
    target_BxL = jax.lax.stop_gradient(jnp.mean(teacher_BxLxD.astype(jnp.float32), -1))
    return masked_sum((target_BxL - jnp.mean(student_BxLxD.astype(jnp.float32), -1)) ** 2, batch)


def variance(student_BxLxD: jax.Array, teacher_BxLxD: jax.Array, batch: Batch) -> jax.Array:
    """|variance over D of the teacher's - of the student's|: L1, as published."""
    target_BxL = jax.lax.stop_gradient(jnp.var(teacher_BxLxD.astype(jnp.float32), -1))
    return masked_sum(jnp.abs(target_BxL - jnp.var(student_BxLxD.astype(jnp.float32), -1)), batch)


def mean_tf1(student_BxLxD: jax.Array, moments_N1xBxLx2: jax.Array, batch: Batch) -> jax.Array:
    """`mean` against *all* N + 1 teacher states, averaged: what the released TF1 code computes, by a slip."""
    targets = jax.lax.stop_gradient(moments_N1xBxLx2[..., 0])
    return masked_sum(jnp.mean((targets - jnp.mean(student_BxLxD, -1)[None]) ** 2, axis=0), batch)


def variance_tf1(student_BxLxD: jax.Array, moments_N1xBxLx2: jax.Array, batch: Batch) -> jax.Array:
    """`variance` against all N + 1 teacher states, averaged: the same slip."""
    targets = jax.lax.stop_gradient(moments_N1xBxLx2[..., 1])
    return masked_sum(jnp.mean(jnp.abs(targets - jnp.var(student_BxLxD, -1)[None]), axis=0), batch)


def normalize(x_BxLxD: jax.Array) -> jax.Array:
    """LayerNorm without parameters, in float32."""
    x = x_BxLxD.astype(jnp.float32)
    centred = x - jnp.mean(x, -1, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.mean(centred**2, -1, keepdims=True) + EPS)


def masked_sum(values_BxL: jax.Array, batch: Batch) -> jax.Array:
    """Sum over real tokens. `where`, not a product: what a pad holds (even inf) must not reach the gradient."""
    return jnp.sum(jnp.where(attention_mask(batch) > 0, values_BxL, 0.0))
