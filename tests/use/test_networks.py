"""Networks by name: a teacher assistant between teacher and student, and what each stage read."""

import json

import numpy as np
import pytest
from etils import epath

from jaxdistill import defaults, inputs, interop, run
from jaxdistill.errors import BadInput
from jaxdistill.interop import own_format
from jaxdistill.resolve import resolve
from jaxdistill.training import sharding
from tests.conftest import tiny_config, write_text


@pytest.fixture(scope="module")
def assisted(tmp_path_factory):
    """(config, workdir, results) of a run in which the student learns from an assistant."""
    folder = tmp_path_factory.mktemp("assisted")
    config = tiny_config(write_text(folder / "text.txt"))
    config.networks.assistant = defaults.network(like="student", start="copy")
    config.stages.assistant = defaults.stage("distill", "assistant", steps=3, batch_size=8)
    config.stages.last = defaults.stage(
        "distill", "student", teacher="assistant", steps=3, batch_size=8
    )
    config.order = ("teacher", "assistant", "last")
    return config, folder / "run", run.train(config, folder / "run")


def test_the_student_reads_the_assistant_and_the_assistant_the_teacher(assisted):
    _, workdir, results = assisted
    pages = {
        name: json.loads((workdir / "stages" / name / "stage.json").read_text())
        for name in ("teacher", "assistant", "last")
    }
    assert pages["teacher"]["teachers"] == {}
    for name, teacher, stage in (
        ("assistant", "teacher", "teacher"),
        ("last", "assistant", "assistant"),
    ):
        assert pages[name]["teachers"] == {
            teacher: {
                "path": str(workdir / "stages" / stage),
                "sha256": results["networks"][teacher]["sha256"],
            }
        }
    assert len({row["sha256"] for row in results["networks"].values()}) == 3
    assert json.loads((workdir / "config.json").read_text())["networks"].keys() == {
        "teacher",
        "student",
        "assistant",
        "random_start",
        "copied_start",
    }


def test_another_teacher_gives_another_student(assisted, tmp_path):
    """The name decides: with the teacher itself in the assistant's place the result differs."""
    config, _, results = assisted
    config = config.copy_and_resolve_references()
    config.stages.last.teacher = "teacher"
    found = run.train(config, tmp_path / "run")
    assert found["networks"]["assistant"]["sha256"] == results["networks"]["assistant"]["sha256"]
    assert found["student_sha256"] != results["student_sha256"]


def test_a_stage_whose_teacher_was_another_one_is_refused(assisted, tmp_path):
    config, workdir, _ = assisted
    page = workdir / "stages" / "last" / "stage.json"
    text = page.read_text()
    values = json.loads(text)
    values["teachers"]["assistant"]["sha256"] = "0" * 64
    try:
        page.write_text(json.dumps(values))
        with pytest.raises(BadInput, match="run with another teacher 'assistant' .sha256 000000"):
            run.train(config, workdir)
    finally:
        page.write_text(text)
    assert run.train(config, workdir)["student_sha256"]


def test_an_assistant_that_no_stage_trains(assisted):
    config = assisted[0].copy_and_resolve_references()
    config.order = ("teacher", "last", "assistant")
    with pytest.raises(BadInput, match="'last' needs a teacher.*network 'assistant' before it"):
        resolve(config, vocab_size=120, feeds=inputs.outline(config), mesh=sharding.make_mesh(1))


def test_a_network_like_another_begins_from_its_folder(assisted, tmp_path):
    """Unless it begins at random: then it has the architecture alone."""
    config, workdir, _ = assisted
    config = config.copy_and_resolve_references()
    config.networks.student.init = str(workdir / "stages" / "last")
    config.networks.teacher.init = str(workdir / "stages" / "teacher")
    for name in ("copied_start", "random_start"):
        config.stages[name].update({"learning_rate": 0.0, "weight_decay": 0.0})
    config.update({"order": ("copied_start", "random_start"), "baselines": True})
    run.train(config, tmp_path / "run")
    model, student = interop.from_pretrained(config.networks.student.init)
    held = {
        name: own_format.read_params(epath.Path(tmp_path) / "run" / "stages" / name, model.config)
        for name in ("copied_start", "random_start")
    }
    word = student["embeddings"]["word"]
    np.testing.assert_array_equal(held["copied_start"]["embeddings"]["word"], word)
    assert not np.allclose(held["random_start"]["embeddings"]["word"], word)
    assert held["random_start"]["embeddings"]["word"].shape == word.shape
