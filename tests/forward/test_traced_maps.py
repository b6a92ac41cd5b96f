"""A layer map as data: the numbers of the static one, and one program for all maps."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdistill import defaults, run
from jaxdistill.resolve import trace_maps
from jaxdistill.training import programs, sharding, state
from jaxdistill.training.step import Given
from tests.conftest import (
    STUDENT,
    cast_of,
    make_stage,
    pretraining_batch,
    random_params,
    rarely,
    tiny_config,
    write_text,
)

MAPS = [(2, 0, 1), (-1, 2, 0)]


def one_step(stage, maps, teacher_params, seed=3):
    """(parameters, raw losses) after one step on one device, and the program."""
    cast, mesh = cast_of(stage), sharding.make_mesh(1)
    step = programs.compile_step(cast, mesh)
    now = sharding.place(mesh, state.create(cast, random_params(STUDENT, 2), jax.random.key(4)))
    held = {name: jnp.asarray(layer_map, jnp.int32) for name, layer_map in maps.items()}
    given = Given({"teacher": teacher_params}, np.int32(seed), held)
    now, metrics = step(
        now, sharding.place(mesh, given), sharding.put_batch(mesh, pretraining_batch(3))
    )
    raw = {name: float(x) for name, x in metrics.items() if name.startswith("raw/")}
    return jax.device_get(now.params), raw, step


@pytest.mark.parametrize("kind", rarely(["joint", "auxiliary"], "auxiliary"))
def test_a_traced_map_gives_the_numbers_of_the_static_one_from_one_program(kind, teacher_params):
    seen = set()
    for layer_map in MAPS:
        stage = make_stage(kind, layer_map=layer_map, steps=20, learning_rate=0.01, dropout=True)
        traced, maps = trace_maps(stage, 3)
        assert list(maps.values()) == [layer_map]
        for seed in (3, 4):
            plain = dataclasses.replace(stage, fused=False)
            ours, raw, step = one_step(traced, maps, teacher_params, seed)
            theirs, expected, _ = one_step(plain, {}, teacher_params, seed)
            assert raw.keys() == expected.keys()
            for name in expected:
                assert raw[name] == pytest.approx(expected[name], rel=1e-6), (layer_map, name)
            for got, wanted in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs)):
                np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-6)
            seen.add(step)
    assert len(seen) == 1 and step._cache_size() == 1


@pytest.mark.parametrize("freezing", rarely(["soft", "strict"], "soft"))
def test_a_progressive_stage_follows_its_map(freezing, teacher_params):
    stage = make_stage("progressive", freezing=freezing, layer_map=(2, 0, 1), steps=9)
    traced, maps = trace_maps(stage, 3)
    ours, raw, _ = one_step(traced, maps, teacher_params)
    theirs, expected, _ = one_step(stage, {}, teacher_params)
    assert raw == pytest.approx(expected, rel=1e-6)
    other = one_step(traced, {"map0": (0, 2, 1)}, teacher_params)[1]
    assert other["raw/feature_map"] != pytest.approx(raw["raw/feature_map"], rel=1e-3)
    for got, wanted in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs)):
        np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-6)


@pytest.mark.slow
def test_a_recipe_with_traced_maps_trains_as_without(tmp_path):
    config = tiny_config(write_text(tmp_path / "text.txt"))
    config.stages.joint = defaults.stage(
        "joint", "student", steps=3, batch_size=8, layer_map=(1, 0)
    )
    config.order = ("teacher", "joint")
    losses = {}
    for traced in (False, True):
        config.objectives.traced_maps = traced
        folder = tmp_path / str(traced)
        run.train(config, folder)
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        losses[traced] = [line["loss"] for line in lines if line.get("stage") == "joint"]
    assert len(losses[True]) == 3
    assert losses[True] == pytest.approx(losses[False], rel=1e-5)
