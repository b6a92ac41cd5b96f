"""Losses on head outputs: masked-LM cross-entropy with hard and soft targets, NSP, classification,
regression.

Every function returns a *sum*; the matching count comes from the masks alone (`terms.py`). Labels
and weights may have any shape, as long as it is that of the logits without their last axis: [B], or
[B, S] in a packed batch. Letters: B batch, P masked positions, V vocabulary, C classes, S segments
of a packed row."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxdistill.models import Batch


def mlm(logits_BxPxV: jax.Array, _: jax.Array | None, batch: Batch) -> jax.Array:
    """Cross-entropy of the true words at the masked positions, summed with `mlm_weights` (Devlin et
    al. 2019, 3.1)."""
    log_probs = jax.nn.log_softmax(logits_BxPxV.astype(jnp.float32))
    picked_BxP = jnp.take_along_axis(log_probs, batch["mlm_labels"][..., None], axis=-1)[..., 0]
    return -jnp.sum(picked_BxP * batch["mlm_weights"])


def mlm_distillation(
    logits_BxPxV: jax.Array, teacher_BxPxV: jax.Array | None, batch: Batch
) -> jax.Array:
    """Cross-entropy of the teacher's distribution at the masked positions (MobileBERT eq. 5, the
    L_KD part), T = 1."""
    assert teacher_BxPxV is not None
    targets = jax.nn.softmax(jax.lax.stop_gradient(teacher_BxPxV).astype(jnp.float32))
    cross_BxP = -jnp.sum(targets * jax.nn.log_softmax(logits_BxPxV.astype(jnp.float32)), axis=-1)
    return jnp.sum(cross_BxP * batch["mlm_weights"])


def nsp(logits_Bx2: jax.Array, _: jax.Array | None, batch: Batch) -> jax.Array:
    """Cross-entropy of next-sentence prediction: label 0 follows, 1 is random."""
    return _labelled(logits_Bx2, batch["nsp_labels"], batch["example_weights"])


def classification(logits_BxC: jax.Array, _: jax.Array | None, batch: Batch) -> jax.Array:
    """Cross-entropy of `labels` int[B]."""
    return _labelled(logits_BxC, batch["labels"], batch["example_weights"])


def classification_distillation(
    logits_BxC: jax.Array, teacher_BxC: jax.Array | None, batch: Batch, *, temperature: float
) -> jax.Array:
    """T^2 KL(teacher || student) of the classes at temperature T (Hinton et al. 2015, section 2: the
    square keeps the size of the gradient)."""
    assert teacher_BxC is not None
    ours, theirs = (
        jax.nn.log_softmax(x.astype(jnp.float32) / temperature)
        for x in (logits_BxC, jax.lax.stop_gradient(teacher_BxC))
    )
    distance_B = jnp.sum(jnp.exp(theirs) * (theirs - ours), axis=-1)
    return temperature**2 * jnp.sum(distance_B * batch["example_weights"])


def regression(logits_Bx1: jax.Array, _: jax.Array | None, batch: Batch) -> jax.Array:
    """Squared error of `labels` float[B]."""
    return jnp.sum((logits_Bx1[..., 0] - batch["labels"]) ** 2 * batch["example_weights"])


def _labelled(logits_BxC: jax.Array, labels_B: jax.Array, weights_B: jax.Array) -> jax.Array:
    log_probs = jax.nn.log_softmax(logits_BxC.astype(jnp.float32))
    return -jnp.sum(
        jnp.take_along_axis(log_probs, labels_B[..., None], axis=-1)[..., 0] * weights_B
    )
