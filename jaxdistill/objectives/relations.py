"""Attention transfer: the attention distributions of one layer, head by head (MobileBERT section 3.5, eq. 3).

Letters: B batch, A heads, L sequence length (queries, then keys).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxdistill.models import Batch
from jaxdistill.models.encoder import attention_mask
from jaxdistill.objectives.hidden import masked_sum


def attention(student_BxAxLxL: jax.Array, teacher_BxAxLxL: jax.Array, batch: Batch) -> jax.Array:
    """Cross-entropy over keys of the teacher's attention, from masked scores; mean over heads, sum over real queries.

    Equal to the paper's KL divergence plus the teacher's entropy, which has no gradient; `attention_kl` leaves it out.
    """
    targets = jax.nn.softmax(jax.lax.stop_gradient(real_queries(teacher_BxAxLxL, batch)))
    log_probs = jax.nn.log_softmax(real_queries(student_BxAxLxL, batch))
    return masked_sum(jnp.mean(-jnp.sum(targets * log_probs, axis=-1), axis=1), batch)


def attention_kl(student_BxAxLxL: jax.Array, teacher_BxAxLxL: jax.Array, batch: Batch) -> jax.Array:
    """KL(teacher || student): the same gradient as `attention`, and 0 when they agree."""
    teacher = jax.nn.log_softmax(jax.lax.stop_gradient(real_queries(teacher_BxAxLxL, batch)))
    student = jax.nn.log_softmax(real_queries(student_BxAxLxL, batch))
    return masked_sum(jnp.mean(jnp.sum(jnp.exp(teacher) * (teacher - student), axis=-1), axis=1), batch)


def real_queries(scores_BxAxLxL: jax.Array, batch: Batch) -> jax.Array:
    """In float32, with zeros where the query is a pad: before any arithmetic, as in `hidden.real_only`."""
    return jnp.where(attention_mask(batch)[:, None, :, None] > 0, scores_BxAxLxL.astype(jnp.float32), 0.0)
