"""The named axes of every parameter: ONE table, from which follow where arrays are split over a mesh
(`placement`) and what a narrower network is cut out of (`students.extract`).

    layer                    N: the blocks
    hidden                   D: what flows between blocks
    inner, shared            H: what flows inside a block; MobileBERT's bottleneck of queries and keys
    heads, query, value      A; K of queries and keys; K of values and contexts
    ffn_0, ffn_1, ...        F of each feed-forward network of a block
    word, extra              E: the word table; what the MLM head adds to it, D - E
    pooled, features         what the pooler gives; what the embedding's dense layer gives
    projection               P: what heads read the last hidden state as, where it is not that itself
    vocabulary, position, type, label

Two arrays that meet in a product or a sum share the axis between them. So an axis may be put in another
order, everywhere at once, and the network's outputs stay what they were; and a part of it is a network
too. Which axes are one depends on the model: `Axes` knows."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping

import numpy as np

from jaxdistill.errors import BadInput
from jaxdistill.models.config import ModelConfig

# (pattern of a parameter's name, its axes). The first match counts. Names that `Axes` explains: what
# queries and values read ("query_input", "value_input"), what is projected to hidden vectors
# ("projected"), what the MLM head compares with words ("output"), what is pooled ("pools"), what heads of
# tokens read ("token").
TABLE: tuple[tuple[str, tuple[str, ...]], ...] = (
    (r"layers/attention/(?:query|key)/kernel", ("layer", "query_input", "heads", "query")),
    (r"layers/attention/(?:query|key)/bias", ("layer", "heads", "query")),
    (r"layers/attention/value/kernel", ("layer", "value_input", "heads", "value")),
    (r"layers/attention/value/bias", ("layer", "heads", "value")),
    (r"layers/attention/out/kernel", ("layer", "heads", "value", "inner")),
    (r"layers/(ffn_\d+)/up/kernel", ("layer", "inner", r"\1")),
    (r"layers/(ffn_\d+)/up/bias", ("layer", r"\1")),
    (r"layers/(ffn_\d+)/down/kernel", ("layer", r"\1", "inner")),
    (r"layers/bottleneck_in/dense/kernel", ("layer", "hidden", "inner")),
    (r"layers/bottleneck_qk/dense/kernel", ("layer", "hidden", "shared")),
    (r"layers/bottleneck_qk/.+", ("layer", "shared")),
    (r"layers/bottleneck_out/kernel", ("layer", "inner", "hidden")),
    (r"layers/(?:bottleneck_out|bottleneck_out_norm)/(?:bias|scale)", ("layer", "hidden")),
    (r"layers/.+/(?:bias|scale)", ("layer", "inner")),
    (r"embeddings/word", ("vocabulary", "word")),
    (r"embeddings/position", ("position", "hidden")),
    (r"embeddings/token_type", ("type", "hidden")),
    (r"embeddings/projection/kernel", ("projected", "hidden")),
    (r"embeddings/.+", ("hidden",)),
    (r"pooler/dense/kernel", ("hidden", "pooled")),
    (r"pooler/dense/bias", ("pooled",)),
    (r"mlm/transform/kernel", ("hidden", "output")),
    (r"mlm/extra_embedding", ("vocabulary", "extra")),
    (r"mlm/bias", ("vocabulary",)),
    (r"mlm/.+", ("output",)),
    (r"embedding/dense/kernel", ("pools", "features")),
    (r"embedding/dense/bias", ("features",)),
    (r"projection/dense/kernel", ("hidden", "projection")),
    (r"projection/dense/bias", ("projection",)),
    (r"(?:token_classification|question_answering)/dense/kernel", ("token", "label")),
    (r"(?:nsp|sequence_classification|multiple_choice)/dense/kernel", ("pooled", "label")),
    (
        r"(?:nsp|sequence_classification|multiple_choice|token_classification|question_answering)/dense/bias",
        ("label",),
    ),
)


@functools.lru_cache(1024)
def axes_of(name: str) -> tuple[str, ...]:
    """The axes of the parameter `name`, those of every model alike. Raises `BadInput` for a name that the
    table does not cover: it is that of a head or projection of one's own."""
    for pattern, axes in TABLE:
        if found := re.fullmatch(pattern, name):
            return tuple(found.expand(axis) for axis in axes)
    raise BadInput(f"the axes of the parameter {name!r} are not in models/axes.py; add them")


class Axes:
    """The axes of one model. `sizes`: of each that it has, but for vocabulary, positions, types and labels."""

    def __init__(self, config: ModelConfig) -> None:
        c = self.config = config
        # Each axis as the axes that it is made of, one after the other.
        inner = "inner" if c.bottleneck_size is not None else "hidden"
        word = "word" if c.has_embedding_projection else "hidden"
        read = "hidden" if c.projected_size is None else "projection"
        queries = {"hidden": "hidden", "shared_bottleneck": "shared", "bottleneck": "inner"}
        values = {"hidden": "hidden", "shared_bottleneck": "hidden", "bottleneck": "inner"}
        self._made_of: Mapping[str, tuple[str, ...]] = {
            "inner": (inner,),
            "word": (word,),
            "query_input": (queries[c.attention_input],),
            "value_input": (values[c.attention_input],),
            "projected": (word,) * (3 if c.trigram_input else 1),
            "output": (word, "extra") if c.word_size < c.hidden_size else (word,),
            "pools": ("hidden",) * len(c.poolings),
            "pooled": ("pooled" if c.pooler == "tanh" else read,),
            "token": (read,),
        }
        sizes = {
            "layer": c.num_layers,
            "hidden": c.hidden_size,
            "heads": c.num_heads,
            "query": c.head_size,
            "value": c.head_size,
            **{f"ffn_{i}": c.intermediate_size for i in range(c.num_ffn)},
        }
        if c.bottleneck_size is not None:
            sizes["inner"] = c.inner_size
        if c.attention_input == "shared_bottleneck":
            sizes["shared"] = c.inner_size
        if c.has_embedding_projection:
            sizes["word"] = c.word_size
        if c.word_size < c.hidden_size and "mlm" in c.heads:
            sizes["extra"] = c.hidden_size - c.word_size
        if c.pooler == "tanh":
            sizes["pooled"] = c.hidden_size
        if c.projected_size is not None:
            sizes["projection"] = c.projected_size
        if c.embedding_features is not None and "embedding" in c.heads:
            sizes["features"] = c.embedding_features
        self.sizes = sizes

    def parts(self, axis: str) -> tuple[str, ...]:
        """The axes that `axis` is made of, one after the other: mostly itself."""
        return self._made_of.get(axis, (axis,))

    def indices(self, axis: str, keep: Mapping[str, np.ndarray]) -> np.ndarray | None:
        """Which places of `axis` are kept, given which of the axes that it is made of: int[k], or with leading
        axes of layers and heads. None: all of them."""
        parts = self.parts(axis)
        if not any(part in keep for part in parts):
            return None
        found, begin = [], 0
        for part in parts:
            size = self.sizes[part]
            found.append(begin + np.asarray(keep.get(part, np.arange(size))))
            begin += size
        return np.concatenate(found, axis=-1) if len(found) > 1 else found[0]
