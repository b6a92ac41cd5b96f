"""Meshes change where arrays live and nothing else: eight host devices against one, for every
objective; the table."""

import dataclasses
import re

import jax
import numpy as np
import pytest

from jaxdistill.data import packing
from jaxdistill.errors import BadInput
from jaxdistill.models import Model, preset
from jaxdistill.models.config import PRESETS
from jaxdistill.models.heads import HEADS
from jaxdistill.models.parameters import flatten, is_stacked, is_vector
from jaxdistill.models.sizes import parameter_shapes
from jaxdistill.students.copying import random_start
from jaxdistill.training import programs, sharding, state
from tests.conftest import (
    STUDENT,
    TEACHER,
    cast_of,
    given,
    make_stage,
    pretraining_batch,
    random_params,
)

STAGES = {
    "pretrain": dict(dropout=True),
    "soft": dict(kind="progressive", decay="constant", steps=21),
    "strict": dict(kind="progressive", decay="constant", steps=21, freezing="strict"),
    "joint": {},
    "auxiliary": {},
    "distill": dict(accumulation=2, batch_size=16),
    "relations": dict(relation_heads=4, teacher_layer=1),
    "intermediate": dict(layer_map=(0, 0, 2)),
    "packed": dict(kind="distill", accumulation=2, batch_size=16, steps=21),
    "packed, all losses": dict(kind="auxiliary", accumulation=2, batch_size=16),
}
MESHES = {"data": (8, 1, 1), "fsdp": (1, 4, 1), "tensor": (1, 1, 2), "mixed": (2, 2, 2)}
FAST = {("relations", "tensor"), ("distill", "fsdp")}


def train(name, sizes, steps=20):
    """(losses, final state) of a stage on a mesh of these sizes."""
    changes = {"learning_rate": 0.01, "bias_correction": True, "steps": 20, **STAGES[name]}
    stage = make_stage(changes.pop("kind", name), **changes)
    mesh = sharding.make_mesh(*sizes)
    cast = cast_of(stage)
    now = sharding.place(mesh, state.create(cast, random_params(STUDENT, 2), jax.random.key(4)))
    step = programs.compile_step(cast, mesh)
    theirs = sharding.place(mesh, given(cast, random_params(TEACHER, 1), seed=3))
    losses = []
    for i in range(steps):
        batch = sharding.put_batch(mesh, global_batch(name, 10 + i, stage.batch_size))
        with jax.transfer_guard("disallow"):
            now, metrics = step(now, theirs, batch)
        losses.append(float(jax.device_get(metrics["loss"])))
    assert step._cache_size() == 1
    return losses, now, mesh


def global_batch(name, seed, rows):
    if not name.startswith("packed"):
        return pretraining_batch(seed=seed, rows=rows)
    plain = pretraining_batch(seed=seed, rows=2 * rows)
    wide = {k: np.pad(v, ((0, 0), (0, 7))) if v.shape[1:] == (7,) else v for k, v in plain.items()}
    return packing.join(
        wide, np.repeat(np.arange(rows), 2), num_rows=rows, pad=0, predictions=6, max_segments=3
    )


@pytest.fixture(scope="module")
def alone():
    """Results on one device, each computed once."""
    found = {}

    def get(name):
        if name not in found:
            found[name] = train(name, (1, 1, 1))[:2]
        return found[name]

    return get


@pytest.mark.parametrize(
    "name, mesh_name",
    [
        pytest.param(name, mesh, marks=[] if (name, mesh) in FAST else pytest.mark.slow)
        for name in STAGES
        for mesh in MESHES
    ],
)
def test_a_mesh_changes_no_result(name, mesh_name, alone, capfd):
    """Twenty steps: losses to 1e-4 and parameters to 1e-3 of what one device gives (dropout and
    accumulation included), every array is where the table wants it, and the compiler never gave up
    splitting one (it says so on stderr)."""
    losses, now, mesh = train(name, MESHES[mesh_name])
    assert "Involuntary full rematerialization" not in capfd.readouterr().err
    expected_losses, expected = alone(name)
    np.testing.assert_allclose(
        losses[:3], expected_losses[:3], rtol=1e-5
    )  # before the order of sums has grown
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-4)
    ours, theirs = flatten(now.params), flatten(expected.params)
    for key in theirs:
        if (
            "key/bias" not in key
        ):  # their gradient is 0 but for rounding, and Adam divides noise by noise
            np.testing.assert_allclose(ours[key], theirs[key], rtol=1e-3, atol=1e-3, err_msg=key)
    wanted = sharding.shardings(mesh, now)
    assert all(
        leaf.sharding.is_equivalent_to(where, leaf.ndim)
        for leaf, where in zip(jax.tree.leaves(now), jax.tree.leaves(wanted))
    )


def test_what_is_gathered_is_a_layer_of_parameters():
    """Where parameters are split, a device fetches those of one layer, or a table, when it needs
    them: no stack of them, and nothing of other devices' rows."""
    stage, mesh = (
        dataclasses.replace(make_stage("auxiliary", batch_size=40), fused=True),
        sharding.make_mesh(1, 4, 1),
    )
    cast = cast_of(stage)
    now, theirs = state.shapes(cast), parameter_shapes(TEACHER.config)
    step = programs.compile_step(cast, mesh)
    text = step.lower(now, given(cast, theirs, 3), pretraining_batch(rows=40)).compile().as_text()
    shapes = [
        map(int, dims.split(",")) for dims in re.findall(r"= \w+\[([\d,]+)\]\S* all-gather\(", text)
    ]
    gathered = {
        tuple(sorted(size for size in shape if size > 1)) for shape in shapes
    }  # a layer may still have its axis, of 1
    parameters = {
        tuple(sorted(size for size in leaf.shape[is_stacked(name) :] if size > 1))
        for tree in (now.params, theirs)
        for name, leaf in flatten(tree).items()
    }
    assert gathered and gathered <= parameters


def test_parameters_and_moments_are_split():
    """A device of a 2 x 2 x 2 mesh holds about a quarter of a kernel that both axes split, and half
    of the others."""
    stage, mesh = make_stage("pretrain"), sharding.make_mesh(2, 2, 2)
    held = sharding.place(mesh, state.create(cast_of(stage), random_params(STUDENT, 2)))
    for tree in (flatten(held.params), held.optimizer.mu, held.optimizer.nu):
        for name, leaf in tree.items():
            parts = 2 ** sum(axis is not None for axis in sharding.spec(name, leaf.ndim))
            assert leaf.addressable_shards[0].data.size == leaf.size / parts, name
        kernels = [leaf for name, leaf in tree.items() if name.endswith("kernel")]
        assert all(not leaf.sharding.is_fully_replicated for leaf in kernels)


def test_fresh_parameters_are_made_in_place_and_do_not_depend_on_it():
    mesh = sharding.make_mesh(2, 2, 2)
    split = random_start(STUDENT, 3, sharding.shardings(mesh, parameter_shapes(STUDENT.config)))
    whole = random_start(STUDENT, 3)
    for name, leaf in flatten(split).items():
        np.testing.assert_array_equal(leaf, flatten(whole)[name], err_msg=name)
        assert leaf.sharding.spec == sharding.spec(name, leaf.ndim)


@pytest.mark.parametrize("name", PRESETS)
def test_the_table_covers_every_parameter_of_every_preset(name):
    """With every head, and never over the layer axis; a full-size model lies on a mesh of 4 x 4."""
    config = preset(name).replace(heads=tuple(HEADS))
    for key, leaf in flatten(parameter_shapes(config)).items():
        axes = sharding.spec(key, leaf.ndim)
        assert len(axes) == leaf.ndim and not (is_stacked(key) and axes[0])
        if leaf.ndim > 1 and leaf.size >= 2**14 and not is_vector(key):
            assert "fsdp" in axes, key  # nothing large is whole on every device
    mesh = jax.sharding.AbstractMesh((1, 4, 4), sharding.AXES)
    sharding.check_model(mesh, Model(config), "teacher")


def test_a_parameter_without_a_rule_is_an_error():
    with pytest.raises(
        BadInput, match="axes of the parameter 'memory/bank' are not in models/axes.py"
    ):
        sharding.shardings(sharding.make_mesh(1), {"memory": {"bank": np.zeros((2, 2))}})
    with pytest.raises(
        BadInput, match="'layers/ffn_0/up/kernel' has 4 axes, and models/axes.py names 3"
    ):
        sharding.spec("layers/ffn_0/up/kernel", 4)


@pytest.mark.parametrize(
    "sizes, shape",
    [
        ((-1,), (8, 1, 1)),
        ((-1, 4), (2, 4, 1)),
        ((1, -1, 2), (1, 4, 2)),
        ((3,), (3, 1, 1)),
        ((1, 2, 2), (1, 2, 2)),
    ],
)
def test_sizes_of_a_mesh(sizes, shape):
    assert sharding.make_mesh(*sizes).devices.shape == shape


@pytest.mark.parametrize(
    "sizes, words",
    [
        ((9,), "9 device"),
        ((0,), "expected 1 or more"),
        ((-2,), "expected 1 or more"),
        ((-1, -1), "at most one -1"),
        ((-1, 3), "must divide"),
        ((4, 4), "16 device"),
    ],
)
def test_sizes_that_do_not_fit(sizes, words):
    with pytest.raises(BadInput, match=words):
        sharding.make_mesh(*sizes)
