"""Embeddings against a slow reference with explicit loops: the trigram's order, its ends and its
pads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdistill.errors import BadInput
from jaxdistill.models import Model, ModelConfig
from jaxdistill.models.parameters import flatten, unflatten

TRIGRAM = ModelConfig(
    vocab_size=20,
    num_layers=1,
    hidden_size=8,
    num_heads=2,
    intermediate_size=4,
    embedding_size=3,
    trigram_input=True,
    bottleneck_size=4,
    norm="no_norm",
    pooler="first_token",
    max_positions=16,
)
PLAIN = ModelConfig(
    vocab_size=20, num_layers=1, hidden_size=8, num_heads=2, intermediate_size=4, max_positions=16
)
IDS = np.array([[3, 7, 2, 9, 0, 0], [1, 4, 4, 8, 5, 6]])
TYPES = np.array([[0, 0, 1, 1, 0, 0], [0, 1, 1, 1, 1, 1]])


def random_params(config, seed=0):
    """Every leaf random, so that no zero bias or unit scale hides a mistake."""
    shapes = jax.eval_shape(Model(config).init, jax.random.key(0))
    rng = np.random.default_rng(seed)
    return unflatten(
        {
            name: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32)
            for name, leaf in flatten(shapes).items()
        }
    )


def reference(config, params, ids, types):
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params["embeddings"])
    out = np.zeros((*ids.shape, config.hidden_size))
    for row, column in np.ndindex(*ids.shape):
        vector = p["word"][ids[row, column]]
        if config.trigram_input:
            zero = np.zeros(config.word_size)
            following = p["word"][ids[row, column + 1]] if column + 1 < ids.shape[1] else zero
            previous = p["word"][ids[row, column - 1]] if column > 0 else zero
            vector = np.concatenate([following, vector, previous])
        if "projection" in p:
            vector = vector @ p["projection"]["kernel"] + p["projection"]["bias"]
        vector = vector + p["position"][column] + p["token_type"][types[row, column]]
        if config.norm == "layer_norm":
            vector = (vector - vector.mean()) / np.sqrt(
                vector.var() + (config.embedding_norm_eps or config.norm_eps)
            )
        out[row, column] = vector * p["norm"]["scale"] + p["norm"]["bias"]
    return out


@pytest.mark.parametrize(
    "config",
    [
        TRIGRAM,
        PLAIN,
        PLAIN.replace(embedding_size=4),
        TRIGRAM.replace(embedding_size=None),
        PLAIN.replace(embedding_norm_eps=0.5),
    ],
    ids=["trigram", "plain", "factorised", "wide trigram", "own epsilon"],
)
def test_against_the_reference(config):
    params = random_params(config)
    batch = {"input_ids": jnp.asarray(IDS), "token_type_ids": jnp.asarray(TYPES)}
    ours = jax.jit(Model(config).embed)(params, batch)
    assert ours.dtype == jnp.float32
    np.testing.assert_allclose(ours, reference(config, params, IDS, TYPES), rtol=1e-4, atol=1e-4)


def test_types_default_to_zero():
    params, model = random_params(TRIGRAM), Model(TRIGRAM)
    ours = jax.jit(model.embed)(params, {"input_ids": jnp.asarray(IDS)})
    np.testing.assert_allclose(
        ours, reference(TRIGRAM, params, IDS, 0 * TYPES), rtol=1e-4, atol=1e-4
    )


def test_a_pad_counts_in_the_trigram_of_the_last_token():
    params, embed = random_params(TRIGRAM), jax.jit(Model(TRIGRAM).embed)
    short, one, three = (
        embed(params, {"input_ids": jnp.asarray([[3, 7, 2] + [0] * pads])}) for pads in (0, 1, 3)
    )
    np.testing.assert_array_equal(one[:, :3], three[:, :3])
    np.testing.assert_array_equal(short[:, :2], one[:, :2])
    assert not np.allclose(short[:, 2], one[:, 2])


@pytest.mark.parametrize(
    "ids, words",
    [
        (np.zeros((1, 17), int), "max_positions=16"),
        (np.zeros((1, 4), np.float32), "float32"),
        (np.zeros(4, int), "batch, length"),
    ],
)
def test_unusable_ids_are_refused(ids, words):
    with pytest.raises(BadInput, match=words):
        Model(PLAIN).embed(jax.eval_shape(Model(PLAIN).init, jax.random.key(0)), {"input_ids": ids})


OUTSIDE = [
    (
        "input_ids",
        -1,
        "input_ids holds -1; expected 0 to 19, below the model's vocab_size; take the tokenizer",
    ),
    ("input_ids", 20, "input_ids holds 20"),
    ("input_ids", 2**32 + 3, "holds 4294967299"),
    (
        "token_type_ids",
        -1,
        "token_type_ids holds -1; expected 0 to 1, below the model's type_vocab_size",
    ),
    (
        "position_ids",
        16,
        "position_ids holds 16; expected 0 to 15, below the model's max_positions",
    ),
    ("position_ids", -3, "position_ids holds -3"),
    ("mlm_positions", -1, "mlm_positions holds -1; expected 0 to 5, places in a row"),
    ("cls_positions", 6, "cls_positions holds 6; expected 0 to 5"),
]


def batch_with(name, value):
    """A batch, packed if `name` needs that, with one number of the field `name` replaced."""
    batch = {
        "input_ids": IDS,
        "token_type_ids": TYPES,
        "position_ids": np.arange(6) + 0 * IDS,
        "mlm_positions": IDS[:, :2] % 5,
        "segment_ids": np.ones_like(IDS),
        "cls_positions": np.zeros((2, 1), int),
    }
    batch[name] = batch[name].astype(np.int64)
    batch[name][1, 0] = value
    return batch


@pytest.mark.parametrize("as_array", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
@pytest.mark.parametrize("name, value, words", OUTSIDE)
def test_numbers_without_a_row_are_refused_where_they_are_known(name, value, words, as_array):
    model, params = Model(PLAIN), random_params(PLAIN)
    batch = batch_with(name, value)
    if as_array is jnp.asarray and value > 2**31:
        return  # there is no such jax.Array
    with pytest.raises(BadInput, match=words):
        model.apply(params, {**batch, name: as_array(batch[name])})


@pytest.mark.parametrize("config", [PLAIN, TRIGRAM], ids=["plain", "trigram"])
def test_numbers_without_a_row_give_nan_under_jit(config):
    model, params = Model(config), random_params(config)
    outputs = jax.jit(lambda p, b: model.apply(p, b)[0])
    assert all(np.isfinite(x).all() for x in outputs(params, batch_with("input_ids", 3)).values())
    for name, value, _ in OUTSIDE:
        if value < 2**31:
            found = outputs(params, batch_with(name, value))
            read = {"mlm_positions": "mlm_logits", "cls_positions": "nsp_logits"}.get(
                name, "last_hidden_state"
            )
            assert np.isnan(found[read][1, 0]).all() and np.isfinite(found[read][0]).all(), (
                name,
                value,
            )
