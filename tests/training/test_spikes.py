"""Loss spikes, against a slow reference that remembers all losses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdistill.training import schedules, spikes, state
from tests.conftest import (
    STUDENT,
    TEACHER,
    cast_of,
    jitted_step,
    make_stage,
    pretraining_batch,
    random_params,
)

NEVER, ALWAYS = jnp.bool_(False), jnp.bool_(True)
judge = jax.jit(spikes.judge, static_argnums=2)


def followed(values, deviations=6.0):
    losses, found = spikes.start(), []
    for value in values:
        spike, losses = judge(losses, jnp.float32(value), deviations, NEVER)
        found.append(bool(spike))
    return losses, found


def test_mean_and_variance_are_those_of_all_losses_until_the_window_is_full():
    values = np.random.default_rng(0).normal(5.0, 0.3, spikes.WINDOW)
    losses, found = followed(values)
    assert not any(found) and int(losses.seen) == spikes.WINDOW
    np.testing.assert_allclose(
        [losses.mean, losses.variance], [values.mean(), values.var()], rtol=1e-4
    )


@pytest.mark.parametrize(
    "deviations, above, expected",
    [(6.0, 5.0, False), (6.0, 7.0, True), (3.0, 3.5, True), (3.0, 2.5, False)],
)
def test_a_spike_is_so_many_deviations_above(deviations, above, expected):
    values = np.random.default_rng(1).normal(5.0, 0.3, spikes.WINDOW)
    for sign in (1, -1):  # a loss far below is good news
        found = followed([*values, values.mean() + sign * above * values.std()], deviations)[1]
        assert found[-1] == (expected and sign > 0)


def test_nothing_is_judged_before_the_window_is_full():
    values = np.random.default_rng(2).normal(5.0, 0.3, spikes.WINDOW - 1)
    assert not any(followed([*values, 1e6])[1])


def test_one_spike_moves_the_limit_little_but_losses_that_stay_high_become_usual():
    values = np.random.default_rng(3).normal(5.0, 0.3, spikes.WINDOW)
    before, after = followed(values)[0], followed([*values, 1e6])[0]
    assert float(after.mean) - float(before.mean) < 0.05 * 0.3 * spikes.WINDOW / 100
    found = followed([*values, *[10.0] * 100])[1][spikes.WINDOW :]
    assert found[0] and not found[-1] and found == sorted(found, reverse=True)


def test_losses_that_were_all_alike_make_no_other_a_spike():
    found = followed([*[2.0] * spikes.WINDOW, 2.001, 1.999, 2.01, *[2.2] * 100])[1][spikes.WINDOW :]
    assert not any(found[:3]) and found[3] and not found[-1]


def test_what_is_not_finite_is_not_remembered():
    values = np.random.default_rng(4).normal(5.0, 0.3, 40)
    for odd in (np.nan, np.inf):
        assert jax.tree.leaves(followed([*values, odd])[0]) == jax.tree.leaves(followed(values)[0])


def test_another_layer_begins_anew():
    losses, _ = followed(np.random.default_rng(5).normal(5.0, 0.3, 2 * spikes.WINDOW))
    spike, losses = judge(losses, jnp.float32(100.0), 6.0, ALWAYS)
    assert not spike and int(losses.seen) == 1 and float(losses.mean) == 100.0
    stage = make_stage("progressive", steps=10)  # three layers: at 0, 3 and 6; step 9 is left over
    assert [step for step in range(10) if schedules.begins_phase(stage, 3, jnp.int32(step))] == [
        0,
        3,
        6,
    ]


@pytest.mark.parametrize(
    "kind, skip_above",
    [
        ("progressive", 6.0),
        pytest.param("pretrain", 6.0, marks=pytest.mark.slow),
        ("pretrain", 0.0),
    ],
)
def test_a_spike_is_skipped_like_what_is_not_finite(monkeypatch, kind, skip_above):
    """Parameters and moments stay to the bit, the counters count; without the option nothing is
    skipped."""
    stage = make_stage(kind, steps=30, learning_rate=0.01, skip_above=skip_above)
    step = jitted_step(stage, STUDENT, TEACHER)
    now = state.create(cast_of(stage), random_params(STUDENT, 2))
    usual = spikes.LossStatistics(jnp.float32(1e-3), jnp.float32(1e-8), jnp.int32(spikes.WINDOW))
    teacher = random_params(TEACHER, 1) if stage.needs_teacher else {}
    now, metrics = step(now.replace(losses=usual, step=now.step + 1), teacher, pretraining_batch(0))
    skipped = skip_above > 0
    assert int(metrics["skipped"]) == int(metrics["skipped_in_a_row"]) == int(skipped)
    fresh = state.create(cast_of(stage), random_params(STUDENT, 2))
    same = [
        np.array_equal(a, b)
        for a, b in zip(
            jax.tree.leaves((now.params, now.optimizer)),
            jax.tree.leaves((fresh.params, fresh.optimizer)),
        )
    ]
    assert all(same) == skipped
