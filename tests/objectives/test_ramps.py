"""Numbers that change over a stage."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdistill.errors import BadInput
from jaxdistill.objectives.ramps import Ramp, at


@pytest.mark.parametrize("shape", ["linear", "cosine"])
def test_it_goes_from_start_to_end_and_never_beyond(shape):
    ramp = Ramp(8.0, 1.0, 101, shape)
    values = [float(ramp.at(jnp.int32(step))) for step in (0, 25, 50, 75, 100, 500)]
    by_hand = [
        8 + (1 - 8) * (t if shape == "linear" else (1 - np.cos(np.pi * t)) / 2)
        for t in (0, 0.25, 0.5, 0.75, 1, 1)
    ]
    np.testing.assert_allclose(values, by_hand, rtol=1e-6)


def test_a_stage_of_one_step_is_its_start():
    assert float(Ramp(2.0, 1.0, 1).at(jnp.int32(0))) == 2.0


def test_arithmetic_is_that_of_its_values():
    ramp = Ramp(0.2, 0.8, 11, "cosine")
    for step in (0, 3, 10):
        value = float(ramp.at(jnp.int32(step)))
        for made, expected in (
            (2 * ramp, 2 * value),
            (ramp * 2, 2 * value),
            (1.0 - ramp, 1 - value),
            (ramp - 1.0, value - 1),
            (ramp + 1.0, value + 1),
            (1.0 + ramp, value + 1),
            (ramp / 4, value / 4),
            (0.5 * (1.0 - ramp), (1 - value) / 2),
        ):
            np.testing.assert_allclose(float(made.at(jnp.int32(step))), expected, rtol=1e-6)


def test_it_is_above_0_if_it_is_anywhere():
    assert Ramp(0.0, 1.0, 5) > 0 and Ramp(1.0, 0.0, 5) > 0 and not Ramp(0.0, 0.0, 5) > 0


def test_at_the_end_of_its_stage_and_of_what_is_no_ramp():
    assert at(Ramp(8.0, 1.0, 5), None) == 1.0
    assert at(0.5, None) == 0.5 and at("word", jnp.int32(3)) == "word"


@pytest.mark.parametrize(
    "text, expected",
    [
        ("8 to 1", Ramp(8, 1, 7)),
        (" .5 to 1e-1 , cosine ", Ramp(0.5, 0.1, 7, "cosine")),
        ("8 to 1, linear", Ramp(8, 1, 7)),
        ("8 to", None),
        ("8", None),
        ("8 to 1, sine", None),
        ("8 to nan", None),
    ],
)
def test_as_recipes_write_it(text, expected):
    assert Ramp.read(text, 7) == expected


def test_an_unknown_shape_is_refused():
    with pytest.raises(BadInput, match="'sine' is unknown; valid: linear, cosine"):
        Ramp(1, 0, 5, "sine")
