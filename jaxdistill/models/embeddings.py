"""Token ids to the first hidden state: word table, trigram, projection, positions, types, norm. Called by encoder.

MobileBERT section 3.2 ("Embedding Factorization"): a narrow word table whose trigrams are projected to the inter-block
width. Order of the trigram is next, current, previous; outside the row it is zero, but a pad to the right counts.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdistill.models.config import ModelConfig
from jaxdistill.models.layers import dense, kernel_init, norm


class Embeddings(nn.Module):
    """ids -> hidden state 0."""

    config: ModelConfig

    @nn.compact
    def __call__(self, ids_BxL: jax.Array, types_BxL: jax.Array, positions_BxL: jax.Array,
                 deterministic: bool = True) -> jax.Array:
        """int32[B, L] three times -> float32[B, L, D]."""
        c = self.config
        init = kernel_init(c)
        words_VxE = self.param("word", init, (c.vocab_size, c.word_size))
        position_table = self.param("position", init, (c.max_positions, c.hidden_size))
        type_table = self.param("token_type", init, (c.type_vocab_size, c.hidden_size))
        x = jnp.take(words_VxE, ids_BxL, axis=0)
        if c.trigram_input:
            pad = ((0, 0), (0, 1), (0, 0))
            following, previous = jnp.pad(x[:, 1:], pad), jnp.pad(x[:, :-1], pad[:1] + ((1, 0),) + pad[2:])
            x = jnp.concatenate([following, x, previous], axis=-1)
        if c.has_embedding_projection:
            x = dense(c, c.hidden_size, "projection")(x)
        hidden_BxLxD = (x.astype(jnp.float32) + jnp.take(position_table, positions_BxL, axis=0)
                        + jnp.take(type_table, types_BxL, axis=0))
        hidden_BxLxD = norm(c, "norm", c.embedding_norm_eps)(hidden_BxLxD)
        return nn.Dropout(c.hidden_dropout)(hidden_BxLxD, deterministic=deterministic)
