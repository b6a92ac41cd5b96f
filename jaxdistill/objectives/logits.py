"""Losses on head outputs: masked words, NSP, classes, numbers, tags and spans, each with the true
answer and with a teacher's, from which a student has one of the `distances`.

Every function returns a *sum*; the matching count comes from the masks alone (`terms.py`). Labels
and weights may have any shape, as long as it is that of the logits without their last axis: [B], or
[B, S] in a packed batch. Letters: B batch, P masked positions, V vocabulary, C classes, S segments
of a packed row, L sequence length."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxdistill.models import Batch
from jaxdistill.models.encoder import segment_ids
from jaxdistill.objectives.distances import NOTHING, Distance, stored_top_k


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


def distance_from(
    logits_BxC: jax.Array,
    teacher_BxC: jax.Array | None,
    batch: Batch,
    *,
    distance: Distance,
    weights: str,
    **options: Any,
) -> jax.Array:
    """From the teacher's distribution over classes, tags or the vocabulary, summed with the array
    `weights` of the batch."""
    return distance(logits_BxC, teacher_BxC, batch[weights], **options)


def stored_words(logits_BxPxV: jax.Array, _: jax.Array | None, batch: Batch) -> jax.Array:
    """From a teacher's likeliest words at the masked positions, as a feed holds them."""
    names = ("stored_words", "stored_log_probabilities", "mlm_weights", "stored_temperature")
    return stored_top_k(logits_BxPxV, *(batch[name] for name in names))


def nsp(logits_Bx2: jax.Array, _: jax.Array | None, batch: Batch) -> jax.Array:
    """Cross-entropy of next-sentence prediction: label 0 follows, 1 is random."""
    return _labelled(logits_Bx2, batch["nsp_labels"], batch["example_weights"])


def classification(logits_BxC: jax.Array, _: jax.Array | None, batch: Batch) -> jax.Array:
    """Cross-entropy of `labels` int[B]."""
    return _labelled(logits_BxC, batch["labels"], labelled(batch, batch["example_weights"]))


def regression(logits_Bx1: jax.Array, _: jax.Array | None, batch: Batch) -> jax.Array:
    """Squared error of `labels` float[B]."""
    weights_B = labelled(batch, batch["example_weights"])
    return jnp.sum((logits_Bx1[..., 0] - batch["labels"]) ** 2 * weights_B)


def regression_distillation(
    logits_Bx1: jax.Array, teacher_Bx1: jax.Array | None, batch: Batch
) -> jax.Array:
    """Squared distance from the teacher's number."""
    assert teacher_Bx1 is not None
    distance_B = logits_Bx1[..., 0] - jax.lax.stop_gradient(teacher_Bx1)[..., 0]
    return jnp.sum(distance_B**2 * batch["example_weights"])


def tagging(logits_BxLxC: jax.Array, _: jax.Array | None, batch: Batch) -> jax.Array:
    """Cross-entropy of `tags` int[B, L], summed with `tag_weights`: 1 at the first piece of a word."""
    return _labelled(logits_BxLxC, batch["tags"], labelled_tokens(batch))


def span_border(
    logits_BxL: jax.Array, _: jax.Array | None, batch: Batch, *, positions: str
) -> jax.Array:
    """Cross-entropy of one end of the answer, int[B] in the array `positions`, among the real tokens
    (Devlin et al. 2019, 4.2). Pads take no part, so that padding changes nothing."""
    weights_B = labelled(batch, batch["example_weights"])
    return _labelled(_of_tokens(logits_BxL, batch), batch[positions], weights_B)


def distance_of_borders(
    logits_BxL: jax.Array,
    teacher_BxL: jax.Array | None,
    batch: Batch,
    *,
    distance: Distance,
    **options: Any,
) -> jax.Array:
    """From the teacher's distribution of one end of the answer over the real tokens."""
    assert teacher_BxL is not None
    ours, theirs = (_of_tokens(x, batch) for x in (logits_BxL, teacher_BxL))
    return distance(ours, theirs, batch["example_weights"], **options)


def _of_tokens(logits_BxL: jax.Array, batch: Batch) -> jax.Array:
    """The logits, so low at pads that these have no probability; finite, so that gradients are."""
    return jnp.where(batch["attention_mask"] > 0, logits_BxL.astype(jnp.float32), NOTHING)


def labelled(batch: Batch, weights_B: jax.Array) -> jax.Array:
    """The weights of true answers: 0 for texts without one (`label_weights` float[B])."""
    return weights_B * batch["label_weights"] if "label_weights" in batch else weights_B


def labelled_tokens(batch: Batch) -> jax.Array:
    """The weights of true tags, float[B, L]: 0 in texts without any."""
    if "label_weights" not in batch:
        return batch["tag_weights"]
    given_BxS, segments_BxL = batch["label_weights"], segment_ids(batch)
    if segments_BxL is None:
        return batch["tag_weights"] * given_BxS[:, None]
    text_BxL = jnp.maximum(segments_BxL - 1, 0)
    return batch["tag_weights"] * jnp.take_along_axis(given_BxS, text_BxL, axis=1)


def _labelled(logits_BxC: jax.Array, labels_B: jax.Array, weights_B: jax.Array) -> jax.Array:
    log_probs = jax.nn.log_softmax(logits_BxC.astype(jnp.float32))
    return -jnp.sum(
        jnp.take_along_axis(log_probs, labels_B[..., None], axis=-1)[..., 0] * weights_B
    )
