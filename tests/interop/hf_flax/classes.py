"""Tiny networks of every Flax class, each made once, and the inputs they take. Imports
transformers' Flax, once."""

from __future__ import annotations

import functools
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from transformers.models.mobilebert.configuration_mobilebert import MobileBertConfig

from jaxdistill.interop import hf_flax
from jaxdistill.interop.hf_flax import models
from jaxdistill.interop.hf_flax.module import KINDS
from tests.conftest import rarely
from tests.interop import oracle

LENGTH = oracle.LENGTH
MOBILE = tuple(f"FlaxMobileBert{kind}" for kind in KINDS)
IB = tuple(f"FlaxIBBert{kind}" for kind in KINDS)
EVERY = MOBILE + IB
# One code serves both families: of the teacher's classes two stand for all but in slow runs.
MOST = (
    *rarely(MOBILE, "FlaxMobileBertForMaskedLM", "FlaxMobileBertForNextSentencePrediction"),
    *rarely(IB, *(name for name in IB if not name.endswith(("Model", "ForPreTraining")))),
)


def every(*ordinary: str) -> list[Any]:
    """All classes for `parametrize`, of which those not in `ordinary` are for slow runs: they share
    their code."""
    return [
        name if name in ordinary else pytest.param(name, marks=pytest.mark.slow) for name in EVERY
    ]


LABELS = {"ForSequenceClassification": 3, "ForTokenClassification": 5}
_SIZES = {
    "vocab_size": 37,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 10,
    "max_position_embeddings": 9,
    "type_vocab_size": 3,
    "embedding_size": 4,
    "num_feedforward_networks": 2,
    "hidden_dropout_prob": 0.1,
}


def class_of(name: str) -> Any:
    return getattr(hf_flax, name)


def config_of(name: str, **keys: Any) -> Any:
    """A tiny config of the class `name`, with as many labels as its kind has outputs."""
    kind = class_of(name).kind
    labels = {"num_labels": LABELS[kind]} if kind in LABELS else {}
    if name.startswith("FlaxIB"):
        return models.IBBertConfig(**{**_SIZES, "intra_bottleneck_size": 16, **labels, **keys})
    return MobileBertConfig(**{**_SIZES, "intra_bottleneck_size": 8, **labels, **keys})


@functools.cache
def model_of(name: str) -> Any:
    """A network of the class, every number of it random: a fresh start has zero biases and hides
    mistakes."""
    model = class_of(name)(config_of(name), _do_init=False)
    model._is_initialized = True  # but for the start, which would be compiled and thrown away
    model.params = randomised(model.params_shape_tree)
    return model


def randomised(params: Any, seed: int = 0) -> Any:
    """A tree of the same shapes, scales about 1 and all else about 0."""
    rng, flat = np.random.default_rng(seed), flax.traverse_util.flatten_dict(params)
    return flax.traverse_util.unflatten_dict(
        {
            path: jnp.asarray(
                0.3 * rng.normal(size=leaf.shape) + (path[-1] == "scale"), jnp.float32
            )
            for path, leaf in flat.items()
        }
    )


def inputs_of(name: str, rows: int = 3) -> dict[str, np.ndarray]:
    """Padded rows; for multiple choice two of them are the choices of each."""
    batch = oracle.batch()
    batch = {key: np.resize(value, (rows, LENGTH)) for key, value in batch.items()}
    if class_of(name).kind == "ForMultipleChoice":
        other = {key: np.roll(value, 1, axis=0) for key, value in batch.items()}
        return {key: np.stack([value, other[key]], axis=1) for key, value in batch.items()}
    return batch


def run(model: Any, name: str, **keys: Any) -> dict[str, np.ndarray]:
    """Everything the model gives, by its own names, hidden states and attentions stacked."""
    output = model(**inputs_of(name), output_hidden_states=True, output_attentions=True, **keys)
    return {
        key: np.stack(value) if isinstance(value, tuple) else np.asarray(value)
        for key, value in output.items()
    }


def flat(params: Any) -> dict[str, np.ndarray]:
    return {
        key: np.asarray(value)
        for key, value in flax.traverse_util.flatten_dict(params, sep="/").items()
    }


def assert_equal(ours: Any, theirs: Any) -> None:
    """Two trees, to the bit."""
    ours, theirs = flat(ours), flat(theirs)
    assert ours.keys() == theirs.keys()
    for key in ours:
        np.testing.assert_array_equal(ours[key], theirs[key], err_msg=key)


def assert_close(
    ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray], rtol: float = 1e-4
) -> None:
    assert set(theirs) <= set(ours)
    oracle.assert_same(ours, theirs, rtol)


def loss_of(output: Any) -> jax.Array:
    """Some scalar that every output of a class enters."""
    return sum(jnp.mean(jnp.square(value)) for value in output.to_tuple())
