"""Scores against scikit-learn, and predictions that do not depend on batches or devices."""

import jax
import numpy as np
import pytest
from sklearn.metrics import accuracy_score, log_loss

from jaxdistill.data.feeds import only
from jaxdistill.evaluation.predictions import predict
from jaxdistill.evaluation.scores import SCORES
from jaxdistill.models import Model
from jaxdistill.training import sharding
from tests.conftest import STUDENT, pretraining_batch, random_params

CLASSIFIER = Model(STUDENT.config.replace(heads=("sequence_classification",), num_labels=3))


def test_classification_is_as_scikit_learn_has_it():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(50, 3)).astype(np.float32) * 3
    labels = rng.integers(0, 3, 50)
    found = SCORES["classification"].of(logits, labels, 2)
    probabilities = np.exp(logits - logits.max(-1, keepdims=True)).astype(np.float64)
    probabilities /= probabilities.sum(-1, keepdims=True)
    assert found["accuracy"] == pytest.approx(accuracy_score(labels, logits.argmax(-1)))
    assert found["majority_accuracy"] == pytest.approx(np.mean(labels == 2))
    assert found["loss"] == pytest.approx(log_loss(labels, probabilities), rel=1e-6)


@pytest.mark.parametrize("devices", [1, 8])
def test_predictions_are_of_the_rows_that_count_in_their_order(devices):
    params = random_params(CLASSIFIER)
    batches = [
        {**pretraining_batch(seed, rows=8), "labels": np.arange(8, dtype=np.int32) + 8 * seed}
        for seed in range(2)
    ]
    expected = np.concatenate([CLASSIFIER.apply(params, batch)[0]["logits"] for batch in batches])
    batches[1] = only(batches[1], 3)
    logits, labels = predict(
        CLASSIFIER,
        params,
        batches,
        "sequence_classification",
        SCORES["classification"],
        sharding.make_mesh(devices),
    )
    assert labels.tolist() == list(range(11))
    np.testing.assert_allclose(logits, expected[:11], rtol=1e-5, atol=1e-6)
    assert isinstance(logits, np.ndarray) and not isinstance(logits, jax.Array)
