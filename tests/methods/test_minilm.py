"""MiniLM's stage: which layers, which weights, what moves."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdistill.errors import BadInput
from jaxdistill.models.parameters import flatten
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


def test_the_last_layer_follows_one_of_the_teacher():
    stage = make_stage(
        "relations", teacher_layer=1, relation_heads=4, key_relation=0.5, value_relation=0.0
    )
    assert {
        (term.loss, term.weight, term.layer_map, dict(term.options)["heads"])
        for term in stage.terms
    } == {("query_relation", 1.0, (-1, -1, 1), 4), ("key_relation", 0.5, (-1, -1, 1), 4)}
    assert stage.teacher_depth(3) == 2 and stage.heads("teacher") == ()


@pytest.mark.parametrize(
    "changes, words",
    [
        ({}, "teacher_layer=-1: give the teacher's layer"),
        (
            dict(teacher_layer=1, layer_map=(0, 1, 2)),
            "no field 'layer_map', a setting of .*intermediate; .*teacher_layer",
        ),
    ],
)
def test_mistakes(changes, words):
    with pytest.raises(BadInput, match=words):
        make_stage("relations", **changes)


@pytest.mark.parametrize(
    "kind, changes",
    [
        pytest.param("relations", dict(teacher_layer=1, relation_heads=4), marks=pytest.mark.slow),
        ("joint", dict(layer_map=(0, 1, -1))),
        pytest.param("distill", dict(nsp=0.0), marks=pytest.mark.slow),
    ],
)
def test_what_nothing_teaches_is_not_destroyed(kind, changes, teacher_params):
    """LAMB would scale the decay of a variable without gradient to the variable's own length: gone
    in some steps."""
    stage = make_stage(kind, learning_rate=0.1, decay="constant", steps=20, **changes)
    before = random_params(STUDENT, 2)
    now = state.create(cast_of(stage), before)
    step = jitted_step(stage, STUDENT, TEACHER)
    for i in range(5):
        now, _ = step(now, teacher_params, pretraining_batch(i))
    moved = {
        name: float(jnp.linalg.norm(after - flatten(before)[name]) / jnp.linalg.norm(after))
        for name, after in flatten(now.params).items()
    }
    assert moved["nsp/dense/kernel"] < 0.01 and max(moved.values()) > 0.05
    if kind != "distill":
        last = (
            flatten(now.params)["layers/ffn_1/down/kernel"][-1]
            - flatten(before)["layers/ffn_1/down/kernel"][-1]
        )
        assert np.abs(last).max() < 0.01
