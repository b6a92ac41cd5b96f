"""Token ids to the first hidden state: word table, trigram, projection, positions, types, norm.
Called by encoder.

MobileBERT section 3.2 ("Embedding Factorization"): a narrow word table whose trigrams are projected
to the inter-block width. Order of the trigram is next, current, previous; outside the row it is
zero, but a pad to the right counts.

In a packed row trigrams end at segments, as if each stood alone in a row with pads behind it: the
right neighbour of a segment's last token is the [PAD] vector (even at the end of the row), the left
neighbour of its first is zero."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxdistill.errors import BadInput
from jaxdistill.models.config import ModelConfig
from jaxdistill.models.layers import dense, kernel_init, norm, to_residual

# {field of a batch: the field of ModelConfig that its numbers stay below, what to do if they do
# not}
TABLES = {
    "input_ids": ("vocab_size", "take the tokenizer that belongs to the model"),
    "token_type_ids": (
        "type_vocab_size",
        "leave them away, or take the tokenizer that belongs to the model",
    ),
    "position_ids": ("max_positions", "leave them away, or count from 0 in rows that fit"),
}
# Places in a row, which is as long as `input_ids`.
PLACES = ("mlm_positions", "cls_positions")


class Embeddings(nn.Module):
    """ids -> hidden state 0."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self,
        ids_BxL: jax.Array,
        types_BxL: jax.Array,
        positions_BxL: jax.Array,
        segments_BxL: jax.Array | None = None,
        deterministic: bool = True,
    ) -> jax.Array:
        """int32[B, L] three times (four if rows are packed) -> [B, L, D] in the residual dtype."""
        c = self.config
        init = kernel_init(c)
        words_VxE = self.param("word", init, (c.vocab_size, c.word_size))
        position_table = self.param("position", init, (c.max_positions, c.hidden_size))
        type_table = self.param("token_type", init, (c.type_vocab_size, c.hidden_size))
        x = rows_of(words_VxE, ids_BxL)
        if c.trigram_input:
            pad = ((0, 0), (0, 1), (0, 0))
            following, previous = (
                jnp.pad(x[:, 1:], pad),
                jnp.pad(x[:, :-1], pad[:1] + ((1, 0),) + pad[2:]),
            )
            if segments_BxL is not None:
                ends = jnp.pad(
                    segments_BxL[:, 1:] != segments_BxL[:, :-1],
                    ((0, 0), (0, 1)),
                    constant_values=True,
                )
                begins = jnp.pad(ends[:, :-1], ((0, 0), (1, 0)), constant_values=True)
                following = jnp.where(ends[..., None], words_VxE[c.pad_token_id], following)
                previous = jnp.where(begins[..., None], 0.0, previous)
            x = jnp.concatenate([following, x, previous], axis=-1)
        if c.has_embedding_projection:
            x = dense(c, c.hidden_size, "projection")(x)
        hidden_BxLxD = (
            x.astype(jnp.float32)
            + rows_of(position_table, positions_BxL)
            + rows_of(type_table, types_BxL)
        )
        hidden_BxLxD = to_residual(c, norm(c, "norm", c.embedding_norm_eps)(hidden_BxLxD))
        return nn.Dropout(c.hidden_dropout)(hidden_BxLxD, deterministic=deterministic)


def rows_of(table: jax.Array, ids: jax.Array) -> jax.Array:
    """The rows `ids` of a table [V, D], NaN where there is no such row: below 0 too, which JAX
    counts from the end."""
    return jnp.take(table, jnp.where(ids < 0, table.shape[0], ids), axis=0)


def check_ids(config: ModelConfig, batch: Mapping[str, Any]) -> None:
    """Raises `BadInput` for ids, types and positions without a row in the table that they are
    looked up in, and for places outside the row, as far as the numbers are known: under `jit` they
    are not, and there they give NaN."""
    for name, (field, advice) in TABLES.items():
        check_range(
            name, batch.get(name), getattr(config, field), f"below the model's {field}; {advice}"
        )
    for name in PLACES:
        check_range(
            name, batch.get(name), np.shape(batch["input_ids"])[1], "places in a row of input_ids"
        )


def check_range(name: str, array: Any, limit: int, explanation: str) -> None:
    """Raises `BadInput` unless all numbers of `array`, as far as they are known, are 0 to `limit` -
    1."""
    numbers = known(array)
    outside = numbers[(numbers < 0) | (numbers >= limit)]
    if outside.size:
        raise BadInput(f"{name} holds {outside.flat[0]}; expected 0 to {limit - 1}, {explanation}")


def known(array: Any) -> np.ndarray:
    """The numbers of an array; none of them if it is None, under `jit`, or if some are on other
    hosts."""
    if (
        array is None
        or isinstance(array, jax.core.Tracer)
        or (isinstance(array, jax.Array) and not array.is_fully_addressable)
    ):
        return np.zeros(0, np.int32)
    return np.asarray(jax.device_get(array))
