"""transformers' PyTorch networks and ours give the same numbers on the same weights, carried over
both ways."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
import torch

from jaxdistill import interop
from jaxdistill.interop.configs import ARCHITECTURES
from jaxdistill.models import Model, ModelConfig, parameters, preset
from tests.conftest import rarely
from tests.interop import oracle
from tests.interop.tiny import SHRUNK, random_params


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize(
    "variant",
    rarely(
        oracle.VARIANTS,
        "bert_relu_base",
        "without_opt",
        "without_opt_gelu_tanh",
        "tiny_with_unused_shared_bottleneck",
        "bottleneck_as_wide_as_hidden",
        "mobile_tokens",
        "mobile_spans",
        "mobile_choices",
    ),
)
def test_theirs_to_ours_and_back(variant: str, tmp_path: Path) -> None:
    """Random PyTorch network -> our outputs; our export -> the same PyTorch class, nothing missing,
    bit for bit."""
    network = oracle.random_torch(variant)
    network.save_pretrained(tmp_path / "theirs")
    model, params = interop.from_pretrained(tmp_path / "theirs")
    name = type(network).__name__
    for padded in (True, False):
        inputs = oracle.batch(padded=padded)
        oracle.assert_same(
            oracle.our_outputs(model, params, inputs), oracle.torch_outputs(network, inputs)
        )
    kind = name.removeprefix("Mobile").removeprefix("Bert")
    assert set(model.config.heads) == set(ARCHITECTURES[kind])

    exported = interop.save_pretrained(tmp_path / "ours", model, params)
    assert exported.format == "huggingface" and exported.reason is None
    back, info = oracle.torch_class(name).from_pretrained(
        tmp_path / "ours", output_loading_info=True, attn_implementation="eager"
    )
    assert {key: value for key, value in info.items() if value} == {}
    before, after = network.state_dict(), back.state_dict()
    unread = (
        ("embedding_transformation", "bottleneck.attention")
        if variant in ("no_trigram_same_width", "tiny_with_unused_shared_bottleneck")
        else ()
    )
    for key in before:
        if not any(part in key for part in unread):
            assert torch.equal(before[key], after[key]), key
    inputs = oracle.batch()
    oracle.assert_same(
        oracle.torch_outputs(back.eval(), inputs), oracle.torch_outputs(network, inputs), rtol=1e-5
    )


@pytest.mark.parametrize(
    "name", ["bert_base", "mobilebert", "mobilebert_without_opt", "mobilebert_tiny"]
)
def test_ours_to_theirs(name: str, tmp_path: Path) -> None:
    """Our random parameters of each preset, shrunk, give the same numbers in PyTorch; the config
    comes back equal."""
    small = SHRUNK if name == "bert_base" else {**SHRUNK, "embedding_size": 4, "bottleneck_size": 8}
    config = preset(name).replace(**small)
    params = random_params(config)
    interop.save_pretrained(tmp_path / "out", Model(config), params)
    network = oracle.torch_class(
        "BertForPreTraining" if name == "bert_base" else "MobileBertForPreTraining"
    )
    network = network.from_pretrained(tmp_path / "out", attn_implementation="eager").eval()
    for padded in (True, False):
        inputs = oracle.batch(padded=padded)
        ours = oracle.our_outputs(Model(config), params, inputs)
        oracle.assert_same(ours, oracle.torch_outputs(network, inputs))
    model, again = interop.from_pretrained(tmp_path / "out")
    assert model.config == config
    assert jax.tree.all(jax.tree.map(np.array_equal, again, params))


EXPRESSIBLE = {
    "pooler_beside_mlm": ModelConfig(**SHRUNK, heads=("mlm",)),
    "bert_without_pooler": ModelConfig(**SHRUNK, heads=("mlm",), pooler="none"),
    "encoder_alone": ModelConfig(**SHRUNK, heads=(), pooler="none"),
    "regression": ModelConfig(
        **SHRUNK, heads=("sequence_classification",), num_labels=1, regression=True
    ),
    "choices": ModelConfig(**SHRUNK, heads=("multiple_choice",)),
    "first_token_pooler_in_bert": ModelConfig(**SHRUNK, pooler="first_token", norm="no_norm"),
    "stacked_ffn_in_bert": ModelConfig(
        **SHRUNK, num_ffn=3, embedding_norm_eps=1e-5, ffn_norm_eps=1e-5
    ),
    "three_labels_no_pooler": ModelConfig(
        **SHRUNK, norm="no_norm", pooler="none", num_labels=3, heads=("sequence_classification",)
    ),
}


@pytest.mark.parametrize("name", EXPRESSIBLE)
def test_corners_that_hugging_face_can_express(name: str, tmp_path: Path) -> None:
    """`verify_export` in PyTorch over configs at the edge of what its classes hold."""
    config = EXPRESSIBLE[name]
    params = random_params(config)
    assert interop.why_not_huggingface(config) is None
    assert interop.save_pretrained(tmp_path / "out", Model(config), params).format == "huggingface"
    report = interop.verify_export(tmp_path / "out", Model(config), params, with_torch=True)
    assert report["max_relative_difference"] == 0.0
    assert report["torch_max_relative_difference"] < 1e-4


@pytest.mark.parametrize(
    "variant",
    [
        "bert",
        "bert_rows",
        "mobilebert",
        "tiny",
        "tanh_pooler_one_ffn",
        "mobile_tokens",
        "mobile_spans",
        "bert_choices",
    ],
)
def test_every_parameter_is_seen(variant: str, tmp_path: Path) -> None:
    """The comparison above has no blind spot: with any one parameter wrong in any one layer, parity
    is lost."""
    network = oracle.random_torch(variant)
    network.save_pretrained(tmp_path / "theirs")
    model, params = interop.from_pretrained(tmp_path / "theirs")
    inputs = oracle.batch()
    theirs = oracle.torch_outputs(network, inputs)
    flat = parameters.flatten(params)
    wrong = parameters.flatten(random_params(model.config, seed=5))
    for name in flat:
        for part in (
            range(model.config.num_layers) if parameters.is_stacked(name) else (slice(None),)
        ):
            changed = np.array(flat[name])
            changed[part] = np.asarray(wrong[name])[part]
            tree = parameters.unflatten({**flat, name: changed})
            with pytest.raises(AssertionError):
                oracle.assert_same(oracle.our_outputs(model, tree, inputs), theirs)


def test_pad_row_survives(tmp_path: Path) -> None:
    """transformers zeroes the [PAD] row when it makes a network, not when it loads one; neither do
    we."""
    network = oracle.random_torch("mobilebert")
    network.save_pretrained(tmp_path / "theirs")
    model, params = interop.from_pretrained(tmp_path / "theirs")
    row = network.state_dict()["mobilebert.embeddings.word_embeddings.weight"][0].numpy()
    assert np.abs(row).min() > 0
    np.testing.assert_array_equal(params["embeddings"]["word"][0], row)


@pytest.mark.parametrize("field", ["embedding_norm_eps", "ffn_norm_eps", "norm_eps"])
def test_each_eps_matters(field: str, tmp_path: Path) -> None:
    """The variant "without_opt" really tells the two fixed epsilons from the configured one."""
    network = oracle.random_torch("without_opt")
    network.save_pretrained(tmp_path / "theirs")
    model, params = interop.from_pretrained(tmp_path / "theirs")
    assert (model.config.embedding_norm_eps, model.config.ffn_norm_eps, model.config.norm_eps) == (
        1e-5,
        1e-5,
        1e-2,
    )
    other = Model(
        dataclasses.replace(model.config, **{field: 1e-2 if field != "norm_eps" else 1e-5})
    )
    inputs = oracle.batch()
    with pytest.raises(AssertionError):
        oracle.assert_same(
            oracle.our_outputs(other, params, inputs), oracle.torch_outputs(network, inputs)
        )


def test_exact_and_tanh_gelu_are_told_apart(tmp_path: Path) -> None:
    """Theirs "gelu" is ours "gelu"; with the other one parity is lost."""
    network = oracle.random_torch("bert")
    network.save_pretrained(tmp_path / "theirs")
    model, params = interop.from_pretrained(tmp_path / "theirs")
    assert model.config.activation == "gelu"
    inputs = oracle.batch()
    other = Model(model.config.replace(activation="gelu_tanh"))
    with pytest.raises(AssertionError):
        oracle.assert_same(
            oracle.our_outputs(other, params, inputs), oracle.torch_outputs(network, inputs)
        )


@pytest.mark.parametrize("variant", ["bert", "mobilebert", "tiny"])
def test_masks_are_theirs_at_the_extremes(variant: str, tmp_path: Path) -> None:
    """A row of nothing but pads has equal weights on all of them, and no pad leaks into hidden
    states of 1e9 and more."""
    network = oracle.random_torch(variant)
    inputs = oracle.batch()
    inputs["attention_mask"][1] = 0
    for scale in (1.0, 3e9) if variant != "bert" else (1.0,):  # a LayerNorm takes any size away
        with torch.no_grad():
            for name, value in network.named_parameters():
                if "embeddings.LayerNorm" in name:
                    value.mul_(scale)
        network.save_pretrained(tmp_path / f"{scale}")
        model, params = interop.from_pretrained(tmp_path / f"{scale}")
        theirs = oracle.torch_outputs(network, inputs)
        np.testing.assert_allclose(theirs["attentions"][:, 1], 1 / oracle.LENGTH, rtol=1e-6)
        ours = oracle.our_outputs(model, params, inputs)
        oracle.assert_same(ours, theirs)
        assert scale == 1 or np.abs(theirs["hidden_states"][:, 0]).max() > 1e9
