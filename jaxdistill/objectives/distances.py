"""How far a student's distribution is from a teacher's: one function for each distance of the
distillation literature, a name for each in `DISTANCES`.

All take logits of both, float[..., C], the weight of each row, float[...], and a temperature T that
divides the logits. They return the weighted *sum* over rows, float32[], times T^2, which keeps the
size of the gradient (Hinton et al. 2015, section 2). The teacher gets no gradient. A logit of `NOTHING`
is a class that is not there. Letters: N rows, C classes. Called by `logits`."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

NOTHING = -1e9  # a logit so low that its class has no probability; finite, so that gradients are
_EPS = 1e-12

Distance = Callable[..., jax.Array]
Temperature = float | jax.Array


def kl(
    ours_NxC: jax.Array, theirs_NxC: jax.Array, weights_N: jax.Array, *, temperature: Temperature
) -> jax.Array:
    """KL(teacher || student): covers all that the teacher holds possible (Hinton et al. 2015,
    arXiv:1503.02531, less the teacher's entropy)."""
    ours, theirs = _log_probabilities(ours_NxC, theirs_NxC, temperature)
    return _sum(_kl(theirs, ours), weights_N, temperature)


def reverse_kl(
    ours_NxC: jax.Array, theirs_NxC: jax.Array, weights_N: jax.Array, *, temperature: Temperature
) -> jax.Array:
    """KL(student || teacher): seeks one of the teacher's modes (Gu et al. 2024, arXiv:2306.08543)."""
    ours, theirs = _log_probabilities(ours_NxC, theirs_NxC, temperature)
    return _sum(_kl(ours, theirs), weights_N, temperature)


def jensen_shannon(
    ours_NxC: jax.Array, theirs_NxC: jax.Array, weights_N: jax.Array, *, temperature: Temperature
) -> jax.Array:
    """1/2 KL(teacher || m) + 1/2 KL(student || m), m their mean (Wen et al. 2023,
    arXiv:2307.15190)."""
    ours, theirs = _log_probabilities(ours_NxC, theirs_NxC, temperature)
    middle = jnp.logaddexp(ours, theirs) - jnp.log(2.0)
    return _sum((_kl(theirs, middle) + _kl(ours, middle)) / 2, weights_N, temperature)


def total_variation(
    ours_NxC: jax.Array, theirs_NxC: jax.Array, weights_N: jax.Array, *, temperature: Temperature
) -> jax.Array:
    """1/2 sum |teacher - student| of the probabilities (Wen et al. 2023, arXiv:2307.15190)."""
    ours, theirs = _log_probabilities(ours_NxC, theirs_NxC, temperature)
    rows_N = jnp.sum(jnp.abs(jnp.exp(theirs) - jnp.exp(ours)), axis=-1) / 2
    return _sum(rows_N, weights_N, temperature)


def top_k(
    ours_NxC: jax.Array,
    theirs_NxC: jax.Array,
    weights_N: jax.Array,
    *,
    temperature: Temperature,
    k: int,
) -> jax.Array:
    """`kl` over the teacher's `k` most likely classes and one class for all others together."""
    chosen_Nxk = jax.lax.top_k(jax.lax.stop_gradient(theirs_NxC), min(k, theirs_NxC.shape[-1]))[1]
    ours, theirs = _log_probabilities(ours_NxC, theirs_NxC, temperature)
    return _sum(
        _kl(_with_rest(theirs, chosen_Nxk), _with_rest(ours, chosen_Nxk)), weights_N, temperature
    )


def stored_top_k(
    ours_NxC: jax.Array,
    chosen_Nxk: jax.Array,
    theirs_Nxk: jax.Array,
    weights_N: jax.Array,
    temperature_N: jax.Array,
) -> jax.Array:
    """`top_k` from what is stored of the teacher: its likeliest classes, and their log-probabilities at the
    temperature of each row."""
    ours = jax.nn.log_softmax(ours_NxC.astype(jnp.float32) / temperature_N[..., None])
    others = 1 - jnp.sum(jnp.exp(theirs_Nxk), axis=-1, keepdims=True)
    # What is left of 1 by rounding is no class.
    rest = jnp.where(others > 1e-6, jnp.log(jnp.maximum(others, 1e-6)), NOTHING)
    theirs = jnp.concatenate([theirs_Nxk, rest], axis=-1)
    rows_N = _kl(jax.lax.stop_gradient(theirs), _with_rest(ours, chosen_Nxk))
    return jnp.sum(temperature_N**2 * rows_N * weights_N)


def dist(
    ours_NxC: jax.Array, theirs_NxC: jax.Array, weights_N: jax.Array, *, temperature: Temperature
) -> jax.Array:
    """DIST (Huang et al. 2022, arXiv:2205.10536): 1 - Pearson's correlation of the probabilities,
    within each row over the classes, and within each class over the rows, both with weight 1.

    Rows are compared with each other, so a part of a batch is another loss than the batch
    (`needs.whole_batch`). Of two classes a row's correlation is 1 or -1 and teaches nothing; their
    columns do."""
    ours, theirs = (
        jnp.exp(x).reshape(-1, x.shape[-1])
        for x in _log_probabilities(ours_NxC, theirs_NxC, temperature)
    )
    weights_N = weights_N.reshape(-1).astype(jnp.float32)
    of_rows_N = _correlation(ours, theirs, jnp.ones_like(ours), axis=1)
    of_classes_C = _correlation(ours, theirs, weights_N[:, None], axis=0)
    between = jnp.sum(weights_N) * jnp.mean(1 - of_classes_C)
    return _sum(1 - of_rows_N, weights_N, temperature) + temperature**2 * between


def logit_mse(
    ours_NxC: jax.Array, theirs_NxC: jax.Array, weights_N: jax.Array, *, temperature: Temperature
) -> jax.Array:
    """Mean over classes of (student - teacher)^2 of the logits (Ba & Caruana 2014, arXiv:1312.6184;
    XtremeDistil). Divided by T, times T^2, they are what they were: the temperature changes nothing."""
    there = theirs_NxC > NOTHING / 2
    difference = ours_NxC.astype(jnp.float32) - jax.lax.stop_gradient(theirs_NxC).astype(
        jnp.float32
    )
    squares = jnp.where(there, difference, 0.0) ** 2
    rows_N = jnp.sum(squares, axis=-1) / jnp.maximum(jnp.sum(there, axis=-1), 1)
    return jnp.sum(rows_N * weights_N)


DISTANCES: dict[str, Distance] = {
    function.__name__: function
    for function in (kl, reverse_kl, jensen_shannon, total_variation, top_k, dist, logit_mse)
}


def _log_probabilities(
    ours_NxC: jax.Array, theirs_NxC: jax.Array, temperature: Temperature
) -> tuple[jax.Array, jax.Array]:
    """Those of the student and of the teacher, in float32."""
    ours, theirs = (
        jax.nn.log_softmax(x.astype(jnp.float32) / temperature)
        for x in (ours_NxC, jax.lax.stop_gradient(theirs_NxC))
    )
    return ours, theirs


def _kl(p_NxC: jax.Array, q_NxC: jax.Array) -> jax.Array:
    """KL(p || q) of log-probabilities, along the last axis."""
    return jnp.sum(jnp.exp(p_NxC) * (p_NxC - q_NxC), axis=-1)


def _sum(rows_N: jax.Array, weights_N: jax.Array, temperature: Temperature) -> jax.Array:
    return temperature**2 * jnp.sum(rows_N * weights_N)


def _with_rest(logs_NxC: jax.Array, chosen_Nxk: jax.Array) -> jax.Array:
    """[..., k + 1]: log-probabilities of the chosen classes, and of all others together."""
    of_chosen = jnp.take_along_axis(logs_NxC, chosen_Nxk, axis=-1)
    others = jnp.put_along_axis(logs_NxC, chosen_Nxk, NOTHING, axis=-1, inplace=False)
    rest = jax.nn.logsumexp(others, axis=-1, keepdims=True)
    return jnp.concatenate([of_chosen, rest], axis=-1)


def _correlation(a_NxC: jax.Array, b_NxC: jax.Array, weights: jax.Array, axis: int) -> jax.Array:
    """Pearson's, along `axis`; 0 where one of the two does not vary."""

    def mean(x: jax.Array) -> jax.Array:
        total = jnp.sum(jnp.broadcast_to(weights, x.shape), axis=axis, keepdims=True)
        return jnp.sum(x * weights, axis=axis, keepdims=True) / jnp.maximum(total, 1.0)

    a, b = a_NxC - mean(a_NxC), b_NxC - mean(b_NxC)
    spread = jnp.sqrt((mean(a * a) + _EPS) * (mean(b * b) + _EPS))
    return jnp.squeeze(mean(a * b) / spread, axis)
