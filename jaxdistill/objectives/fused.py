"""The same losses, weighted and with their gradient taken in the forward pass: attention maps exist
for some rows of one layer at a time, logits over the vocabulary for some masked words. Called by
the forwards.

A fused function returns the scaled sum, which alone can be differentiated, and the raw sums to
report. The plain versions beside them say what is computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdistill.kernels.forward_gradient import gradient_in_chunks, projected_loss
from jaxdistill.models import Arrays, Batch, Model, Params
from jaxdistill.models.block import attention_scores
from jaxdistill.models.heads import vocabulary_logits
from jaxdistill.objectives.relations import relation, relation_heads
from jaxdistill.objectives.terms import Term

Terms = Mapping[str, Term]
Scales = Mapping[str, jax.Array]


class Asked(NamedTuple):
    """Terms by name, and what evaluating them in parts depends on: their scales (weight / count),
    the dtype of gradients that are kept, and how many rows one device holds."""

    terms: Terms
    scales: Scales
    dtype: Any
    rows: int


class TeacherBlock(NamedTuple):
    """One block of a teacher: its parameters, the hidden state that enters it, [B, L, D], and what
    is added to its attention scores."""

    model: Model
    params: Params
    hidden: jax.Array
    bias: jax.Array


# Student taps that the fused losses are differentiated through, and what is made of them.
SOURCES = {"attention_scores": ("query", "key")}
# Numbers in the largest tensor that exists at once, attention maps, relations or logits: 16 MiB in
# float32.
CHUNK_NUMBERS = 2**22
# Into how many parts a device's rows are split at most: a quarter of one layer's work is little
# beside what is kept of all layers, and parts that are too small keep no device busy.
MOST_PARTS = 4


def weighted(sums: Arrays, scales: Scales) -> jax.Array:
    """The scaled sum of raw sums."""
    return sum((value * scales[name] for name, value in sums.items()), jnp.float32(0))


def layer_sums(
    terms: Terms, student_taps: Arrays, teacher_taps: Mapping[str, Any], masks: Batch
) -> Arrays:
    """The raw sums of losses of one layer, by name."""
    return {
        name: term.sum(student_taps[term.reads], teacher_taps[term.row.teacher or ""], masks)
        for name, term in terms.items()
    }


def layer_terms(
    asked: Asked, student_taps: Arrays, block: TeacherBlock, masks: Batch
) -> tuple[jax.Array, Arrays, jax.Array]:
    """The teacher's `block`, and `layer_sums` scaled: (value, raw sums, the teacher's next hidden
    state).

    Some rows after the other, so that only their attention maps exist, of either model. Kept for
    the backward pass: the gradients with respect to the hidden state and to queries and keys (of
    attention scores, which are computed from them again)."""
    terms, scales, dtype, rows = asked
    relations = {name: term for name, term in terms.items() if term.row.relation}
    others = {name: term for name, term in terms.items() if not term.row.relation}
    wanted = {term.reads for term in others.values()}
    followed = tuple(sorted({term.row.teacher or "" for term in relations.values()}))

    def function(moving: Arrays, slices: Any, shared: Any) -> tuple[jax.Array, tuple[Arrays, Any]]:
        # Masks are alike in every layer: without the barrier, what is made of them ([b, A, L, L])
        # would be made once, for all chunks, ahead of the loop over layers.
        theirs, masks, bias = jax.lax.optimization_barrier(slices)
        layer, scales = shared
        theirs, teacher_taps = block.model.block(layer, theirs, bias)
        taps = dict(moving)
        if "attention_scores" in wanted:
            taps["attention_scores"] = attention_scores(moving["query"], moving["key"], bias)
        sums = layer_sums(others, taps, teacher_taps, masks)
        return weighted(sums, scales), (
            sums,
            (theirs, {name: teacher_taps[name] for name in followed}),
        )

    moving = {
        name: student_taps[name] for tap in sorted(wanted) for name in SOURCES.get(tap, (tap,))
    }
    length, widths = masks["input_ids"].shape[1], block.model.config
    # The largest tensor of a block.
    of_a_row = length * max(widths.num_heads * length, widths.intermediate_size)
    parts = _largest_divisor(rows, min(MOST_PARTS, -(-rows * of_a_row // CHUNK_NUMBERS)))
    value, (sums, found) = gradient_in_chunks(function, dtype)(
        _split_rows(moving, rows, parts),
        _split_rows((block.hidden, dict(masks), block.bias), rows, parts),
        (block.params, {name: scales[name] for name in others}),
    )
    # No cotangent of zeros through the loop.
    theirs, teacher_taps = jax.lax.stop_gradient(_join_rows(found, rows, parts))
    for name in relations:
        more, found = relation_terms(asked, name, student_taps, teacher_taps, masks)
        value, sums = value + more, {**sums, **found}
    return value, sums, theirs


def _split_rows(tree: Any, rows: int, parts: int) -> Any:
    """[B, ...] -> [C, B / C, ...], C parts: each has its share of the `rows` of every device, so
    that none is sent to another."""

    def split(x: jax.Array) -> jax.Array:
        apart = x.reshape(-1, parts, rows // parts, *x.shape[1:])
        return jnp.swapaxes(apart, 0, 1).reshape(parts, -1, *x.shape[1:])

    return jax.tree.map(split, tree)


def _join_rows(tree: Any, rows: int, parts: int) -> Any:
    """The reverse of `_split_rows`."""

    def join(x: jax.Array) -> jax.Array:
        apart = x.reshape(parts, -1, rows // parts, *x.shape[2:])
        return jnp.swapaxes(apart, 0, 1).reshape(-1, *x.shape[2:])

    return jax.tree.map(join, tree)


def _largest_divisor(number: int, limit: int) -> int:
    """The largest divisor of `number` that is at most `limit`; 1 if none is."""
    return next(n for n in range(number, 0, -1) if number % n == 0 and (n == 1 or n <= limit))


def relation_terms(
    asked: Asked, name: str, student_taps: Arrays, teacher_taps: Mapping[str, Any], masks: Batch
) -> tuple[jax.Array, Arrays]:
    """The relation of the term `name`, scaled: (value, raw sum). Some relation heads after the
    other: no [B, R, L, L] of all of them, of either model."""
    _, scales, dtype, rows = asked
    term = asked.terms[name]
    heads = dict(term.options)["heads"]
    chunk = _largest_divisor(heads, CHUNK_NUMBERS // (rows * masks["input_ids"].shape[1] ** 2))

    def split(x_BxLxAxK: jax.Array) -> jax.Array:
        """[B, L, A, K] -> [C, B, L, r, k]: r of the relation heads in each chunk."""
        x = relation_heads(x_BxLxAxK, masks, heads)
        return jnp.moveaxis(x.reshape(*x.shape[:2], heads // chunk, chunk, -1), 2, 0)

    def function(
        ours: jax.Array, theirs: jax.Array, shared: Any
    ) -> tuple[jax.Array, tuple[Arrays, None]]:
        masks, scale = shared
        # A mean over heads, chunk by chunk.
        value = relation(ours, theirs, masks, chunk) * (chunk / heads)
        return value * scale, ({name: value}, None)

    value, (sums, _) = gradient_in_chunks(function, dtype)(
        split(student_taps[term.row.student]),
        split(teacher_taps[term.row.teacher or ""]),
        (dict(masks), scales[name]),
    )
    return value, sums


def student_taps_of(terms: Terms) -> tuple[str, ...]:
    """The student taps that `layer_terms` reads."""
    return tuple(
        sorted(
            {
                name
                for term in terms.values()
                for name in SOURCES.get(term.row.student, (term.row.student,))
            }
        )
    )


def word_terms(
    asked: Asked,
    student: tuple[Any, jax.Array],
    teacher: tuple[Any, jax.Array] | None,
    batch: Batch,
    whole: Callable[[Any], Any] = lambda weights: weights,
) -> tuple[jax.Array, Arrays]:
    """MLM and its distillation over the vocabulary, scaled: (value, raw sums), some masked words of
    every row at a time; or some tokens, of terms that are `everywhere`.

    `student`, `teacher`: (weights, features [B, P or L, D]) as `Model.mlm_features` gives them. `whole`
    gathers split weights, once for all chunks. Kept for the backward pass: one [B, P, V] in the
    student's compute dtype."""
    terms, scales, _, rows = asked
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
        sums = {
            name: term.sum(logits, target if term.row.teacher else None, labels)
            for name, term in terms.items()
        }
        return weighted(sums, shared["scales"]), sums

    everywhere = any(term.row.everywhere for term in terms.values())
    of_places = {name for term in terms.values() for name in term.row.batch}
    read = (
        ("attention_mask",)
        if everywhere
        else ("mlm_weights", *(of_places - {"mlm_positions", "mlm_weights"}))
    )
    labels = {name: split(batch[name]) for name in read}
    shared = {"scales": dict(scales), "teacher": None if teacher is None else whole(teacher[0])}
    slices = labels, None if teacher is None else split(teacher[1])
    run = projected_loss(vocabulary_logits, function, features_BxPxD.dtype, whole)
    return run((weights, split(features_BxPxD)), slices, shared)
