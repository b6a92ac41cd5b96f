"""What reads the last hidden state: pooler, MLM, NSP, classification, question answering, multiple
choice, embedding.

Called by encoder. Each head is one Linen module whose parameters live under its own name beside
`embeddings` and `layers`; the MLM head alone also reads the word table (tied output weights)."""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdistill.errors import BadInput, nearest
from jaxdistill.models.config import ModelConfig
from jaxdistill.models.layers import ACTIVATION_FUNCTIONS, dense, kernel_init, norm
from jaxdistill.registry import Table

PROJECTION = "projection"  # the map of the last hidden state, `projected_size` wide


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
    """Dropout and one projection to `features`: NSP, classifiers, question answering, multiple choice,
    and the map that some of these read the last hidden state through."""

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


def projects(config: ModelConfig, reads: str) -> bool:
    """Whether a head that reads "tokens", "pooled", … reads them through the network's own projection."""
    pooled = reads == "pooled" and config.pooler != "tanh"
    return config.projected_size is not None and (pooled or reads == "tokens")


def read_width(config: ModelConfig, reads: str) -> int:
    """The width of the vectors that such a head reads."""
    return (config.projected_size or 0) if projects(config, reads) else config.hidden_size


@dataclasses.dataclass(frozen=True)
class Head:
    """One head. `module(config)` has its parameters.

    `reads`, what the module is called with: "masked" (hidden states at `mlm_positions`, and the word
    table), "pooled" (the pooler's output, without a pooler the first token's vector), "tokens"
    (hidden states [B, L, D]; these two also with `deterministic`, a bool) or "rows" (hidden states
    and the attention mask). `outputs` are the names of what it returns, split along the last axis if
    there are several. `macs(config, length, masked)`: multiply-accumulates of a row. `packed`:
    whether it can read rows that hold several texts. `by_label`: whether it has a number for each of
    a task's labels, in their order."""

    module: Callable[[ModelConfig], nn.Module]
    reads: str
    outputs: tuple[str, ...]
    macs: Callable[[ModelConfig, int, int], int]
    packed: bool = True
    by_label: bool = False


def num_classes(config: ModelConfig) -> int:
    """How many numbers a classifier of sequences gives."""
    return 1 if config.regression else config.num_labels


HEADS = Table(
    "head",
    {
        "mlm": Head(
            MaskedLM,
            "masked",
            ("mlm_logits",),
            lambda c, _, masked: masked * c.hidden_size * (c.hidden_size + c.vocab_size),
        ),
        "nsp": Head(
            lambda c: Dense(c, 2),
            "pooled",
            ("nsp_logits",),
            lambda c, *_: 2 * read_width(c, "pooled"),
        ),
        "sequence_classification": Head(
            lambda c: Dense(c, num_classes(c), c.classifier_dropout),
            "pooled",
            ("logits",),
            lambda c, *_: num_classes(c) * read_width(c, "pooled"),
            by_label=True,
        ),
        "token_classification": Head(
            lambda c: Dense(c, c.num_labels, c.classifier_dropout),
            "tokens",
            ("logits",),
            lambda c, length, _: length * c.num_labels * read_width(c, "tokens"),
            by_label=True,
        ),
        "question_answering": Head(
            lambda c: Dense(c, 2),
            "tokens",
            ("start_logits", "end_logits"),
            lambda c, length, _: length * 2 * read_width(c, "tokens"),
            packed=False,
        ),
        "embedding": Head(
            Embedding,
            "rows",
            ("embedding",),
            lambda c, *_: len(c.poolings) * c.hidden_size * (c.embedding_features or 0),
            packed=False,
        ),
        "multiple_choice": Head(
            lambda c: Dense(c, 1, c.classifier_dropout),
            "pooled",
            ("logits",),
            lambda c, *_: read_width(c, "pooled"),
        ),
    },
)
_DRAWN_TOGETHER = ("embeddings", "layers", "pooler", *HEADS)


def register(name: str, head: Head) -> None:
    """Adds a head of one's own, whose parameters are kept under its name. Raises `BadInput` if the
    name is taken."""
    if name in ("embeddings", "layers", "pooler", PROJECTION):
        raise BadInput(
            f"the head {name!r} would have the name of a part of every network; give it another"
        )
    HEADS.register(name, head)


def check_heads(config: ModelConfig) -> None:
    """Raises `BadInput` with the nearest name for a head of `config` that is not in `HEADS`."""
    for name in config.heads:
        if name not in HEADS:
            raise BadInput(
                f"model heads={config.heads!r}: {name!r} is unknown; {nearest(name, HEADS)} (one of your "
                "own is known once jaxdistill.load_config has read its file)"
            )


def modules(config: ModelConfig) -> dict[str, nn.Module]:
    """Every head module of `config` that has parameters, by the name its parameters carry."""
    found = {name: HEADS[name].module(config) for name in config.heads}
    if config.embedding_features is None:
        found.pop("embedding", None)
    if config.projected_size is not None:
        found[PROJECTION] = Dense(config, config.projected_size)
    return {"pooler": Pooler(config), **found} if config.pooler == "tanh" else found


def init_keys(config: ModelConfig, key: jax.Array) -> dict[str, jax.Array]:
    """A key for each part of a network, the same whatever other heads there are."""
    keys = dict(zip(_DRAWN_TOGETHER, jax.random.split(key, len(_DRAWN_TOGETHER))))
    for name in (*config.heads, PROJECTION):
        if name not in keys:
            keys[name] = jax.random.fold_in(key, zlib.crc32(name.encode()))
    return keys
