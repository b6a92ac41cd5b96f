"""Learned projections: their arithmetic, and their life in a stage from the first step to the
export."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdistill.errors import BadInput
from jaxdistill.methods.base import Stage
from jaxdistill.models import Model
from jaxdistill.models.parameters import flatten
from jaxdistill.objectives import projections
from jaxdistill.training import state
from tests.conftest import (
    STUDENT,
    TEACHER,
    cast_of,
    jitted_step,
    make_stage,
    pretraining_batch,
    random_params,
)

NARROW = Model(STUDENT.config.replace(num_layers=2, hidden_size=12))
SETTINGS = dict(layer_map=(0, 2), optimizer="adamw", learning_rate=1e-2, decay="constant", steps=20)


def started(stage):
    return state.create(cast_of(stage, NARROW), random_params(NARROW, 2), jax.random.key(7))


def test_a_projection_is_a_matrix_and_a_bias():
    rng = np.random.default_rng(0)
    kernel, bias, x = rng.normal(size=(3, 5)), rng.normal(size=5), rng.normal(size=(2, 4, 3))
    maps = {"hidden": {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)}}
    np.testing.assert_allclose(
        projections.project(maps, "hidden", jnp.asarray(x)), x @ kernel + bias, rtol=1e-5
    )


def test_a_loss_without_a_projection_reads_the_tap_itself():
    maps = {"hidden": {"kernel": jnp.ones((3, 5)), "bias": jnp.ones(5)}}
    losses = {term.name: term for term in make_stage("intermediate", 2, **SETTINGS).terms}
    taps = {"hidden": jnp.ones((2, 4, 3)), "attention_scores": jnp.ones((2, 1, 4, 4))}
    found = projections.projected(maps, losses, taps)
    assert (
        found.keys() == {"hidden", "attention_scores", "hidden(hidden)"}
        and found["hidden"] is taps["hidden"]
    )
    np.testing.assert_array_equal(found["hidden(hidden)"], np.full((2, 4, 5), 4.0))


def test_terms_of_one_name_share_one_projection_of_the_two_widths():
    now = started(make_stage("intermediate", 2, **SETTINGS))
    shapes = {name: x.shape for name, x in flatten(now.params["projections"]).items()}
    assert shapes == {
        "hidden/kernel": (12, TEACHER.config.hidden_size),
        "hidden/bias": (TEACHER.config.hidden_size,),
    }
    other = state.create(
        cast_of(make_stage("intermediate", 2, **SETTINGS), NARROW),
        random_params(NARROW, 2),
        jax.random.key(8),
    )
    assert not np.allclose(
        now.params["projections"]["hidden"]["kernel"],
        other.params["projections"]["hidden"]["kernel"],
    )
    assert (
        "projections"
        not in state.create(cast_of(make_stage("joint")), random_params(STUDENT)).params
    )


def test_it_learns_with_the_student_and_is_dropped_after(teacher_params):
    """What moves, what the optimizer holds, and that the losses fall further than with a projection
    that stays."""
    stage = make_stage("intermediate", 2, **SETTINGS)
    step, batch = jitted_step(stage, NARROW, TEACHER), pretraining_batch(1)
    now, losses = started(stage), []
    first = now.params["projections"]["hidden"]
    assert {"projections/hidden/kernel", "projections/hidden/bias"} <= now.optimizer.mu.keys()
    for _ in range(10):
        now, metrics = step(now, teacher_params, batch)
        losses.append(float(metrics["raw/hidden_mse"]))
    assert losses[-1] < 0.9 * losses[0]
    for name in first:
        assert (
            float(jnp.max(jnp.abs(now.params["projections"]["hidden"][name] - first[name]))) > 1e-3
        )
    own = projections.drop(now.params)
    assert flatten(own).keys() == flatten(random_params(NARROW)).keys()


def test_a_progressive_stage_has_none():
    stage = make_stage("intermediate", 2, **SETTINGS)
    layered = tuple(term for term in stage.terms if term.per_layer)
    with pytest.raises(BadInput, match="progressive, so its losses have no learned projection"):
        Stage(
            "it",
            "student",
            9,
            layered,
            stage.optimizer,
            stage.schedule,
            8,
            depth="progressive_soft",
        )
