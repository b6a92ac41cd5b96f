"""A student that begins as a part of its teacher, through `train` and `export`."""

import json

import numpy as np
import pytest
import safetensors.numpy
import torch

from jaxdistill import conversion, defaults, interop, run
from jaxdistill.errors import BadInput
from jaxdistill.interop import own_format
from jaxdistill.models.parameters import flatten
from jaxdistill.students.extract import choose, extract, random_scores
from tests.conftest import tiny_config, write_text
from tests.interop import oracle
from tests.use.recipes import assert_one_line
from tests.use.recipes import run as run_command


def cut_config(folder, importance=""):
    """A teacher that is trained, and a part of it that stands still: its rate is 0."""
    config = tiny_config(write_text(folder / "text.txt"))
    config.networks.student = defaults.network(
        like="teacher",
        start="extract",
        importance=importance,
        importance_rows=24,
        num_layers=1,
        bottleneck_size=12,
        intermediate_size=9,
    )
    for name in ("random_start", "copied_start"):  # they are like the student
        del config.networks[name], config.stages[name]
    config.stages.still = defaults.stage(
        "distill", "student", steps=1, batch_size=8, learning_rate=0.0
    )
    config.order = ("teacher", "still")
    return config


@pytest.fixture(scope="module", params=["", "text"])
def cut(request, tmp_path_factory):
    """(importance, config, workdir) of such a run."""
    folder = tmp_path_factory.mktemp("cut")
    config = cut_config(folder, request.param)
    run.train(config, folder / "run")
    return request.param, config, folder / "run"


def networks_of(workdir):
    found = {}
    for name in ("teacher", "still"):
        folder = workdir / "stages" / name
        values = json.loads((folder / "config.json").read_text())
        config = own_format.read_config(values, str(folder))
        found[name] = config, interop.from_pretrained(folder)[1]
    return found


def test_it_begins_as_the_part_that_was_chosen(cut):
    importance, _, workdir = cut
    (teacher, params), (student, found) = networks_of(workdir).values()
    assert student == teacher.replace(num_layers=1, bottleneck_size=12, intermediate_size=9)
    if importance:
        (file,) = (workdir / "derived").glob("text-importance-teacher*")
        scores = safetensors.numpy.load_file(file)
    else:
        scores = random_scores(teacher, 0)
    expected = extract(teacher, params, choose(teacher, student, scores, (teacher.num_layers - 1,)))
    for name, x in flatten(expected).items():
        np.testing.assert_allclose(flatten(found)[name], x, atol=1e-7, err_msg=name)


def test_it_goes_on_where_it_stopped_and_another_part_is_refused(cut):
    importance, config, workdir = cut
    before = (workdir / "stages" / "still" / "stage.json").read_bytes()
    run.train(config, workdir)
    assert (workdir / "stages" / "still" / "stage.json").read_bytes() == before
    other = config.copy_and_resolve_references()
    other.networks.student.importance = "" if importance else "text"
    with pytest.raises(BadInput, match="importance"):
        run.train(other, workdir)


@pytest.mark.parametrize(
    "changes, said",
    [
        (
            {"sizes.bottleneck_size": 98},
            "'teacher', cannot be cut out .* bottleneck_size=98 exceeds",
        ),
        ({"importance": "txt"}, "importance='txt' is no feed of this recipe; did you mean 'text'"),
        (
            {"layers": (0,), "sizes.num_layers": 2},
            r"layers=\(0,\) and num_layers=2 name unlike depths",
        ),
        ({"start": "like"}, "would do nothing, a network of start='like' is as large as 'teacher'"),
        ({"start": "random"}, "importance='text' would do nothing with start='random'"),
        ({"of": "nobody"}, "of='nobody' is no network of this recipe"),
        ({"layers": (7,)}, "layers=.7,.: expected different layers of 'teacher'"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
)
def test_what_cannot_be(changes, said, tmp_path):
    config = cut_config(tmp_path, "text")
    config.networks.student.update_from_flattened_dict(changes)
    with pytest.raises(BadInput, match=said):
        run.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_teacher_without_the_head_that_importance_is_for(tmp_path):
    config = cut_config(tmp_path, "text")
    config.networks.teacher.heads = ("nsp",)
    config.networks.student.heads = ("nsp",)
    config.stages.teacher = defaults.stage("pretrain", "teacher", steps=1, batch_size=8)
    with pytest.raises(BadInput, match="mlm"):
        run.train(config, tmp_path / "run")


def test_export_writes_a_part_that_transformers_loads(tmp_path, capsys):
    """Narrower and shallower, as transformers' own class; a head fewer, in our format."""
    network = oracle.random_torch("bert", num_hidden_layers=2)
    network.save_pretrained(tmp_path / "whole")
    size = network.config.hidden_size // 2
    ask = ("export", f"--model={tmp_path / 'whole'}")
    code, out, _ = run_command(
        capsys, *ask, f"--out={tmp_path / 'part'}", "--layers=1", f"--hidden_size={size}", "--intermediate_size=6"
    )  # fmt: skip
    assert code == 0 and "chosen at random" in out and "layers 1" in out
    part = type(network).from_pretrained(tmp_path / "part").eval()
    assert (part.config.hidden_size, part.config.num_hidden_layers) == (size, 1)
    ids = torch.arange(1, 7)[None]
    ours, params = interop.from_pretrained(tmp_path / "part")
    found = ours.apply(params, {"input_ids": ids.numpy().astype(np.int32)})[0]["mlm_logits"]
    with torch.no_grad():
        theirs = part(input_ids=ids)
    logits = next(x for x in theirs.values() if x.shape == found.shape).numpy()
    np.testing.assert_allclose(found, logits, atol=1e-4)
    heads = network.config.num_attention_heads - 1
    code, out, _ = run_command(capsys, *ask, f"--out={tmp_path / 'heads'}", f"--heads={heads}")
    assert code == 0 and "jaxdistill format (its" in out
    config = interop.from_pretrained(tmp_path / "heads")[0].config
    assert (config.num_heads, config.head_size) == (
        heads,
        network.config.hidden_size // (heads + 1),
    )


def test_export_by_importance_of_a_text(cut, tmp_path, capsys):
    """The places that the text says; the same as those of the library."""
    _, _, workdir = cut
    text = workdir.parent / "text.txt"
    arguments = (f"--model={workdir}", "--network=teacher", "--bottleneck_size=12")
    out = tmp_path / "part"
    code, said, _ = run_command(
        capsys, "export", *arguments, f"--out={out}", f"--importance_from={text}", "--json"
    )
    assert code == 0 and json.loads(said)["chosen"] == f"by importance on {text}"
    by_chance = tmp_path / "chance"
    conversion.export(workdir, by_chance, network="teacher", sizes={"bottleneck_size": 12})
    folders = [flatten(interop.from_pretrained(folder)[1]) for folder in (out, by_chance)]
    name = "layers/bottleneck_in/dense/kernel"
    assert folders[0][name].shape == folders[1][name].shape
    assert not np.array_equal(folders[0][name], folders[1][name])


@pytest.mark.parametrize(
    "options, words",
    [
        (["--hidden_size=99"], ["hidden_size=99 exceeds its"]),
        (["--bottleneck_size=6"], ["of another kind", "bottleneck_size=6 (its own is None)"]),
        (["--layers=5", "--intermediate_size=6"], ["there is no layer 5"]),
        (["--heads=0"], ["num_heads=0 must be a positive whole number"]),
        (["--importance_from=x.txt"], ["whole layers are taken as they are"]),
        (["--intermediate_size=6", "--importance_from=x.txt"], ["no tokenizer"]),
        (["--intermediate_size=six"], ["six"]),
    ],
    ids=lambda value: " ".join(value)[:40],
)
def test_parts_that_cannot_be(options, words, tmp_path, capsys):
    network = oracle.random_torch("bert", num_hidden_layers=2)
    network.save_pretrained(tmp_path / "m")
    ask = ("export", f"--model={tmp_path / 'm'}", f"--out={tmp_path / 'out'}")
    code, _, err = run_command(capsys, *ask, *options)
    assert code == 2 and all(word in err for word in words), err
    if "six" not in words:
        assert_one_line(code, err)
    assert not (tmp_path / "out").exists()
