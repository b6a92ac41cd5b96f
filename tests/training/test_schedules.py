"""Rates at the steps the specification names, and the shape of a phase."""

import math

import jax
import numpy as np
import pytest

from jaxdistill.training import schedules
from tests.conftest import make_stage

LAYERS, PERIOD = 24, 10_000


def published(**changes):
    return make_stage(
        "progressive", num_layers=LAYERS, steps=LAYERS * PERIOD, decay="constant", **changes
    )


def multiplier_by_hand(layer, step, lower):
    """Spec 3.3, with the released code's piecewise position: 0 up to its phase, 1 in it, then
    `lower`."""
    t = step % PERIOD
    profile = min(0.9 + 0.1 * math.sqrt(1 - t / PERIOD), 10 * t / PERIOD)
    position = 0.0 if step <= layer * PERIOD else 1.0 if step <= (layer + 1) * PERIOD else lower
    return 3 * profile * position


@pytest.mark.parametrize("freezing, lower", [("soft", 0.1), ("strict", 0.0)])
def test_multipliers_of_all_layers(freezing, lower):
    """m_k at the phase's start, in its warm-up, at its peak, at its end, and in the next phase."""
    stage = published(freezing=freezing)
    multipliers = jax.jit(lambda step: schedules.layer_multipliers(stage, LAYERS, step))
    for step in (0, 1, 995, 9_999, 10_000, 10_001, 10_995, 235_000, 239_999):
        expected = [multiplier_by_hand(layer, step, lower) for layer in range(LAYERS)]
        np.testing.assert_allclose(
            multipliers(np.int32(step)), expected, rtol=1e-5, atol=1e-7, err_msg=str(step)
        )


@pytest.mark.parametrize(
    "step, layer, rate",
    [
        (0, 0, 0.0),
        (1, 0, 4.5e-6),
        (995, 0, 4.477e-3),
        (9_999, 0, 4.0545e-3),
        (10_000, 0, 0.0),
        (10_000, 1, 0.0),
        (10_001, 1, 4.5e-6),
        (10_001, 0, 4.5e-7),
        (10_995, 0, 4.477e-4),
    ],
)
def test_published_rates(step, layer, rate):
    """Numbers of the specification: a peak of 4.48e-3, lower layers at a tenth, nothing at a
    phase's first step."""
    stage = published()
    ours = (
        schedules.learning_rate(stage, step)
        * schedules.layer_multipliers(stage, LAYERS, np.int32(step))[layer]
    )
    np.testing.assert_allclose(ours, rate, rtol=1e-3, atol=1e-12)


def test_active_layers_share_the_steps_and_the_last_gets_the_rest():
    stage = make_stage("progressive", num_layers=3, steps=11)
    assert schedules.phase_steps(stage, 3) == 3
    assert [int(schedules.active_layer(stage, 3, step)) for step in range(11)] == [
        0,
        0,
        0,
        1,
        1,
        1,
        2,
        2,
        2,
        2,
        2,
    ]
    profile = [float(schedules.phase_profile(stage, 3, np.int32(step))) for step in range(11)]
    np.testing.assert_allclose(profile[9:], 0.9, rtol=1e-6)
    assert profile[0] == profile[3] == profile[6] == 0.0


@pytest.mark.parametrize(
    "step, rate",
    [
        (0, 0.0),
        (1, 1.5e-7),
        (5_000, 7.5e-4),
        (9_999, 1.49985e-3),
        (10_000, 1.47e-3),
        (250_000, 7.5e-4),
        (500_000, 1.5e-7),
    ],
)
def test_warm_up_then_the_decay_line(step, rate):
    """Spec 3.4: at step 10000 the rate drops from the warm-up onto the line that began at step
    0."""
    stage = make_stage(
        "distill", steps=500_000, warmup_steps=10_000, learning_rate=1.5e-3, end_ratio=1e-4
    )
    np.testing.assert_allclose(
        schedules.learning_rate(stage, np.int32(step)), rate, rtol=2e-4, atol=1e-12
    )


def test_constant_rate_and_no_warm_up():
    stage = make_stage("distill", steps=10, decay="constant", learning_rate=0.5)
    assert [float(schedules.learning_rate(stage, np.int32(step))) for step in (0, 1, 9)] == [
        0.5
    ] * 3
