"""Flat names, digests and counts of parameter trees; what a stack of layers looks like."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdistill.models import Model, ModelConfig, preset
from jaxdistill.models.parameters import count, digest, flatten, is_stacked, is_vector, unflatten

CONFIG = ModelConfig(
    vocab_size=4000,
    num_layers=3,
    hidden_size=8,
    num_heads=2,
    intermediate_size=12,
    embedding_size=4,
    trigram_input=True,
    bottleneck_size=4,
    attention_input="shared_bottleneck",
    num_ffn=2,
    max_positions=16,
)


@pytest.fixture(scope="module")
def params():
    """The only real `init` of this folder's tests: compiling its random numbers takes seconds."""
    return jax.jit(Model(CONFIG).init)(jax.random.key(0))


@pytest.mark.parametrize(
    "name, encoder",
    [
        ("bert_base", 109_482_240),
        ("ib_bert_large", 294_467_840),
        ("mobilebert", 24_581_888),
        ("mobilebert_without_opt", 24_581_888),
        ("mobilebert_tiny", 15_485_696),
    ],
)
def test_published_counts(name, encoder):
    shapes = jax.eval_shape(Model(preset(name).replace(heads=())).init, jax.random.key(0))
    assert count(shapes) == encoder
    if name == "mobilebert":
        assert count(jax.eval_shape(Model(preset(name)).init, jax.random.key(0))) == 36_597_564


def test_flatten_and_back(params):
    flat = flatten(params)
    assert list(flat) == sorted(flat) and flat["layers/attention/query/kernel"].shape == (
        3,
        4,
        2,
        2,
    )
    assert jax.tree.all(jax.tree.map(np.array_equal, unflatten(flat), params))
    assert sum(leaf.size for leaf in flat.values()) == count(params)


def test_stacked_leaves_have_the_layer_axis_and_layers_differ(params):
    for name, leaf in flatten(params).items():
        assert leaf.dtype == jnp.float32
        assert is_stacked(name) == (name.split("/")[0] == "layers")
        if is_stacked(name):
            assert leaf.shape[0] == CONFIG.num_layers
            if not is_vector(name):
                assert not np.array_equal(leaf[0], leaf[1])


def test_vectors_are_biases_and_scales(params):
    vectors = {name for name in flatten(params) if is_vector(name)}
    assert {"mlm/bias", "mlm/norm/scale", "layers/ffn_0/up/bias", "embeddings/norm/bias"} <= vectors
    matrices = {name.rsplit("/", 1)[-1] for name in flatten(params)} - {"bias", "scale"}
    assert matrices == {"kernel", "word", "position", "token_type", "extra_embedding"}


def test_kernels_are_truncated_at_two_standard_deviations(params):
    word = params["embeddings"]["word"]
    assert float(jnp.abs(word).max()) <= 0.04 and float(jnp.abs(word).max()) > 0.038
    assert float(word.std()) == pytest.approx(0.88 * 0.02, rel=0.03)  # of the TRUNCATED normal


def test_digest_sees_one_bit_a_name_a_dtype_and_a_shape(params):
    before = digest(params)
    assert digest(jax.tree.map(np.asarray, params)) == before
    flat = {name: np.array(leaf) for name, leaf in flatten(params).items()}
    flat["layers/ffn_1/down/kernel"].view(np.uint32).flat[5] ^= 1
    assert digest(unflatten(flat)) != before
    flat["layers/ffn_1/down/kernel"].view(np.uint32).flat[5] ^= 1
    assert digest(unflatten(flat)) == before
    zeros = np.zeros((2, 3), np.float32)
    assert (
        len(
            {
                digest({"a": zeros}),
                digest({"b": zeros}),
                digest({"a": zeros.reshape(3, 2)}),
                digest({"a": zeros.astype(np.int32)}),
            }
        )
        == 4
    )
    assert digest({"a": zeros, "b": zeros}) == digest({"b": zeros, "a": zeros})
