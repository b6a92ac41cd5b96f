"""Held-out measurements against loops over words and rows."""

import jax
import numpy as np
import pytest

from jaxdistill.evaluation import heldout
from jaxdistill.models import Model
from jaxdistill.training import sharding
from tests.conftest import SMALL, STUDENT, TEACHER, pretraining_batch, random_params


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def by_hand(model, params, batches, teacher, teacher_params):
    """Word by word and row by row, in float64."""
    words, rows = [], []
    for batch in batches:
        ours, theirs = (
            jax.device_get(m.apply(p, batch)[0])
            for m, p in ((model, params), (teacher, teacher_params))
        )
        for b in range(len(batch["input_ids"])):
            for i in range(batch["mlm_labels"].shape[1]):
                if batch["mlm_weights"][b, i] == 0:
                    continue
                p, q = (softmax(x["mlm_logits"][b, i].astype(np.float64)) for x in (ours, theirs))
                label, five = batch["mlm_labels"][b, i], set(np.argsort(-q)[:5])
                words.append(
                    [
                        -np.log(p[label]),
                        p.argmax() == label,
                        sum(q * np.log(q / p)),
                        p.argmax() == q.argmax(),
                        len(five & set(np.argsort(-p)[:5])) / 5,
                    ]
                )
            if batch["example_weights"][b]:
                p, label = softmax(ours["nsp_logits"][b].astype(np.float64)), batch["nsp_labels"][b]
                rows.append([-np.log(p[label]), p.argmax() == label])
    names = (
        "mlm_loss",
        "mlm_accuracy",
        "teacher_kl",
        "top1_agreement",
        "top5_agreement",
        "nsp_loss",
        "nsp_accuracy",
    )
    means = [*np.mean(np.asarray(words, float), 0), *np.mean(np.asarray(rows, float), 0)]
    return {**dict(zip(names, means)), "rows": len(rows)}


def with_filling():
    """Two batches, the last rows of the second being copies that must not count."""
    batches = [pretraining_batch(1), pretraining_batch(2)]
    batches[1]["example_weights"][-3:] = 0
    batches[1]["mlm_weights"][-3:] = 0
    return batches


@pytest.mark.parametrize("devices", [1, 8])
def test_against_loops(devices, teacher_params, student_params):
    ours = heldout.evaluate(
        STUDENT,
        student_params,
        with_filling(),
        mesh=sharding.make_mesh(devices),
        teacher=TEACHER,
        teacher_params=teacher_params,
    )
    expected = by_hand(STUDENT, student_params, with_filling(), TEACHER, teacher_params)
    assert ours.keys() == expected.keys() and 0 < expected["top5_agreement"] < 1
    for name in expected:
        np.testing.assert_allclose(ours[name], expected[name], rtol=1e-4, atol=1e-6, err_msg=name)


def test_what_filling_rows_hold_does_not_matter(student_params):
    mesh, spoilt = sharding.make_mesh(1), with_filling()
    spoilt[1]["input_ids"][-3:] = 1
    spoilt[1]["mlm_labels"][-3:] = 5
    spoilt[1]["nsp_labels"][-3:] ^= 1
    assert heldout.evaluate(STUDENT, student_params, spoilt, mesh=mesh) == heldout.evaluate(
        STUDENT, student_params, with_filling(), mesh=mesh
    )


def test_a_network_agrees_with_itself(student_params):
    ours = heldout.evaluate(
        STUDENT,
        student_params,
        with_filling(),
        mesh=sharding.make_mesh(1),
        teacher=STUDENT,
        teacher_params=student_params,
    )
    assert (
        abs(ours["teacher_kl"]) < 1e-6 and ours["top1_agreement"] == ours["top5_agreement"] == 1.0
    )


def test_absent_heads_leave_their_numbers_out():
    model = Model(STUDENT.config.replace(heads=("mlm",)))
    blind = Model(TEACHER.config.replace(heads=("nsp",)))
    found = heldout.evaluate(
        model,
        random_params(model),
        [pretraining_batch(1)],
        mesh=sharding.make_mesh(1),
        teacher=blind,
        teacher_params=random_params(blind),
    )
    assert found.keys() == {"mlm_loss", "mlm_accuracy", "rows"}


def test_the_loss_of_word_frequencies():
    """Word by word, from the definition; what fills rows up does not count."""
    train, held = [pretraining_batch(1), pretraining_batch(2)], [pretraining_batch(3)]
    train[0]["mlm_weights"][-3:] = 0

    def words(batches):
        return [
            int(label)
            for batch in batches
            for label, weight in zip(batch["mlm_labels"].flat, batch["mlm_weights"].flat)
            if weight
        ]

    seen, size = words(train), SMALL["vocab_size"]
    losses = [-np.log((seen.count(word) + 1) / (len(seen) + size)) for word in words(held)]
    assert heldout.unigram_loss(train, held, size) == pytest.approx(np.mean(losses))
    assert heldout.unigram_loss([], held, size) == pytest.approx(np.log(size))
