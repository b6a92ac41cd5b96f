"""A row does not depend on how far its batch is padded, nor on the texts that share a packed row with it: neither
its answer nor its gradient."""

import dataclasses
import itertools

import jax
import jax.flatten_util
import numpy as np
import pytest

from jaxdistill import defaults
from jaxdistill.data.encoded import Encoded, join
from jaxdistill.data.feeds import Order
from jaxdistill.data.rows import evaluation_batches, training_batches
from jaxdistill.evaluation.predictions import predict
from jaxdistill.methods.base import Cast
from jaxdistill.methods.kinds import build
from jaxdistill.models import Model, preset
from jaxdistill.models.heads import HEADS
from jaxdistill.training import sharding
from jaxdistill.training.programs import compile_losses
from jaxdistill.training.step import Given
from tests.conftest import random_params
from tests.interop.tiny import SHRUNK

LENGTH, NUMBER, CLASSES = 48, 26, 3
TASKS = {
    "sequence_classification": ("classification",),
    "token_classification": ("tagging",),
    "question_answering": ("span_start", "span_end"),
}


def rows(**more):
    """Rows of 3 to 48 tokens, of which some fill a length to the last token."""
    rng = np.random.default_rng(0)
    lengths = np.concatenate([rng.integers(3, 40, NUMBER - 5), [7, 8, 12, 16, LENGTH]])
    ids, begins = join([rng.integers(5, 60, n).astype(np.int32) for n in lengths])
    tags = rng.integers(0, CLASSES, len(ids)).astype(np.int32)
    columns = {
        "labels": rng.integers(0, CLASSES, NUMBER).astype(np.int32),
        "start_positions": (lengths // 2).astype(np.int32),
        "end_positions": (lengths - 1).astype(np.int32),
        **more,
    }
    weights = rng.integers(0, 2, len(ids)).astype(np.float32)
    by_token = {"tags": (tags, 0), "tag_weights": (weights, 0.0)}
    return Encoded(ids, begins, (lengths // 2).astype(np.int32), 0, columns, by_token).rows


def cases(*heads):
    """Every head with MobileBERT, whose trigrams see their neighbours; with BERT the others are for slow runs."""
    return pytest.mark.parametrize(
        "family, head",
        [
            *(("mobilebert", head) for head in heads),
            ("bert_base", heads[0]),
            *(pytest.param("bert_base", head, marks=pytest.mark.slow) for head in heads[1:]),
        ],
    )


def network(family, head):
    """(a small network, its parameters, the mean loss over all texts of batches)."""
    sizes = {
        **SHRUNK,
        "embedding_size": None,
        "vocab_size": 60,
        "max_positions": LENGTH + 1,
        "num_labels": CLASSES,
    }
    model = Model(preset(family).replace(**sizes, heads=(head,)))
    section = defaults.stage("finetune", "it", steps=9, batch_size=8)
    stage = build("it", section, model.config, TASKS[head])
    losses = compile_losses(Cast(stage, model))
    given = Given({}, np.int32(0), {})

    def whole(params, batches):
        total, counts = 0.0, 0.0
        for batch in batches:
            sums, count = losses(params, given, batch, np.int32(0))
            total = total + sum(sums.values())
            counts = counts + sum(count.values())
        return total / counts

    return model, random_params(model), whole


def assert_close(ours, theirs):
    """(value, gradient) twice."""
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-5)
    one, other = (jax.flatten_util.ravel_pytree(gradient)[0] for _, gradient in (ours, theirs))
    # Beside the largest: some parameters, as the biases of keys, have gradients that only round to 0.
    assert np.abs(one - other).max() < 1e-5 * np.abs(other).max()


@cases(*TASKS)
def test_answers_and_gradients_are_those_of_padding_to_the_end(family, head):
    """MobileBERT's trigrams see whether a token follows, so a row never fills a shorter batch."""
    (model, params, whole), mesh = network(family, head), sharding.make_mesh(1)
    found = {}
    for buckets in (False, True):
        batches = list(evaluation_batches(rows(), Order(0, LENGTH, buckets), 8))
        shapes = {batch["input_ids"].shape[1] for batch in batches}
        assert (len(shapes) > 2) == buckets
        value, gradient = jax.value_and_grad(whole)(params, batches)
        found[buckets] = predict(model, params, batches, head, mesh), value, gradient
    lengths = rows().lengths
    for name in HEADS[head].outputs:
        plain, short = found[False][0][name], found[True][0][name]
        if HEADS[head].reads == "tokens":  # what is said of pads does not count
            real = np.arange(LENGTH) < lengths[:, None]
            plain, short = plain[real], short[real]
        np.testing.assert_allclose(short, plain, rtol=1e-5, atol=1e-6 * np.abs(plain).max())
    assert_close(found[True][1:], found[False][1:])


@cases("token_classification", "sequence_classification")
def test_texts_that_share_a_row_teach_what_they_teach_alone(family, head):
    """Where some have no true answer. The packed rows are longer than the network has positions. Alone,
    every text has a pad behind it, which MobileBERT's trigrams see."""
    _, params, whole = network(family, head)
    of = rows(label_weights=(np.arange(NUMBER) % 3 > 0).astype(np.float32))
    order = Order(0, LENGTH + 1, buckets=False)
    alone, packed = (
        list(itertools.islice(training_batches(of, order, 8), 2))
        for order in (order, dataclasses.replace(order, packed=4))
    )
    shapes = [batch["input_ids"].shape for batch in packed]
    assert all(rows == 2 and length > LENGTH + 1 for rows, length in shapes)
    grad = jax.value_and_grad(whole)
    assert_close(grad(params, packed), grad(params, alone))
