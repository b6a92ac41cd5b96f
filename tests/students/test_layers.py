"""A model of some layers of another: what it is made of, and that transformers agrees."""

import json

import jax
import numpy as np
import pytest
import torch

from jaxdistill import cli, interop
from jaxdistill.errors import BadInput
from jaxdistill.models import Model
from jaxdistill.models.parameters import digest, flatten, is_stacked
from jaxdistill.students.layers import copy_layers, shared_names, take_layers
from tests.conftest import TEACHER, random_params
from tests.interop import oracle


def test_the_layers_asked_for_in_their_order_and_all_else_as_it_was(teacher_params):
    """Of an IB-BERT, for which transformers has no class."""
    model, params = TEACHER, teacher_params
    found, taken = take_layers(model, params, (2, 0))
    assert found.config == model.config.replace(num_layers=2)
    before, after = flatten(params), flatten(taken)
    assert before.keys() == after.keys()
    for name, value in before.items():
        if name.startswith("layers/"):
            value = np.stack([value[2], value[0]])
        np.testing.assert_array_equal(after[name], value)
    same, again = take_layers(model, params, range(model.config.num_layers))
    assert same == model and digest(again) == digest(params)


@pytest.mark.parametrize("variant", ["bert", "mobile_rows"])
def test_transformers_agrees(variant, tmp_path, capsys):
    """What it loads is its own network without the other layers; heads and class are kept. (That what
    is written is ours, `export` itself proves.)"""
    network = oracle.random_torch(variant, num_hidden_layers=4)
    network.save_pretrained(tmp_path / "whole")
    (tmp_path / "whole" / "README.md").write_text("accuracy 0.93")
    out = tmp_path / "some"
    arguments = [f"--model={tmp_path / 'whole'}", f"--out={out}", "--layers=0,3,2"]
    assert cli.main(["export", *arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["layers"] == [0, 3, 2]
    blocks = network.base_model.encoder.layer
    network.base_model.encoder.layer = torch.nn.ModuleList(blocks[i] for i in (0, 3, 2))
    expected = oracle.torch_outputs(network, oracle.batch())
    loaded, missing = type(network).from_pretrained(out, output_loading_info=True)
    assert not any(missing.values()) and loaded.config.num_hidden_layers == 3
    assert loaded.config.architectures == [type(network).__name__]
    theirs = oracle.torch_outputs(loaded.eval(), oracle.batch())
    oracle.assert_same(theirs, expected, rtol=1e-5)
    card = (out / "README.md").read_text()  # what the old one measured is another model
    assert "whole, layers 0, 3, 2" in card and "3 layers, 12 wide" in card and "0.93" not in card


@pytest.mark.parametrize(
    "layers, words",
    [
        ("0,3", "layers=0, 3: there is no layer 3; the model has 0 to 2"),
        ("-1", "there is no layer -1"),
        ("0,2,0", "layer 0 is there twice"),
    ],
)
def test_other_layers_are_refused(layers, words, teacher_params, tmp_path, capsys):
    interop.save_pretrained(tmp_path / "m", TEACHER, teacher_params)
    out = tmp_path / "out"
    assert (
        cli.main(["export", f"--model={tmp_path / 'm'}", f"--out={out}", f"--layers={layers}"]) == 2
    )
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1 and not out.exists()


@pytest.mark.parametrize("layers", [(), 3, "0,1", (0.0,), None])
def test_what_are_no_layers(layers, teacher_params):
    with pytest.raises(BadInput, match="0 to 2"):
        take_layers(TEACHER, teacher_params, layers)


def test_a_student_begins_as_some_layers_with_buffers_of_its_own():
    """Embeddings and heads too; a head that the teacher lacks, or of another shape, stays as it is."""
    student = Model(TEACHER.config.replace(num_layers=2, heads=("mlm", "sequence_classification")))
    theirs, ours = random_params(TEACHER, 1), random_params(student, 2)
    found, before, teacher = map(flatten, (copy_layers(ours, theirs, (2, 0)), ours, theirs))
    copied = shared_names(student, TEACHER)
    for name, value in found.items():
        if is_stacked(name):
            np.testing.assert_array_equal(value, np.asarray(teacher[name])[[2, 0]])
        else:
            np.testing.assert_array_equal(value, (teacher if name in copied else before)[name])
    assert copied == {name for name in before if not name.startswith("sequence_classification")}
    held = digest(theirs)
    jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)(found)
    assert digest(theirs) == held
