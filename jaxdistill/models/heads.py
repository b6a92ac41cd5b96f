"""What reads the last hidden state: pooler, MLM, NSP, classification, question answering, multiple
choice, embedding.

Called by encoder. Each head is one Linen module whose parameters live under its own name beside
`embeddings` and `layers`; the MLM head alone also reads the word table (tied output weights)."""

from __future__ import annotations

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdistill.models.config import ModelConfig
from jaxdistill.models.layers import ACTIVATION_FUNCTIONS, dense, kernel_init, norm


class Pooler(nn.Module):
    """tanh(Dense(.)) of the first token's vector, as in BERT. A "first_token" pooler has no
    parameters and no module."""

    config: ModelConfig

    @nn.compact
    def __call__(self, first_BxD: jax.Array) -> jax.Array:
        """float32[..., D] -> float32[..., D]."""
        return jnp.tanh(
            dense(self.config, self.config.hidden_size, "dense")(first_BxD).astype(jnp.float32)
        )


class MaskedLM(nn.Module):
    """logits = Norm(act(Dense(x))) [words ; extra]^T + bias, the norm a LayerNorm even in a NoNorm
    model."""

    config: ModelConfig

    @nn.compact
    def __call__(self, hidden_BxPxD: jax.Array, words_VxE: jax.Array | None) -> jax.Array:
        """float32[B, P, D], float32[V, E] -> float32[B, P, V]; without the table the features,
        dtype[B, P, D], that `vocabulary_logits` projects."""
        c = self.config
        x = ACTIVATION_FUNCTIONS[c.activation](dense(c, c.hidden_size, "transform")(hidden_BxPxD))
        x = norm(c, "norm", kind="layer_norm")(x).astype(jnp.dtype(c.dtype))
        weights = {"bias": self.param("bias", nn.initializers.zeros, (c.vocab_size,))}
        if c.word_size < c.hidden_size:
            weights["extra_embedding"] = self.param(
                "extra_embedding", kernel_init(c), (c.vocab_size, c.hidden_size - c.word_size)
            )
        return x if words_VxE is None else vocabulary_logits({**weights, "word": words_VxE}, x)


def vocabulary_logits(weights: dict[str, jax.Array], features: jax.Array) -> jax.Array:
    """dtype[..., D] -> float32[..., V], with `weights` word [V, E], bias [V] and, if D > E,
    extra_embedding [V, D - E].

    Two products rather than one with a concatenated table: no [V, D] copy in every step.
    """

    def project(x: jax.Array, table: jax.Array) -> jax.Array:
        return jnp.einsum(
            "...e,ve->...v", x, table.astype(x.dtype), preferred_element_type=jnp.float32
        )

    width = weights["word"].shape[1]
    logits = project(features[..., :width], weights["word"])
    if "extra_embedding" in weights:
        logits = logits + project(features[..., width:], weights["extra_embedding"])
    return logits + weights["bias"]


class Dense(nn.Module):
    """Dropout and one projection to `features`: NSP, classifiers, question answering and multiple
    choice."""

    config: ModelConfig
    features: int
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, deterministic: bool = True) -> jax.Array:
        """float32[..., D] -> float32[..., features]."""
        x = nn.Dropout(self.dropout)(x, deterministic=deterministic)
        return dense(self.config, self.features, "dense")(x).astype(jnp.float32)


EMBEDDING_ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "tanh": jnp.tanh,
    "identity": lambda x: x,
    "relu": jax.nn.relu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
}


class Embedding(nn.Module):
    """One vector a row, as sentence-transformers makes it: pooling, a dense layer if the config has
    one, unit length if it says so. Without the dense layer it has no parameters."""

    config: ModelConfig

    @nn.compact
    def __call__(self, hidden_BxLxD: jax.Array, mask_BxL: jax.Array | None = None) -> jax.Array:
        """[B, L, D], mask [B, L] (default: all are real tokens) -> float32[B, E]."""
        c = self.config
        mask_BxL = jnp.ones(hidden_BxLxD.shape[:2], jnp.int32) if mask_BxL is None else mask_BxL
        pooled = jnp.concatenate(
            [pool(kind, hidden_BxLxD, mask_BxL) for kind in c.poolings], axis=-1
        )
        if c.embedding_features is not None:
            projected = dense(c, c.embedding_features, "dense")(pooled).astype(jnp.float32)
            pooled = EMBEDDING_ACTIVATIONS[c.embedding_activation](projected)
        if c.normalize_embedding:
            pooled = pooled / jnp.maximum(jnp.linalg.norm(pooled, axis=-1, keepdims=True), 1e-12)
        return pooled


def pool(kind: str, hidden_BxLxD: jax.Array, mask_BxL: jax.Array) -> jax.Array:
    """float32[B, D]: the real tokens of each row as one vector, by one of `POOLINGS`."""
    hidden_BxLxD = hidden_BxLxD.astype(jnp.float32)
    real_BxLx1 = mask_BxL[..., None] > 0
    length = hidden_BxLxD.shape[1]
    if kind == "first_token":
        return hidden_BxLxD[:, 0]
    if kind == "last_token":
        last_B = length - 1 - jnp.argmax(mask_BxL[:, ::-1] > 0, axis=1)
        return jnp.take_along_axis(hidden_BxLxD, last_B[:, None, None], axis=1)[:, 0]
    if kind == "max":
        return jnp.max(hidden_BxLxD, axis=1, where=real_BxLx1, initial=jnp.finfo(jnp.float32).min)
    weights_L = jnp.arange(1, length + 1) if kind == "weighted_mean" else jnp.ones(length)
    weights_BxLx1 = jnp.where(real_BxLx1, weights_L[:, None], 0).astype(jnp.float32)
    count_Bx1 = jnp.maximum(jnp.sum(weights_BxLx1, axis=1), 1.0)
    return jnp.sum(hidden_BxLxD * weights_BxLx1, axis=1) / (
        jnp.sqrt(count_Bx1) if kind == "mean_sqrt_length" else count_Bx1
    )


def modules(config: ModelConfig) -> dict[str, nn.Module]:
    """Every head module of `config` that has parameters, by the name its parameters carry."""
    labels = 1 if config.regression else config.num_labels
    every: dict[str, nn.Module] = {
        "mlm": MaskedLM(config),
        "nsp": Dense(config, 2),
        "sequence_classification": Dense(config, labels, config.classifier_dropout),
        "token_classification": Dense(config, config.num_labels, config.classifier_dropout),
        "question_answering": Dense(config, 2),
        "multiple_choice": Dense(config, 1, config.classifier_dropout),
    }
    if config.embedding_features is not None:
        every["embedding"] = Embedding(config)
    found = {name: every[name] for name in config.heads if name in every}
    return {"pooler": Pooler(config), **found} if config.pooler == "tanh" else found
