"""One encoder block: bottleneck in, attention, a stack of feed-forward networks, bottleneck out.
Called by encoder.

Without bottlenecks it is BERT's block; with a wide one IB-BERT's; with a narrow one MobileBERT's
(paper figure 1). The published code's order is kept exactly: post-norm everywhere, no dropout
between the bottlenecks."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdistill.models.config import ModelConfig
from jaxdistill.models.layers import ACTIVATION_FUNCTIONS, dense, norm, to_residual

BLOCK_TAPS = ("hidden", "query", "key", "value", "attention_scores")


class Bottleneck(nn.Module):
    """Norm(Dense(x)): between the inter-block and the intra-block width."""

    config: ModelConfig

    @nn.compact
    def __call__(self, hidden_BxLxD: jax.Array) -> jax.Array:
        c = self.config
        return to_residual(c, norm(c, "norm")(dense(c, c.inner_size, "dense")(hidden_BxLxD)))


class Attention(nn.Module):
    """Multi-head self-attention with its output projection, residual and norm."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self,
        query_input: jax.Array,
        key_input: jax.Array,
        value_input: jax.Array,
        residual_BxLxH: jax.Array,
        bias_Bx1xLxL: jax.Array,
        deterministic: bool,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Returns the normed sum, residual dtype[B, L, H], and the taps query, key, value,
        attention_scores."""
        c = self.config
        heads = (c.num_heads, c.head_size)
        q_BxLxAxK = dense(c, heads, "query")(query_input)
        k_BxLxAxK = dense(c, heads, "key")(key_input)
        v_BxLxAxK = dense(c, heads, "value")(value_input)
        scores_BxAxLxL = attention_scores(q_BxLxAxK, k_BxLxAxK, bias_Bx1xLxL)
        weights_BxAxLxL = jax.lax.platform_dependent(
            scores_BxAxLxL, cpu=_softmax_of_rows, default=jax.nn.softmax
        )
        weights_BxAxLxL = nn.Dropout(c.attention_dropout)(
            weights_BxAxLxL, deterministic=deterministic
        )
        context_BxLxAxK = jnp.einsum(
            "baqt,btak->bqak", weights_BxAxLxL.astype(v_BxLxAxK.dtype), v_BxLxAxK
        )
        out_BxLxH = dense(c, c.inner_size, "out", axis=(-2, -1))(context_BxLxAxK)
        if c.bottleneck_size is None:
            out_BxLxH = nn.Dropout(c.hidden_dropout)(out_BxLxH, deterministic=deterministic)
        out_BxLxH = to_residual(c, norm(c, "norm")(out_BxLxH.astype(jnp.float32) + residual_BxLxH))
        return out_BxLxH, {
            "query": q_BxLxAxK,
            "key": k_BxLxAxK,
            "value": v_BxLxAxK,
            "attention_scores": scores_BxAxLxL,
        }


def attention_scores(
    query_BxLxAxK: jax.Array, key_BxLxAxK: jax.Array, bias_Bx1xLxL: jax.Array
) -> jax.Array:
    """Scaled dot products plus the additive mask, float32[B, A, L, L]."""
    scores_BxAxLxL = jnp.einsum(
        "bqak,btak->baqt", query_BxLxAxK, key_BxLxAxK, preferred_element_type=jnp.float32
    )
    return scores_BxAxLxL * query_BxLxAxK.shape[-1] ** -0.5 + bias_Bx1xLxL


def _softmax_of_rows(x: jax.Array) -> jax.Array:
    """Softmax on two axes, for the reason given in FeedForward. Elsewhere no gain, and it would
    merge the batch with the heads, which a mesh may split over other devices each."""
    return jax.nn.softmax(x.reshape(-1, x.shape[-1])).reshape(x.shape)


class FeedForward(nn.Module):
    """Norm(Dense(act(Dense(x))) + x); MobileBERT stacks several, the last of them being BERT's only
    one."""

    config: ModelConfig
    last: bool

    @nn.compact
    def __call__(self, x_BxLxH: jax.Array, deterministic: bool) -> jax.Array:
        c = self.config
        # One axis of tokens: XLA's CPU loops are vectorised over two axes, not over three (twice as
        # fast as [B, L, F]).
        x_TxH = x_BxLxH.reshape(-1, c.inner_size)
        up_TxF = ACTIVATION_FUNCTIONS[c.activation](dense(c, c.intermediate_size, "up")(x_TxH))
        down_TxH = dense(c, c.inner_size, "down")(up_TxF)
        if self.last and c.bottleneck_size is None:
            down_TxH = nn.Dropout(c.hidden_dropout)(down_TxH, deterministic=deterministic)
        out_TxH = norm(c, "norm", c.ffn_norm_eps if self.last else None)(
            down_TxH.astype(jnp.float32) + x_TxH
        )
        return to_residual(c, out_TxH).reshape(x_BxLxH.shape)


class Block(nn.Module):
    """hidden state l -> hidden state l + 1, with every tap of the layer (unread ones cost nothing
    under jit)."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self, hidden_BxLxD: jax.Array, bias_Bx1xLxL: jax.Array, deterministic: bool = True
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """[B, L, D] and an additive bias float32[B, 1, 1 or L, L] -> [B, L, D] in the residual
        dtype, taps by name."""
        c = self.config
        block_input = hidden_BxLxD
        if c.bottleneck_size is not None:
            hidden_BxLxD = Bottleneck(c, name="bottleneck_in")(block_input)
        inner_BxLxH = hidden_BxLxD
        query_input = key_input = value_input = block_input
        if c.attention_input == "bottleneck":
            query_input = key_input = value_input = inner_BxLxH
        elif c.attention_input == "shared_bottleneck":
            query_input = key_input = Bottleneck(c, name="bottleneck_qk")(block_input)
        x_BxLxH, taps = Attention(c, name="attention")(
            query_input, key_input, value_input, inner_BxLxH, bias_Bx1xLxL, deterministic
        )
        for i in range(c.num_ffn):
            x_BxLxH = FeedForward(c, last=i == c.num_ffn - 1, name=f"ffn_{i}")(
                x_BxLxH, deterministic
            )
        if c.bottleneck_size is not None:
            out_BxLxD = dense(c, c.hidden_size, "bottleneck_out")(x_BxLxH)
            out_BxLxD = nn.Dropout(c.hidden_dropout)(out_BxLxD, deterministic=deterministic)
            x_BxLxH = norm(c, "bottleneck_out_norm")(out_BxLxD.astype(jnp.float32) + block_input)
            x_BxLxH = to_residual(c, x_BxLxH)
        return x_BxLxH, {"hidden": x_BxLxH, **taps}
