"""Tiny networks of ours whose every number is random: norms and biases too, so that a swapped
tensor is seen."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from jaxdistill.models import Model, ModelConfig, Params

SHRUNK: dict[str, Any] = {
    "vocab_size": 37,
    "num_layers": 2,
    "hidden_size": 12,
    "num_heads": 2,
    "intermediate_size": 10,
    "max_positions": 9,
    "type_vocab_size": 3,
}


def random_params(config: ModelConfig, seed: int = 0) -> Params:
    """Parameters of `config`, scales about 1 and all else about 0, without compiling anything."""
    rng = np.random.default_rng(seed)
    tree = jax.eval_shape(Model(config).init, jax.random.key(0))

    def draw(path: tuple[Any, ...], leaf: Any) -> np.ndarray:
        noise = 0.3 * rng.normal(size=leaf.shape)
        return (noise + (path[-1].key == "scale")).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, tree)
