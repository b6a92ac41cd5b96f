"""The mixed target of pre-training distillation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdistill.objectives import logits
from tests.objectives.examples import WORDS, example, log_softmax, softmax


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
