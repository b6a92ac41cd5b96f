"""The mixed target of pre-training distillation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdistill.methods.base import Term
from jaxdistill.objectives import logits
from jaxdistill.objectives.distances import DISTANCES
from tests.objectives.examples import LOSSES, TEMPERATURE, WORDS, example, log_softmax, softmax


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_two_terms_are_one_cross_entropy_with_mixed_targets(alpha):
    """alpha L_MLM + (1 - alpha) L_KD = cross-entropy of alpha onehot + (1 - alpha) teacher, as in
    the released code."""
    student, teacher, batch = example("mlm_distillation")
    both = alpha * logits.mlm(student, None, batch) + (1 - alpha) * logits.mlm_distillation(
        student, teacher, batch
    )
    expected = 0.0
    for i in np.ndindex(batch["mlm_labels"].shape):
        onehot = np.arange(WORDS) == batch["mlm_labels"][i]
        target = alpha * onehot + (1 - alpha) * softmax(teacher[i].astype(np.float64))
        expected -= batch["mlm_weights"][i] * (target @ log_softmax(student[i].astype(np.float64)))
    np.testing.assert_allclose(both, expected, rtol=1e-5)


def test_bfloat16_logits_are_compared_in_float32():
    student, teacher, batch = example("mlm_distillation")
    low = jnp.asarray(student, jnp.bfloat16)
    for loss in (logits.mlm, logits.mlm_distillation):
        ours = loss(low, teacher, batch)
        assert ours.dtype == jnp.float32
        np.testing.assert_array_equal(ours, loss(low.astype(jnp.float32), teacher, batch))


def test_filling_words_and_rows_get_no_gradient():
    for name, loss in (
        ("mlm", logits.mlm),
        ("nsp", logits.nsp),
        ("classification", logits.classification),
    ):
        student, _, batch = example(name)
        gradient = np.asarray(
            jax.grad(lambda x, f=loss, b=batch: f(x, None, b))(jnp.asarray(student))
        )
        weights = batch["mlm_weights" if name == "mlm" else "example_weights"]
        assert not gradient[weights == 0].any() and np.abs(gradient[weights == 1]).sum(-1).all()


@pytest.mark.parametrize("distance", DISTANCES)
def test_every_distance_is_zero_between_equals_and_grows_when_rows_are_permuted(distance):
    name = f"tagging_{distance}"
    student, teacher, batch = example(name)
    near = LOSSES[name].sum(teacher + np.float32(0.03) * student, teacher, batch)
    far = LOSSES[name].sum(teacher[:, [1, 2, 0, 3, 4, 5]], teacher, batch)
    assert (
        abs(float(LOSSES[name].sum(teacher, teacher, batch)))
        < 2e-6
        < float(near)
        < 0.1 * float(far)
    )


def test_as_many_top_classes_as_there_are_is_all_of_them():
    student, teacher, batch = example("classification_top_k")
    every = Term("classification_top_k", 1.0, options=(("temperature", TEMPERATURE), ("k", 99)))
    np.testing.assert_allclose(
        every.sum(student, teacher, batch),
        LOSSES["classification_kl"].sum(student, teacher, batch),
        rtol=1e-5,
    )


@pytest.mark.parametrize("distance", DISTANCES)
def test_logits_far_apart_and_all_alike_give_finite_gradients(distance):
    """Probabilities of exactly 0 and 1, and rows and classes that do not vary."""
    options = {"temperature": 1.0} | ({"k": 2} if distance == "top_k" else {})
    for theirs in (np.zeros((3, 4)), np.eye(3, 4) * 1e4, -np.eye(3, 4) * 1e4):
        for ours in (np.zeros((3, 4)), np.eye(3, 4) * 1e4, np.eye(3, 4)[::-1] * 1e4):
            value, gradient = jax.value_and_grad(
                lambda x, y=theirs: DISTANCES[distance](x, jnp.asarray(y), jnp.ones(3), **options)
            )(jnp.asarray(ours))
            assert np.isfinite(value) and np.isfinite(gradient).all()


def test_rows_in_parts_are_another_loss_only_where_rows_are_compared():
    """Which is why `dist` needs the whole batch; on devices that share it, it has that."""
    for name in DISTANCES:
        student, teacher, batch = example(f"tagging_{name}")
        loss = LOSSES[f"tagging_{name}"]
        parts = [
            loss.sum(student[rows], teacher[rows], {k: x[rows] for k, x in batch.items()})
            for rows in (slice(1), slice(1, None))
        ]
        whole = loss.sum(student, teacher, batch)
        assert np.isclose(sum(parts), whole, rtol=1e-5) == (name != "dist")
