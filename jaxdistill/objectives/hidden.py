"""Hidden states of one layer, compared token by token: TinyBERT's squared error, DistilBERT's cosine,
MobileBERT's feature-map transfer (section 3.5, eq. 2); and PKD's, of first tokens alone.

MobileBERT's published code splits the mean squared error in a normalised part and two parts on the
statistics, which is what keeps it stable; the three are here. All are sums over real tokens of
means over the width (`terms.py` has the counts). Letters: B batch, L sequence length, D inter-block
width, N teacher layers."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxdistill.models import Batch
from jaxdistill.models.encoder import attention_mask, first_tokens

EPS = 1e-12


def squared_error(student_BxLxD: jax.Array, teacher_BxLxD: jax.Array, batch: Batch) -> jax.Array:
    """Mean over D of (teacher - student)^2 (TinyBERT, arXiv:1909.10351, eqs. 8-9; the student's
    projected to the width D)."""
    student, teacher = real_only(student_BxLxD, batch), real_only(teacher_BxLxD, batch)
    return masked_sum(jnp.mean((jax.lax.stop_gradient(teacher) - student) ** 2, axis=-1), batch)


def cosine(student_BxLxD: jax.Array, teacher_BxLxD: jax.Array, batch: Batch) -> jax.Array:
    """1 - cos(student, teacher) (DistilBERT, arXiv:1910.01108, section 3: L_cos)."""
    student = unit_length(real_only(student_BxLxD, batch))
    teacher = unit_length(real_only(jax.lax.stop_gradient(teacher_BxLxD), batch))
    return masked_sum(1 - jnp.sum(student * teacher, axis=-1), batch)


def first_token_mse(
    student_BxLxD: jax.Array, teacher_BxLxD: jax.Array, batch: Batch, *, normalize: bool
) -> jax.Array:
    """Sum over D of (student - teacher)^2 at the first token of each text, a sum over texts; `normalize`:
    of vectors of length 1 (PKD, arXiv:1908.09355, eq. 7)."""
    weights_B = batch["example_weights"]

    def vectors(x_BxLxD: jax.Array) -> jax.Array:
        first_BxD = first_tokens(x_BxLxD, batch).astype(jnp.float32)
        first_BxD = jnp.where(weights_B[..., None] > 0, first_BxD, 0.0)
        return unit_length(first_BxD) if normalize else first_BxD

    difference = vectors(jax.lax.stop_gradient(teacher_BxLxD)) - vectors(student_BxLxD)
    return jnp.sum(jnp.sum(difference**2, axis=-1) * weights_B)


def feature_map(student_BxLxD: jax.Array, teacher_BxLxD: jax.Array, batch: Batch) -> jax.Array:
    """Mean over D of (LN(teacher) - LN(student))^2, LN without scale and bias."""
    student, teacher = real_only(student_BxLxD, batch), real_only(teacher_BxLxD, batch)
    difference = normalize(jax.lax.stop_gradient(teacher)) - normalize(student)
    return masked_sum(jnp.mean(difference**2, axis=-1), batch)


def mean(student_BxLxD: jax.Array, teacher_BxLxD: jax.Array, batch: Batch) -> jax.Array:
    """(mean over D of the teacher's - of the student's)^2."""
    student, teacher = real_only(student_BxLxD, batch), real_only(teacher_BxLxD, batch)
    return masked_sum(
        (jax.lax.stop_gradient(jnp.mean(teacher, -1)) - jnp.mean(student, -1)) ** 2, batch
    )


def variance(student_BxLxD: jax.Array, teacher_BxLxD: jax.Array, batch: Batch) -> jax.Array:
    """|variance over D of the teacher's - of the student's|: L1, as published."""
    student, teacher = real_only(student_BxLxD, batch), real_only(teacher_BxLxD, batch)
    return masked_sum(
        jnp.abs(jax.lax.stop_gradient(jnp.var(teacher, -1)) - jnp.var(student, -1)), batch
    )


def mean_tf1(student_BxLxD: jax.Array, moments_N1xBxLx2: jax.Array, batch: Batch) -> jax.Array:
    """`mean` against *all* N + 1 teacher states, averaged: what the released TF1 code computes, by
    a slip."""
    ours_BxL = jnp.mean(real_only(student_BxLxD, batch), -1)
    targets = jax.lax.stop_gradient(jax.vmap(real_only, (0, None))(moments_N1xBxLx2, batch)[..., 0])
    return masked_sum(jnp.mean((targets - ours_BxL) ** 2, axis=0), batch)


def variance_tf1(student_BxLxD: jax.Array, moments_N1xBxLx2: jax.Array, batch: Batch) -> jax.Array:
    """`variance` against all N + 1 teacher states, averaged: the same slip."""
    ours_BxL = jnp.var(real_only(student_BxLxD, batch), -1)
    targets = jax.lax.stop_gradient(jax.vmap(real_only, (0, None))(moments_N1xBxLx2, batch)[..., 1])
    return masked_sum(jnp.mean(jnp.abs(targets - ours_BxL), axis=0), batch)


def normalize(x_BxLxD: jax.Array) -> jax.Array:
    """LayerNorm without parameters, in float32."""
    x = x_BxLxD.astype(jnp.float32)
    centred = x - jnp.mean(x, -1, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.mean(centred**2, -1, keepdims=True) + EPS)


def unit_length(x_BxD: jax.Array) -> jax.Array:
    """Along the last axis; zeros stay zeros."""
    return x_BxD * jax.lax.rsqrt(jnp.sum(x_BxD**2, axis=-1, keepdims=True) + EPS)


def real_only(x_BxLxD: jax.Array, batch: Batch) -> jax.Array:
    """In float32, with zeros at pads. Before any arithmetic: 0 times the slope of an inf or nan
    would be nan."""
    return jnp.where(attention_mask(batch)[..., None] > 0, x_BxLxD.astype(jnp.float32), 0.0)


def masked_sum(values_BxL: jax.Array, batch: Batch) -> jax.Array:
    """Sum over real tokens. `where`, not a product: what a pad holds must not reach the value
    either."""
    return jnp.sum(jnp.where(attention_mask(batch) > 0, values_BxL, 0.0))
