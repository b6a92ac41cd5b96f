"""The same losses, weighted and with their gradient taken in the forward pass: no attention map outlives its layer, and
logits over the vocabulary exist for some masked words at a time. Called by training.forward.

`scales` maps a loss name to weight / count; a fused function returns the scaled sum, which alone can be differentiated,
and the raw sums to report. The plain versions beside them say what is computed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxdistill.kernels.forward_gradient import gradient_in_chunks, gradient_in_forward, projected_loss
from jaxdistill.models import Arrays, Batch, Params
from jaxdistill.models.block import attention_scores
from jaxdistill.models.heads import vocabulary_logits
from jaxdistill.objectives.projections import project
from jaxdistill.objectives.relations import relation, relation_heads
from jaxdistill.objectives.terms import Loss

Losses = Mapping[str, Loss]
Scales = Mapping[str, jax.Array]
# Student taps that the fused losses are differentiated through, and what is made of them.
SOURCES = {"attention_scores": ("query", "key")}
# Logits of student and teacher that exist at once, each float32[rows, positions, V]: 16 MiB.
CHUNK_NUMBERS = 2**22


def weighted(sums: Arrays, scales: Scales) -> jax.Array:
    """The scaled sum of raw sums."""
    return sum((value * scales[name] for name, value in sums.items()), jnp.float32(0))


def layer_sums(losses: Losses, student_taps: Arrays, teacher_taps: Mapping[str, Any], masks: Batch, maps: Params) -> Arrays:
    """The raw sums of losses of one layer, by name; `maps` are their learned projections."""
    return {name: loss.sum(project(maps, loss.projection, student_taps[loss.student]), teacher_taps[loss.teacher or ""], masks)
            for name, loss in losses.items()}


def layer_terms(losses: Losses, scales: Scales, student_taps: Arrays, teacher_taps: Mapping[str, Any], masks: Batch,
                maps: Params, bias: jax.Array, dtype: Any, rows: int) -> tuple[jax.Array, Arrays]:
    """`layer_sums`, scaled: (value, raw sums). Kept for the backward pass: the gradients with respect to the hidden state,
    to projections and to queries and keys (of attention scores, which are computed from them again; where the block
    computes them too, the compiler does it once), in `dtype`. `rows`: rows on one device, which the size of chunks
    follows."""
    relations = {name: loss for name, loss in losses.items() if loss.relation}
    others = {name: loss for name, loss in losses.items() if not loss.relation}
    parts = [_relation_terms(loss, name, scales[name], student_taps, teacher_taps, masks, dtype, rows)
             for name, loss in relations.items()]
    if others:
        parts.append(_map_terms(others, scales, student_taps, teacher_taps, masks, maps, bias, dtype))
    return sum((value for value, _ in parts), jnp.float32(0)), {name: x for _, sums in parts for name, x in sums.items()}


def _map_terms(losses: Losses, scales: Scales, student_taps: Arrays, teacher_taps: Mapping[str, Any], masks: Batch,
               maps: Params, bias: jax.Array, dtype: Any) -> tuple[jax.Array, Arrays]:
    wanted = {loss.student for loss in losses.values()}
    used = {loss.projection for loss in losses.values()} - {""}
    moving = ({name: student_taps[name] for tap in sorted(wanted) for name in SOURCES.get(tap, (tap,))},
              {name: maps[name] for name in sorted(used)})

    def function(moving: tuple[Arrays, Params], fixed: Any) -> tuple[jax.Array, Arrays]:
        teacher_taps, masks, bias, scales = fixed
        taps, maps = dict(moving[0]), moving[1]
        if "attention_scores" in wanted:
            taps["attention_scores"] = attention_scores(taps["query"], taps["key"], bias)
        sums = layer_sums(losses, taps, teacher_taps, masks, maps)
        return weighted(sums, scales), sums

    read = {loss.teacher: teacher_taps[loss.teacher] for loss in losses.values() if loss.teacher is not None}
    return gradient_in_forward(function, dtype)(moving, (read, dict(masks), bias, {name: scales[name] for name in losses}))


def _relation_terms(loss: Loss, name: str, scale: jax.Array, student_taps: Arrays, teacher_taps: Mapping[str, Any],
                    masks: Batch, dtype: Any, rows: int) -> tuple[jax.Array, Arrays]:
    """Some relation heads after the other: no [B, R, L, L] of all heads, of either model."""
    heads = loss.sum.keywords["heads"]  # type: ignore[attr-defined]
    length = masks["input_ids"].shape[1]
    chunk = next(n for n in range(heads, 0, -1) if heads % n == 0 and (n == 1 or n * rows * length**2 <= CHUNK_NUMBERS))

    def split(x_BxLxAxK: jax.Array) -> jax.Array:
        """[B, L, A, K] -> [C, B, L, r, k]: r of the relation heads in each chunk."""
        x = relation_heads(x_BxLxAxK, masks, heads)
        return jnp.moveaxis(x.reshape(*x.shape[:2], heads // chunk, chunk, -1), 2, 0)

    def function(ours: jax.Array, theirs: jax.Array, fixed: Any) -> tuple[jax.Array, Arrays]:
        masks, scale = fixed
        value = relation(ours, theirs, masks, chunk) * (chunk / heads)  # a mean over heads, chunk by chunk
        return value * scale, {name: value}

    return gradient_in_chunks(function, dtype)(
        split(student_taps[loss.student]), split(teacher_taps[loss.teacher or ""]), (dict(masks), scale))


def student_taps_of(losses: Losses) -> tuple[str, ...]:
    """The student taps that `layer_terms` reads."""
    return tuple(sorted({name for loss in losses.values() for name in SOURCES.get(loss.student, (loss.student,))}))


def word_terms(losses: Losses, scales: Scales, student: tuple[Any, jax.Array], teacher: tuple[Any, jax.Array] | None,
               batch: Batch, rows: int) -> tuple[jax.Array, Arrays]:
    """MLM and its distillation over the vocabulary, scaled: (value, raw sums), some masked words of every row at a time.

    `student`, `teacher`: (weights, features [B, P, D]) as `Model.mlm_features` gives them. `rows`: rows on one device,
    which the size of a chunk follows. Kept for the backward pass: one [B, P, V] in the student's compute dtype.
    """
    weights, features_BxPxD = student
    chunk = max(1, CHUNK_NUMBERS // (rows * weights["bias"].shape[0]))
    parts = -(-features_BxPxD.shape[1] // chunk)
    chunk = -(-features_BxPxD.shape[1] // parts)  # as equal as they can be

    def split(x_BxP: jax.Array) -> jax.Array:
        """[B, P, ...] -> [C, B, p, ...]; what fills the last chunk up has weight 0."""
        missing = parts * chunk - x_BxP.shape[1]
        padded = jnp.pad(x_BxP, ((0, 0), (0, missing), *((0, 0) for _ in x_BxP.shape[2:])))
        return jnp.moveaxis(padded.reshape(x_BxP.shape[0], parts, chunk, *x_BxP.shape[2:]), 1, 0)

    def function(logits: jax.Array, part: Any, shared: Any) -> tuple[jax.Array, Arrays]:
        labels, theirs = part
        target = None if theirs is None else vocabulary_logits(shared["teacher"], theirs)
        sums = {name: loss.sum(logits, target if loss.teacher else None, labels) for name, loss in losses.items()}
        return weighted(sums, shared["scales"]), sums

    labels = {name: split(batch[name]) for name in ("mlm_labels", "mlm_weights")}
    shared = {"scales": dict(scales), "teacher": None if teacher is None else teacher[0]}
    slices = labels, None if teacher is None else split(teacher[1])
    return projected_loss(vocabulary_logits, function, features_BxPxD.dtype)((weights, split(features_BxPxD)), slices, shared)
