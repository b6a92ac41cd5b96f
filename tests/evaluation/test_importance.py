"""What each place is worth, against slow references."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdistill.evaluation.importance import combined, importance, sites
from jaxdistill.models import Model
from jaxdistill.models.axes import Axes
from jaxdistill.students.extract import choose
from jaxdistill.training import sharding
from tests.conftest import pretraining_batch, random_params
from tests.models.test_axes import small

KINDS = ("bert_base", "ib_bert_large", "mobilebert", "mobilebert_tiny")


def model_of(kind, **changes):
    return Model(small(kind, **{"vocab_size": 19, "max_positions": 16, **changes}))


def loss_of(model, params, batch, row):
    """Cross-entropy of one row's masked words, plainly."""
    one = {name: x[row : row + 1] for name, x in batch.items()}
    logs = jax.nn.log_softmax(model.apply(params, one)[0]["mlm_logits"])[0]
    words = np.flatnonzero(one["mlm_weights"][0])
    return -sum(logs[at, one["mlm_labels"][0, at]] for at in words) / len(words)


def scores_of(model, params, batches, devices=1):
    return importance(model, params, ("mlm",), batches, mesh=sharding.make_mesh(devices))


@pytest.mark.parametrize("kind", KINDS)
def test_there_is_a_score_for_every_place(kind):
    model = model_of(kind)
    found = scores_of(model, random_params(model), [pretraining_batch()])
    for axis, size in Axes(model.config).sizes.items():
        if axis != "layer":
            assert found[axis].shape[-1] == size, axis
            assert (found[axis] > 0).any() and (found[axis] >= 0).all(), axis
    smaller = model.config.replace(intermediate_size=5)
    assert choose(model.config, smaller, found, (0,))["ffn_0"].shape == (2, 5)


def test_a_gate_is_a_gate():
    """The slopes by hand: a network whose neuron, head or value counts a little more, or less, row by
    row."""
    model, batch = model_of("bert_base"), pretraining_batch(rows=3)
    params, tiny = random_params(model), 1e-2
    found = scores_of(model, params, [batch])

    def slope(path, place, row):
        def at(factor):
            changed = jax.tree.map(np.array, params)
            leaf = changed["layers"]
            for name in path[:-1]:
                leaf = leaf[name]
            leaf[path[-1]][place] *= factor
            return float(loss_of(model, changed, batch, row))

        return (at(1 + tiny) - at(1 - tiny)) / (2 * tiny)

    for axis, path, place, mine in (
        ("ffn_0", ("ffn_0", "down", "kernel"), (1, 3), (1, 3)),
        ("value", ("attention", "out", "kernel"), (0, 1, 4), (0, 1, 4)),
        ("heads", ("attention", "out", "kernel"), (1, 0), (1, 0)),
    ):
        slow = np.mean([abs(slope(path, place, row)) for row in range(3)]) * 3
        np.testing.assert_allclose(found[axis][mine], slow, rtol=2e-3)


def test_queries_and_keys_are_worth_the_same():
    """A score is a product of both, so either gate opens it."""
    model, batch = model_of("mobilebert"), pretraining_batch(rows=2)
    params = random_params(model)

    def value(gate, name):
        changed = jax.tree.map(jnp.asarray, params)
        attention = dict(changed["layers"]["attention"])
        attention[name] = jax.tree.map(
            lambda x: x.at[..., 1, 2].multiply(1 + gate), attention[name]
        )
        changed["layers"] = {**changed["layers"], "attention": attention}
        return loss_of(model, changed, batch, 0)

    slopes = [float(jax.grad(value)(0.0, name)) for name in ("query", "key")]
    assert slopes[0] == pytest.approx(slopes[1], rel=1e-4) and slopes[0] != 0


def test_signs_of_examples_do_not_cancel_but_those_of_tokens_do():
    """Two rows together are worth what each is worth alone."""
    model = model_of("bert_base")
    params, batch = random_params(model), pretraining_batch(rows=2)
    rows = [{name: x[i : i + 1] for name, x in batch.items()} for i in range(2)]
    whole, alone = scores_of(model, params, [batch]), scores_of(model, params, rows)
    for axis in whole:
        np.testing.assert_allclose(whole[axis], alone[axis], rtol=1e-4, atol=1e-5)
    signed = jax.grad(lambda p: sum(loss_of(model, p, batch, row) for row in range(2)))(params)
    kernel = np.asarray(params["layers"]["ffn_0"]["down"]["kernel"])
    together = np.abs((kernel * signed["layers"]["ffn_0"]["down"]["kernel"]).sum(-1))
    assert (whole["ffn_0"] >= together - 1e-5).all() and (whole["ffn_0"] > 1.05 * together).any()


def test_devices_rows_without_words_and_dtypes_change_nothing():
    model, batch = model_of("ib_bert_large"), pretraining_batch()
    params = random_params(model)
    one, eight = (scores_of(model, params, [batch], n) for n in (1, 8))
    empty = {
        name: np.concatenate([x, np.zeros_like(x)])
        if name == "mlm_weights"
        else np.concatenate([x, x])
        for name, x in batch.items()
    }
    filled = scores_of(model, params, [empty])
    half = Model(model.config.replace(dtype="bfloat16", residual_dtype="bfloat16"))
    low = scores_of(half, params, [batch])
    for axis in one:
        for other in (eight, filled, low):
            np.testing.assert_allclose(one[axis], other[axis], rtol=1e-4, atol=1e-6)


def test_every_norm_counts_alike():
    """Hidden dimensions of BERT: 2 N + 1 norms, whatever the size of their slopes."""
    model = model_of("bert_base")
    hidden = [site for site in sites(model).values() if site.axis == "hidden"]
    assert len(hidden) == 3  # embeddings; two stacked
    rng, totals = np.random.default_rng(0), {"heads": np.ones((2, 2))}
    for key, site in sites(model).items():
        sizes = Axes(model.config)
        totals[key] = rng.random([sizes.sizes[sizes.parts(axis)[0]] for axis in site.over])
    before = combined(model.config, totals)
    louder = {**totals, "embeddings/norm": 100 * totals["embeddings/norm"]}
    np.testing.assert_allclose(
        combined(model.config, louder)["hidden"], before["hidden"], rtol=1e-6
    )
    rows = [
        totals["embeddings/norm"],
        *totals["layers/attention/norm"],
        *totals["layers/ffn_0/norm"],
    ]
    expected = sum(row / np.linalg.norm(row) for row in rows)
    np.testing.assert_allclose(before["hidden"], expected, rtol=1e-6)
