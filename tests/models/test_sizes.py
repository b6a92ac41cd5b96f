"""Parameter counts and FLOPs: against the published code, a hand count and XLA's own count of an
unrolled model."""

import jax
import jax.numpy as jnp
import pytest

from jaxdistill.errors import BadInput
from jaxdistill.models import TAPS, Model, ModelConfig, preset
from jaxdistill.models.encoder import attention_bias, take_layer
from jaxdistill.models.sizes import (
    encoder_flops,
    forward_flops,
    parameter_shapes,
    parameters_by_part,
    tap_shapes,
)


@pytest.mark.parametrize(
    "name, encoder, total, block",
    [
        ("bert_base", 109_482_240, 109_482_240 + 622_650 + 1_538, 7_087_872),
        ("ib_bert_large", 294_467_840, 306_483_516, 12_076_544),
        ("mobilebert", 24_581_888, 36_597_564, 842_240),
        ("mobilebert_without_opt", 24_581_888, 36_597_564, 842_240),
        ("mobilebert_tiny", 15_485_696, 27_501_372, 463_232),
    ],
)
def test_counts_of_published_models(name, encoder, total, block):
    parts = parameters_by_part(preset(name))
    assert (parts["encoder"], parts["total"], parts["block"]) == (encoder, total, block)
    assert parts["block"] == sum(
        value for part, value in parts.items() if part.startswith("block/")
    )
    assert parts["total"] == parts["encoder"] + sum(
        v for part, v in parts.items() if part.startswith("head/")
    )


def test_parts_of_mobilebert():
    parts = parameters_by_part(preset("mobilebert"))
    assert {part: parts[part] for part in parts if part.startswith("block/")} == {
        "block/bottleneck_in": 65_920,
        "block/bottleneck_qk": 65_920,
        "block/attention": 115_456,
        "block/ffn": 527_872,
        "block/bottleneck_out": 67_072,
    }
    assert (
        parts["word_table"] == 3_906_816
        and parts["word_table"] + parts["other_embeddings"] == 4_368_128
    )
    assert (parts["pooler"], parts["head/mlm"], parts["head/nsp"]) == (0, 12_014_650, 1_026)
    assert parameters_by_part(preset("bert_base"))["pooler"] == 590_592


@pytest.mark.parametrize(
    "name, giga",
    [
        ("mobilebert", 5.39),
        ("mobilebert_tiny", 3.07),
        ("ib_bert_large", 75.7),
        ("bert_base", 22.35),
        ("bert_large", 78.9),
    ],
)
def test_flops_of_published_models(name, giga):
    assert encoder_flops(preset(name), 128) / 1e9 == pytest.approx(giga, rel=1e-3)


TINY = ModelConfig(
    vocab_size=50,
    num_layers=3,
    hidden_size=16,
    num_heads=2,
    intermediate_size=24,
    num_ffn=2,
    embedding_size=4,
    trigram_input=True,
    bottleneck_size=8,
    attention_input="shared_bottleneck",
    norm="no_norm",
    activation="relu",
    pooler="first_token",
    max_positions=64,
)


def test_flops_by_hand():
    length = 10
    flops = forward_flops(TINY, length, masked_positions=4, heads=("mlm", "nsp"))
    assert flops["embeddings"] == 2 * length * 12 * 16
    assert flops["bottlenecks"] == 3 * 2 * length * 3 * 16 * 8  # in, query-and-key, out
    assert flops["attention_projections"] == 3 * 2 * length * (8 * 8 + 8 * 8 + 16 * 8 + 8 * 8)
    assert flops["attention_products"] == 3 * 2 * (2 * length * length * 8)
    assert flops["ffn"] == 3 * 2 * length * 2 * (8 * 24 + 24 * 8)
    assert flops["head/mlm"] == 2 * 4 * (16 * 16 + 16 * 50)
    assert flops["head/nsp"] == 2 * 16 * 2 and "pooler" not in flops
    assert sum(forward_flops(TINY, length).values()) == encoder_flops(TINY, length)
    one, none = encoder_flops(TINY, length, 1), encoder_flops(TINY, length, 0)
    assert none == flops["embeddings"] and none + 3 * (one - none) == encoder_flops(TINY, length)
    assert forward_flops(TINY, length, heads=("mlm",))["head/mlm"] == 2 * 10 * (16 * 16 + 16 * 50)
    with_pooler = TINY.replace(pooler="tanh", heads=("sequence_classification",), num_labels=3)
    flops = forward_flops(with_pooler, length, heads=("sequence_classification",))
    assert flops["pooler"] == 2 * 16 * 16 and flops["head/sequence_classification"] == 2 * 16 * 3


def test_bad_questions_are_refused():
    with pytest.raises(BadInput, match="mlm"):
        forward_flops(TINY, 8, heads=("mml",))
    with pytest.raises(BadInput, match="depth"):
        encoder_flops(TINY, 8, num_layers=4)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {
            "bottleneck_size": None,
            "attention_input": "hidden",
            "num_ffn": 1,
            "embedding_size": None,
            "trigram_input": False,
            "pooler": "tanh",
        },
        {"attention_input": "bottleneck"},
        {"attention_input": "hidden", "bottleneck_size": 384},
    ],
)
def test_flops_against_xla(changes):
    """XLA counts the element-wise work too (a few %), and a loop body once: so the blocks are
    unrolled here."""
    config = TINY.replace(
        vocab_size=384,
        num_layers=2,
        hidden_size=256,
        embedding_size=128,
        num_heads=4,
        intermediate_size=512,
        bottleneck_size=128,
        max_positions=64,
    )
    config = config.replace(**changes)
    model, length, batch = Model(config), 48, 2
    heads = ("mlm", "nsp")

    def forward(params, ids):
        hidden, bias = model.embed(params, {"input_ids": ids}), attention_bias({"input_ids": ids})
        for layer in range(config.num_layers):
            hidden, _ = model.block(take_layer(params["layers"], layer), hidden, bias)
        outputs = model.run_heads(params, hidden, {"input_ids": ids}, heads)
        return outputs["mlm_logits"], outputs["nsp_logits"]

    ids = jax.ShapeDtypeStruct((batch, length), jnp.int32)
    counted = (
        jax.jit(forward).lower(parameter_shapes(config), ids).compile().cost_analysis()["flops"]
    )
    ours = batch * sum(forward_flops(config, length, heads=heads).values())
    assert ours <= counted <= 1.04 * ours


def test_tap_shapes_are_those_of_a_run():
    shapes = tap_shapes(TINY, batch=2, length=5)
    assert tuple(sorted(shapes)) == tuple(sorted(TAPS))
    model, batch = Model(TINY), {"input_ids": jnp.ones((2, 5), int)}
    params = jax.tree.map(lambda x: jnp.zeros(x.shape), parameter_shapes(TINY))
    _, taps = jax.jit(lambda params: model.apply(params, batch, taps=TAPS))(params)
    assert {name: (tap.shape, tap.dtype) for name, tap in taps.items()} == {
        name: (tap.shape, tap.dtype) for name, tap in shapes.items()
    }
