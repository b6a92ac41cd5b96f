"""A network, its tokenizer and its text are one thing: what a workdir has used it keeps, or says
what has changed."""

import json
import shutil

import pytest

from jaxdistill import cli, interop, run
from jaxdistill.data.tokenizers import load_tokenizer, tokenizer_digest
from tests.conftest import write_text
from tests.use import recipes
from tests.use.recipes import assert_one_line, contents


@pytest.fixture
def workdir(finished, tmp_path):
    """A copy of a finished run."""
    shutil.copytree(finished[1], tmp_path / "w")
    return tmp_path / "w"


TEACHER_ALONE = ("--config.order=('teacher',)", "--config.export=False")


@pytest.fixture(scope="module")
def teacher_run(finished, tmp_path_factory):
    """A finished run of the teacher alone, on the same text; nobody writes into it."""
    config = finished[0].copy_and_resolve_references()
    config.order, config.export = ("teacher",), False
    workdir = tmp_path_factory.mktemp("teacher") / "w"
    run.train(config, workdir)
    return workdir


@pytest.fixture
def teacher_alone(teacher_run, tmp_path):
    """A copy of it."""
    shutil.copytree(teacher_run, tmp_path / "w1")
    return tmp_path / "w1"


@pytest.fixture
def text(finished, tmp_path):
    """The text of those runs, in a file of its own: the same content at another place."""
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(finished[0].data.source, tmp_path / "elsewhere" / "text.txt")
    return tmp_path / "elsewhere" / "text.txt"


@pytest.fixture
def train(capsys, tmp_path, text, workdir):
    """Runs `train` on the finished workdir, or on another one."""

    def call(*arguments, source=text, workdir=workdir):
        file = recipes.recipe(tmp_path / "recipe.py", source)
        return recipes.run(capsys, "train", f"--config={file}", f"--workdir={workdir}", *arguments)

    return call


@pytest.fixture(autouse=True)
def no_plots(finished, monkeypatch):
    """They take longer than the rest of a repeated run."""
    monkeypatch.setattr(run.report, "write_plots", lambda *_: [])


def add_words(text):
    """Changes a text, and so the vocabulary that would be trained on it."""
    with text.open("a") as file:
        file.write("\n\nZebras quarrel vehemently.\nPyjamas vex jaguars.\n" * 40)


def no_training(monkeypatch):
    monkeypatch.setattr(run.loop, "run_stage", lambda *_, **__: pytest.fail("it trains"))


def reported(workdir):
    """What a finished run leaves for people and programs."""
    return {
        name: value
        for name, value in contents(workdir).items()
        if name.startswith(("student/", "results.json", "plots/"))
    }


def test_a_finished_run_is_reported_again_from_moved_text(train, workdir, monkeypatch):
    """The same content elsewhere is the same text: nothing is said, trained or written."""
    no_training(monkeypatch)
    before = contents(workdir)
    code, out, err = train()
    assert code == 0 and "MLM loss" in out and "is not what it was" not in err
    places = {"config.json": b"", "inputs.json": b""}  # which hold where the text is
    assert {**contents(workdir), **places} == {**before, **places}


def test_a_finished_run_keeps_its_vocabulary_when_its_text_changes(
    train, workdir, text, monkeypatch
):
    train()  # from now on this is where its text is
    no_training(monkeypatch)
    before = reported(workdir)
    add_words(text)
    code, _, err = train()
    assert (
        code == 0
        and "is not what it was when this run began" in err
        and "a new workdir takes the new ones" in err
    )
    assert reported(workdir) == before and len(list((workdir / "data").glob("tokenizer-*"))) == 1
    text.unlink()
    code, _, err = train()
    assert code == 0 and "does not exist" in err and reported(workdir) == before


def test_other_text_under_another_name_is_refused(train, teacher_alone, tmp_path):
    before = contents(teacher_alone)
    other = write_text(tmp_path / "other.txt", seed=1)
    code, _, err = train(*TEACHER_ALONE, source=other, workdir=teacher_alone)
    assert_one_line(code, err, "other.txt", "text.txt", "use another workdir")
    assert {**contents(teacher_alone), "config.json": b""} == {**before, "config.json": b""}


def test_stages_one_by_one_on_text_that_changes_keep_the_teachers_vocabulary(train, text, tmp_path):
    new = tmp_path / "new"
    assert train("--stages=teacher", workdir=new)[0] == 0
    bound = json.loads((new / "inputs.json").read_text())
    add_words(text)
    code, _, err = train("--stages=transfer,distill", workdir=new)
    assert code == 0 and "is not what it was" in err
    folders = [
        new / "tokenizer",
        new / "student",
        *(new / "stages" / name for name in ("teacher", "transfer", "distill")),
    ]
    assert {tokenizer_digest(load_tokenizer(folder)) for folder in folders} == {bound["tokenizer"]}
    corpus = json.loads((new / "results.json").read_text())["corpus"]
    assert corpus["tokenizer_digest"] == bound["tokenizer"]
    assert all(
        corpus[part][name] == bound["text"][part][name]
        for part in ("train", "heldout")
        for name in ("digest", "source_digest")
    )


def test_prepared_text_that_is_gone_is_made_again_from_the_same_text_alone(
    train, teacher_alone, text
):
    again = dict(workdir=teacher_alone)
    shutil.rmtree(teacher_alone / "data")
    assert train(*TEACHER_ALONE, **again)[0] == 0
    bound = json.loads((teacher_alone / "inputs.json").read_text())
    assert {path.name for path in (teacher_alone / "data").iterdir()} == {
        part["digest"] for part in bound["text"].values()
    }
    shutil.rmtree(teacher_alone / "data")
    add_words(text)
    code, _, err = train(*TEACHER_ALONE, **again)
    assert code == 2 and "bring back the old text" in err.splitlines()[-1]
    assert not list((teacher_alone / "data").glob("*/prepared.json"))


def test_documentation_of_other_versions_is_named(train, teacher_alone, monkeypatch):
    """The default corpus moves with the packages: the finished run does not."""
    from jaxdistill import inputs

    file = teacher_alone / "inputs.json"
    page = json.loads(file.read_text())
    page["documentation"] = {
        "digest": "0",
        "documentation_of": {**inputs.installed_versions(), "setuptools": "1.2.3"},
    }
    for part in page["text"].values():
        part["source"] = "default"
    file.write_text(json.dumps(page))
    monkeypatch.setattr(
        inputs, "default_corpus", lambda **_: pytest.fail("the documentation is read again")
    )
    no_training(monkeypatch)
    before = reported(teacher_alone)
    code, _, err = train(*TEACHER_ALONE, source="default", workdir=teacher_alone)
    assert code == 0 and "setuptools 1.2.3 -> " in err and reported(teacher_alone) == before


def test_a_given_teacher_that_is_another_one_now_is_refused(finished, train, tmp_path, monkeypatch):
    teacher, new = tmp_path / "teacher", tmp_path / "new"
    shutil.copytree(finished[1] / "stages" / "teacher", teacher)
    arguments = (f"--config.networks.teacher.init={teacher}", "--config.order=('transfer',)")
    assert train(*arguments, workdir=new)[0] == 0
    no_training(monkeypatch)
    shutil.move(teacher, tmp_path / "moved")
    moved = (f"--config.networks.teacher.init={tmp_path / 'moved'}", "--config.order=('transfer',)")
    assert train(*moved, workdir=new)[0] == 0
    model, params = interop.from_pretrained(tmp_path / "moved")
    params["embeddings"]["word"] = params["embeddings"]["word"] + 1.0
    interop.save_pretrained(
        teacher, model, params, load_tokenizer(tmp_path / "moved"), format="jaxdistill"
    )
    before = contents(new)
    code, _, err = train(*arguments, workdir=new)
    assert_one_line(
        code,
        err,
        "config.networks.teacher.init",
        "not the teacher that this run began with",
        "another workdir",
    )
    assert {**contents(new), "config.json": b""} == {**before, "config.json": b""}


def test_a_given_tokenizer_that_is_another_one_now_is_refused(finished, train, tmp_path):
    tokenizer, new = tmp_path / "vocab.txt", tmp_path / "new"
    shutil.copy(finished[1] / "tokenizer" / "vocab.txt", tokenizer)
    arguments = (f"--config.data.tokenizer={tokenizer}", "--config.order=('teacher',)")
    assert train(*arguments, workdir=new)[0] == 0
    words = tokenizer.read_text().split("\n")
    words[10], words[11] = words[11], words[10]
    tokenizer.write_text("\n".join(words))
    code, _, err = train(*arguments, workdir=new)
    assert_one_line(code, err, tokenizer, "not the one that this run began with")
    tokenizer.unlink()  # the run has a copy
    assert train(*arguments, workdir=new)[0] == 0


@pytest.mark.parametrize(
    "damage, words",
    [
        (lambda w: (w / "inputs.json").write_text("{}"), "damaged"),
        (lambda w: shutil.rmtree(w / "tokenizer"), "put back a copy"),
        (
            lambda w: (w / "inputs.json").write_text(
                (w / "inputs.json").read_text().replace('"train"', '"trian"')
            ),
            "damaged",
        ),
    ],
)
def test_a_damaged_record_is_one_line(train, teacher_alone, damage, words):
    damage(teacher_alone)
    code, _, err = train(*TEACHER_ALONE, workdir=teacher_alone)
    assert_one_line(code, err, words)


def test_stages_of_another_run_are_refused(train, teacher_alone):
    """A stage's page holds the digest of what it was trained on."""
    file = teacher_alone / "stages" / "teacher" / "stage.json"
    page = json.loads(file.read_text())
    assert page["inputs"]
    file.write_text(json.dumps({**page, "inputs": "0" * 20}))
    code, _, err = train(*TEACHER_ALONE, workdir=teacher_alone)
    assert code == 2 and "was run on other text, or with another tokenizer" in err


def test_a_workdir_that_did_not_record_its_text_is_refused_when_that_has_changed(
    finished, train, teacher_alone
):
    source = finished[0].data.source
    (teacher_alone / "inputs.json").unlink()
    assert (
        train(*TEACHER_ALONE, source=source, workdir=teacher_alone)[0] == 0
        and (teacher_alone / "inputs.json").exists()
    )
    (teacher_alone / "inputs.json").unlink()
    results = json.loads((teacher_alone / "results.json").read_text())
    results["corpus"]["train"]["digest"] = "0" * 20
    (teacher_alone / "results.json").write_text(json.dumps(results))
    code, _, err = train(*TEACHER_ALONE, source=source, workdir=teacher_alone)
    assert_one_line(code, err, "its text has changed since", "another workdir")


def test_seeds_of_one_recipe_read_one_text(capsys, tmp_path, text):
    file = recipes.recipe(tmp_path / "recipe.py", text)
    arguments = (
        "seeds",
        f"--config={file}",
        f"--workdir={tmp_path / 'seeds'}",
        "--config.order=('teacher',)",
        "--config.export=False",
    )
    assert recipes.run(capsys, *arguments, "--seeds=0")[0] == 0
    before = contents(tmp_path / "seeds")
    add_words(text)
    code, _, err = recipes.run(capsys, *arguments, "--seeds=0,1")
    assert code == 2 and "seed 1 would read another text than seed 0" in err.splitlines()[-1]
    assert contents(tmp_path / "seeds").keys() == before.keys()


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--config.networks.teacher.init=/nonexistent/teacher"], "/nonexistent/teacher"),
        (["--stages=tracher"], "did you mean 'teacher'"),
        (["--config.data.source=/nonexistent/text"], "/nonexistent/text"),
        (["--config.data.heldout=/nonexistent/text"], "/nonexistent/text"),
    ],
)
def test_what_can_be_refused_without_work_is_refused_before_work(
    train, tmp_path, monkeypatch, arguments, words
):
    from jaxdistill import inputs

    monkeypatch.setattr(inputs, "prepare", lambda *_, **__: pytest.fail("text is prepared"))
    monkeypatch.setattr(
        inputs, "train_wordpiece", lambda *_, **__: pytest.fail("a vocabulary is trained")
    )
    code, _, err = train(*arguments, workdir=tmp_path / "new")
    assert_one_line(code, err, words)
    assert not (tmp_path / "new").exists()


def test_a_stage_that_skips_most_of_its_updates_is_no_result(train, tmp_path):
    code, _, err = train(
        "--config.stages.teacher.learning_rate=1e30",
        "--config.max_skipped_in_a_row=20",
        "--config.order=('teacher',)",
        workdir=tmp_path / "new",
    )
    assert (
        code == 3 and "updates" in err.splitlines()[-1] and "learning rate" in err.splitlines()[-1]
    )
    assert (
        not (tmp_path / "new" / "stages" / "teacher" / "stage.json").exists()
        and not (tmp_path / "new" / "DONE").exists()
    )
    assert "updates" in json.loads((tmp_path / "new" / "results.json").read_text())["warnings"][0]


def test_parameters_that_did_not_move_are_said_last(train, tmp_path):
    code, out, _ = train(
        "--config.stages.teacher.learning_rate=0.0",
        "--config.order=('teacher',)",
        workdir=tmp_path / "new",
    )
    assert code == 0 and out.split("\n\n")[-1].startswith(
        "WARNING: stage 'teacher': no parameter moved"
    )
    assert (
        "no parameter moved"
        in json.loads((tmp_path / "new" / "results.json").read_text())["warnings"][0]
    )


def test_another_recipe_is_refused_by_all_that_differs(train, teacher_alone):
    code, _, err = train(
        *TEACHER_ALONE,
        "--config.seed=3",
        "--config.data.mask_rate=0.3",
        "--config.stages.teacher.nsp=0.5",
        workdir=teacher_alone,
    )
    assert_one_line(
        code,
        err,
        "of recipe 'tiny'",
        "config.seed=0, now 3",
        "config.data.mask_rate=0.15, now 0.3",
        "config.stages.teacher.nsp=1.0, now 0.5",
    )


def test_no_more_than_ten_differences_are_named(train, teacher_alone):
    changes = {
        "warmup_steps": 1,
        "decay": "constant",
        "end_ratio": 0.1,
        "weight_decay": 0.1,
        "clip_norm": 2.0,
        "nsp": 0.5,
        "bias_correction": True,
        "dropout": False,
        "learning_rate": 0.1,
        "skip_above": 3.0,
    }
    code, _, err = train(
        *TEACHER_ALONE,
        "--config.seed=3",
        "--config.data.mask_rate=0.3",
        "--config.data.max_predictions=3",
        *(f"--config.stages.teacher.{name}={value}" for name, value in changes.items()),
        workdir=teacher_alone,
    )
    assert code == 2 and err.count(", now ") == 10 and "and 3 more" in err


def test_a_workdir_alone_goes_on_with_its_recipe(finished, workdir, capsys, monkeypatch):
    no_training(monkeypatch)
    before = reported(workdir)
    code, out, _ = recipes.run(capsys, "train", f"--workdir={workdir}")
    assert code == 0 and "MLM loss" in out and reported(workdir) == before
    assert cli.main(["train", f"--workdir={workdir.parent / 'none'}"]) == 2


def test_a_refused_call_leaves_the_recipe_of_the_run(train, teacher_alone, tmp_path):
    """What `train --workdir=DIR` alone goes on with."""
    before = contents(teacher_alone)
    assert (
        train(
            *TEACHER_ALONE, source=write_text(tmp_path / "other.txt", seed=1), workdir=teacher_alone
        )[0]
        == 2
    )
    assert contents(teacher_alone) == before


def test_another_part_of_the_default_corpus_is_another_text(monkeypatch):
    from jaxdistill import inputs
    from jaxdistill.binding import Text

    monkeypatch.setattr(inputs, "source_digest", lambda source: f"digest of {source}")
    before = Text("default", "digest of default", "0")
    documentation = {"documentation_of": inputs.installed_versions()}
    assert inputs.changes("default", before, documentation) == ""
    assert inputs.changes("default:heldout", before, documentation)


def test_a_students_own_files_and_changes_survive_another_measurement(train, workdir, monkeypatch):
    """Somebody has fine-tuned it in place; the run's own student is the same as before."""
    no_training(monkeypatch)
    folder = workdir / "student"
    (folder / "model.safetensors").write_bytes(
        (workdir / "stages" / "teacher" / "model.safetensors").read_bytes()
    )
    (folder / "NOTES.md").write_text("mine")
    before = contents(folder)
    code, _, _ = train("--config.evaluation.max_examples=8")
    assert code == 0 and contents(folder) == before
    results = json.loads((workdir / "results.json").read_text())
    assert results["heldout_rows"] == 8 and results["export"]["format"] == "huggingface"


def test_a_folder_that_the_export_could_not_replace_is_refused_before_training(train, tmp_path):
    new = tmp_path / "new"
    (new / "student").mkdir(parents=True)
    (new / "student" / "NOTES.md").write_text("mine")
    (new / ".lock").write_text("")
    (new / "config.json").write_text(json.dumps({"stages": {}, "order": []}))
    code, _, err = train(workdir=new)
    assert_one_line(code, err, "NOTES.md", "no part of a saved model")


@pytest.mark.parametrize("command", ["train", "prepare"])
def test_a_models_folder_is_no_workdir(finished, train, capsys, tmp_path, text, command):
    model = tmp_path / "model"
    shutil.copytree(finished[1] / "student", model)
    before = contents(model)
    file = recipes.recipe(tmp_path / "recipe.py", text)
    code, _, err = recipes.run(capsys, command, f"--config={file}", f"--workdir={model}")
    assert_one_line(code, err, model, "a model's folder", "new or empty folder")
    assert contents(model) == before


def test_a_missing_record_does_not_bind_a_run_to_other_text(finished, train, teacher_alone):
    for name in ("inputs.json", "results.json"):
        (teacher_alone / name).unlink()
    file = teacher_alone / "stages" / "teacher" / "stage.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "inputs": "of the old text"}))
    code, _, err = train(*TEACHER_ALONE, source=finished[0].data.source, workdir=teacher_alone)
    assert (
        code == 2
        and "lacks inputs.json" in err.splitlines()[-1]
        and not (teacher_alone / "inputs.json").exists()
    )


@pytest.mark.parametrize(
    "change", [{"models": [["teacher", 3]]}, {"tokenizer": 1}, {"text": {"train": {"source": 1}}}]
)
def test_a_record_of_other_types_is_damaged(train, teacher_alone, change):
    file = teacher_alone / "inputs.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    code, _, err = train(*TEACHER_ALONE, workdir=teacher_alone)
    assert_one_line(code, err, "inputs.json is damaged")


def test_a_file_of_the_user_beside_the_export_is_said_before_training(train, workdir):
    """The export would replace the folder; a finished run leaves its export alone, and what was put
    there."""
    (workdir / "student" / "thesis.txt").write_text("mine")
    code, _, err = train()
    assert code == 0, err
    shutil.rmtree(workdir / "stages" / "distill")
    (workdir / "DONE").unlink()
    code, _, err = train()
    assert_one_line(
        code, err, "thesis.txt", "which is no part of a saved model, so it is not replaced"
    )
    assert (
        not (workdir / "stages" / "distill").exists()
        and (workdir / "student" / "thesis.txt").read_text() == "mine"
    )


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        '{"networks": 5}',
        '{"networks": {"teacher": 5}}',
        '{"stages": []}',
        '{"corpus": [1]}',
    ],
)
def test_damaged_results_are_made_again(train, workdir, content):
    before = json.loads((workdir / "results.json").read_text())
    (workdir / "results.json").write_text(content)
    code, _, err = train()
    assert code == 0, err
    again = json.loads((workdir / "results.json").read_text())
    assert (
        again["networks"].keys() == before["networks"].keys()
        and again["student_sha256"] == before["student_sha256"]
    )


@pytest.mark.parametrize("file, content", [("model.safetensors", b"cut"), ("config.json", b"{")])
def test_a_damaged_export_of_a_finished_run_is_said(train, workdir, file, content):
    """It is the user's, so it stays; deleted, it is written again."""
    (workdir / "student" / file).write_bytes(content)
    code, _, err = train()
    assert code == 0 and err.count("\n") == 1, err
    assert (
        "the exported model cannot be used any more" in err
        and f"delete {workdir / 'student'}" in err
    )
    assert (workdir / "student" / file).read_bytes() == content
    shutil.rmtree(workdir / "student")
    code, _, err = train()
    assert code == 0 and not err and (workdir / "student" / file).read_bytes() != content
