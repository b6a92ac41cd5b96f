"""One block against a slow float64 reference in NumPy, for every way a block can be built; NoNorm;
bfloat16."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdistill.models import Model, ModelConfig
from jaxdistill.models.encoder import take_layer
from jaxdistill.models.layers import ACTIVATION_FUNCTIONS, NoNorm
from tests.models.test_embeddings import random_params

BASE = ModelConfig(
    vocab_size=11,
    num_layers=2,
    hidden_size=8,
    num_heads=2,
    intermediate_size=12,
    heads=(),
    max_positions=8,
)
KINDS = {
    "bert": BASE,
    "gelu tanh, own epsilon": BASE.replace(activation="gelu_tanh", ffn_norm_eps=0.3, norm_eps=0.1),
    "ib-bert": BASE.replace(bottleneck_size=16),
    "mobilebert": BASE.replace(
        bottleneck_size=4,
        num_ffn=3,
        attention_input="shared_bottleneck",
        norm="no_norm",
        activation="relu",
    ),
    "without opt": BASE.replace(
        bottleneck_size=4, num_ffn=2, attention_input="shared_bottleneck", ffn_norm_eps=0.3
    ),
    "tiny": BASE.replace(
        bottleneck_size=4,
        num_ffn=2,
        attention_input="bottleneck",
        norm="no_norm",
        activation="relu",
    ),
}
B, L = 2, 5
MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
BIAS = np.where(MASK > 0, 0.0, -1e9)[:, None, None, :]


def reference(config, layer_params, hidden, bias):
    """The paper's block, one operation a line."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), layer_params)

    def project(x, q):
        kernel = q["kernel"].reshape(x.shape[-1], -1)
        return x @ kernel + q["bias"].reshape(-1)

    def norm(x, q, eps=None):
        if config.norm == "layer_norm":
            x = (x - x.mean(-1, keepdims=True)) / np.sqrt(
                x.var(-1, keepdims=True) + (eps or config.norm_eps)
            )
        return x * q["scale"] + q["bias"]

    def activation(x):
        if config.activation == "relu":
            return np.maximum(x, 0)
        if config.activation == "gelu_tanh":
            return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
        return 0.5 * x * (1 + np.vectorize(math.erf)(x / np.sqrt(2)))

    inner = hidden
    if config.bottleneck_size:
        inner = norm(project(hidden, p["bottleneck_in"]["dense"]), p["bottleneck_in"]["norm"])
    query_key = value = hidden
    if config.attention_input == "bottleneck":
        query_key = value = inner
    if config.attention_input == "shared_bottleneck":
        query_key = norm(project(hidden, p["bottleneck_qk"]["dense"]), p["bottleneck_qk"]["norm"])
    a = p["attention"]
    q, k, v = (
        project(x, a[name]).reshape(B, L, config.num_heads, config.head_size)
        for x, name in ((query_key, "query"), (query_key, "key"), (value, "value"))
    )
    scores, context = (
        np.zeros((B, config.num_heads, L, L)),
        np.zeros((B, L, config.num_heads, config.head_size)),
    )
    for b, head in np.ndindex(B, config.num_heads):
        scores[b, head] = q[b, :, head] @ k[b, :, head].T / np.sqrt(config.head_size) + bias[b, 0]
        weights = np.exp(scores[b, head] - scores[b, head].max(-1, keepdims=True))
        context[b, :, head] = weights / weights.sum(-1, keepdims=True) @ v[b, :, head]
    out = {
        "kernel": a["out"]["kernel"].reshape(config.inner_size, config.inner_size),
        "bias": a["out"]["bias"],
    }
    x = norm(project(context.reshape(B, L, -1), out) + inner, a["norm"])
    for i in range(config.num_ffn):
        f = p[f"ffn_{i}"]
        eps = config.ffn_norm_eps if i == config.num_ffn - 1 else None
        x = norm(project(activation(project(x, f["up"])), f["down"]) + x, f["norm"], eps)
    if config.bottleneck_size:
        x = norm(project(x, p["bottleneck_out"]) + hidden, p["bottleneck_out_norm"])
    return x, {"hidden": x, "query": q, "key": k, "value": v, "attention_scores": scores}


@pytest.mark.parametrize("kind", KINDS)
def test_against_the_reference(kind):
    config = KINDS[kind]
    layer = jax.tree.map(lambda x: 0.3 * x, take_layer(random_params(config)["layers"], 1))
    hidden = np.random.default_rng(1).normal(size=(B, L, config.hidden_size))
    expected, expected_taps = reference(config, layer, hidden, BIAS)
    ours, taps = jax.jit(Model(config).block)(
        layer, jnp.asarray(hidden, jnp.float32), jnp.asarray(BIAS, jnp.float32)
    )
    np.testing.assert_allclose(ours, expected, rtol=2e-4, atol=2e-5)
    assert taps.keys() == expected_taps.keys()
    for name, tap in taps.items():
        np.testing.assert_allclose(tap, expected_taps[name], rtol=2e-4, atol=2e-5, err_msg=name)


@pytest.mark.parametrize("kind", ["bert", "mobilebert"])
def test_bfloat16_products_float32_residual_stream(kind):
    """Outputs, residual stream and scores stay float32, and everything is near the float32
    network."""
    config = KINDS[kind]
    low = config.replace(dtype="bfloat16")
    layer = jax.tree.map(lambda x: 0.3 * x, take_layer(random_params(config)["layers"], 0))
    hidden = jnp.asarray(
        np.random.default_rng(1).normal(size=(B, L, config.hidden_size)), jnp.float32
    )
    bias = jnp.asarray(BIAS, jnp.float32)
    exact, exact_taps = jax.jit(Model(config).block)(layer, hidden, bias)
    ours, taps = jax.jit(Model(low).block)(layer, hidden, bias)
    assert ours.dtype == taps["hidden"].dtype == taps["attention_scores"].dtype == jnp.float32
    assert taps["query"].dtype == jnp.bfloat16
    assert 1e-5 < float(jnp.abs(ours - exact).max()) < 0.1 * float(exact.std())
    np.testing.assert_allclose(
        taps["attention_scores"][0], exact_taps["attention_scores"][0], atol=0.05
    )


def test_bfloat16_keeps_large_residuals_exact():
    """MobileBERT's residual stream reaches 2.5e7; what passes through must not be rounded to eight
    bits."""
    config = KINDS["mobilebert"].replace(dtype="bfloat16")
    layer = jax.tree.map(jnp.zeros_like, take_layer(random_params(config)["layers"], 0))
    layer["bottleneck_out_norm"]["scale"] = jnp.ones(config.hidden_size)
    hidden = jnp.full((B, L, config.hidden_size), 16_777_215.0, jnp.float32)
    assert bool(
        (jax.jit(Model(config).block)(layer, hidden, jnp.zeros((B, 1, 1, L)))[0] == hidden).all()
    )


@pytest.mark.parametrize(
    "kind, dense, normed",
    [
        ("bert", ("attention", "out"), ("attention", "norm")),
        ("bert", ("ffn_0", "down"), ("ffn_0", "norm")),
        ("without opt", ("bottleneck_out",), ("bottleneck_out_norm",)),
    ],
)
def test_a_residual_stream_in_bfloat16_is_summed_and_normed_in_float32(kind, dense, normed):
    """A sub-layer adds numbers below 1 to a stream of 64s, whose neighbours in bfloat16 are 0.5
    apart."""
    config = KINDS[kind].replace(dtype="bfloat16", residual_dtype="bfloat16")
    layer = jax.tree.map(jnp.zeros_like, take_layer(random_params(config)["layers"], 0))

    def part(*names):
        return functools.reduce(lambda tree, name: tree[name], names, layer)

    for norm in (
        ("attention", "norm"),
        ("ffn_0", "norm"),
    ):  # 64 whatever comes in, unless it is the one to be seen
        part(*norm)["bias"] += 64.0
    part(*normed).update(scale=jnp.ones(config.hidden_size), bias=jnp.zeros(config.hidden_size))
    added = jnp.linspace(-0.9, 0.8, config.hidden_size)
    part(*dense)["bias"] = added.reshape(part(*dense)["bias"].shape)
    if dense[0] == "attention":  # seen through the norm behind it, which norms once more
        part("ffn_0", "norm").update(
            scale=jnp.ones(config.hidden_size), bias=jnp.zeros(config.hidden_size)
        )
    stream = jnp.full((B, L, config.hidden_size), 64.0, jnp.bfloat16)
    with (
        jax.disable_jit()
    ):  # a compiler may keep more digits between two operations than were asked for
        ours, taps = Model(config).block(layer, stream, jnp.asarray(BIAS, jnp.float32))
    assert (
        ours.dtype == taps["hidden"].dtype == jnp.bfloat16
        and taps["attention_scores"].dtype == jnp.float32
    )
    np.testing.assert_allclose(
        ours[0, 0].astype(jnp.float32), (added - added.mean()) / added.std(), atol=0.02
    )


def test_no_norm_is_an_affine_map_without_statistics():
    params = {"params": {"scale": jnp.asarray([2.0, 3.0]), "bias": jnp.asarray([1.0, -1.0])}}
    x = jnp.asarray([[1.0, 10.0], [1e6, -1e6]])
    np.testing.assert_array_equal(NoNorm().apply(params, x), [[3.0, 29.0], [2e6 + 1, -3e6 - 1]])
    fresh = NoNorm().init(jax.random.key(0), x)["params"]
    assert (fresh["scale"] == 1).all() and (fresh["bias"] == 0).all()
    assert NoNorm().apply(params, x.astype(jnp.bfloat16)).dtype == jnp.float32


def test_gelu_is_x_times_the_normal_distribution():
    """The exact form, its slope too; the tanh form is off by 5e-4."""
    x = np.linspace(-9, 9, 2001, dtype=np.float32)
    phi = np.array([0.5 * math.erfc(-v / math.sqrt(2)) for v in x.astype(np.float64)])
    density = np.exp(-(x.astype(np.float64) ** 2) / 2) / math.sqrt(2 * math.pi)
    np.testing.assert_allclose(ACTIVATION_FUNCTIONS["gelu"](x), x * phi, rtol=2e-6, atol=2e-6)
    np.testing.assert_allclose(
        jax.vmap(jax.grad(ACTIVATION_FUNCTIONS["gelu"]))(x), phi + x * density, rtol=2e-6, atol=2e-6
    )
