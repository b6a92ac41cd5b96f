"""THE name table: each of our parameters beside its name in Hugging Face's PyTorch BERT and MobileBERT.

One row per parameter. To find where a tensor goes, search this file for either name. Read by `convert`, which applies
the table; no other file of the package knows a foreign parameter name.

Our names are paths in the parameter tree; what stands under `layers/` is stacked over layers and becomes one foreign
tensor per layer, `{i}` being the layer. Their names are given without the prefix `bert.` or `mobilebert.`, which
models with a head put before `embeddings`, `encoder` and `pooler` and base models leave away. BERT's one feed-forward
network has the names of MobileBERT's last one, so the same rows serve both.

Letters: A heads, K head width, D inter-block width, E word-table width, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from jaxdistill.models.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class Row:
    """One parameter. `layout` is a key of `LAYOUTS`: how one layer's array of ours becomes theirs."""

    ours: str
    theirs: str
    layout: str = "same"

    @property
    def stacked(self) -> bool:
        """Whether the row stands for one foreign tensor per layer."""
        return "{i}" in self.theirs


@dataclasses.dataclass(frozen=True)
class Layout:
    """`shape`: our shape -> theirs. `transposed`: theirs is the transpose of ours flattened to a matrix."""

    shape: Callable[[tuple[int, ...]], tuple[int, ...]]
    transposed: bool

    def to_theirs(self, ours: np.ndarray) -> np.ndarray:
        """One layer's array of ours as Hugging Face stores it; contiguous, as safetensors demands."""
        theirs = self.shape(ours.shape)
        return np.ascontiguousarray(ours.reshape(theirs[::-1]).T if self.transposed else ours.reshape(theirs))

    def to_ours(self, theirs: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """The inverse; `shape` is ours, from which the head axes come back."""
        return (theirs.T if self.transposed else theirs).reshape(shape)


LAYOUTS: dict[str, Layout] = {
    # Tables, norms, biases.
    "same": Layout(lambda s: s, transposed=False),
    # Projections: ours [in, out], theirs [out, in].
    "linear": Layout(lambda s: (s[1], s[0]), transposed=True),
    # Query, key, value: ours [in, A, K], theirs [A K, in]; their biases: [A, K] and [A K].
    "to_heads": Layout(lambda s: (s[1] * s[2], s[0]), transposed=True),
    "heads": Layout(lambda s: (s[0] * s[1],), transposed=False),
    # Attention's output projection: ours [A, K, out], theirs [out, A K].
    "from_heads": Layout(lambda s: (s[2], s[0] * s[1]), transposed=True),
}

EMBEDDINGS = (
    Row("embeddings/word", "embeddings.word_embeddings.weight"),
    Row("embeddings/position", "embeddings.position_embeddings.weight"),
    Row("embeddings/token_type", "embeddings.token_type_embeddings.weight"),
    Row("embeddings/norm/scale", "embeddings.LayerNorm.weight"),
    Row("embeddings/norm/bias", "embeddings.LayerNorm.bias"),
)
EMBEDDING_PROJECTION = (
    Row("embeddings/projection/kernel", "embeddings.embedding_transformation.weight", "linear"),
    Row("embeddings/projection/bias", "embeddings.embedding_transformation.bias"),
)
ATTENTION = (
    Row("layers/attention/query/kernel", "encoder.layer.{i}.attention.self.query.weight", "to_heads"),
    Row("layers/attention/query/bias", "encoder.layer.{i}.attention.self.query.bias", "heads"),
    Row("layers/attention/key/kernel", "encoder.layer.{i}.attention.self.key.weight", "to_heads"),
    Row("layers/attention/key/bias", "encoder.layer.{i}.attention.self.key.bias", "heads"),
    Row("layers/attention/value/kernel", "encoder.layer.{i}.attention.self.value.weight", "to_heads"),
    Row("layers/attention/value/bias", "encoder.layer.{i}.attention.self.value.bias", "heads"),
    Row("layers/attention/out/kernel", "encoder.layer.{i}.attention.output.dense.weight", "from_heads"),
    Row("layers/attention/out/bias", "encoder.layer.{i}.attention.output.dense.bias"),
    Row("layers/attention/norm/scale", "encoder.layer.{i}.attention.output.LayerNorm.weight"),
    Row("layers/attention/norm/bias", "encoder.layer.{i}.attention.output.LayerNorm.bias"),
)
# Feed-forward networks 0 to n - 2 of a block that has n; {j} is the network.
INNER_FFN = (
    Row("layers/ffn_{j}/up/kernel", "encoder.layer.{i}.ffn.{j}.intermediate.dense.weight", "linear"),
    Row("layers/ffn_{j}/up/bias", "encoder.layer.{i}.ffn.{j}.intermediate.dense.bias"),
    Row("layers/ffn_{j}/down/kernel", "encoder.layer.{i}.ffn.{j}.output.dense.weight", "linear"),
    Row("layers/ffn_{j}/down/bias", "encoder.layer.{i}.ffn.{j}.output.dense.bias"),
    Row("layers/ffn_{j}/norm/scale", "encoder.layer.{i}.ffn.{j}.output.LayerNorm.weight"),
    Row("layers/ffn_{j}/norm/bias", "encoder.layer.{i}.ffn.{j}.output.LayerNorm.bias"),
)
# The last one, {j} = n - 1, which is BERT's only one.
LAST_FFN = (
    Row("layers/ffn_{j}/up/kernel", "encoder.layer.{i}.intermediate.dense.weight", "linear"),
    Row("layers/ffn_{j}/up/bias", "encoder.layer.{i}.intermediate.dense.bias"),
    Row("layers/ffn_{j}/down/kernel", "encoder.layer.{i}.output.dense.weight", "linear"),
    Row("layers/ffn_{j}/down/bias", "encoder.layer.{i}.output.dense.bias"),
    Row("layers/ffn_{j}/norm/scale", "encoder.layer.{i}.output.LayerNorm.weight"),
    Row("layers/ffn_{j}/norm/bias", "encoder.layer.{i}.output.LayerNorm.bias"),
)
BOTTLENECKS = (
    Row("layers/bottleneck_in/dense/kernel", "encoder.layer.{i}.bottleneck.input.dense.weight", "linear"),
    Row("layers/bottleneck_in/dense/bias", "encoder.layer.{i}.bottleneck.input.dense.bias"),
    Row("layers/bottleneck_in/norm/scale", "encoder.layer.{i}.bottleneck.input.LayerNorm.weight"),
    Row("layers/bottleneck_in/norm/bias", "encoder.layer.{i}.bottleneck.input.LayerNorm.bias"),
    Row("layers/bottleneck_out/kernel", "encoder.layer.{i}.output.bottleneck.dense.weight", "linear"),
    Row("layers/bottleneck_out/bias", "encoder.layer.{i}.output.bottleneck.dense.bias"),
    Row("layers/bottleneck_out_norm/scale", "encoder.layer.{i}.output.bottleneck.LayerNorm.weight"),
    Row("layers/bottleneck_out_norm/bias", "encoder.layer.{i}.output.bottleneck.LayerNorm.bias"),
)
SHARED_BOTTLENECK = (
    Row("layers/bottleneck_qk/dense/kernel", "encoder.layer.{i}.bottleneck.attention.dense.weight", "linear"),
    Row("layers/bottleneck_qk/dense/bias", "encoder.layer.{i}.bottleneck.attention.dense.bias"),
    Row("layers/bottleneck_qk/norm/scale", "encoder.layer.{i}.bottleneck.attention.LayerNorm.weight"),
    Row("layers/bottleneck_qk/norm/bias", "encoder.layer.{i}.bottleneck.attention.LayerNorm.bias"),
)
POOLER = (
    Row("pooler/dense/kernel", "pooler.dense.weight", "linear"),
    Row("pooler/dense/bias", "pooler.dense.bias"),
)
MLM = (
    Row("mlm/transform/kernel", "cls.predictions.transform.dense.weight", "linear"),
    Row("mlm/transform/bias", "cls.predictions.transform.dense.bias"),
    Row("mlm/norm/scale", "cls.predictions.transform.LayerNorm.weight"),
    Row("mlm/norm/bias", "cls.predictions.transform.LayerNorm.bias"),
    Row("mlm/bias", "cls.predictions.bias"),
)
# Ours [V, D - E], theirs [D - E, V]: the part of the output table that the narrow word table does not cover.
MLM_EXTRA = (Row("mlm/extra_embedding", "cls.predictions.dense.weight", "linear"),)
HEADS: dict[str, tuple[Row, ...]] = {
    "mlm": MLM,
    "nsp": (
        Row("nsp/dense/kernel", "cls.seq_relationship.weight", "linear"),
        Row("nsp/dense/bias", "cls.seq_relationship.bias"),
    ),
    "sequence_classification": (
        Row("sequence_classification/dense/kernel", "classifier.weight", "linear"),
        Row("sequence_classification/dense/bias", "classifier.bias"),
    ),
    "token_classification": (
        Row("token_classification/dense/kernel", "classifier.weight", "linear"),
        Row("token_classification/dense/bias", "classifier.bias"),
    ),
    "question_answering": (
        Row("question_answering/dense/kernel", "qa_outputs.weight", "linear"),
        Row("question_answering/dense/bias", "qa_outputs.bias"),
    ),
    "embedding": (),  # pooling has no parameters
}

# Beginnings of names that the base model owns, and that take the prefix in a model with heads.
BASE = ("embeddings.", "encoder.", "pooler.")


def rows(config: ModelConfig) -> tuple[Row, ...]:
    """Every row of `config`, one for each leaf of its parameter tree."""
    found = EMBEDDINGS + (EMBEDDING_PROJECTION if config.has_embedding_projection else ()) + ATTENTION
    for j in range(config.num_ffn):
        for row in LAST_FFN if j == config.num_ffn - 1 else INNER_FFN:
            found += (Row(row.ours.replace("{j}", str(j)), row.theirs.replace("{j}", str(j)), row.layout),)
    if config.bottleneck_size is not None:
        found += BOTTLENECKS
    if config.attention_input == "shared_bottleneck":
        found += SHARED_BOTTLENECK
    if config.pooler == "tanh":
        found += POOLER
    for head in config.heads:
        found += HEADS[head]
    if "mlm" in config.heads and config.word_size < config.hidden_size:
        found += MLM_EXTRA
    return found


def unused(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """{name: shape} of tensors that Hugging Face's MobileBERT owns but never reads in this config; BERT has none.

    Written as zeros so that loading there misses nothing, and ignored when reading.
    """
    found: dict[str, tuple[int, ...]] = {}
    if not config.has_embedding_projection:
        found["embeddings.embedding_transformation.weight"] = (config.hidden_size, config.word_size)
        found["embeddings.embedding_transformation.bias"] = (config.hidden_size,)
    if "mlm" in config.heads and config.word_size == config.hidden_size:
        found["cls.predictions.dense.weight"] = (0, config.vocab_size)
    return found


def is_ignorable(name: str) -> bool:
    """Whether a tensor of a foreign file can be left aside: buffers, tied copies, and what MobileBERT owns unread."""
    return (
        name.endswith(".position_ids")
        or name.startswith(("cls.predictions.decoder.", "pooler.dense.", "embeddings.embedding_transformation."))
        or name == "cls.predictions.dense.weight"
        or ".bottleneck.attention." in name
    )
