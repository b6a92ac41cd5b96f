"""Held-out text: masked-LM loss and accuracy, NSP accuracy, and how far a student is from its
teacher.

Every network is measured on the same rows with the same masks, so differences are paired. Letters:
B batch, P masked positions, V vocabulary."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxdistill.models import Batch, Model, Params
from jaxdistill.training import sharding


def evaluate(
    model: Model,
    params: Params,
    batches: Iterable[dict[str, np.ndarray]],
    *,
    mesh: Mesh,
    teacher: Model | None = None,
    teacher_params: Params | None = None,
) -> dict[str, float]:
    """Averages over all masked words (or rows): `mlm_loss` (nats), `mlm_accuracy`, `nsp_loss`,
    `nsp_accuracy`, and with a teacher `teacher_kl` (KL(teacher || model), nats), `top1_agreement`
    (same best word) and `top5_agreement` (share of the teacher's five best words among the model's
    five). Absent heads leave their numbers out. `rows`: how many rows were measured. `batches` are
    this host's part of global batches."""
    sums_fn = compile_sums(model, teacher)
    totals: dict[str, float] = {}
    params, other = sharding.place(mesh, params), sharding.place(mesh, teacher_params or {})
    for batch in batches:
        for name, value in jax.device_get(
            sums_fn(params, other, sharding.put_batch(mesh, batch))
        ).items():
            totals[name] = totals.get(name, 0.0) + float(value)
    words, rows = max(totals.pop("words"), 1.0), totals.pop("rows")
    found = {
        name: value / (max(rows, 1.0) if name.startswith("nsp") else words)
        for name, value in totals.items()
    }
    return {**found, "rows": int(rows)}


def unigram_loss(
    train: Iterable[Mapping[str, np.ndarray]],
    heldout: Iterable[Mapping[str, np.ndarray]],
    vocab_size: int,
) -> float:
    """`mlm_loss`, in nats, of a guess that knows how often each word is masked in `train` and nothing of
    the text: what a network must be below to have learned anything. Each word counts once more than it
    was seen."""

    def masked(batch: Mapping[str, np.ndarray]) -> np.ndarray:
        return batch["mlm_labels"][batch["mlm_weights"] > 0]

    counts_V = np.ones(vocab_size)
    for batch in train:
        counts_V += np.bincount(masked(batch), minlength=vocab_size)
    losses_V = np.log(counts_V.sum()) - np.log(counts_V)
    found = np.concatenate([losses_V[masked(batch)] for batch in heldout])
    return float(found.mean()) if len(found) else math.nan


@functools.lru_cache(16)
def compile_sums(model: Model, teacher: Model | None) -> jax.stages.Wrapped:
    """`make_sums`, jitted once in a process for networks of one kind."""
    return jax.jit(make_sums(model, teacher))


def make_sums(
    model: Model, teacher: Model | None
) -> Callable[[Params, Params, Batch], dict[str, jax.Array]]:
    """The jittable part: (parameters, teacher parameters, batch) -> sums, plus the counts `words`
    and `rows`."""

    def sums(params: Params, teacher_params: Params, batch: Batch) -> dict[str, jax.Array]:
        heads = tuple(head for head in ("mlm", "nsp") if head in model.config.heads)
        outputs, _ = model.apply(params, batch, heads=heads)
        weights_BxP, rows_B = batch["mlm_weights"], batch["example_weights"]
        result: dict[str, jax.Array] = {"words": jnp.sum(weights_BxP), "rows": jnp.sum(rows_B)}
        if "mlm" in heads:
            log_probs = jax.nn.log_softmax(outputs["mlm_logits"])
            labels_BxP = batch["mlm_labels"]
            picked_BxP = jnp.take_along_axis(log_probs, labels_BxP[..., None], -1)[..., 0]
            result["mlm_loss"] = -jnp.sum(picked_BxP * weights_BxP)
            result["mlm_accuracy"] = jnp.sum(
                (jnp.argmax(log_probs, -1) == labels_BxP) * weights_BxP
            )
            if teacher is not None and "mlm" in teacher.config.heads:
                theirs = jax.nn.log_softmax(
                    teacher.apply(teacher_params, batch, heads=("mlm",))[0]["mlm_logits"]
                )
                result |= {
                    name: jnp.sum(value * weights_BxP)
                    for name, value in _distance(log_probs, theirs).items()
                }
        if "nsp" in heads:
            log_probs = jax.nn.log_softmax(outputs["nsp_logits"])
            labels_B = batch["nsp_labels"]
            result["nsp_loss"] = -jnp.sum(
                jnp.take_along_axis(log_probs, labels_B[:, None], -1)[:, 0] * rows_B
            )
            result["nsp_accuracy"] = jnp.sum((jnp.argmax(log_probs, -1) == labels_B) * rows_B)
        return result

    return sums


def _distance(ours_BxPxV: jax.Array, theirs_BxPxV: jax.Array) -> dict[str, Any]:
    # The barrier keeps the two uses of each top-k apart from it: simplified together with them,
    # XLA's CPU compiler sorts the whole vocabulary instead (1.3 s, not 0.02 s, for 64 x 10 x 4,096
    # on two cores).
    top_ours, top_theirs = jax.lax.optimization_barrier(
        tuple(jax.lax.top_k(x, 5)[1] for x in (ours_BxPxV, theirs_BxPxV))
    )
    shared = jnp.any(top_ours[..., :, None] == top_theirs[..., None, :], axis=-2)
    return {
        "teacher_kl": jnp.sum(jnp.exp(theirs_BxPxV) * (theirs_BxPxV - ours_BxPxV), -1),
        "top1_agreement": (top_ours[..., 0] == top_theirs[..., 0]).astype(jnp.float32),
        "top5_agreement": jnp.mean(shared.astype(jnp.float32), -1),
    }
