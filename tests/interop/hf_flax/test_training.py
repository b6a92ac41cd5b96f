"""Gradients, fine-tuning with a plain optax loop, several devices and gradient checkpointing, as in
transformers' examples."""

from __future__ import annotations

from typing import Any

import flax.jax_utils
import flax.traverse_util
import jax
import numpy as np
import optax
import pytest
from flax.training.common_utils import shard
from flax.training.train_state import TrainState
from jax.sharding import NamedSharding, PartitionSpec

from tests.interop.hf_flax import classes
from tests.interop.hf_flax.classes import class_of, config_of, inputs_of, model_of

# Between them every head; the others differ in what they reshape.
LEARNERS = (
    "FlaxMobileBertForPreTraining",
    "FlaxMobileBertForTokenClassification",
    "FlaxMobileBertForQuestionAnswering",
    "FlaxIBBertForMultipleChoice",
)
# Zero by their nature: a bias of the keys (softmax cancels it).
SILENT = ("key/bias",)


@pytest.mark.parametrize("name", classes.every(*LEARNERS))
def test_gradients_reach_every_parameter(name: str) -> None:
    """And they are those of the loss: a small step along them changes it by as much as they say."""
    model, inputs = model_of(name), inputs_of(name)

    @jax.jit
    def loss(params: Any) -> jax.Array:
        return classes.loss_of(model(**inputs, params=params))

    value, gradients = jax.jit(jax.value_and_grad(loss))(model.params)
    for key, gradient in classes.flat(gradients).items():
        assert np.isfinite(gradient).all() and (
            np.abs(gradient).max() > 0 or key.endswith(SILENT)
        ), key
    square = sum(np.square(gradient).sum() for gradient in classes.flat(gradients).values())
    step = 1e-3 / np.sqrt(square)
    moved = loss(jax.tree.map(lambda p, g: p + step * g, model.params, gradients))
    back = loss(jax.tree.map(lambda p, g: p - step * g, model.params, gradients))
    np.testing.assert_allclose((moved - back) / (2 * step), square, rtol=0.02)


def batch_of(name: str, rows: int) -> dict[str, np.ndarray]:
    """Rows of unlike words whose class is that of the second word: something to learn."""
    rng = np.random.default_rng(0)
    ids = rng.integers(3, 37, (rows, classes.LENGTH)).astype(np.int32)
    labels = rng.integers(0, 3, rows).astype(np.int32)
    ids[:, 1] = labels
    return {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "token_type_ids": np.zeros_like(ids),
        "labels": labels,
    }


NAME = "FlaxMobileBertForSequenceClassification"


def state_of(model: Any) -> TrainState:
    return TrainState.create(apply_fn=model.__call__, params=model.params, tx=optax.adamw(3e-3))


def train_step(
    state: TrainState, batch: dict[str, jax.Array], key: jax.Array, axis: str | None = None
) -> Any:
    """The step of transformers' text classification example."""
    labels = batch.pop("labels")

    def loss(params: Any) -> jax.Array:
        logits = state.apply_fn(**batch, params=params, dropout_rng=key, train=True)[0]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    value, gradients = jax.value_and_grad(loss)(state.params)
    if axis is not None:
        value, gradients = jax.lax.pmean((value, gradients), axis)
    return state.apply_gradients(grads=gradients), value


def test_fine_tuning_with_optax_lowers_the_loss() -> None:
    state, batch, step = state_of(model_of(NAME)), batch_of(NAME, 16), jax.jit(train_step)
    losses = []
    for i in range(60):
        state, value = step(state, dict(batch), jax.random.PRNGKey(i))
        losses.append(float(value))
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5]), losses
    logits = model_of(NAME)(
        **{key: value for key, value in batch.items() if key != "labels"}, params=state.params
    ).logits
    assert np.mean(np.argmax(logits, -1) == batch["labels"]) > 0.9


def test_data_over_eight_devices() -> None:
    """`jit` with a sharded batch, and `pmap` as in transformers' examples, take the step that one
    device takes."""
    assert jax.device_count() == 8
    rates = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = class_of(NAME)(config_of(NAME, **rates), _do_init=False)
    model._is_initialized = True
    model.params = model_of(NAME).params
    state, batch, key = state_of(model), batch_of(NAME, 16), jax.random.PRNGKey(0)
    state = state.replace(tx=optax.sgd(0.1))
    state = state.replace(opt_state=state.tx.init(state.params))
    expected, loss = jax.jit(train_step)(state, dict(batch), key)

    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    everywhere, rows = (NamedSharding(mesh, PartitionSpec(*names)) for names in ((), ("data",)))
    sharded, value = jax.jit(train_step)(
        jax.device_put(state, everywhere), jax.device_put(dict(batch), rows), key
    )
    np.testing.assert_allclose(value, loss, rtol=1e-5)
    out = jax.jit(lambda params, ids: model(ids, params=params).logits)(
        jax.device_put(model.params, everywhere), jax.device_put(batch["input_ids"], rows)
    )
    assert len(out.sharding.device_set) == 8 and out.sharding.shard_shape(out.shape) == (2, 3)

    step = jax.pmap(lambda state, batch, key: train_step(state, batch, key, "batch"), "batch")
    replicated, values = step(
        flax.jax_utils.replicate(state), shard(dict(batch)), jax.random.split(key, 8)
    )
    np.testing.assert_allclose(values, np.full(8, loss), rtol=1e-5)
    for other in (sharded, flax.jax_utils.unreplicate(replicated)):
        for name, wanted in classes.flat(expected.params).items():
            np.testing.assert_allclose(
                classes.flat(other.params)[name], wanted, atol=1e-5, err_msg=name
            )


@pytest.mark.parametrize("name", classes.every("FlaxMobileBertModel"))
def test_gradient_checkpointing(name: str) -> None:
    """Equal outputs and gradients, in less memory: the backward pass computes the blocks again."""
    usual, inputs = model_of(name), inputs_of(name, rows=3)
    model = class_of(name)(usual.config, _do_init=False)
    assert not model.module.gradient_checkpointing
    model.enable_gradient_checkpointing()
    assert (
        model.module.gradient_checkpointing
        and class_of(name)(usual.config, _do_init=False, gradient_checkpointing=True).module
        == model.module
    )

    def gradient(model: Any) -> Any:
        def loss(params: Any) -> jax.Array:
            return classes.loss_of(model(**inputs, params=params))

        return jax.jit(jax.value_and_grad(loss)).lower(usual.params).compile()

    plain, saving = gradient(usual), gradient(model)
    assert saving.memory_analysis().temp_size_in_bytes < plain.memory_analysis().temp_size_in_bytes
    (value, gradients), (again, same) = plain(usual.params), saving(usual.params)
    np.testing.assert_allclose(again, value, rtol=1e-5)
    for key, wanted in classes.flat(gradients).items():
        np.testing.assert_allclose(classes.flat(same)[key], wanted, atol=1e-4, err_msg=key)
