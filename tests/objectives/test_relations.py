"""Attention transfer as it is coded and as the paper writes it."""

import jax
import numpy as np

from jaxdistill.objectives import relations
from tests.objectives.examples import example, real, softmax


def test_cross_entropy_and_kl_have_one_gradient_and_differ_by_the_entropy():
    student, teacher, batch = example("attention")
    cross, kl = (
        jax.value_and_grad(f)(student, teacher, batch)
        for f in (relations.attention, relations.attention_kl)
    )
    np.testing.assert_allclose(cross[1], kl[1], atol=1e-6)
    entropy = 0.0
    for b, query in real(batch):
        for head in range(2):
            p = softmax(teacher[b, head, query].astype(np.float64))
            entropy -= sum(x * np.log(x) for x in p if x > 0) / 2
    np.testing.assert_allclose(cross[0] - kl[0], entropy, rtol=1e-5)
