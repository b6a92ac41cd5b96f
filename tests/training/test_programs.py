"""Programs of a stage: made once, for start-up and training, and for all seeds."""

import jax
import numpy as np
import pytest

from jaxdistill.training import programs, sharding
from jaxdistill.training.step import Given, make_step
from tests.conftest import STUDENT, TEACHER, make_stage, pretraining_batch, random_params


@pytest.fixture
def traces(monkeypatch):
    """A list that grows when a step is traced."""
    seen = []

    def counting(*arguments):
        step = make_step(*arguments)
        return lambda *given: seen.append(arguments[0].name) or step(*given)

    monkeypatch.setattr(programs, "make_step", counting)
    programs.compile_step.cache_clear()
    yield seen
    programs.compile_step.cache_clear()


@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 2, 2)], ids=["one device", "eight"])
def test_a_step_is_traced_once_for_start_up_all_steps_and_all_seeds(sizes, traces):
    """Tracing takes as long as compiling; a mesh of one device and of several, whose arrays say where they are."""
    stage, mesh = make_stage("pretrain", dropout=True), sharding.make_mesh(*sizes)
    batch = pretraining_batch(3)
    programs.trace(stage, STUDENT, None, mesh, {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in batch.items()})
    assert traces == ["it"]
    losses = []
    for seed in (1, 2, 1):
        start = programs.compile_start(stage, STUDENT, None, mesh)
        now = start(sharding.place(mesh, random_params(STUDENT, 2)), seed)
        given = sharding.place(mesh, Given({}, np.int32(seed)))
        step = programs.compile_step(stage, STUDENT, None, mesh)
        for _ in range(2):
            now, metrics = step(now, given, sharding.put_batch(mesh, batch))
        losses.append(float(metrics["loss"]))
    assert traces == ["it"] and step._cache_size() == 1
    assert losses[0] == losses[2] != losses[1]


def test_given_shapes_are_those_of_what_is_given():
    half = programs.given_shapes(TEACHER).teacher
    assert jax.tree.map(lambda x: x.shape, half) == jax.tree.map(lambda x: x.shape, random_params(TEACHER))
    assert programs.given_shapes(None).teacher == {}
