"""The small parts every block is made of: norms, dense projections, activations. Called by block,
embeddings, heads.

Letters of shape suffixes in `models`: B batch, L sequence length, D inter-block width, H
intra-block width, A heads, K head width, E word-table width, P masked positions, V vocabulary, N
layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdistill.models.config import ModelConfig


def gelu(x: jax.Array) -> jax.Array:
    """x Phi(x), exact (Hendrycks & Gimpel 2016). By erf, as PyTorch has it: jax.nn.gelu takes erfc,
    which is exact far below 0, where the value is 0 but for 1e-6, and takes two to three times as
    long on a CPU."""
    return 0.5 * x * (1 + jax.lax.erf(x * 2**-0.5))


ACTIVATION_FUNCTIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": gelu,
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
}


class NoNorm(nn.Module):
    """y = scale * x + bias, no statistics: MobileBERT's replacement of LayerNorm (paper section
    3.4)."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """float[..., W] -> float32[..., W]."""
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        return x.astype(jnp.float32) * scale + bias


def norm(
    config: ModelConfig, name: str, eps: float | None = None, kind: str | None = None
) -> nn.Module:
    """The config's norm, always computed in float32; `eps` overrides `norm_eps`, `kind` the
    config's `norm`."""
    if (kind or config.norm) == "no_norm":
        return NoNorm(name=name)
    # use_fast_variance=False: E[x^2] - E[x]^2 cancels catastrophically on hidden states with large
    # means.
    return nn.LayerNorm(
        epsilon=config.norm_eps if eps is None else eps,
        dtype=jnp.float32,
        use_fast_variance=False,
        name=name,
    )


def to_residual(config: ModelConfig, x: jax.Array) -> jax.Array:
    """What a norm gives, in the dtype in which the residual stream is kept."""
    return x.astype(jnp.dtype(config.residual_dtype))


def dense(
    config: ModelConfig, features: int | Sequence[int], name: str, axis: int | Sequence[int] = -1
) -> nn.Module:
    """A projection with bias: products in `config.dtype`, parameters float32, BERT's
    truncated-normal kernel."""
    return nn.DenseGeneral(
        features,
        axis=axis,
        dtype=jnp.dtype(config.dtype),
        kernel_init=kernel_init(config),
        name=name,
    )


def kernel_init(config: ModelConfig) -> nn.initializers.Initializer:
    """Truncated at two standard deviations of the untruncated normal, as TF1's
    `truncated_normal_initializer`."""
    return nn.initializers.truncated_normal(config.initializer_range)
