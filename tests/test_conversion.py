"""export: between every pair of formats nothing changes and nothing is lost; a failure leaves
nothing behind."""

import json
import pathlib
import shutil
import sys

import numpy as np
import pytest

from jaxdistill import cli, conversion, interop
from jaxdistill.data.tokenizers import load_tokenizer
from jaxdistill.errors import BadInput
from jaxdistill.models import Model, preset
from jaxdistill.models.parameters import digest, flatten, unflatten
from jaxdistill.workdir import Workdir
from tests.conftest import tiny_config
from tests.interop.tf1_layout import CONFIGS, fake_tensorflow, variables, with_training
from tests.interop.tiny import SHRUNK, random_params

# One of every family, and heads of every kind of folder.
MODELS = {
    "bert": Model(
        preset("bert_base").replace(**SHRUNK, heads=("token_classification",), num_labels=3)
    ),
    "mobilebert": Model(
        preset("mobilebert").replace(**SHRUNK, embedding_size=4, bottleneck_size=8)
    ),
    "sentences": Model(preset("bert_base").replace(**SHRUNK, heads=("embedding",))),
}
TEACHER = Model(preset("ib_bert_large").replace(**SHRUNK, embedding_size=4, bottleneck_size=16))
WEIGHTS = {
    "huggingface": {"model.safetensors"},
    "safetensors": {"model.safetensors"},
    "msgpack": {"flax_model.msgpack"},
    "jaxdistill": {"model.safetensors"},
}


def weights(folder):
    return {path.name for path in pathlib.Path(folder).iterdir()} & {
        "model.safetensors",
        "flax_model.msgpack",
    }


@pytest.mark.parametrize("name", MODELS)
def test_a_journey_through_every_format_changes_nothing(tmp_path, name):
    model, params = MODELS[name], random_params(MODELS[name].config)
    labels = ("person", "place", "other") if name == "bert" else None
    interop.save_pretrained(tmp_path / "start", model, params, None, labels=labels)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "river", "stone"]
    (tmp_path / "start" / "vocab.txt").write_text("\n".join(words))
    load_tokenizer(tmp_path / "start").save_pretrained(tmp_path / "start")
    here = tmp_path / "start"
    for number, to in enumerate(
        ["msgpack", "jaxdistill", "safetensors", "huggingface", "jaxdistill", "msgpack", None]
    ):
        there = tmp_path / str(number)
        line = conversion.export(here, there, format=to)
        assert (
            str(here) in line
            and str(there) in line
            and "equal when loaded back" in line
            and (to or "huggingface") in line
        )
        again, same = interop.from_pretrained(there)
        assert again == model and digest(same) == digest(params)
        assert weights(there) == WEIGHTS[to or "huggingface"]
        values = json.loads((there / "config.json").read_text())
        assert (values["model_type"] == "jaxdistill") == (to == "jaxdistill")
        assert labels is None or tuple(interop.labels(values, again.config)) == labels
        assert (there / "vocab.txt").read_bytes() == (tmp_path / "start" / "vocab.txt").read_bytes()
        here = there
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(
    "problem, outputs",
    [
        (None, 1),
        (None, 3),
        ("regression", 1),
        ("single_label_classification", 3),
        ("multi_label_classification", 3),
    ],
)
def test_a_classifier_is_used_as_before(tmp_path, problem, outputs):
    """What transformers makes of the outputs, and its dropout where nothing is said about it: that
    of hidden states."""
    config = preset("mobilebert").replace(
        **SHRUNK,
        embedding_size=4,
        bottleneck_size=8,
        num_labels=outputs,
        hidden_dropout=0.3,
        heads=("sequence_classification",),
    )
    interop.save_pretrained(tmp_path / "start", Model(config), random_params(config))
    file = tmp_path / "start" / "config.json"
    values = {**json.loads(file.read_text()), "problem_type": problem, "classifier_dropout": None}
    file.write_text(
        json.dumps({name: x for name, x in values.items() if (name, x) != ("problem_type", None)})
    )
    conversion.export(tmp_path / "start", tmp_path / "own", format="jaxdistill")
    conversion.export(tmp_path / "own", tmp_path / "end")
    there = json.loads((tmp_path / "end" / "config.json").read_text())
    assert there.get("problem_type") == problem and there["classifier_dropout"] == 0.3


def test_a_run_keeps_the_tokenizer_it_was_trained_with(finished, tmp_path):
    """Whatever has become of its text since: none is trained anew."""
    config, workdir, _ = finished
    for text in (str(tmp_path / "gone.txt"), str(pathlib.Path(__file__))):
        copy = tmp_path / f"run{len(text)}"
        shutil.copytree(workdir, copy)
        values = json.loads((copy / "config.json").read_text())
        values["data"]["source"] = text
        (copy / "config.json").write_text(json.dumps(values))
        conversion.export(copy, copy / "out", network="student")
        assert (copy / "out" / "vocab.txt").read_bytes() == (
            workdir / "student" / "vocab.txt"
        ).read_bytes()
        shutil.rmtree(copy / "student")
        shutil.rmtree(copy / "data")
        conversion.export(copy, copy / "again")
        assert (copy / "again" / "vocab.txt").read_bytes() == (
            workdir / "student" / "vocab.txt"
        ).read_bytes()
        shutil.rmtree(copy / "tokenizer")
        with pytest.raises(BadInput, match="this run's tokenizer cannot be read"):
            conversion.export(copy, copy / "never")
        (copy / "inputs.json").unlink()
        with pytest.raises(BadInput, match="does not say with which tokenizer"):
            conversion.export(copy, copy / "never")
        assert not (copy / "never").exists() and not (copy / "data").exists()


def test_what_cannot_be_exported_is_one_line(tmp_path):
    model = MODELS["mobilebert"]
    params = random_params(model.config)
    interop.save_pretrained(tmp_path / "a", model, params)
    with pytest.raises(BadInput, match="no workdir of a run: leave it away"):
        conversion.export(tmp_path / "a", tmp_path / "b", network="teacher")
    with pytest.raises(BadInput, match="cannot be written"):
        conversion.export(tmp_path / "a", tmp_path / "a" / "config.json" / "b")
    with pytest.raises(BadInput, match="cannot be written"):
        conversion.export(tmp_path / "a", tmp_path / ("long" * 100))
    bad = unflatten(
        {**flatten(params), "mlm/bias": np.full_like(flatten(params)["mlm/bias"], np.nan)}
    )
    interop.save_pretrained(tmp_path / "nan", model, bad)
    with pytest.raises(BadInput, match="not finite in 1 tensor: mlm/bias"):
        conversion.export(tmp_path / "nan", tmp_path / "c")
    (tmp_path / "a" / "README.md").write_bytes(b"\xff\xfe")
    values = json.loads((tmp_path / "a" / "config.json").read_text())
    conversion.export(tmp_path / "a", tmp_path / "d")  # with a card of its own
    (tmp_path / "a" / "config.json").write_text(json.dumps({**values, "num_hidden_layers": 10**9}))
    with pytest.raises(BadInput, match="1000000000 layers"):
        conversion.export(tmp_path / "a", tmp_path / "e", format="safetensors")
    assert {path.name for path in tmp_path.iterdir()} == {"a", "nan", "d"}


def test_a_card_is_kept_where_it_still_holds(tmp_path):
    model = MODELS["mobilebert"]
    interop.save_pretrained(
        tmp_path / "a", model, random_params(model.config), card="# A card somebody wrote\n"
    )
    conversion.export(tmp_path / "a", tmp_path / "b", format="safetensors")
    assert (tmp_path / "b" / "README.md").read_text() == "# A card somebody wrote\n"
    conversion.export(
        tmp_path / "b", tmp_path / "c", format="jaxdistill"
    )  # loads otherwise than that card says
    card = (tmp_path / "c" / "README.md").read_text()
    assert (
        "own format: that format was asked for" in card and "license" not in card and "# b" in card
    )


def test_the_teacher_has_but_one_format(tmp_path):
    interop.save_pretrained(tmp_path / "teacher", TEACHER, random_params(TEACHER.config))
    assert "jaxdistill format (" in conversion.export(tmp_path / "teacher", tmp_path / "again")
    with pytest.raises(BadInput, match="no Hugging Face form: .*ask for the format 'jaxdistill'"):
        conversion.export(tmp_path / "teacher", tmp_path / "x", format="safetensors")
    with pytest.raises(
        BadInput, match="format 'safetensor' is unknown; did you mean 'safetensors'"
    ):
        conversion.export(tmp_path / "teacher", tmp_path / "x", format="safetensor")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("how", ["transposed", "swapped", "one number"])
def test_what_is_not_equal_is_not_left_behind(tmp_path, monkeypatch, how):
    """A writer that spoils one tensor of many: outputs or tensors tell, and the folder is gone."""
    model, params = MODELS["mobilebert"], random_params(MODELS["mobilebert"].config)
    interop.save_pretrained(tmp_path / "a", model, params)
    flat = flatten(params)
    if how == "transposed":
        spoilt = {
            "layers/attention/out/kernel": flat["layers/attention/out/kernel"]
            .transpose(0, 2, 1, 3)
            .reshape(2, 2, 4, 8)
        }
    elif how == "swapped":
        spoilt = {
            "layers/ffn_0/up/bias": flat["layers/ffn_1/up/bias"],
            "layers/ffn_1/up/bias": flat["layers/ffn_0/up/bias"],
        }
    else:  # a word that the batch of the comparison does not hold, by less than outputs are compared to
        table = flat["embeddings/word"].copy()
        table[5, 1] = np.nextafter(table[5, 1], 9)
        spoilt = {"embeddings/word": table}
    save = interop.save_pretrained
    monkeypatch.setattr(
        interop,
        "save_pretrained",
        lambda out, model, _, *rest, **options: save(
            out, model, unflatten({**flat, **spoilt}), *rest, **options
        ),
    )
    words = "tensors are not those" if how == "one number" else "differs by"
    with pytest.raises(BadInput, match=words):
        conversion.export(tmp_path / "a", tmp_path / "b")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_workdir(finished, tmp_path):
    """In any format, and any network of the run; its numbers are in the card."""
    workdir = finished[1]
    conversion.export(workdir, tmp_path / "student", format="msgpack")
    trained = interop.from_pretrained(workdir / "stages" / "distill")[1]
    assert digest(interop.from_pretrained(tmp_path / "student")[1]) == digest(trained)
    assert weights(tmp_path / "student") == {"flax_model.msgpack"}
    assert len(load_tokenizer(tmp_path / "student")) > 5
    loss = json.loads((workdir / "results.json").read_text())["networks"]["student"]["text"][
        "mlm_loss"
    ]
    assert f"{loss:.4g}" in (tmp_path / "student" / "README.md").read_text()
    with pytest.raises(BadInput, match="not empty"):
        conversion.export(workdir, tmp_path / "student")
    line = conversion.export(workdir, tmp_path / "teacher", network="teacher")
    assert "jaxdistill format (" in line and len(line) > 80  # why
    assert interop.from_pretrained(tmp_path / "teacher")[0].config.bottleneck_size == 24
    with pytest.raises(BadInput, match="finished: teacher, student"):
        conversion.export(workdir, tmp_path / "x", network="pupil")
    conversion.export(workdir, tmp_path / "less", layers=(1,))
    card = (tmp_path / "less" / "README.md").read_text()
    assert f"{loss:.4g}" not in card and "student, layers 1" in card
    conversion.export(
        workdir / "stages" / "distill", tmp_path / "stage"
    )  # a stage's folder is a model folder
    assert digest(interop.from_pretrained(tmp_path / "stage")[1]) == digest(trained)


def test_a_run_that_has_not_come_so_far(tmp_path, capsys):
    config = tiny_config(tmp_path / "text.txt")
    folder = Workdir(tmp_path / "run", config)
    asked = ("export", f"--model={tmp_path / 'run'}", f"--out={tmp_path / 'out'}")
    assert cli.main(asked) == 2
    assert "network 'student' has no finished stage" in capsys.readouterr().err
    page = folder.stage("distill") / "stage.json"
    page.parent.mkdir(parents=True)
    page.write_text("{}")
    assert cli.main(asked) == 2
    err = capsys.readouterr().err
    assert "stage.json is damaged" in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    """A TF1 checkpoint of MobileBERT as a training run leaves it, read through a stand-in for
    TensorFlow."""
    folder = tmp_path / "uncased"
    folder.mkdir()
    for suffix in ("index", "data-00000-of-00001", "meta"):
        (folder / f"mobilebert_variables.ckpt.{suffix}").write_bytes(b"")
    config = CONFIGS["mobilebert"]
    (folder / "bert_config.json").write_text(json.dumps(config))
    values = {**with_training(variables(config)), "cls/other/output_bias": np.ones(3, np.float32)}
    monkeypatch.setitem(sys.modules, "tensorflow", fake_tensorflow(values))
    return folder


def arguments(folder, out, *more):
    return (
        "export",
        f"--from_tf1={folder}/mobilebert_variables.ckpt",
        f"--config={folder}/bert_config.json",
        f"--out={out}",
        *more,
    )


def test_tf1_on_the_command_line(checkpoint, tmp_path, capsys):
    assert cli.main(arguments(checkpoint, tmp_path / "out")) == 0
    line = capsys.readouterr().out
    assert (
        "huggingface format" in line
        and "no vocab.txt" in line
        and "name: cls/other/output_bias" in line
    )
    model = variables(CONFIGS["mobilebert"])
    assert f"{len(with_training(model)) - len(model)} variables of training" in line
    config = interop.from_pretrained(tmp_path / "out")[0].config
    assert (
        config.heads == ("mlm", "nsp")
        and config.attention_input == "shared_bottleneck"
        and config.norm == "no_norm"
    )
    assert cli.main(arguments(checkpoint, tmp_path / "own", "--format=jaxdistill")) == 0
    assert digest(interop.from_pretrained(tmp_path / "own")[1]) == digest(
        interop.from_pretrained(tmp_path / "out")[1]
    )


@pytest.mark.parametrize(
    "words, text, ids",
    [
        (["river", "stone"], "River stone", [5, 6]),
        (["River", "river", "stone"], "River stone", [5, 7]),
    ],
)
def test_the_vocabulary_beside_a_checkpoint(checkpoint, tmp_path, words, text, ids):
    """A vocabulary with capitals keeps case."""
    (checkpoint / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]) + "\n"
    )
    for number, options in enumerate([{}, {"vocab": tmp_path / "moved.txt"}]):
        if options:
            shutil.move(checkpoint / "vocab.txt", tmp_path / "moved.txt")
        line = conversion.export(
            None,
            tmp_path / str(number),
            from_tf1=checkpoint,
            config=checkpoint / "bert_config.json",
            **options,
        )
        assert "no vocab.txt" not in line
        assert (
            load_tokenizer(tmp_path / str(number))(text, add_special_tokens=False)["input_ids"]
            == ids
        )


@pytest.mark.parametrize(
    "given, words",
    [
        (["--out=x"], ["neither model nor from_tf1 is given"]),
        (["--model=/nonexistent/m", "--out=x"], ["/nonexistent/m"]),
        (["--model=m", "--vocab=v", "--out=x"], ["vocab='v' describes a checkpoint"]),
        (["--model=m", "--config=c", "--out=x"], ["config='c' describes a checkpoint"]),
        (["--model=m", "--layers=0,two", "--out=x"], ["--layers: '0,two'", "numbers with commas"]),
        (["--model=m", "--layers=", "--out=x"], ["--layers: ''", "numbers with commas"]),
        (["--from_tf1=m", "--out=x"], ["from_tf1 needs config=FILE"]),
        (
            ["--from_tf1=m", "--config=c", "--model=y", "--out=x"],
            ["model='y' does not go with from_tf1"],
        ),
        (
            ["--from_tf1=m", "--config=c", "--network=y", "--out=x"],
            ["network='y' does not go with from_tf1"],
        ),
        (["--from_tf1=m", "--config=c", "--out=x"], ["there is no file c"]),
        (
            ["--from_tf1=m", "--config=c", "--config.seed=1", "--out=x"],
            ["--config.seed=1", "unknown"],
        ),
        (["--from=tf1", "--model=y", "--out=x"], ["did you mean '--from_tf1'"]),
        (["--workdir=y", "--out=x"], ["--workdir=y", "give the run's workdir by --model"]),
        (["--workdir", "y", "--out=x"], ["'--workdir'", "give the run's workdir by --model"]),
    ],
)
def test_bad_input_is_one_line(capsys, monkeypatch, tmp_path, given, words):
    monkeypatch.chdir(tmp_path)
    code = cli.main(("export", *given))
    err = capsys.readouterr().err
    assert (
        code == 2
        and err.startswith("jaxdistill: ")
        and err.count("\n") == 1
        and "Traceback" not in err
    )
    assert all(word in err for word in words), err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_free(checkpoint, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    assert cli.main(arguments(checkpoint, tmp_path / "out")) == 2
    assert "is not empty; choose another folder" in capsys.readouterr().err
    (checkpoint / "mobilebert_variables.ckpt.index").unlink()
    assert cli.main(arguments(checkpoint, tmp_path / "new")) == 2
    assert "mobilebert_variables.ckpt.index; give the prefix" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "uncased"]
    assert (tmp_path / "out" / "thesis.tex").read_text() == "years of work"
