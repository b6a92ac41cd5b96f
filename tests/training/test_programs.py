"""Programs of a stage: made once, for start-up and training, and for all seeds."""

import jax
import numpy as np
import pytest

from jaxdistill import commands
from jaxdistill.models import Model
from jaxdistill.models.encoder import in_compute_dtype
from jaxdistill.training import programs, sharding
from jaxdistill.training.step import Given, make_step
from tests.conftest import (
    STUDENT,
    TEACHER,
    cast_of,
    make_stage,
    pretraining_batch,
    random_params,
    tiny_config,
)


@pytest.fixture
def traces(monkeypatch):
    """Names of stages, one whenever a step is traced."""
    seen = []

    def counting(cast):
        step = make_step(cast)
        return lambda *given: seen.append(cast.stage.name) or step(*given)

    monkeypatch.setattr(programs, "make_step", counting)
    programs.compile_step.cache_clear()
    yield seen
    programs.compile_step.cache_clear()


@pytest.mark.slow  # the next test sees one trace for start-up and steps
def test_a_step_is_traced_once_for_start_up_all_steps_and_all_seeds(text_source, tmp_path, traces):
    """By `seeds`, as users run it: tracing takes as long as compiling."""
    config = tiny_config(text_source)
    config.order = ("teacher", "distill")
    for model in (config.networks.teacher.model, config.networks.student.model):
        model.dtype = "bfloat16"
    config.stages.distill.dropout = True
    found = commands.seeds(config, tmp_path, (1, 2))
    assert traces == ["teacher", "distill"]
    assert len(set(found["mlm_loss"]["student"])) == 2


def test_shapes_that_are_traced_have_the_places_of_arrays(traces):
    """On a mesh of several devices too."""
    stage, mesh, batch = make_stage("pretrain"), sharding.make_mesh(2, 2, 2), pretraining_batch(3)
    cast = cast_of(stage)
    programs.trace(cast, mesh, batch)
    now = programs.compile_start(cast, mesh)(sharding.place(mesh, random_params(STUDENT, 2)), 1)
    given = sharding.place(mesh, Given({}, np.int32(1)))
    for _ in range(2):
        now, _ = programs.compile_step(cast, mesh)(now, given, sharding.put_batch(mesh, batch))
    assert traces == ["it"]


def test_given_shapes_are_those_of_what_is_given():
    half = Model(TEACHER.config.replace(dtype="bfloat16"))
    given = in_compute_dtype(half.config, random_params(half))
    cast = cast_of(make_stage("distill"), teacher=half)
    shapes = [
        jax.tree.map(lambda x: (x.shape, x.dtype), tree)
        for tree in (programs.given_shapes(cast).others["teacher"], given)
    ]
    assert shapes[0] == shapes[1]
    assert programs.given_shapes(cast_of(make_stage("pretrain"))).others == {}
