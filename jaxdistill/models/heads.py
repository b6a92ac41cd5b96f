"""What reads the last hidden state: pooler, MLM, NSP, classification, question answering, multiple choice, embedding.

Called by encoder. Each head is one Linen module whose parameters live under its own name beside `embeddings` and
`layers`; the MLM head alone also reads the word table (tied output weights).
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdistill.models.config import ModelConfig
from jaxdistill.models.layers import ACTIVATION_FUNCTIONS, dense, kernel_init, norm


class Pooler(nn.Module):
    """tanh(Dense(.)) of the first token's vector, as in BERT. A "first_token" pooler has no parameters and no module."""

    config: ModelConfig

    @nn.compact
    def __call__(self, first_BxD: jax.Array) -> jax.Array:
        """float32[..., D] -> float32[..., D]."""
        return jnp.tanh(dense(self.config, self.config.hidden_size, "dense")(first_BxD).astype(jnp.float32))


class MaskedLM(nn.Module):
    """logits = Norm(act(Dense(x))) [words ; extra]^T + bias, the norm a LayerNorm even in a NoNorm model."""

    config: ModelConfig

    @nn.compact
    def __call__(self, hidden_BxPxD: jax.Array, words_VxE: jax.Array | None) -> jax.Array:
        """float32[B, P, D], float32[V, E] -> float32[B, P, V]; without the table the features, dtype[B, P, D], that
        `vocabulary_logits` projects."""
        c = self.config
        x = ACTIVATION_FUNCTIONS[c.activation](dense(c, c.hidden_size, "transform")(hidden_BxPxD))
        x = norm(c, "norm", kind="layer_norm")(x).astype(jnp.dtype(c.dtype))
        weights = {"bias": self.param("bias", nn.initializers.zeros, (c.vocab_size,))}
        if c.word_size < c.hidden_size:
            weights["extra_embedding"] = self.param(
                "extra_embedding", kernel_init(c), (c.vocab_size, c.hidden_size - c.word_size))
        return x if words_VxE is None else vocabulary_logits({**weights, "word": words_VxE}, x)


def vocabulary_logits(weights: dict[str, jax.Array], features: jax.Array) -> jax.Array:
    """dtype[..., D] -> float32[..., V], with `weights` word [V, E], bias [V] and, if D > E, extra_embedding [V, D - E].

    Two products rather than one with a concatenated table: no [V, D] copy in every step.
    """
    def project(x: jax.Array, table: jax.Array) -> jax.Array:
        return jnp.einsum("...e,ve->...v", x, table.astype(x.dtype), preferred_element_type=jnp.float32)

    width = weights["word"].shape[1]
    logits = project(features[..., :width], weights["word"])
    if "extra_embedding" in weights:
        logits = logits + project(features[..., width:], weights["extra_embedding"])
    return logits + weights["bias"]


class Dense(nn.Module):
    """Dropout and one projection to `features`: NSP, classifiers, question answering and multiple choice."""

    config: ModelConfig
    features: int
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, deterministic: bool = True) -> jax.Array:
        """float32[..., D] -> float32[..., features]."""
        x = nn.Dropout(self.dropout)(x, deterministic=deterministic)
        return dense(self.config, self.features, "dense")(x).astype(jnp.float32)


def sentence_embedding(config: ModelConfig, hidden_BxLxD: jax.Array, mask_BxL: jax.Array) -> jax.Array:
    """float32[B, D]: the mean over real tokens (or the first token), on the unit sphere if the config says so."""
    if config.embedding_pooling == "first_token":
        pooled_BxD = hidden_BxLxD[:, 0]
    else:
        mask_BxLx1 = mask_BxL[..., None].astype(jnp.float32)
        pooled_BxD = jnp.sum(hidden_BxLxD * mask_BxLx1, axis=1) / jnp.maximum(jnp.sum(mask_BxLx1, axis=1), 1.0)
    if config.normalize_embedding:
        pooled_BxD = pooled_BxD / jnp.maximum(jnp.linalg.norm(pooled_BxD, axis=-1, keepdims=True), 1e-12)
    return pooled_BxD


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
    found = {name: every[name] for name in config.heads if name in every}
    return {"pooler": Pooler(config), **found} if config.pooler == "tanh" else found
