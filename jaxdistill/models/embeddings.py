"""Token ids to the first hidden state: word table, trigram, projection, positions, types, norm. Called by encoder.

MobileBERT section 3.2 ("Embedding Factorization"): a narrow word table whose trigrams are projected to the inter-block
width. Order of the trigram is next, current, previous; outside the row it is zero, but a pad to the right counts.

In a packed row trigrams end at segments, as if each stood alone in a row with pads behind it: the right neighbour of a
segment's last token is the [PAD] vector (even at the end of the row), the left neighbour of its first is zero.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdistill.models.config import ModelConfig
from jaxdistill.models.layers import dense, kernel_init, norm, to_residual


class Embeddings(nn.Module):
    """ids -> hidden state 0."""

    config: ModelConfig

    @nn.compact
    def __call__(self, ids_BxL: jax.Array, types_BxL: jax.Array, positions_BxL: jax.Array,
                 segments_BxL: jax.Array | None = None, deterministic: bool = True) -> jax.Array:
        """int32[B, L] three times (four if rows are packed) -> [B, L, D] in the residual dtype."""
        c = self.config
        init = kernel_init(c)
        words_VxE = self.param("word", init, (c.vocab_size, c.word_size))
        position_table = self.param("position", init, (c.max_positions, c.hidden_size))
        type_table = self.param("token_type", init, (c.type_vocab_size, c.hidden_size))
        x = jnp.take(words_VxE, ids_BxL, axis=0)
        if c.trigram_input:
            pad = ((0, 0), (0, 1), (0, 0))
            following, previous = jnp.pad(x[:, 1:], pad), jnp.pad(x[:, :-1], pad[:1] + ((1, 0),) + pad[2:])
            if segments_BxL is not None:
                ends = jnp.pad(segments_BxL[:, 1:] != segments_BxL[:, :-1], ((0, 0), (0, 1)), constant_values=True)
                begins = jnp.pad(ends[:, :-1], ((0, 0), (1, 0)), constant_values=True)
                following = jnp.where(ends[..., None], words_VxE[c.pad_token_id], following)
                previous = jnp.where(begins[..., None], 0.0, previous)
            x = jnp.concatenate([following, x, previous], axis=-1)
        if c.has_embedding_projection:
            x = dense(c, c.hidden_size, "projection")(x)
        hidden_BxLxD = (x.astype(jnp.float32) + jnp.take(position_table, positions_BxL, axis=0)
                        + jnp.take(type_table, types_BxL, axis=0))
        hidden_BxLxD = to_residual(c, norm(c, "norm", c.embedding_norm_eps)(hidden_BxLxD))
        return nn.Dropout(c.hidden_dropout)(hidden_BxLxD, deterministic=deterministic)
