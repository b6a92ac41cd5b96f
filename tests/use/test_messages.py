"""What a command says when something is wrong: one short line, a code, nothing corrected to what is
not near."""

import errno
import json
import os
import shutil
import subprocess
import sys

import pytest

from jaxdistill import cli, interop
from jaxdistill.errors import LONGEST_LINE, BadInput, listed, nearest, shortened


def run(capsys, *arguments):
    code = cli.main(arguments)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_list_is_short_and_nearest_first():
    names = [f"name_{i}" for i in range(40)] + ["sentence"]
    said = nearest("sentense", names)
    assert said.startswith("did you mean 'sentence'? valid: sentence, ") and said.endswith(
        " and 31 more"
    )
    assert len(nearest("x", ["long " * 1000, "b"])) < 200
    assert listed([]) == "(none)" and listed("abc") == "a, b, c"
    assert len(shortened("x" * 9999, 100)) == 100


@pytest.mark.parametrize("given", ["1", "0.5", "-3", "1e3", 7])
def test_a_number_is_not_corrected_to_the_nearest(given):
    assert "did you mean" not in nearest(given, ["10", "0.55", "-33", "1e4", "77"])


def test_what_is_not_near_is_not_meant():
    assert "did you mean" not in nearest("cosine", ["constant", "linear"])


def test_a_line_is_never_longer_than_a_screen(capsys, monkeypatch):
    def refuse(*_):
        raise BadInput("begins " + "x" * 600_000 + " ends")

    monkeypatch.setattr("jaxdistill.commands.describe_text", refuse)
    code, _, err = run(capsys, "describe", "--preset=mobilebert")
    assert (
        code == 2 and len(err) < LONGEST_LINE + 20 and "begins" in err and err.endswith(" ends\n")
    )


def test_a_column_of_sentences_is_not_printed(capsys, tmp_path, finished):
    """With the wrong label column every sentence is a label, of which a dev file knows none."""
    for name, word in (("train", "red"), ("dev", "blue")):
        (tmp_path / f"{name}.tsv").write_text(
            "text\tlabel\n" + "".join(f"{word} {i} {'x' * 900}\t{i % 2}\n" for i in range(60))
        )
    code, _, err = run(
        capsys,
        "finetune",
        f"--model={finished[1] / 'student'}",
        f"--data={tmp_path / 'train.tsv'}",
        f"--heldout={tmp_path / 'dev.tsv'}",
        "--text_column=label",
        "--label_column=text",
        f"--workdir={tmp_path / 'out'}",
        "--sequence_length=24",
    )
    assert code == 2 and len(err) < LONGEST_LINE + 20 and err.count("\n") == 1


def test_messages_advise_what_a_user_of_the_command_can_do(tmp_path, finished, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").write_text("mine")
    code, _, err = run(capsys, "export", f"--model={finished[1]}", f"--out={tmp_path / 'out'}")
    assert code == 2 and "overwrite" not in err and "another folder" in err
    root = os.path.dirname(os.path.dirname(cli.__file__))
    sources = [
        os.path.join(folder, name)
        for folder, _, names in os.walk(os.path.join(root, "jaxdistill"))
        for name in names
        if name.endswith(".py")
    ]
    for path in sources:  # a package of that name is not published
        with open(path) as file:
            assert "jaxdistill[" not in file.read(), path


def in_process(*arguments, out=subprocess.PIPE, **environment):
    return subprocess.run(
        [sys.executable, "-m", "jaxdistill.cli", *arguments],
        stdout=out,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "XLA_FLAGS": "", **environment},
    )


@pytest.mark.parametrize("platform", ["foo", "cuda"])
def test_devices_that_are_not_there(platform):
    done = in_process("describe", "--preset=mobilebert", JAX_PLATFORMS=platform)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert f"JAX_PLATFORMS='{platform}'" in done.stderr.splitlines()[-1]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_an_answer_that_cannot_be_written():
    with open("/dev/full", "w") as full:
        done = in_process(out=full)
    assert (
        done.returncode == 1 and done.stderr.count("\n") == 1 and "No space left" in done.stderr
    ), done.stderr


def test_letters_that_the_terminal_does_not_have():
    code = (
        "import sys; from jaxdistill import cli, commands; commands.describe_text = lambda *_: 'caf\\u00e9'; "
        "sys.exit(cli.main(['describe', '--preset=mobilebert']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    assert (done.returncode, done.stdout.strip()) == (0, "caf\\xe9"), done.stderr


def test_a_full_disk_while_a_folder_is_exported(capsys, tmp_path, finished, monkeypatch):
    """Wherever the error comes from: one line, no half folder."""
    run_folder = tmp_path / "run"
    shutil.copytree(finished[1], run_folder)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("safetensors.numpy.save_file", full)
    monkeypatch.setattr(interop.pretrained, "model_card", full, raising=False)
    monkeypatch.setattr("jaxdistill.interop.model_card", full)
    monkeypatch.setattr("jaxdistill.run.run_card", full)
    code, _, err = run(capsys, "export", f"--model={run_folder}", f"--out={tmp_path / 'out'}")
    assert code == 3 and err.count("\n") == 1 and "No space left" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


@pytest.mark.parametrize(
    "error, code, words",
    [
        (OSError(errno.EACCES, "Permission denied", "/root/x"), 2, "/root/x"),
        (OSError(errno.ELOOP, "Too many levels of symbolic links", "a"), 2, "symbolic links"),
        (OSError(errno.ENOSPC, "No space left on device"), 3, "make room"),
        (MemoryError(), 3, "batch_size"),
    ],
)
def test_errors_of_the_machine_are_one_line(capsys, monkeypatch, error, code, words):
    def fail(*_):
        raise error

    monkeypatch.setattr("jaxdistill.commands.describe_text", fail)
    given, _, err = run(capsys, "describe", "--preset=mobilebert")
    assert given == code and err.count("\n") == 1 and words in err


def test_a_mistake_of_ours_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr("jaxdistill.commands.describe_text", lambda *_: {}["missing"])
    with pytest.raises(KeyError):
        cli.main(["describe", "--preset=mobilebert"])


RECIPE = "from jaxdistill import defaults\ndef get_config(variant=''):\n    config = defaults.recipe('mine')\n"


@pytest.mark.parametrize(
    "text, words",
    [
        ("import nowhere_at_all\n", ["line 1", "ModuleNotFoundError", "nowhere_at_all"]),
        (
            RECIPE + "    config.seed = undefined\n    return config\n",
            ["line 4", "NameError", "undefined"],
        ),
        (RECIPE + "    config.seed = 1 // 0\n", ["line 4", "ZeroDivisionError"]),
        (RECIPE + "    raise SystemExit(3)\n", ["line 4", "SystemExit"]),
        (
            RECIPE + "    config.stages.a = defaults.stage('pretrian', 'teacher')\n",
            ["line 4", "did you mean 'pretrain'"],
        ),
        (
            RECIPE
            + "    config.stages.a = defaults.stage('distill', 'student', freezing='banana', layer_map=(9, 9))\n",
            ["line 4", "no field 'freezing', a setting of progressive", "distill"],
        ),
        (RECIPE + "    config.data.vocab_size = 'many'\n", ["line 4", "vocab_size"]),
        (
            RECIPE + "    config.data.vocab_sise = 100\n    return config\n",
            ["config.data", "'vocab_sise'"],
        ),
        ("def get_config(:\n", ["line 1", "SyntaxError"]),
        ("x = 1\n", ["get_config"]),
        ("def get_config(variant=''):\n    return {}\n", ["ConfigDict"]),
        (
            "import ml_collections\ndef get_config(variant=''):\n    return ml_collections.ConfigDict({'seed': 1})\n",
            ["stages"],
        ),
        (RECIPE + "    del config.data\n    return config\n", ["lacks data"]),
        (RECIPE + "    del config.networks\n    return config\n", ["lacks networks"]),
        (RECIPE + "    config.networks.a = 3\n    return config\n", ["config.networks.a=3"]),
        (
            RECIPE + "    config.teacher = defaults.network('bert_base')\n    return config\n",
            ["another place now: config.networks.teacher"],
        ),
        (RECIPE + "    defaults.network('bert_base', like='x')\n", ["line 4", "not both"]),
        (
            RECIPE + "    defaults.network(like='x', vocab_size=9)\n",
            ["line 4", "vocab_size would do nothing"],
        ),
        (
            RECIPE + "    defaults.stage('distill', 'student', start='copy')\n",
            ["line 4", "config.networks.NAME.start"],
        ),
        (RECIPE + "    return config\n", ["config.order is empty"]),
    ],
)
def test_a_recipe_that_fails_names_its_line(capsys, tmp_path, text, words):
    (tmp_path / "mine.py").write_text(text)
    code, _, err = run(
        capsys, "train", f"--config={tmp_path / 'mine.py'}", f"--workdir={tmp_path / 'run'}"
    )
    assert code == 2 and err.count("\n") == 1 and len(err) < LONGEST_LINE + 20, err
    for word in words:
        assert word in err
    assert not (tmp_path / "run").exists()


def test_a_run_of_an_earlier_version_is_refused_in_one_line(capsys, finished, tmp_path):
    """Its recipe has another form; nothing is changed, whichever way it is named."""
    _, workdir, _ = finished
    old = tmp_path / "old"
    shutil.copytree(workdir, old)
    values = json.loads((workdir / "config.json").read_text())
    del values["schema"]  # and every stage had the fields of all kinds
    for section in values["stages"].values():
        section |= {"alpha": 0.5, "relation_heads": 48, "freezing": "soft"}
    (old / "config.json").write_text(json.dumps(values))
    before = {path: path.read_bytes() for path in old.rglob("*") if path.is_file()}
    for call in (
        ("train", f"--workdir={old}"),
        ("train", f"--config={workdir / 'config.json'}", f"--workdir={old}"),
        ("train", f"--config={old / 'config.json'}", f"--workdir={tmp_path / 'new'}"),
    ):
        code, _, err = run(capsys, *call)
        assert code == 2 and err.count("\n") == 1, err
        assert "of an earlier version of jaxdistill (schema 1, this one reads 2)" in err, err
    assert {path: path.read_bytes() for path in old.rglob("*") if path.is_file()} == before
    assert not (tmp_path / "new").exists()


def test_a_stored_recipe_is_a_recipe(capsys, finished, tmp_path):
    """It trains and resumes as the recipe it was stored from, and takes overrides."""
    from jaxdistill.configuration import load_config

    config, workdir, _ = finished
    stored = load_config(str(workdir / "config.json"))
    assert stored.to_dict() == config.to_dict() and stored.order == config.order
    assert (
        load_config(str(workdir / "config.json"), ["stages.distill.steps=7"]).stages.distill.steps
        == 7
    )
    code, _, err = run(
        capsys, "prepare", f"--config={workdir / 'config.json'}", f"--workdir={tmp_path / 'again'}"
    )
    assert code == 0, err
    for name, content in (
        ("empty.json", "{}"),
        ("bad.json", "{"),
        ("list.json", "[1]"),
        (
            "odd.json",
            json.dumps({"name": "x", "order": [], "stages": {"a": 1}, "teacher": 1, "student": 2}),
        ),
    ):
        (tmp_path / name).write_text(content)
        code, _, err = run(
            capsys, "train", f"--config={tmp_path / name}", f"--workdir={tmp_path / 'run'}"
        )
        assert (
            code == 2 and err.count("\n") == 1 and name in err and not (tmp_path / "run").exists()
        )
