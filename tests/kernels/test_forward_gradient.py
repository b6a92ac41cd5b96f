"""Gradients taken in the forward pass against reverse mode, on a function with everything: several
inputs, masks, sums."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdistill.kernels.forward_gradient import gradient_in_chunks, projected_loss

RNG = np.random.default_rng(0)
MOVING = {
    "x": RNG.normal(size=(3, 4, 5)).astype(np.float32),
    "y": RNG.normal(size=(3, 4, 5)).astype(np.float32),
}
THEIRS = RNG.normal(size=(3, 4, 5)).astype(np.float32)
SCALE = np.float32(0.7)


def function(moving, theirs, scale):
    scores = jnp.einsum("...ld,...md->...lm", moving["x"], moving["y"])
    sums = {"a": jnp.sum(jax.nn.softmax(scores) ** 2), "b": jnp.sum((moving["x"] - theirs) ** 3)}
    return scale * sums["a"] + 0.1 * sums["b"], sums


def plain(moving):
    value, sums = function(moving, THEIRS, SCALE)
    return value * 2.0, sums


def function_of_chunk(moving, theirs, scale):
    """As `gradient_in_chunks` takes it: the sums are numbers to report, what comes last is a tensor
    of each chunk."""
    value, sums = function(moving, theirs, scale)
    return value, (sums, {"doubled": 2 * theirs})


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-5), ("bfloat16", 1e-2)])
@pytest.mark.parametrize("chunks", [1, 3])
def test_in_chunks(chunks, dtype, tolerance):
    """Chunks along the leading axis, what is shared by all apart."""

    def run(moving):
        split = jax.tree.map(
            lambda x: x.reshape(chunks, 3 // chunks, *x.shape[1:]), (moving, THEIRS)
        )
        value, (sums, tensors) = gradient_in_chunks(function_of_chunk, dtype)(*split, SCALE)
        return value, {**sums, "tensors": jnp.sum(jnp.sin(tensors["doubled"]))}

    (value, sums), gradient = jax.jit(
        jax.value_and_grad(lambda m: (lambda r: (r[0] * 2.0, r[1]))(run(m)), has_aux=True)
    )(MOVING)
    (expected, plain_sums), expected_gradient = jax.value_and_grad(plain, has_aux=True)(MOVING)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for name, plain_sum in (*plain_sums.items(), ("tensors", np.sum(np.sin(2 * THEIRS)))):
        np.testing.assert_allclose(sums[name], plain_sum, rtol=1e-5)
    for name in MOVING:
        assert gradient[name].dtype == MOVING[name].dtype
        np.testing.assert_allclose(
            gradient[name],
            expected_gradient[name],
            atol=tolerance * np.abs(expected_gradient[name]).max(),
        )


def test_chunks_alone_give_the_same_value():
    """Where nothing is differentiated, as in evaluation."""
    value, (sums, tensors) = gradient_in_chunks(function_of_chunk, "float32")(MOVING, THEIRS, SCALE)
    np.testing.assert_allclose(value, function(MOVING, THEIRS, SCALE)[0], rtol=1e-5)
    np.testing.assert_array_equal(tensors["doubled"], 2 * THEIRS)


def test_a_projected_loss_reaches_weights_and_inputs():
    weights = {
        "table": RNG.normal(size=(7, 5)).astype(np.float32),
        "bias": RNG.normal(size=7).astype(np.float32),
    }
    labels = RNG.integers(0, 7, (3, 4))

    def project(weights, x):
        return jnp.einsum("...d,vd->...v", x, weights["table"]) + weights["bias"]

    def loss(logits, labels, scale):
        picked = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], -1)
        return -scale * jnp.sum(picked), {"sum": jnp.sum(picked)}

    def fused(pair):
        return 3.0 * projected_loss(project, loss, "float32")(pair, labels, SCALE)[0]

    def reference(pair):
        return 3.0 * loss(project(*pair), labels, SCALE)[0]

    pair = (weights, MOVING["x"])
    value, gradient = jax.jit(jax.value_and_grad(fused))(pair)
    expected, expected_gradient = jax.value_and_grad(reference)(pair)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        gradient,
        expected_gradient,
    )
