"""`ModelConfig`: presets, what it refuses and how it says so, and that it is a value (hash,
equality, jit)."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import pytest

from jaxdistill.errors import BadInput
from jaxdistill.models import PRESETS, Model, ModelConfig, preset


def test_presets_are_the_published_architectures():
    teacher, student, tiny = (
        preset("ib_bert_large"),
        preset("mobilebert"),
        preset("mobilebert_tiny"),
    )
    for config in (teacher, student, tiny):
        assert (config.num_layers, config.hidden_size, config.num_heads, config.word_size) == (
            24,
            512,
            4,
            128,
        )
        assert config.trigram_input
    assert (teacher.inner_size, teacher.intermediate_size, teacher.num_ffn, teacher.head_size) == (
        1024,
        4096,
        1,
        256,
    )
    assert (teacher.attention_input, teacher.norm, teacher.pooler) == (
        "hidden",
        "layer_norm",
        "tanh",
    )
    assert (student.inner_size, student.intermediate_size, student.num_ffn, student.head_size) == (
        128,
        512,
        4,
        32,
    )
    assert (student.attention_input, student.norm, student.activation) == (
        "shared_bottleneck",
        "no_norm",
        "relu",
    )
    assert (tiny.num_ffn, tiny.attention_input) == (2, "bottleneck")
    plain = preset("mobilebert_without_opt")
    assert (
        plain.replace(norm="no_norm", activation="relu", embedding_norm_eps=None, ffn_norm_eps=None)
        == student
    )
    assert (preset("bert_base").inner_size, preset("bert_base").word_size) == (768, 768)
    assert not preset("bert_base").has_embedding_projection


@pytest.mark.parametrize("name", PRESETS)
def test_round_trip_through_json(name):
    config = preset(name)
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    "call, named",
    [
        (lambda: preset("mobilbert"), "mobilebert"),
        (lambda: ModelConfig().replace(hiden_size=3), "hidden_size"),
        (lambda: ModelConfig.from_dict({"num_layer": 3}), "num_layers"),
        (lambda: ModelConfig(norm="nonorm"), "no_norm"),
        (lambda: ModelConfig(activation="gelu_tan"), "gelu_tanh"),
        (lambda: ModelConfig(attention_input="bottlenek", bottleneck_size=12), "bottleneck"),
        (lambda: ModelConfig(pooler="first"), "first_token"),
        (lambda: ModelConfig(dtype="bfloat"), "bfloat16"),
        (lambda: Model(ModelConfig(heads=("mlm", "npr"))), "nsp"),
    ],
)
def test_a_misspelling_is_answered_with_the_nearest_name(call, named):
    with pytest.raises(BadInput, match=f"did you mean '{named}'"):
        call()


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"num_heads": 7}, "num_heads"),
        ({"bottleneck_size": 100, "num_heads": 3}, "bottleneck_size"),
        ({"num_layers": 0}, "num_layers"),
        ({"attention_input": "bottleneck"}, "bottleneck_size"),
        ({"embedding_size": 1024}, "embedding_size"),
        ({"pooler": "none"}, "pooler"),
    ],
)
def test_impossible_networks_are_refused(changes, words):
    with pytest.raises(BadInput, match=words):
        ModelConfig(**changes)


def test_config_is_a_value():
    assert ModelConfig(heads=["mlm"]) == ModelConfig(heads=("mlm",))
    assert (
        len({preset("mobilebert"), preset("mobilebert").replace(), preset("mobilebert_tiny")}) == 2
    )
    with pytest.raises(dataclasses.FrozenInstanceError):
        ModelConfig().num_layers = 3


def test_model_is_a_static_argument_and_equal_ones_share_a_trace():
    traces = []

    @functools.partial(jax.jit, static_argnums=0)
    def width(model, x):
        traces.append(model)
        return x * model.config.hidden_size

    base = ModelConfig(num_layers=1)
    assert (
        width(Model(base), jnp.ones(())) == 768
        and width(Model(ModelConfig(num_layers=1)), jnp.ones(())) == 768
    )
    assert len(traces) == 1
    assert width(Model(base.replace(hidden_size=12)), jnp.ones(())) == 12 and len(traces) == 2
