"""Our own format: what Hugging Face cannot express, back to the bit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxdistill import interop
from jaxdistill.errors import BadInput
from jaxdistill.models import Model, ModelConfig, parameters, preset
from tests.interop.tiny import SHRUNK, random_params

TEACHER = preset("ib_bert_large").replace(
    **{**SHRUNK, "num_layers": 3}, embedding_size=4, bottleneck_size=16
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    interop.save_pretrained(tmp_path / "teacher", Model(TEACHER), random_params(TEACHER))
    return tmp_path / "teacher"


def test_teacher_is_saved_in_our_format_and_told_why(tmp_path: Path) -> None:
    params = random_params(TEACHER)
    exported = interop.save_pretrained(tmp_path / "teacher", Model(TEACHER), params)
    assert exported.format == "jaxdistill" and exported.path.name == "teacher"
    assert (
        exported.reason is not None and "projected from the 12-wide block input" in exported.reason
    )
    assert exported.reason in (tmp_path / "teacher" / "README.md").read_text()
    assert {path.name for path in (tmp_path / "teacher").iterdir()} == {
        "config.json",
        "model.safetensors",
        "README.md",
    }
    model, again = interop.from_pretrained(tmp_path / "teacher")
    assert model.config == TEACHER
    assert parameters.digest(again) == parameters.digest(params)
    report = interop.verify_export(tmp_path / "teacher", Model(TEACHER), params, with_torch=True)
    assert (
        report["max_relative_difference"] == 0.0 and report["torch_max_relative_difference"] is None
    )


def test_layers_stay_stacked_under_our_names(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    assert state["layers/attention/query/kernel"].shape == (3, 12, 2, 8)
    assert json.loads((folder / "config.json").read_text())["model_type"] == "jaxdistill"


def test_heads_can_be_left_out(folder: Path) -> None:
    model, params = interop.from_pretrained(folder, heads=("nsp",), dtype="bfloat16")
    assert model.config == TEACHER.replace(heads=("nsp",), dtype="bfloat16")
    assert set(params) == {"embeddings", "layers", "pooler", "nsp"}
    with pytest.raises(BadInput, match="no head 'question_answering'"):
        interop.from_pretrained(folder, heads=("question_answering",))


def test_what_does_not_fit_is_named(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    for name, change, message in (
        ("nsp/dense/bias", None, "lacks 1 tensor: nsp/dense/bias"),
        ("nsp/dense/extra", np.ones(2, np.float32), "holds unknown 1 tensor: nsp/dense/extra"),
        (
            "pooler/dense/bias",
            np.ones(5, np.float32),
            r"pooler/dense/bias has shape \[5\] but the config says \[12\]",
        ),
        ("pooler/dense/bias", np.ones(12, np.int32), "stored as int32"),
    ):
        changed = {
            key: array for key, array in {**state, name: change}.items() if array is not None
        }
        save_file(changed, folder / "model.safetensors")
        with pytest.raises(BadInput, match=message):
            interop.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(BadInput, match="has no model.safetensors"):
        interop.from_pretrained(folder)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"format_version": 2}, "format_version=2; this jaxdistill reads 1"),
        ({"config": 3}, "no 'config'"),
        ({"config": {"num_layer": 3}}, "did you mean 'num_layers'"),
        ({"config": {"num_layers": [3]}}, r"num_layers is \[3\]; expected int"),
        ({"config": {"num_layers": "3"}}, "num_layers is '3'; expected int"),
        ({"config": {"heads": 3}}, "heads is 3"),
    ],
)
def test_damaged_config(folder: Path, change: dict[str, object], message: str) -> None:
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, **change}))
    with pytest.raises(BadInput, match=message):
        interop.from_pretrained(folder)


def test_parameters_of_another_model_are_not_saved(tmp_path: Path) -> None:
    for model in (Model(ModelConfig(**SHRUNK)), Model(TEACHER)):
        params = random_params(model.config)
        params["projection"] = {"kernel": np.ones((2, 2), np.float32)}
        with pytest.raises(BadInput, match="holds unknown 1 tensor: projection/kernel"):
            interop.save_pretrained(tmp_path / "x", model, params)
        del params["projection"], params["pooler"]
        with pytest.raises(BadInput, match="lacks 2 tensors: pooler/dense/bias"):
            interop.save_pretrained(tmp_path / "x", model, params)
    assert list(tmp_path.iterdir()) == []  # nothing half-written is left
