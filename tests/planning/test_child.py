"""What the child makes of a recipe; and, slow and with libtpu, every published recipe compiled for
a small slice."""

import importlib.util
import json
import types

import jax
import pytest

from jaxdistill import inputs, interop
from jaxdistill.configuration import load_config, shipped_recipes
from jaxdistill.errors import BadInput
from jaxdistill.planning import child, plan
from jaxdistill.planning.topologies import find
from jaxdistill.resolve import resolve
from jaxdistill.training import sharding
from tests.conftest import TEACHER, random_params
from tests.planning.program import TEXT

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="the extra `plan` is not installed"
)


def told(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.fixture
def four_devices(monkeypatch):
    """The child with this machine's devices in the place of a slice's."""
    monkeypatch.setattr(child, "devices_of", lambda topology: jax.devices()[: topology.devices])


def request(config, **options):
    return json.loads(
        json.dumps(
            {
                "topology": "v5e:2x2",
                "config": config.to_dict(),
                "stages": [],
                "fit": False,
                **options,
            }
        )
    )


def test_a_recipe_compiles_as_in_a_run(four_devices, capsys):
    config = load_config("quickstart:smoke", ["stages.transfer.accumulation=2"])
    child.main(request(config, stages=["transfer"]))
    mesh, compiling, stage = told(capsys)
    assert mesh["mesh"] == {"data": 4, "fsdp": 1, "tensor": 1}
    assert compiling == {"event": "compiling", "stage": "transfer", "rows": 1}
    assert stage["rows_per_device"] == stage["rows_per_chip"] == 1
    assert stage["batch_size"] == 8 and stage["fits"] and stage["steps"] == 4
    # One all-reduce of the gradients of every moving parameter (2 layers), and little beside it.
    moving = sum(x.size for x in jax.tree.leaves(student_layers(config)))
    assert 0.9 < stage["sent_bytes"]["all-reduce"] / (4 * moving * 2 * 3 / 4) < 3
    assert stage["step_seconds"] >= stage["best_seconds"] > 0


def test_two_devices_of_one_chip(four_devices, capsys, monkeypatch):
    """A v3 chip: twice the rows, twice the memory of a device; with attention heads split, the two
    share rows."""
    compiled = types.SimpleNamespace(as_text=lambda: TEXT)
    monkeypatch.setattr(
        child, "compile_stage", lambda *a: (compiled, {"total": 2.0**30 * (a[-1] + 3)})
    )
    for tensor, rows, largest in ((1, 1, 26), (2, 2, 13)):
        config = load_config("quickstart:smoke", [f"mesh.tensor={tensor}"])
        child.main(request(config, topology="v3:2x2", stages=["teacher"], fit=True))
        stage = told(capsys)[-1]
        assert (stage["rows_per_device"], stage["rows_per_chip"]) == (rows, 2)
        assert (stage["memory_limit"], stage["memory_per_chip"]) == (
            2.0**34,
            2 * 2.0**30 * (rows + 3),
        )
        assert (stage["largest_rows_per_device"], stage["largest_rows_per_chip"]) == (13, largest)


def student_layers(config):
    mesh = sharding.make_mesh(4)
    recipe = resolve(config, vocab_size=512, feeds=inputs.outline(config), mesh=mesh)
    return jax.eval_shape(recipe.networks["student"].init, jax.random.key(0))["layers"]


@pytest.mark.parametrize(
    "overrides, words",
    [
        (["stages.teacher.batch_size=6"], ["stages.teacher.batch_size=6", "use a multiple of 4"]),
        (["evaluation.batch_size=6"], ["evaluation.batch_size=6", "4 devices"]),
        (["mesh.data=2"], ["'data': 2", "uses 2 of 4 devices"]),
        (["mesh.fsdp=3"], ["mesh.fsdp=3", "4 device(s)"]),
    ],
)
def test_what_does_not_divide(four_devices, overrides, words):
    with pytest.raises(BadInput) as error:
        child.main(request(load_config("quickstart:smoke", overrides)))
    assert all(word in str(error.value) for word in words)


def test_an_unknown_stage(four_devices):
    with pytest.raises(BadInput, match="did you mean 'teacher'"):
        child.main(request(load_config("quickstart:smoke"), stages=["teachr"]))


def test_of_a_given_teacher_only_the_config_is_read(tmp_path):
    interop.save_pretrained(tmp_path / "teacher", TEACHER, random_params(TEACHER))
    (tmp_path / "teacher" / "model.safetensors").write_bytes(b"not read")
    config = load_config(
        "quickstart:smoke",
        [
            f"networks.teacher.init={tmp_path / 'teacher'}",
            "networks.student.model.num_layers=3",
            "networks.student.model.hidden_size=8",
            "networks.student.model.embedding_size=4",
            "networks.student.model.max_positions=16",
            "data.sequence_length=16",
        ],
    )
    config.order = ("transfer", "distill")
    recipe = child.resolve_without_text(config, sharding.make_mesh(4))
    assert (
        recipe.networks["teacher"].config == TEACHER.config
        and recipe.networks["student"].config.vocab_size == TEACHER.config.vocab_size
    )


def test_a_length_in_epochs_is_not_known(four_devices, capsys, monkeypatch):
    compiled = types.SimpleNamespace(as_text=lambda: TEXT)
    monkeypatch.setattr(child, "compile_stage", lambda *_: (compiled, {"total": 5.0}))
    config = load_config(
        "quickstart:smoke", ["stages.teacher.steps=0", "stages.teacher.epochs=2.0"]
    )
    child.main(request(config, stages=["teacher"]))
    stage = told(capsys)[-1]
    assert stage["steps"] is None and stage["days"] is None and stage["tokens_per_second"] > 0


def test_the_largest_batch(four_devices, capsys, monkeypatch):
    """Two rows a device in the recipe; memory grows by a GiB with each, of 16 GiB."""
    compiled = types.SimpleNamespace(as_text=lambda: TEXT)
    monkeypatch.setattr(
        child,
        "compile_stage",
        lambda *a: (compiled if a[-1] < 20 else None, {"total": 2.0**30 * (a[-1] + 3)}),
    )
    child.main(request(load_config("quickstart:smoke"), stages=["teacher"], fit=True))
    stage = told(capsys)[-1]
    assert (
        stage["rows_per_device"] == 2
        and stage["largest_rows_per_device"] == stage["largest_rows_per_chip"] == 13
    )


@pytest.mark.parametrize(
    "answer, words",
    [
        (RuntimeError("INVALID_ARGUMENT: no such layout\nand more"), "no such layout"),
        (types.SimpleNamespace(devices=[1]), "1 devices"),
    ],
)
def test_a_slice_that_libtpu_sees_otherwise(monkeypatch, answer, words):
    def describe(**_):
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(child.jax_topologies, "get_topology_desc", describe)
    with pytest.raises(BadInput, match=words) as error:
        child.devices_of(find("v5e:2x2"))
    assert "and more" not in str(error.value)


@pytest.mark.parametrize(
    "message, size",
    [
        ("Ran out of memory in memory space hbm. Used 18.54G of 15.75G hbm.", 18.54 * 2**30),
        (
            "the total memory required for HLO temporaries (40.00G) exceeds available HBM (15.75G).",
            40 * 2**30,
        ),
        ("RESOURCE_EXHAUSTED: Used 512.0M of 1.0K hbm", 512 * 2**20),
        ("RESOURCE_EXHAUSTED: something else", None),
    ],
)
def test_what_the_compiler_would_have_needed(message, size):
    assert child.needed(message) == size


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_every_recipe_for_a_small_slice(name):
    if name == "from_hf" and not load_config(name).networks.teacher.init:
        pytest.skip("the extra `demo` is not installed")
    # libtpu 0.0.42 overflows its stack on some bfloat16 programs of these toy widths, not on those
    # of the full size.
    narrow = (
        ["networks.teacher.model.dtype=float32", "networks.student.model.dtype=float32"]
        if name == "mobilebert"
        else []
    )
    config = load_config(f"{name}:smoke", narrow)
    found = plan.plan(config, ["v5e:2x2"])["topologies"][0]
    assert [stage["stage"] for stage in found["stages"]] == list(config.order)
    for stage in found["stages"]:
        assert stage["fits"] and stage["sent_bytes"]["all-reduce"] > 0 and stage["days"] > 0, stage
        kind = config.stages[stage["stage"]].kind
        assert stage["program"]["guessed"] == (kind == "progressive"), stage


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["v2:2x2", "v3:2x2", "v4:2x2x1", "v5e:1x1", "v5p:2x2x1", "v6e:2x2", "tpu7x:2x2x1"]
)
def test_every_generation(name):
    """One stage on each; `devices_of` itself checks that a chip shows as many devices as the table
    says."""
    config = load_config("quickstart:smoke")
    found = plan.plan(config, [name], stages=["teacher"])["topologies"][0]
    assert found["devices"] == find(name).devices and found["stages"][0]["fits"]
    assert found["stages"][0]["program"]["cycles"] > 0


@needs_libtpu
@pytest.mark.slow
def test_a_batch_that_does_not_fit():
    config = load_config("wiki", ["stages.teacher.batch_size=65536"])
    stage = plan.plan(config, ["v5e:1x1"], stages=["teacher"])["topologies"][0]["stages"][0]
    assert not stage["fits"] and stage["memory"]["total"] > 16 * 2**30
