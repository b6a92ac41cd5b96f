"""THE name table: each of our parameters beside its name in Hugging Face's PyTorch and in Google's
TF1 checkpoints.

One row per parameter. To find where a tensor goes, search this file for any of its names. Read by
`convert` and `tf1`, which apply the table; no other file of the package knows a foreign parameter
name.

Our names are paths in the parameter tree; what stands under `layers/` is stacked over layers and
becomes one foreign tensor per layer, `{i}` being the layer. Their names are given without the
prefix `bert.` or `mobilebert.`, which models with a head put before `embeddings`, `encoder` and
`pooler` and base models leave away. BERT's one feed-forward network has the names of MobileBERT's
last one, so the same rows serve both.

Google's names are those of the TF1 code of BERT and MobileBERT. `{norm}` is LayerNorm or, where the
model has NoNorm, FakeLayerNorm. Kernels and the extra output table lie there transposed to Hugging
Face's; nothing else does.

Letters: A heads, K head width, D inter-block width, E word-table width, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable

import numpy as np

from jaxdistill.models.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class Row:
    """One parameter: our name, Hugging Face's, Google's ("" where its code has none).

    `layout` is a key of `LAYOUTS`: how one layer's array of ours becomes theirs, Hugging Face's.
    """

    ours: str
    theirs: str
    tf1: str
    layout: str = "same"

    @property
    def tf1_transposed(self) -> bool:
        """Whether Google's array is the transpose of Hugging Face's: kernels are [in, out]
        there."""
        return self.tf1.endswith(("/kernel", "/extra_output_weights"))

    @property
    def stacked(self) -> bool:
        """Whether the row stands for one foreign tensor per layer."""
        return "{i}" in self.theirs


@dataclasses.dataclass(frozen=True)
class Layout:
    """`shape`: our shape -> theirs. `transposed`: theirs is the transpose of ours flattened to a
    matrix."""

    shape: Callable[[tuple[int, ...]], tuple[int, ...]]
    transposed: bool

    def to_theirs(self, ours: np.ndarray) -> np.ndarray:
        """One layer's array of ours as Hugging Face stores it; contiguous, as safetensors
        demands."""
        theirs = self.shape(ours.shape)
        return np.ascontiguousarray(
            ours.reshape(theirs[::-1]).T if self.transposed else ours.reshape(theirs)
        )

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
    Row("embeddings/word", "embeddings.word_embeddings.weight", "bert/embeddings/word_embeddings"),
    Row(
        "embeddings/position",
        "embeddings.position_embeddings.weight",
        "bert/embeddings/position_embeddings",
    ),
    Row(
        "embeddings/token_type",
        "embeddings.token_type_embeddings.weight",
        "bert/embeddings/token_type_embeddings",
    ),
    Row("embeddings/norm/scale", "embeddings.LayerNorm.weight", "bert/embeddings/{norm}/gamma"),
    Row("embeddings/norm/bias", "embeddings.LayerNorm.bias", "bert/embeddings/{norm}/beta"),
)
EMBEDDING_PROJECTION = (
    Row(
        "embeddings/projection/kernel",
        "embeddings.embedding_transformation.weight",
        "bert/embeddings/embedding_transformation/kernel",
        "linear",
    ),
    Row(
        "embeddings/projection/bias",
        "embeddings.embedding_transformation.bias",
        "bert/embeddings/embedding_transformation/bias",
    ),
)
ATTENTION = (
    Row(
        "layers/attention/query/kernel",
        "encoder.layer.{i}.attention.self.query.weight",
        "bert/encoder/layer_{i}/attention/self/query/kernel",
        "to_heads",
    ),
    Row(
        "layers/attention/query/bias",
        "encoder.layer.{i}.attention.self.query.bias",
        "bert/encoder/layer_{i}/attention/self/query/bias",
        "heads",
    ),
    Row(
        "layers/attention/key/kernel",
        "encoder.layer.{i}.attention.self.key.weight",
        "bert/encoder/layer_{i}/attention/self/key/kernel",
        "to_heads",
    ),
    Row(
        "layers/attention/key/bias",
        "encoder.layer.{i}.attention.self.key.bias",
        "bert/encoder/layer_{i}/attention/self/key/bias",
        "heads",
    ),
    Row(
        "layers/attention/value/kernel",
        "encoder.layer.{i}.attention.self.value.weight",
        "bert/encoder/layer_{i}/attention/self/value/kernel",
        "to_heads",
    ),
    Row(
        "layers/attention/value/bias",
        "encoder.layer.{i}.attention.self.value.bias",
        "bert/encoder/layer_{i}/attention/self/value/bias",
        "heads",
    ),
    Row(
        "layers/attention/out/kernel",
        "encoder.layer.{i}.attention.output.dense.weight",
        "bert/encoder/layer_{i}/attention/output/dense/kernel",
        "from_heads",
    ),
    Row(
        "layers/attention/out/bias",
        "encoder.layer.{i}.attention.output.dense.bias",
        "bert/encoder/layer_{i}/attention/output/dense/bias",
    ),
    Row(
        "layers/attention/norm/scale",
        "encoder.layer.{i}.attention.output.LayerNorm.weight",
        "bert/encoder/layer_{i}/attention/output/{norm}/gamma",
    ),
    Row(
        "layers/attention/norm/bias",
        "encoder.layer.{i}.attention.output.LayerNorm.bias",
        "bert/encoder/layer_{i}/attention/output/{norm}/beta",
    ),
)
# Feed-forward networks 0 to n - 2 of a block that has n; {j} is the network.
INNER_FFN = (
    Row(
        "layers/ffn_{j}/up/kernel",
        "encoder.layer.{i}.ffn.{j}.intermediate.dense.weight",
        "bert/encoder/layer_{i}/ffn_layer_{j}/intermediate/dense/kernel",
        "linear",
    ),
    Row(
        "layers/ffn_{j}/up/bias",
        "encoder.layer.{i}.ffn.{j}.intermediate.dense.bias",
        "bert/encoder/layer_{i}/ffn_layer_{j}/intermediate/dense/bias",
    ),
    Row(
        "layers/ffn_{j}/down/kernel",
        "encoder.layer.{i}.ffn.{j}.output.dense.weight",
        "bert/encoder/layer_{i}/ffn_layer_{j}/output/dense/kernel",
        "linear",
    ),
    Row(
        "layers/ffn_{j}/down/bias",
        "encoder.layer.{i}.ffn.{j}.output.dense.bias",
        "bert/encoder/layer_{i}/ffn_layer_{j}/output/dense/bias",
    ),
    Row(
        "layers/ffn_{j}/norm/scale",
        "encoder.layer.{i}.ffn.{j}.output.LayerNorm.weight",
        "bert/encoder/layer_{i}/ffn_layer_{j}/output/{norm}/gamma",
    ),
    Row(
        "layers/ffn_{j}/norm/bias",
        "encoder.layer.{i}.ffn.{j}.output.LayerNorm.bias",
        "bert/encoder/layer_{i}/ffn_layer_{j}/output/{norm}/beta",
    ),
)
# The last one, {j} = n - 1, which is BERT's only one.
LAST_FFN = (
    Row(
        "layers/ffn_{j}/up/kernel",
        "encoder.layer.{i}.intermediate.dense.weight",
        "bert/encoder/layer_{i}/intermediate/dense/kernel",
        "linear",
    ),
    Row(
        "layers/ffn_{j}/up/bias",
        "encoder.layer.{i}.intermediate.dense.bias",
        "bert/encoder/layer_{i}/intermediate/dense/bias",
    ),
    Row(
        "layers/ffn_{j}/down/kernel",
        "encoder.layer.{i}.output.dense.weight",
        "bert/encoder/layer_{i}/output/dense/kernel",
        "linear",
    ),
    Row(
        "layers/ffn_{j}/down/bias",
        "encoder.layer.{i}.output.dense.bias",
        "bert/encoder/layer_{i}/output/dense/bias",
    ),
    Row(
        "layers/ffn_{j}/norm/scale",
        "encoder.layer.{i}.output.LayerNorm.weight",
        "bert/encoder/layer_{i}/output/{norm}/gamma",
    ),
    Row(
        "layers/ffn_{j}/norm/bias",
        "encoder.layer.{i}.output.LayerNorm.bias",
        "bert/encoder/layer_{i}/output/{norm}/beta",
    ),
)
BOTTLENECKS = (
    Row(
        "layers/bottleneck_in/dense/kernel",
        "encoder.layer.{i}.bottleneck.input.dense.weight",
        "bert/encoder/layer_{i}/bottleneck/input/dense/kernel",
        "linear",
    ),
    Row(
        "layers/bottleneck_in/dense/bias",
        "encoder.layer.{i}.bottleneck.input.dense.bias",
        "bert/encoder/layer_{i}/bottleneck/input/dense/bias",
    ),
    Row(
        "layers/bottleneck_in/norm/scale",
        "encoder.layer.{i}.bottleneck.input.LayerNorm.weight",
        "bert/encoder/layer_{i}/bottleneck/input/{norm}/gamma",
    ),
    Row(
        "layers/bottleneck_in/norm/bias",
        "encoder.layer.{i}.bottleneck.input.LayerNorm.bias",
        "bert/encoder/layer_{i}/bottleneck/input/{norm}/beta",
    ),
    Row(
        "layers/bottleneck_out/kernel",
        "encoder.layer.{i}.output.bottleneck.dense.weight",
        "bert/encoder/layer_{i}/output/bottleneck/dense/kernel",
        "linear",
    ),
    Row(
        "layers/bottleneck_out/bias",
        "encoder.layer.{i}.output.bottleneck.dense.bias",
        "bert/encoder/layer_{i}/output/bottleneck/dense/bias",
    ),
    Row(
        "layers/bottleneck_out_norm/scale",
        "encoder.layer.{i}.output.bottleneck.LayerNorm.weight",
        "bert/encoder/layer_{i}/output/bottleneck/{norm}/gamma",
    ),
    Row(
        "layers/bottleneck_out_norm/bias",
        "encoder.layer.{i}.output.bottleneck.LayerNorm.bias",
        "bert/encoder/layer_{i}/output/bottleneck/{norm}/beta",
    ),
)
SHARED_BOTTLENECK = (
    Row(
        "layers/bottleneck_qk/dense/kernel",
        "encoder.layer.{i}.bottleneck.attention.dense.weight",
        "bert/encoder/layer_{i}/bottleneck/attention/dense/kernel",
        "linear",
    ),
    Row(
        "layers/bottleneck_qk/dense/bias",
        "encoder.layer.{i}.bottleneck.attention.dense.bias",
        "bert/encoder/layer_{i}/bottleneck/attention/dense/bias",
    ),
    Row(
        "layers/bottleneck_qk/norm/scale",
        "encoder.layer.{i}.bottleneck.attention.LayerNorm.weight",
        "bert/encoder/layer_{i}/bottleneck/attention/{norm}/gamma",
    ),
    Row(
        "layers/bottleneck_qk/norm/bias",
        "encoder.layer.{i}.bottleneck.attention.LayerNorm.bias",
        "bert/encoder/layer_{i}/bottleneck/attention/{norm}/beta",
    ),
)
POOLER = (
    Row("pooler/dense/kernel", "pooler.dense.weight", "bert/pooler/dense/kernel", "linear"),
    Row("pooler/dense/bias", "pooler.dense.bias", "bert/pooler/dense/bias"),
)
MLM = (
    Row(
        "mlm/transform/kernel",
        "cls.predictions.transform.dense.weight",
        "cls/predictions/transform/dense/kernel",
        "linear",
    ),
    Row(
        "mlm/transform/bias",
        "cls.predictions.transform.dense.bias",
        "cls/predictions/transform/dense/bias",
    ),
    Row(
        "mlm/norm/scale",
        "cls.predictions.transform.LayerNorm.weight",
        "cls/predictions/transform/LayerNorm/gamma",
    ),
    Row(
        "mlm/norm/bias",
        "cls.predictions.transform.LayerNorm.bias",
        "cls/predictions/transform/LayerNorm/beta",
    ),
    Row("mlm/bias", "cls.predictions.bias", "cls/predictions/output_bias"),
)
# Ours [V, D - E], theirs [D - E, V]: the part of the output table that the narrow word table does
# not cover.
MLM_EXTRA = (
    Row(
        "mlm/extra_embedding",
        "cls.predictions.dense.weight",
        "cls/predictions/extra_output_weights",
        "linear",
    ),
)
HEADS: dict[str, tuple[Row, ...]] = {
    "mlm": MLM,
    "nsp": (
        Row(
            "nsp/dense/kernel",
            "cls.seq_relationship.weight",
            "cls/seq_relationship/output_weights",
            "linear",
        ),
        Row("nsp/dense/bias", "cls.seq_relationship.bias", "cls/seq_relationship/output_bias"),
    ),
    "sequence_classification": (
        Row(
            "sequence_classification/dense/kernel", "classifier.weight", "output_weights", "linear"
        ),
        Row("sequence_classification/dense/bias", "classifier.bias", "output_bias"),
    ),
    "token_classification": (
        Row("token_classification/dense/kernel", "classifier.weight", "", "linear"),
        Row("token_classification/dense/bias", "classifier.bias", ""),
    ),
    "question_answering": (
        Row(
            "question_answering/dense/kernel",
            "qa_outputs.weight",
            "cls/squad/output_weights",
            "linear",
        ),
        Row("question_answering/dense/bias", "qa_outputs.bias", "cls/squad/output_bias"),
    ),
    "embedding": (),  # pooling has no parameters; the dense layer behind it: EMBEDDING_DENSE
    "multiple_choice": (
        Row("multiple_choice/dense/kernel", "classifier.weight", "", "linear"),
        Row("multiple_choice/dense/bias", "classifier.bias", ""),
    ),
}

# The dense layer of sentence-transformers, which lies in a file of its own: its folder stands
# before its name here.
EMBEDDING_FOLDER = "2_Dense"
EMBEDDING_DENSE = (
    Row("embedding/dense/kernel", f"{EMBEDDING_FOLDER}.linear.weight", "", "linear"),
    Row("embedding/dense/bias", f"{EMBEDDING_FOLDER}.linear.bias", ""),
)

# Beginnings of names that the base model owns, and that take the prefix in a model with heads.
BASE = ("embeddings.", "encoder.", "pooler.")


def rows(config: ModelConfig) -> tuple[Row, ...]:
    """Every row of `config`, one for each leaf of its parameter tree; only `{i}`, the layer, is
    left open in names."""
    found = (
        EMBEDDINGS + (EMBEDDING_PROJECTION if config.has_embedding_projection else ()) + ATTENTION
    )
    for j in range(config.num_ffn):
        for row in LAST_FFN if j == config.num_ffn - 1 else INNER_FFN:
            found += (_fill(row, "{j}", str(j)),)
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
    if "embedding" in config.heads and config.embedding_features is not None:
        found += EMBEDDING_DENSE
    return tuple(
        _fill(row, "{norm}", "FakeLayerNorm" if config.norm == "no_norm" else "LayerNorm")
        for row in found
    )


def _fill(row: Row, field: str, value: str) -> Row:
    ours, theirs, tf1 = (name.replace(field, value) for name in (row.ours, row.theirs, row.tf1))
    return Row(ours, theirs, tf1, row.layout)


def unused(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """{name: shape} of tensors that Hugging Face's MobileBERT owns but never reads in this config;
    BERT has none.

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
    """Whether a tensor of a foreign file can be left aside: buffers, tied copies, and what
    MobileBERT owns unread."""
    return (
        name.endswith((".position_ids", ".token_type_ids"))
        or name.startswith(
            ("cls.predictions.decoder.", "pooler.dense.", "embeddings.embedding_transformation.")
        )
        or name == "cls.predictions.dense.weight"
        or ".bottleneck.attention." in name
    )


_OF_TRAINING = re.compile(
    # Losses, optimizers and what else a training module holds; moments and counters, under whatever
    # name.
    r"(loss_fct|loss_fn|loss|criterion|optimizer|optimizers|lr_scheduler|scheduler|scaler|ema|swa|metrics?)\."
    r"|(.*\.)?(exp_avg|exp_avg_sq|adam_[mv]|momentum_buffer|num_batches_tracked|total_ops|total_params|n_averaged"
    r"|(global_)?step)$"
)


def is_leftover(name: str) -> bool:
    """Whether a tensor of a foreign file was there for training alone."""
    return _OF_TRAINING.match(name) is not None
