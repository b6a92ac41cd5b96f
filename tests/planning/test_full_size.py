"""The goals of README's table of memory, at full size, as the TPU's compiler sees them: slow, with
libtpu.

What they guard shows nowhere else. A CPU's program is the same without the barriers and constraints
that keep a TPU's small: `encoder._only_here`, the barrier in `forward_gradient`,
`placement.gathered_layer`."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys
from importlib.metadata import version

import jax
import pytest

from jaxdistill.configuration import load_config
from jaxdistill.models import Model, preset
from jaxdistill.planning import plan

ROOT = pathlib.Path(__file__).parents[2]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None, reason="the extra `plan` is not installed"
    ),
    pytest.mark.skipif(
        version("jax").startswith("0.10."),
        reason="its compiler is another, and crashes on some of these",
    ),
]


def measured(folder, *arguments):
    """{(objective, rows, fused): its line} of `benchmarks/objectives.py`."""
    environment = {
        name: value for name, value in os.environ.items() if name not in plan.NOT_INHERITED
    }
    command = [
        sys.executable,
        "benchmarks/objectives.py",
        f"--json={folder / 'lines.json'}",
        *arguments,
    ]
    done = subprocess.run(
        command, cwd=ROOT, env=environment | plan.CHILD_ENVIRONMENT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = json.loads((folder / "lines.json").read_text())["lines"]
    return {(line["objective"], line["rows"], line["fused"]): line for line in lines}


@pytest.mark.parametrize(
    "residual, strict, names",
    [("float32", 96, "strict,joint,auxiliary"), ("bfloat16", 48, "strict,joint")],
)
def test_what_a_gradient_needs(tmp_path, residual, strict, names):
    for (name, *_), line in measured(
        tmp_path, f"--only={names}", f"--residual={residual}", "--losses=fused"
    ).items():
        assert line["temporaries_MiB"] <= (strict if name == "strict" else 0.40 * 1024), line
        assert line["operations"] <= (1.05 if name == "strict" else 1.10), line


def test_what_words_and_relations_need_of_plain_losses(tmp_path):
    lines = measured(tmp_path, "--only=words,relations")
    for (name, rows, fused), line in lines.items():
        if fused:
            share = line["temporaries_MiB"] / lines[name, rows, False]["temporaries_MiB"]
            assert share <= {"words": 1 / 2, "relations": 1 / 4}[name], line


def gathered(stage, *overrides):
    """Bytes that a chip gathers in a step of `stage`, parameters split in four."""
    config = load_config("mobilebert", [f"stages.{stage}.batch_size=64", "mesh.fsdp=4", *overrides])
    found = plan.plan(config, ["v5e:2x4"], stages=[stage])["topologies"][0]["stages"][0]
    return found["sent_bytes"]["all-gather"]


def test_split_parameters_are_fetched_once():
    """A layer of the teacher not for each part of the rows, the tables of words not for each part
    of the words (the student's in float32, and once more in bfloat16 where its gradient is
    taken)."""
    teacher, student = (
        jax.eval_shape(Model(preset(name)).init, jax.random.key(0))
        for name in ("ib_bert_large", "mobilebert")
    )
    layers = 3 / 4 * 2 * sum(leaf.size for leaf in jax.tree.leaves(teacher["layers"]))
    words = (
        3 / 4 * 4 * (student["embeddings"]["word"].size + student["mlm"]["extra_embedding"].size)
    )
    joint, distill = gathered("transfer", "stages.transfer.kind=joint"), gathered("distill")
    assert layers < joint < 1.5 * layers
    assert words < distill - joint < 1.75 * words
