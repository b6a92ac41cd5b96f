"""Checkpoints in the layout of Google's TF1 code, written from its variable scopes and not from our
name table.

Every number is random, norms and biases too. Beside the model lie what a training run leaves:
optimizer slots, counters, the teacher. Imported by the tests of tf1 and of conversion."""

from __future__ import annotations

import types
from typing import Any

import numpy as np

SMALL = {
    "vocab_size": 37,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 10,
    "max_position_embeddings": 9,
    "type_vocab_size": 3,
    "hidden_act": "relu",
}
MOBILE = {
    **SMALL,
    "embedding_size": 4,
    "trigram_input": True,
    "use_bottleneck": True,
    "intra_bottleneck_size": 8,
    "key_query_shared_bottleneck": True,
    "num_feedforward_networks": 3,
    "normalization_type": "no_norm",
    "classifier_activation": False,
    "hidden_dropout_prob": 0.0,
}
TINY = {
    **MOBILE,
    "key_query_shared_bottleneck": False,
    "use_bottleneck_attention": True,
    "num_feedforward_networks": 2,
}
TEACHER = {
    **{
        key: value
        for key, value in MOBILE.items()
        if key
        not in (
            "key_query_shared_bottleneck",
            "num_feedforward_networks",
            "normalization_type",
            "classifier_activation",
        )
    },
    "intra_bottleneck_size": 16,
    "hidden_act": "gelu",
}
CONFIGS = {"bert": SMALL, "mobilebert": MOBILE, "mobilebert_tiny": TINY, "ib_bert": TEACHER}


def shapes(
    config: dict[str, Any], heads: tuple[str, ...] = ("mlm", "nsp")
) -> dict[str, tuple[int, ...]]:
    """{name: shape} of the variables that Google's code makes for a bert_config.json. Kernels are
    [in, out]."""
    hidden, neurons = config["hidden_size"], config["intermediate_size"]
    words = config.get("embedding_size") or hidden
    bottleneck = config.get("use_bottleneck", False)
    inside = config.get("intra_bottleneck_size", hidden) if bottleneck else hidden
    norm = "FakeLayerNorm" if config.get("normalization_type") == "no_norm" else "LayerNorm"
    found: dict[str, tuple[int, ...]] = {}

    def dense(scope: str, inputs: int, outputs: int) -> None:
        found[f"{scope}/kernel"], found[f"{scope}/bias"] = (inputs, outputs), (outputs,)

    def normed(scope: str, width: int, kind: str = norm) -> None:
        found[f"{scope}/{kind}/beta"] = found[f"{scope}/{kind}/gamma"] = (width,)

    found["bert/embeddings/word_embeddings"] = (config["vocab_size"], words)
    found["bert/embeddings/token_type_embeddings"] = (config["type_vocab_size"], hidden)
    found["bert/embeddings/position_embeddings"] = (config["max_position_embeddings"], hidden)
    normed("bert/embeddings", hidden)
    if config.get("trigram_input") or words != hidden:
        dense(
            "bert/embeddings/embedding_transformation",
            3 * words if config.get("trigram_input") else words,
            hidden,
        )
    of_bottleneck, of_shared = (
        config.get("use_bottleneck_attention", False),
        config.get("key_query_shared_bottleneck", False),
    )
    keyed = inside if of_bottleneck or of_shared else hidden
    for i in range(config["num_hidden_layers"]):
        layer = f"bert/encoder/layer_{i}"
        if bottleneck:
            for name in ["input"] + (["attention"] if of_shared and not of_bottleneck else []):
                dense(f"{layer}/bottleneck/{name}/dense", hidden, inside)
                normed(f"{layer}/bottleneck/{name}", inside)
        dense(f"{layer}/attention/self/query", keyed, inside)
        dense(f"{layer}/attention/self/key", keyed, inside)
        dense(f"{layer}/attention/self/value", inside if of_bottleneck else hidden, inside)
        dense(f"{layer}/attention/output/dense", inside, inside)
        normed(f"{layer}/attention/output", inside)
        for scope in [
            f"ffn_layer_{j}/" for j in range(config.get("num_feedforward_networks", 1) - 1)
        ] + [""]:
            dense(f"{layer}/{scope}intermediate/dense", inside, neurons)
            dense(f"{layer}/{scope}output/dense", neurons, inside)
            normed(f"{layer}/{scope}output", inside)
        if bottleneck:
            dense(f"{layer}/output/bottleneck/dense", inside, hidden)
            normed(f"{layer}/output/bottleneck", hidden)
    if config.get("classifier_activation", True):
        dense("bert/pooler/dense", hidden, hidden)
    if "mlm" in heads:
        dense("cls/predictions/transform/dense", hidden, hidden)
        normed("cls/predictions/transform", hidden, "LayerNorm")  # a real one in any case
        found["cls/predictions/output_bias"] = (config["vocab_size"],)
        if words != hidden:
            found["cls/predictions/extra_output_weights"] = (config["vocab_size"], hidden - words)
    outputs = {
        "nsp": ("cls/seq_relationship/", 2),
        "question_answering": ("cls/squad/", 2),
        "sequence_classification": ("", 3),
    }
    for head, (scope, width) in outputs.items():
        if head in heads:
            found |= {f"{scope}output_weights": (width, hidden), f"{scope}output_bias": (width,)}
    return found


def variables(
    config: dict[str, Any], heads: tuple[str, ...] = ("mlm", "nsp"), seed: int = 0
) -> dict[str, np.ndarray]:
    """Random values for `shapes`: norm scales about 1, all else about 0."""
    rng = np.random.default_rng(seed)
    return {
        name: (0.3 * rng.normal(size=shape) + name.endswith("gamma")).astype(np.float32)
        for name, shape in shapes(config, heads).items()
    }


def with_training(
    values: dict[str, np.ndarray], teacher: dict[str, np.ndarray] | None = None
) -> dict[str, np.ndarray]:
    """The same after some steps of training: slots of LAMB or Adam (both call them so) for all,
    counters, a teacher."""
    rng = np.random.default_rng(9)
    slots = {
        f"{name}/{slot}": rng.normal(size=array.shape).astype(np.float32)
        for name, array in values.items()
        for slot in ("adam_m", "adam_v")
    }
    frozen = {f"teacher/{name}": array for name, array in (teacher or values).items()}
    norms = {
        f"hidden_distill_{i}/LayerNorm{k}/{leaf}": np.ones(12, np.float32)
        for i in range(2)
        for k in ("", "_1")
        for leaf in ("beta", "gamma")
    }
    return {**values, **slots, **frozen, **norms, "global_step": np.int64(7)}


def fake_tensorflow(values: dict[str, np.ndarray]) -> types.ModuleType:
    """A module with the three functions of tensorflow.train that read checkpoints, for
    `sys.modules`: ours wants load_checkpoint, the loaders of transformers the other two."""
    reader = types.SimpleNamespace(
        get_variable_to_shape_map=lambda: {name: array.shape for name, array in values.items()},
        get_tensor=values.__getitem__,
    )
    module = types.ModuleType("tensorflow")
    module.train = types.SimpleNamespace(  # type: ignore[attr-defined]
        list_variables=lambda path: [
            (name, list(array.shape)) for name, array in sorted(values.items())
        ],
        load_variable=lambda path, name: values[name],
        load_checkpoint=lambda path: reader,
    )
    return module
