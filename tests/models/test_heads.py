"""Heads against explicit formulas: pooler, tied MLM with its extra table, NSP, classifiers, QA,
embeddings."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdistill.errors import BadInput
from jaxdistill.models import Model, ModelConfig, heads
from tests.models.test_embeddings import random_params

BASE = ModelConfig(
    vocab_size=11,
    num_layers=1,
    hidden_size=8,
    num_heads=2,
    intermediate_size=4,
    max_positions=8,
    num_labels=3,
)
HIDDEN = np.random.default_rng(5).normal(size=(2, 4, 8)).astype(np.float32)
BATCH = {
    "input_ids": np.ones((2, 4), int),
    "attention_mask": np.array([[1, 1, 1, 1], [1, 1, 0, 0]]),
}


def run(config, batch=None, key=None):
    """(parameters, outputs of every head of `config` on HIDDEN)."""
    params = random_params(config)
    model, names = Model(config), config.heads
    fields = BATCH | (batch or {})
    return params, jax.jit(lambda p: model.run_heads(p, jnp.asarray(HIDDEN), fields, names, key))(
        params
    )


def mlm_reference(config, params, rows):
    """float64; one concatenated table [words ; extra], as the published code has it."""
    head = jax.tree.map(lambda x: np.asarray(x, np.float64), params["mlm"])
    x = rows @ head["transform"]["kernel"] + head["transform"]["bias"]
    x = (
        np.maximum(x, 0)
        if config.activation == "relu"
        else 0.5 * x * (1 + np.vectorize(math.erf)(x / np.sqrt(2)))
    )
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + config.norm_eps)
    x = x * head["norm"]["scale"] + head["norm"]["bias"]
    table = np.asarray(params["embeddings"]["word"], np.float64)
    if "extra_embedding" in head:
        table = np.concatenate([table, head["extra_embedding"]], -1)
    return x @ table.T + head["bias"]


@pytest.mark.parametrize(
    "config",
    [
        BASE.replace(heads=("mlm",)),
        BASE.replace(heads=("mlm",), embedding_size=3, norm="no_norm", activation="relu"),
    ],
    ids=["square", "extra, NoNorm"],
)
def test_mlm_everywhere_and_at_positions(config):
    params, outputs = run(config)
    expected = mlm_reference(config, params, HIDDEN)
    np.testing.assert_allclose(outputs["mlm_logits"], expected, rtol=1e-4, atol=1e-4)
    positions = np.array([[2, 0, 3], [1, 1, 0]])
    _, outputs = run(config, {"mlm_positions": positions})
    picked = np.stack([expected[row, positions[row]] for row in range(2)])
    np.testing.assert_allclose(outputs["mlm_logits"], picked, rtol=1e-4, atol=1e-4)


def test_the_word_table_is_tied():
    """The MLM loss must reach the word table through both of its uses."""
    config = BASE.replace(heads=("mlm",), embedding_size=3)
    params = random_params(config)
    gradient = jax.jit(
        jax.grad(
            lambda p: jnp.sum(
                jnp.sin(
                    Model(config).run_heads(p, jnp.asarray(HIDDEN), BATCH, ("mlm",))["mlm_logits"]
                )
            )
        )
    )(params)
    assert (jnp.abs(gradient["embeddings"]["word"]).sum(-1) > 0).all()


def test_poolers_and_nsp():
    params, outputs = run(BASE.replace(heads=("nsp",)))
    dense = jax.tree.map(np.asarray, params["pooler"]["dense"])
    pooled = np.tanh(HIDDEN[:, 0] @ dense["kernel"] + dense["bias"])
    np.testing.assert_allclose(outputs["pooler_output"], pooled, rtol=1e-4, atol=1e-5)
    nsp = jax.tree.map(np.asarray, params["nsp"]["dense"])
    np.testing.assert_allclose(
        outputs["nsp_logits"], pooled @ nsp["kernel"] + nsp["bias"], rtol=1e-4, atol=1e-4
    )
    params, outputs = run(BASE.replace(heads=("nsp",), pooler="first_token"))
    assert "pooler" not in params
    np.testing.assert_array_equal(outputs["pooler_output"], HIDDEN[:, 0])
    params, outputs = run(BASE.replace(heads=("sequence_classification",), pooler="none"))
    assert "pooler_output" not in outputs and outputs["logits"].shape == (2, 3)


def test_task_heads():
    params, outputs = run(BASE.replace(heads=("sequence_classification",), pooler="first_token"))
    dense = params["sequence_classification"]["dense"]
    np.testing.assert_allclose(
        outputs["logits"], HIDDEN[:, 0] @ dense["kernel"] + dense["bias"], rtol=1e-4, atol=1e-4
    )
    _, outputs = run(BASE.replace(heads=("sequence_classification",), regression=True))
    assert outputs["logits"].shape == (2, 1)
    params, outputs = run(BASE.replace(heads=("token_classification",)))
    dense = params["token_classification"]["dense"]
    np.testing.assert_allclose(
        outputs["logits"], HIDDEN @ dense["kernel"] + dense["bias"], rtol=1e-4, atol=1e-4
    )
    params, outputs = run(BASE.replace(heads=("question_answering",)))
    dense = params["question_answering"]["dense"]
    both = HIDDEN @ np.asarray(dense["kernel"]) + np.asarray(dense["bias"])
    np.testing.assert_allclose(outputs["start_logits"], both[..., 0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(outputs["end_logits"], both[..., 1], rtol=1e-4, atol=1e-4)


def test_sentence_embeddings_average_real_tokens():
    mean = np.stack([HIDDEN[0].mean(0), HIDDEN[1, :2].mean(0)])
    config = BASE.replace(heads=("embedding",), normalize_embedding=False)
    np.testing.assert_allclose(run(config)[1]["embedding"], mean, rtol=1e-5, atol=1e-6)
    unit = run(config.replace(normalize_embedding=True))[1]["embedding"]
    np.testing.assert_allclose(
        unit, mean / np.linalg.norm(mean, axis=-1, keepdims=True), rtol=1e-5, atol=1e-6
    )
    first = run(config.replace(embedding_pooling="first_token"))[1]["embedding"]
    np.testing.assert_array_equal(first, HIDDEN[:, 0])
    empty = run(config, {"attention_mask": np.zeros((2, 4), int)})[1]["embedding"]
    assert np.isfinite(empty).all()


def test_other_poolings_against_numpy():
    """Of the real tokens alone; several are concatenated, and a dense layer may follow."""
    config = BASE.replace(heads=("embedding",), normalize_embedding=False)
    rows = [HIDDEN[0], HIDDEN[1, :2]]
    weights = [np.arange(1, len(row) + 1)[:, None] for row in rows]
    expected = {
        "last_token": [row[-1] for row in rows],
        "max": [row.max(0) for row in rows],
        "mean_sqrt_length": [row.sum(0) / np.sqrt(len(row)) for row in rows],
        "weighted_mean": [
            (row * weight).sum(0) / weight.sum() for row, weight in zip(rows, weights)
        ],
    }
    expected["max+last_token"] = np.concatenate([expected["max"], expected["last_token"]], axis=-1)
    for pooling, value in expected.items():
        found = run(config.replace(embedding_pooling=pooling))[1]["embedding"]
        np.testing.assert_allclose(found, np.stack(value), rtol=1e-5, atol=1e-6, err_msg=pooling)
    config = config.replace(
        embedding_pooling="max+last_token", embedding_features=3, embedding_activation="relu"
    )
    params, outputs = run(config)
    dense = params["embedding"]["dense"]
    assert dense["kernel"].shape == (2 * HIDDEN.shape[-1], 3)
    projected = np.maximum(
        expected["max+last_token"] @ np.asarray(dense["kernel"]) + np.asarray(dense["bias"]), 0
    )
    np.testing.assert_allclose(outputs["embedding"], projected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("given", ["middle", "mean+mean", "mean+", ""])
def test_unknown_poolings_are_refused(given):
    with pytest.raises(BadInput, match="expected one of first_token, max, mean"):
        BASE.replace(embedding_pooling=given)
    with pytest.raises(BadInput, match="embedding_features=0 must be"):
        BASE.replace(embedding_features=0)


def test_classifier_dropout_is_on_with_a_key_only():
    config = BASE.replace(heads=("token_classification",), classifier_dropout=0.5)
    (_, off), (_, also_off), (_, on) = (
        run(config),
        run(config.replace(classifier_dropout=0.0)),
        run(config, key=jax.random.key(0)),
    )
    np.testing.assert_array_equal(off["logits"], also_off["logits"])
    assert not np.allclose(on["logits"], off["logits"])


def test_bfloat16_logits_are_float32():
    config = BASE.replace(
        dtype="bfloat16", heads=("mlm", "nsp", "question_answering"), embedding_size=3
    )
    _, outputs = run(config)
    assert {value.dtype for value in outputs.values()} == {jnp.dtype("float32")}
    _, exact = run(config.replace(dtype="float32"))
    for name, value in outputs.items():
        assert 0 < np.abs(value - exact[name]).max() < 0.1 * np.std(exact[name]), name


def test_only_the_heads_asked_for_run_and_unknown_ones_are_refused():
    model, params = Model(BASE), random_params(BASE)
    assert set(model.run_heads(params, jnp.asarray(HIDDEN), BATCH, ())) == {"pooler_output"}
    with pytest.raises(BadInput, match="did you mean 'mlm'"):
        model.run_heads(params, jnp.asarray(HIDDEN), BATCH, ("mln",))


def test_a_head_of_ones_own_changes_no_other_and_is_drawn_by_its_name(tables):
    row = heads.Head(
        lambda c: heads.Dense(c, 5), "pooled", ("scores",), lambda c, *_: 5 * c.hidden_size
    )
    for name in ("first", "second"):
        heads.register(name, row)

    def start(*names):
        return Model(BASE.replace(heads=names)).init(jax.random.key(0))

    alone, both = start("mlm"), start("mlm", "second", "first")
    jax.tree.map(np.testing.assert_array_equal, alone, {name: both[name] for name in alone})
    kernels = [both[name]["dense"]["kernel"] for name in ("first", "second")]
    assert not np.allclose(*kernels)
    np.testing.assert_array_equal(start("second")["second"]["dense"]["kernel"], kernels[1])
    config = BASE.replace(heads=("first",))
    _, outputs = run(config)
    assert outputs["scores"].shape == (2, 5)
    with pytest.raises(BadInput, match="head 'mlm' is there already"):
        heads.register("mlm", row)
