"""The stack: taps against a plain loop over blocks, `apply_at` and its gradients, pads, dropout,
one trace for all."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdistill.errors import BadInput
from jaxdistill.models import TAPS, Model, ModelConfig
from jaxdistill.models.encoder import attention_bias, take_layer
from tests.conftest import rarely
from tests.models.test_embeddings import random_params

STUDENT = ModelConfig(
    vocab_size=13,
    num_layers=3,
    hidden_size=8,
    num_heads=2,
    intermediate_size=12,
    embedding_size=4,
    trigram_input=True,
    bottleneck_size=4,
    attention_input="shared_bottleneck",
    num_ffn=2,
    norm="no_norm",
    activation="relu",
    pooler="first_token",
    max_positions=12,
)
BERT = ModelConfig(
    vocab_size=13, num_layers=3, hidden_size=8, num_heads=2, intermediate_size=12, max_positions=12
)
CONFIGS = {"student": STUDENT, "bert": BERT}
BATCH = {
    "input_ids": np.array([[3, 7, 2, 9, 5], [1, 4, 4, 0, 0]]),
    "token_type_ids": np.array([[0, 0, 1, 1, 1]] * 2),
    "attention_mask": np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]),
}


@pytest.fixture(scope="module", autouse=True)
def quick_compilation():
    """These tests compile much and compute little."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@functools.cache
def setup(kind):
    """(model, parameters small enough that no NoNorm stack explodes)."""
    config = CONFIGS[kind]
    return Model(config), jax.tree.map(lambda x: 0.4 * x, random_params(config))


def unrolled(model, params, batch, depth=None):
    """(last hidden state, {tap: list over layers}) by a Python loop; nothing of `encode` or
    `apply_at` is used."""
    hidden, bias = model.embed(params, batch), attention_bias(batch)
    taps = {name: [] for name in TAPS}
    taps["embeddings"] = hidden
    taps["hidden_moments"] = [jnp.stack([hidden.mean(-1), hidden.var(-1)], -1)]
    for layer in range(model.config.num_layers if depth is None else depth):
        hidden, found = model.block(
            jax.tree.map(lambda x, i=layer: x[i], params["layers"]), hidden, bias
        )
        taps["hidden_moments"].append(jnp.stack([hidden.mean(-1), hidden.var(-1)], -1))
        for name, tap in found.items():
            taps[name].append(tap)
    return hidden, taps


@pytest.fixture(scope="module", params=CONFIGS)
def case(request):
    """(model, params, last hidden state, taps) with the taps of the slow loop."""
    model, params = setup(request.param)
    return model, params, *jax.jit(lambda p: unrolled(model, p, BATCH))(params)


def close(ours, expected, **options):
    np.testing.assert_allclose(ours, expected, **{"rtol": 1e-4, "atol": 1e-5, **options})


def test_taps_are_those_of_a_loop(case):
    model, params, last, expected = case
    outputs, taps = jax.jit(lambda p: model.apply(p, BATCH, taps=TAPS))(params)
    assert set(taps) == set(TAPS)
    close(outputs["last_hidden_state"], last)
    for name, tap in taps.items():
        close(
            tap, expected[name] if name == "embeddings" else np.stack(expected[name]), err_msg=name
        )
    assert taps["hidden"].shape[0] == model.config.num_layers == taps["hidden_moments"].shape[0] - 1


def test_stopping_early_runs_no_head(case):
    model, params, _, expected = case
    outputs, taps = jax.jit(lambda p: model.apply(p, BATCH, taps=("hidden",), num_layers=2))(params)
    assert list(outputs) == ["last_hidden_state"] and taps["hidden"].shape[0] == 2
    close(outputs["last_hidden_state"], expected["hidden"][1])


@pytest.mark.parametrize("differentiable", [False, True])
def test_apply_at_gives_every_layer_in_one_trace(case, differentiable):
    model, params, _, expected = case
    names = tuple(name for name in TAPS if name != "embeddings")
    traces = []

    @jax.jit
    def at(params, layer):
        traces.append(layer)
        return model.apply_at(params, BATCH, layer, taps=names, differentiable=differentiable)

    for layer in range(model.config.num_layers):
        taps = at(params, jnp.int32(layer))
        assert set(taps) == set(names)
        for name, tap in taps.items():
            close(
                tap,
                np.stack(expected[name]) if name == "hidden_moments" else expected[name][layer],
                err_msg=name,
            )
    assert len(traces) == 1 and at._cache_size() == 1


LAYER, READ = 1, ("hidden", "query", "value")  # the middle one of three


def loss(taps):
    """Something that depends on every element of three taps."""
    return sum(jnp.sum(jnp.sin(taps[name].astype(jnp.float32))) for name in READ)


@functools.cache
def plain_gradient(kind):
    """Of the loss on block `LAYER` of a plain unrolled network that ends there."""
    model, params = setup(kind)

    def plain(p):
        _, taps = unrolled(model, p, BATCH, depth=LAYER + 1)
        return loss({name: taps[name][LAYER] for name in READ})

    return jax.jit(jax.grad(plain))(params)


def same_gradient(ours, expected):
    jax.tree.map(lambda a, b: close(a, b, rtol=1e-3, atol=1e-4), ours, expected)


@pytest.mark.parametrize("kind", rarely(CONFIGS, "bert"))
def test_gradient_through_apply_at_is_that_of_a_truncated_network(kind):
    model, params = setup(kind)
    ours = jax.jit(
        jax.grad(
            lambda p, layer: loss(model.apply_at(p, BATCH, layer, taps=READ, differentiable=True))
        )
    )(params, jnp.int32(LAYER))
    for part in ("embeddings", "layers"):
        same_gradient(ours[part], plain_gradient(kind)[part])
    assert all((leaf[LAYER + 1 :] == 0).all() for leaf in jax.tree.leaves(ours["layers"]))
    for below in range(LAYER + 1):
        assert np.abs(take_layer(ours["layers"], below)["attention"]["value"]["kernel"]).max() > 0


@pytest.mark.parametrize("kind", CONFIGS)
def test_active_layer_alone_is_differentiated(kind):
    """Strict freezing: the gradient reaches `active` only, and is the plain network's gradient of
    that layer."""
    model, params = setup(kind)
    active = take_layer(params["layers"], LAYER)

    @jax.jit
    def both(params, active, layer):
        return jax.value_and_grad(
            lambda a, p: loss(model.apply_at(p, BATCH, layer, taps=READ, active=a)), argnums=(0, 1)
        )(active, params)

    value, (ours, frozen) = both(params, active, jnp.int32(LAYER))
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(frozen))
    same_gradient(ours, take_layer(plain_gradient(kind)["layers"], LAYER))
    # And it is `active` that is run, not the stack's layer.
    assert (
        abs(both(params, jax.tree.map(lambda x: x + 0.1, active), jnp.int32(LAYER))[0] - value)
        > 1e-2
    )


@pytest.mark.parametrize("kind", CONFIGS)
def test_pads_change_nothing(kind):
    """From 1 pad to k: nothing. From 0 to 1: at most what the last token's trigram carries; without
    one, nothing."""
    model, params = setup(kind)
    tokens = [3, 7, 2, 9]
    apply = jax.jit(lambda p, b: model.apply(p, b)[0])

    def run(*behind):
        ids = jnp.asarray([[*tokens, *behind]])
        return apply(
            params,
            {"input_ids": ids, "attention_mask": (jnp.arange(ids.shape[1]) < 4).astype(int)[None]},
        )

    one, many, other = (
        run(0),
        run(0, 0, 0, 0, 0),
        run(0, 11, 12, 5, 1),
    )  # what stands behind the mask is not read
    none = run() if kind == "bert" else {}
    for name in ("last_hidden_state", "mlm_logits"):
        close(many[name][:, :4], one[name][:, :4])
        close(other[name][:, :4], one[name][:, :4])
        if kind == "bert":
            close(none[name], one[name][:, :4])
    close(many["nsp_logits"], one["nsp_logits"])
    if (
        kind == "student"
    ):  # the last token's embedding changes, and attention carries it on; nothing else changes
        ids = [jnp.asarray([tokens]), jnp.asarray([[*tokens, 0]])]
        short, long = (jax.jit(model.embed)(params, {"input_ids": x}) for x in ids)
        close(short[:, :3], long[:, :3])
        bias = attention_bias(
            {"input_ids": ids[1], "attention_mask": jnp.asarray([[1, 1, 1, 1, 0]])}
        )
        encode = jax.jit(lambda h, b: model.encode(params["layers"], h, b)[0])
        close(encode(long[:, :4], jnp.zeros((1, 1, 1, 4))), encode(long, bias)[:, :4])


def test_batches_may_be_numpy_or_jax_and_fields_may_be_absent():
    model, params = setup("student")
    apply = jax.jit(lambda p, b: model.apply(p, b, taps=("hidden",)))
    short = {"input_ids": BATCH["input_ids"]}
    full = {
        **short,
        "attention_mask": np.ones((2, 5), int),
        "token_type_ids": np.zeros((2, 5), int),
    }
    for ours, expected in ((short, full), (jax.tree.map(jnp.asarray, full), full)):
        jax.tree.map(close, apply(params, ours), apply(params, expected))
    eager = model.embed(params, short)  # NumPy without jit
    close(eager, jax.jit(model.embed)(params, jax.tree.map(jnp.asarray, short)))
    assert not np.allclose(
        apply(params, BATCH)[0]["last_hidden_state"], apply(params, full)[0]["last_hidden_state"]
    )


def test_bad_input_is_refused_before_anything_runs():
    model, params = setup("student")
    with pytest.raises(BadInput, match="did you mean 'attention_scores'"):
        model.apply(params, BATCH, taps=("attention_score",))
    with pytest.raises(BadInput, match="max_positions=12"):
        model.apply(params, {"input_ids": np.zeros((1, 13), int)})
    with pytest.raises(BadInput, match="float32.*whole numbers"):
        model.apply(params, {"input_ids": np.zeros((1, 3), np.float32)})
    with pytest.raises(BadInput, match="batch, length"):
        model.apply(params, {"input_ids": np.zeros(3, int)})
    with pytest.raises(BadInput, match="mlm, nsp"):
        model.apply(params, BATCH, heads=("question_answering",))


def test_masked_keys_get_no_weight_and_scores_stay_finite():
    model, params = setup("bert")
    scores = jax.jit(lambda p: model.apply(p, BATCH, taps=("attention_scores",))[1])(params)[
        "attention_scores"
    ]
    weights = jax.nn.softmax(scores, -1)
    assert np.isfinite(scores).all() and (weights[:, 1, :, :, 3:] == 0).all()
    assert (weights[:, 0] > 0).all() and (weights[:, 1, :, :, :3] > 0).all()


@pytest.mark.parametrize("kind", rarely(CONFIGS, "bert"))
def test_what_is_computed_again_changes_no_gradient(kind):
    """Whether projections are kept, or nothing of blocks and embeddings; with dropout, whose masks
    must come out as before."""
    model, params = setup(kind)

    def gradient(remat):
        network = dataclasses.replace(model, remat=remat)
        return jax.jit(
            jax.grad(
                lambda p: loss(network.apply(p, BATCH, taps=READ, dropout_key=jax.random.key(1))[1])
            )
        )(params)

    ours = gradient("full")
    same_gradient(ours, gradient("dots"))
    assert (
        min(
            float(jnp.max(jnp.abs(ours["layers"]["attention"][name]["kernel"])))
            for name in ("query", "value")
        )
        > 0
    )


def test_dropout_is_on_with_a_key_only_and_is_the_keys():
    model, params = setup("student")
    apply = jax.jit(lambda p, key: model.apply(p, BATCH, dropout_key=key)[0]["last_hidden_state"])
    off, again = apply(params, None), apply(params, None)
    first, same, other = (apply(params, jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(off, again)
    np.testing.assert_array_equal(first, same)
    assert not np.allclose(first, off) and not np.allclose(first, other)
    still = Model(model.config.replace(hidden_dropout=0.0, attention_dropout=0.0))
    close(
        jax.jit(lambda p, key: still.apply(p, BATCH, dropout_key=key)[0]["last_hidden_state"])(
            params, jax.random.key(0)
        ),
        off,
    )


def test_dropout_differs_between_layers():
    """Equal blocks that pass their input through, apart from what dropout removes: equal masks
    would show."""
    config = BERT.replace(num_layers=2, hidden_dropout=0.5, norm="no_norm", heads=())
    model = Model(config)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    params = jax.tree.map(lambda x: jnp.zeros(x.shape), shapes)
    norms = ("embeddings", "layers/attention", "layers/ffn_0")
    for path in norms:
        tree = params
        for name in path.split("/"):
            tree = tree[name]
        tree["norm"]["scale"] = tree["norm"]["scale"] + 1
    params["layers"]["ffn_0"]["down"]["bias"] += (
        1  # each layer adds 1, or 2 where it is kept at rate one half
    )
    taps = jax.jit(
        lambda p: model.apply(p, BATCH, taps=("hidden",), dropout_key=jax.random.key(3))[1]
    )(params)
    first = np.asarray(taps["hidden"][0])
    second = np.asarray(taps["hidden"][1] - taps["hidden"][0])
    assert set(np.unique(first)) == set(np.unique(second)) == {0.0, 2.0}
    assert 0.25 < np.mean(first == second) < 0.75


@pytest.mark.parametrize("residual_dtype", ["float32", "bfloat16"])
def test_bfloat16_is_close_and_returns_float32(residual_dtype):
    model, params = setup("student")
    low = Model(model.config.replace(dtype="bfloat16", residual_dtype=residual_dtype))
    exact, (ours, taps) = (
        jax.jit(lambda p, m=m: m.apply(p, BATCH, taps=("hidden",)))(params) for m in (model, low)
    )
    for name, value in ours.items():
        assert value.dtype == jnp.float32
        assert 0 < np.abs(value - exact[0][name]).max() < 0.1 * np.std(exact[0][name]), name
    assert taps["hidden"].dtype == residual_dtype


def test_depth_is_one_loop():
    """Compile time must not grow with depth: the lowered program is as long at 3 layers as at
    30."""

    def program(depth):
        model = Model(STUDENT.replace(num_layers=depth))
        shapes = jax.eval_shape(model.init, jax.random.key(0))
        return jax.jit(lambda p: model.apply(p, BATCH, taps=TAPS)).lower(shapes).as_text()

    assert (
        len(program(3).splitlines()) == len(program(30).splitlines())
        and program(3).count("stablehlo.while") == 1
    )
