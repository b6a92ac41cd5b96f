"""What the command line takes, the functions take, and every command takes and answers in the same
ways."""

import json
import pathlib

import numpy as np
import pytest

import jaxdistill
from jaxdistill import cli, conversion, interop
from jaxdistill.configuration import as_config, as_names, load_config
from jaxdistill.data.tokenizers import train_wordpiece
from jaxdistill.errors import BadInput
from jaxdistill.interop import own_format
from jaxdistill.models import Model, preset
from jaxdistill.planning import plan as planning
from tests.conftest import STUDENT, write_text
from tests.interop.tiny import SHRUNK, random_params


def run(capsys, *arguments):
    code = cli.main(list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def write_model(folder, words, rows):
    """A folder with a tokenizer trained on `words` words, beside a network that knows `rows` of
    them."""
    config = preset("bert_base").replace(**{**SHRUNK, "vocab_size": rows, "max_positions": 24})
    interop.save_pretrained(folder, Model(config), random_params(config), overwrite=True)
    train_wordpiece([folder.parent.joinpath("text.txt").read_text()], words).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "overrides",
    [
        {"seed": 3, "stages": {"transfer": {"steps": 7}}},
        ["seed=3", "stages.transfer.steps=7"],
        {"seed": np.int64(3), "stages.transfer.steps": "7"},
    ],
)
@pytest.mark.parametrize(
    "recipe", ["quickstart:smoke", pathlib.Path("configs/quickstart.py"), "loaded"]
)
def test_a_recipe_is_taken_however_it_is_given(recipe, overrides):
    given = load_config("quickstart") if recipe == "loaded" else recipe
    config = as_config(given, overrides)
    assert (config.seed, config.stages.transfer.steps) == (3, 7)
    if recipe == "loaded":
        assert given.seed == 0 and as_config(given) is given
    with pytest.raises(BadInput, match="did you mean 'seed'"):
        as_config(given, {"sed": 3})
    with pytest.raises(BadInput, match="seed"):
        as_config(given, {"seed": "x"})


def test_names_are_not_letters():
    assert as_names("teacher", "stages") == ["teacher"] and as_names("a, b", "stages") == ["a", "b"]
    assert as_names(("a", "b"), "stages") == ["a", "b"] and as_names(
        None, "stages"
    ) is None is as_names("", "stages")


def test_functions_take_what_the_command_line_takes(tmp_path):
    workdir = tmp_path / "run"
    with pytest.raises(BadInput, match="nothing.txt"):
        jaxdistill.train(
            "quickstart:smoke",
            workdir,
            {"seed": 1, "data.source": tmp_path / "nothing.txt"},
            stages="teacher",
        )
    with pytest.raises(BadInput, match="nothing.txt"):
        jaxdistill.prepare(
            "quickstart:smoke", str(workdir), overrides={"data.source": tmp_path / "nothing.txt"}
        )
    with pytest.raises(BadInput, match="'v9:2x2'"):
        jaxdistill.plan("quickstart:smoke", topology="v9:2x2", stages="teacher")


def test_plan_takes_one_topology_and_one_stage(monkeypatch):
    monkeypatch.setattr(planning.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(
        planning,
        "plan_one",
        lambda config, topology, stages, fit, show: {
            "topology": topology.name,
            "stages": [{"stage": name, "seed": config.seed} for name in stages],
        },
    )
    found = jaxdistill.plan("quickstart:smoke", "v5e:2x2", {"seed": 5}, stages="teacher")
    assert found["topologies"] == [
        {"topology": "v5e:2x2", "stages": [{"stage": "teacher", "seed": 5}]}
    ]


def test_describe_takes_whatever_is_a_network(tmp_path, finished):
    facts = jaxdistill.describe("mobilebert")
    assert facts["encoder_parameters"] == 24_581_888
    assert (
        jaxdistill.describe(preset("mobilebert"))
        == facts
        == jaxdistill.describe(Model(preset("mobilebert")))
    )
    assert (
        jaxdistill.describe("quickstart:smoke", {"networks.student.model.num_layers": 3})[
            "student"
        ]["config"]["num_layers"]
        == 3
    )
    recipe = load_config("quickstart:smoke")
    assert jaxdistill.describe(recipe) == jaxdistill.describe("quickstart:smoke")
    own_format.write(tmp_path, STUDENT.config, random_params(STUDENT.config))
    assert jaxdistill.describe(tmp_path) == jaxdistill.describe(STUDENT)
    networks = jaxdistill.describe(finished[1])
    assert networks["student"] == jaxdistill.describe(finished[1], network="student") and set(
        networks
    ) == {"teacher", "student"}
    with pytest.raises(BadInput, match="did you mean 'mobilebert'"):
        jaxdistill.describe("mobilebrt")


@pytest.mark.parametrize(
    "call",
    [
        lambda: jaxdistill.train(5, "x"),
        lambda: jaxdistill.train("quickstart", None),
        lambda: jaxdistill.train("quickstart", "x", 5),
        lambda: jaxdistill.train("quickstart", "x", stages=5),
        lambda: jaxdistill.train("quickstart", ""),
        lambda: jaxdistill.train({"seed": 1}, "x"),
        lambda: jaxdistill.train("quickstart", "x", ["seed"]),
        lambda: jaxdistill.seeds(None, "x"),
        lambda: jaxdistill.plan("quickstart", 5),
        lambda: jaxdistill.prepare("quickstart", 5),
        lambda: jaxdistill.evaluate(5),
        lambda: jaxdistill.evaluate("x", 5),
        lambda: jaxdistill.evaluate(""),
        lambda: jaxdistill.finetune(5, "x", "y"),
        lambda: jaxdistill.finetune("x", 5, "y"),
        lambda: jaxdistill.finetune("x", "y", None),
        lambda: jaxdistill.finetune("x", "y", "z", epochs="3"),
        lambda: jaxdistill.finetune("x", "y", "z", label_column=1.5),
        lambda: jaxdistill.describe(5),
        lambda: jaxdistill.describe(""),
        lambda: jaxdistill.export(None, "x"),
        lambda: jaxdistill.export("x", None),
        lambda: jaxdistill.from_pretrained(5),
        lambda: jaxdistill.from_pretrained(""),
    ],
)
def test_a_wrong_type_is_refused_at_the_door(call, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match="expected|no preset"):
        call()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "params, batch, words",
    [
        ({"params": {}}, {}, "give its 'params'"),
        ("mobilebert", {}, "given: a str"),
        (None, {}, "given: a NoneType"),
        ({"layers": 1}, {}, "with layers"),
        (True, np.ones((1, 4), int), "'input_ids'"),
        (True, {"ids": 1}, "the names ids"),
    ],
)
def test_apply_says_what_it_wants(student_params, params, batch, words):
    with pytest.raises(BadInput, match=words):
        STUDENT.apply(student_params if params is True else params, batch)
    _, taps = STUDENT.apply(
        student_params, {"input_ids": np.ones((1, 4), int)}, taps="hidden", heads=()
    )
    assert set(taps) == {"hidden"}


def test_every_command_that_takes_a_model_takes_a_run(capsys, tmp_path, finished, monkeypatch):
    config, workdir, results = finished
    monkeypatch.setenv("JAXDISTILL_CACHE", str(tmp_path / "cache"))
    text = write_text(tmp_path / "text.txt", documents=20)
    code, out, _ = run(
        capsys,
        "evaluate",
        f"--model={workdir}",
        f"--source={text}",
        "--max-examples=16",
        f"--teacher={workdir}",
    )
    found = json.loads(out)
    assert code == 0 and found["rows"] == 16 and found["teacher_kl"] > 0
    code, out, _ = run(
        capsys,
        "evaluate",
        f"--model={workdir}",
        f"--source={text}",
        "--max_examples=16",
        "--network=teacher",
        f"--teacher={workdir}",
        "--json",
    )
    assert code == 0 and json.loads(out)["teacher_kl"] == pytest.approx(0, abs=1e-5)
    code, out, _ = run(capsys, "describe", f"--model={workdir}", "--json")
    assert (
        code == 0
        and json.loads(out)["student"]["config"]["num_layers"]
        == config.networks.student.model.num_layers
    )
    code, out, _ = run(capsys, "describe", f"--model={workdir}", "--network=teacher")
    assert code == 0 and out.startswith(str(workdir))
    code, out, _ = run(
        capsys, "export", f"--model={workdir}", f"--out={tmp_path / 'out'}", "--json"
    )
    assert (
        code == 0
        and json.loads(out)["path"] == str(tmp_path / "out")
        and json.loads(out)["format"] == "huggingface"
    )
    task = tmp_path / "task.tsv"
    task.write_text(
        "".join(f"the {word} {n}\t{word}\n" for n in range(40) for word in ("river", "stone"))
    )
    code, _, err = run(
        capsys,
        "finetune",
        f"--model={workdir}",
        f"--data={task}",
        f"--workdir={tmp_path / 'ft'}",
        "--batch-size=64",
        "--epochs=0.1",
        "--network=studnt",
    )
    assert code == 2 and "finished: teacher, student" in err and err.count("\n") == 1


def test_a_tokenizer_that_is_not_the_models_is_refused(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("JAXDISTILL_CACHE", str(tmp_path / "cache"))
    text = write_text(tmp_path / "text.txt", documents=20)
    other = write_model(tmp_path / "other", words=110, rows=100)
    code, out, err = run(capsys, "evaluate", f"--model={other}", f"--source={text}")
    assert code == 2 and out == "" and "100" in err and "tokenizer" in err and err.count("\n") == 1
    task = tmp_path / "task.tsv"
    task.write_text("river\ta\nstone\tb\n" * 20)
    code, out, err = run(
        capsys, "finetune", f"--model={other}", f"--data={task}", f"--workdir={tmp_path / 'ft'}"
    )
    assert (
        code == 2
        and out == ""
        and "tokenizer" in err
        and err.count("\n") == 1
        and not (tmp_path / "ft").exists()
    )


def test_a_number_that_is_not_finite_is_said_and_json_stays_json(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("JAXDISTILL_CACHE", str(tmp_path / "cache"))
    text = write_text(tmp_path / "text.txt", documents=20)
    folder = write_model(tmp_path / "model", words=100, rows=120)
    real = conversion.load

    def not_finite(*arguments):
        """Weights that no loader would take: outputs may be so for other reasons."""
        model, params, tokenizer = real(*arguments)
        params["mlm"]["bias"] = np.full_like(params["mlm"]["bias"], np.nan)
        return model, params, tokenizer

    monkeypatch.setattr(conversion, "load", not_finite)
    code, out, err = run(
        capsys, "evaluate", f"--model={folder}", f"--source={text}", "--max_examples=16"
    )
    found = json.loads(out, parse_constant=lambda name: pytest.fail(name))
    assert code == 3 and found["mlm_loss"] is None and found["rows"] == 16
    assert (
        err.startswith("jaxdistill: warning: not finite, so null: mlm_loss")
        and err.count("\n") == 1
    )


def test_dashes_are_underscores_but_in_values():
    assert cli.with_underscores("--text-column=a-b") == "--text_column=a-b"
    assert cli.with_underscores("--max-examples") == "--max_examples"
    for argument in ("--config.data.source=a-b", "--config.a-b=1", "-1", "a-b"):
        assert cli.with_underscores(argument) == argument


def test_help_shows_defaults_and_the_version_is_told(capsys):
    def shown(*arguments):
        with pytest.raises(SystemExit) as stopped:
            cli.main(list(arguments))
        assert stopped.value.code == 0
        return " ".join(capsys.readouterr().out.split())

    assert shown("--version") == f"jaxdistill {jaxdistill.__version__}"
    assert "--config.FIELD=VALUE" in shown(
        "train", "--help"
    ) and "--config.FIELD=VALUE" not in shown("evaluate", "--help")
    text = shown("finetune", "--help")
    for default in (
        "default: 3.0",
        "default: 32",
        "default: 0.0001",
        "default: 128, or",
        "default: 0)",
        "default: 1)",
    ):
        assert default in text
    for name in cli.COMMANDS:
        assert "--json" in shown(name, "--help")
