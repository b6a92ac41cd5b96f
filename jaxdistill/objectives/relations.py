"""Attention transfer (MobileBERT section 3.5, eq. 3; TinyBERT eq. 7) and self-attention relations
(MiniLMv2, arXiv:2012.15828, eqs. 5-8).

Letters: B batch, A heads, K head width, L sequence length (queries, then keys), R relation heads.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxdistill.models import Batch
from jaxdistill.models.block import attention_scores
from jaxdistill.models.encoder import attention_bias, attention_mask
from jaxdistill.objectives.hidden import masked_sum


def attention(student_BxAxLxL: jax.Array, teacher_BxAxLxL: jax.Array, batch: Batch) -> jax.Array:
    """Cross-entropy over keys of the teacher's attention, from masked scores; mean over heads, sum
    over real queries.

    Equal to the paper's KL divergence plus the teacher's entropy, which has no gradient;
    `attention_kl` leaves it out."""
    targets = jax.nn.softmax(jax.lax.stop_gradient(real_queries(teacher_BxAxLxL, batch)))
    log_probs = jax.nn.log_softmax(real_queries(student_BxAxLxL, batch))
    return masked_sum(jnp.mean(-jnp.sum(targets * log_probs, axis=-1), axis=1), batch)


def attention_kl(student_BxAxLxL: jax.Array, teacher_BxAxLxL: jax.Array, batch: Batch) -> jax.Array:
    """KL(teacher || student): the same gradient as `attention`, and 0 when they agree."""
    teacher = jax.nn.log_softmax(jax.lax.stop_gradient(real_queries(teacher_BxAxLxL, batch)))
    student = jax.nn.log_softmax(real_queries(student_BxAxLxL, batch))
    return masked_sum(
        jnp.mean(jnp.sum(jnp.exp(teacher) * (teacher - student), axis=-1), axis=1), batch
    )


def attention_mse(
    student_BxAxLxL: jax.Array, teacher_BxAxLxL: jax.Array, batch: Batch
) -> jax.Array:
    """Squared difference of the scores before the softmax; mean over heads, sum over pairs of real
    query and real key (in a packed row, of one text). TinyBERT's released code counts pads in; here
    they are out."""
    pairs_Bx1xLxL = real_pairs(batch)
    # Zeros before any arithmetic, as in `hidden.real_only`: masked keys hold `MASKED_SCORE`.
    student, teacher = (
        jnp.where(pairs_Bx1xLxL, x.astype(jnp.float32), 0.0)
        for x in (student_BxAxLxL, jax.lax.stop_gradient(teacher_BxAxLxL))
    )
    return jnp.sum(jnp.mean((teacher - student) ** 2, axis=1))


def attention_probability_mse(
    student_BxAxLxL: jax.Array, teacher_BxAxLxL: jax.Array, batch: Batch
) -> jax.Array:
    """Squared difference of the attention weights, after the softmax; mean over heads, sum over pairs as
    in `attention_mse` (XtremeDistilTransformers, whose released code counts pads in)."""
    student, teacher = (
        jax.nn.softmax(real_queries(x, batch).astype(jnp.float32))
        for x in (student_BxAxLxL, jax.lax.stop_gradient(teacher_BxAxLxL))
    )
    squares = jnp.where(real_pairs(batch), (teacher - student) ** 2, 0.0)
    return jnp.sum(jnp.mean(squares, axis=1))


def real_pairs(batch: Batch) -> jax.Array:
    """bool[B, 1, L, L]: query and key are both real, and of one text."""
    return (attention_bias(batch) == 0) & (attention_mask(batch)[:, None, :, None] > 0)


def relation(
    student_BxLxAxK: jax.Array, teacher_BxLxAxK: jax.Array, batch: Batch, heads: int = 1
) -> jax.Array:
    """KL over keys between the relations (query with query, key with key or value with value) of
    teacher and student; mean over `heads` relation heads, into which all attention heads together
    are cut anew, sum over real tokens.

    So neither the number of attention heads nor their width need be equal; `heads` must divide both
    widths."""
    teacher = jax.nn.log_softmax(jax.lax.stop_gradient(_relations(teacher_BxLxAxK, batch, heads)))
    student = jax.nn.log_softmax(_relations(student_BxLxAxK, batch, heads))
    return masked_sum(
        jnp.mean(jnp.sum(jnp.exp(teacher) * (teacher - student), axis=-1), axis=1), batch
    )


def relation_heads(x_BxLxAxK: jax.Array, batch: Batch, heads: int) -> jax.Array:
    """[B, L, R, A K / R] in the given dtype, zeros at pads: before any arithmetic, as in
    `hidden.real_only`."""
    x = jnp.where(
        attention_mask(batch)[..., None, None] > 0, x_BxLxAxK, jnp.zeros((), x_BxLxAxK.dtype)
    )
    return x.reshape(*x.shape[:2], heads, -1)


def _relations(x_BxLxAxK: jax.Array, batch: Batch, heads: int) -> jax.Array:
    x_BxLxRxk = relation_heads(x_BxLxAxK, batch, heads)
    return attention_scores(x_BxLxRxk, x_BxLxRxk, attention_bias(batch))


def real_queries(scores_BxAxLxL: jax.Array, batch: Batch) -> jax.Array:
    """In float32, with zeros where the query is a pad: before any arithmetic, as in
    `hidden.real_only`."""
    return jnp.where(
        attention_mask(batch)[:, None, :, None] > 0, scores_BxAxLxL.astype(jnp.float32), 0.0
    )
