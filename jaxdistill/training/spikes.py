"""Loss spikes: an update whose loss lies far above those of the steps before it is skipped, as a
non-finite one is.

A bad batch or a moment of instability costs one step instead of a run. What is far is measured in
standard deviations of recent losses, which are part of the train state, so that a resumed run
judges as an uninterrupted one. Called by step."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

LEAST_DEVIATION = 1e-3  # of the mean: losses that were all alike must not make any other a spike
WINDOW = (
    128  # steps: how many are judged by, and how many are let through before the first is judged
)


@flax.struct.dataclass
class LossStatistics:
    """`mean`, `variance`: float32[], of the last `WINDOW` losses, older ones fading. `seen`:
    int32[], how many there were."""

    mean: jax.Array
    variance: jax.Array
    seen: jax.Array


def start() -> LossStatistics:
    """Nothing seen yet."""
    return LossStatistics(
        jnp.zeros((), jnp.float32), jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32)
    )


def judge(
    losses: LossStatistics, loss: jax.Array, deviations: float, begins: jax.Array
) -> tuple[jax.Array, LossStatistics]:
    """(whether `loss` is a spike: bool[], what is remembered afterwards).

    `begins`: bool[], whether another layer's loss begins with this step, so that nothing before it
    counts. A spike is remembered as no more than the limit that it broke: one moves that little,
    while losses that stay high become usual. What is not finite is not remembered."""
    losses = jax.tree.map(lambda fresh, old: jnp.where(begins, fresh, old), start(), losses)
    deviation = jnp.maximum(jnp.sqrt(losses.variance), LEAST_DEVIATION * jnp.abs(losses.mean))
    limit = losses.mean + deviations * deviation
    spike = (losses.seen >= WINDOW) & (loss > limit)
    value = jnp.where(spike, limit, loss)
    seen = losses.seen + 1
    share = 1.0 / jnp.minimum(seen, WINDOW).astype(
        jnp.float32
    )  # exactly mean and variance until the window is full
    change = value - losses.mean
    after = LossStatistics(
        losses.mean + share * change, (1.0 - share) * (losses.variance + share * change**2), seen
    )
    return spike, jax.tree.map(
        lambda new, old: jnp.where(jnp.isfinite(loss), new, old), after, losses
    )
