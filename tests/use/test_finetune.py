"""`jaxdistill finetune` as people use it: files change under a workdir, models come fine-tuned,
numbers are absurd."""

import json
import pathlib
import shutil

import numpy as np
import pytest

import jaxdistill
from jaxdistill import cli, interop
from jaxdistill.data.tokenizers import train_wordpiece
from jaxdistill.models import Model, preset
from tests.interop.tiny import SHRUNK, random_params

WORDS = ("stone", "engine", "winter", "paper", "garden", "signal")
CONFIG = preset("bert_base").replace(
    **{**SHRUNK, "vocab_size": 100, "max_positions": 16}, pooler="tanh", heads=()
)
SETTINGS = ("--epochs=1", "--batch_size=4", "--learning_rate=1e-3")
STILL = ("--epochs=1", "--batch_size=4", "--learning_rate=0")


def table(path, labels=("dry", "wet"), rows=32, seed=0):
    """A task that any encoder learns: the label is whether "river" is in the sentence."""
    rng = np.random.default_rng(seed)
    lines = ["sentence\tlabel"]
    for i in range(rows):
        sentence = [*rng.choice(WORDS, 4), *(["river"] if i % 2 else [])]
        lines.append(f"{' '.join(sentence)} {i}\t{labels[i % len(labels)]}")
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def tokenizer():
    return train_wordpiece([" ".join([*WORDS, "river 0 1 2 3 4 5 6 7 8 9"])], 100)


@pytest.fixture
def model(tmp_path, tokenizer):
    """An encoder without heads."""
    return write_model(tmp_path / "encoder", tokenizer)


def write_model(folder, tokenizer, seed=0, labels=None):
    config = (
        CONFIG
        if labels is None
        else CONFIG.replace(heads=("sequence_classification",), num_labels=len(labels))
    )
    interop.save_pretrained(
        folder, Model(config), random_params(config, seed), tokenizer, labels=labels, overwrite=True
    )
    return folder


@pytest.fixture
def finetune(tmp_path, capsys):
    """Runs the command in the workdir `tmp_path/ft`: (exit code, output, errors)."""

    def run(model, task, *options, workdir=tmp_path / "ft"):
        code = cli.main(
            [
                "finetune",
                f"--model={model}",
                f"--data={task}",
                f"--workdir={workdir}",
                *(options or SETTINGS),
            ]
        )
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def refused(answer, *words):
    code, out, err = answer
    assert (
        code == 2
        and out == ""
        and err.startswith("jaxdistill: ")
        and err.count("\n") == 1
        and len(err) < 700
    ), answer
    assert all(word in err for word in words), err


def test_a_workdir_knows_its_files_by_content(tmp_path, tokenizer, model, finetune):
    task, dev = table(tmp_path / "task.tsv"), table(tmp_path / "dev.tsv", seed=1)
    options = (*SETTINGS, f"--heldout={dev}")
    code, out, err = finetune(model, task, *options)
    assert code == 0 and "is new: the model has none" in err
    exported = {
        path: (path.stat().st_mtime_ns, path.read_bytes())
        for path in (tmp_path / "ft" / "model").rglob("*")
    }

    def again(*given):
        answer = finetune(*given)
        assert exported == {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in exported}
        return answer

    moved = shutil.copy(task, tmp_path / "moved.tsv")
    code, second, err = again(shutil.copytree(model, tmp_path / "copy"), moved, *options)
    assert (
        code == 0 and second == out and "is new" not in err
    )  # reported as it was, nothing trained

    kept, kept_dev = task.read_text(), dev.read_text()
    for file in (task, dev):
        file.write_text(file.read_text().replace("\twet", "\tapple"))
    refused(again(model, task, *options), "labels", "wet", "apple")
    dev.write_text(kept_dev)
    table(task, ("dry", "wet", "damp"))
    refused(again(model, task, *options), "labels", "damp")
    task.write_text(kept.replace("\twet", "\t-").replace("\tdry", "\twet").replace("\t-", "\tdry"))
    refused(again(model, task, *options), "the train table", "task.tsv")
    task.write_text(kept)
    table(dev, seed=2)
    refused(again(model, task, *options), "the heldout table", "dev.tsv")
    dev.write_text(kept_dev)
    write_model(model, tokenizer, seed=3)
    refused(again(model, task, *options), "the model", "encoder")
    write_model(model, train_wordpiece([" ".join([*WORDS, "river 0 1 2 3 4 5 6 7 8 9 zzz"])], 100))
    refused(again(model, task, *options), "the tokenizer", "encoder")
    refused(again(tmp_path / "copy", task, "--epochs=2", *options[1:]), "epochs")
    shutil.rmtree(
        tmp_path / "ft" / "checkpoints"
    )  # to save room; what was exported is bound all the same
    refused(again(model, task, *options), "the tokenizer", "encoder")


def test_a_workdir_of_an_earlier_version_is_one_line(tmp_path, model, finetune):
    (tmp_path / "ft" / "checkpoints").mkdir(parents=True)
    (tmp_path / "ft" / "config.json").write_text(
        json.dumps({"model": str(model), "task_file": "x", "epochs": 1.0})
    )
    refused(finetune(model, table(tmp_path / "task.tsv")), "earlier version", "give a new one")


def test_a_classifier_for_the_same_labels_is_kept(tmp_path, tokenizer, finetune):
    task = table(tmp_path / "task.tsv")
    write_model(tmp_path / "classifier", tokenizer, labels=("dry", "wet"))
    found, params = interop.from_pretrained(tmp_path / "classifier")
    head = params["sequence_classification"]["dense"]
    params["sequence_classification"]["dense"] = {
        name: value[..., ::-1] for name, value in head.items()
    }
    interop.save_pretrained(
        tmp_path / "turned", found, params, tmp_path / "classifier", labels=("wet", "dry")
    )
    for number, folder in enumerate(
        (tmp_path / "turned", tmp_path / "0")
    ):  # a workdir of finetune is a model too
        code, _, err = finetune(folder, task, *STILL, workdir=tmp_path / str(number))
        assert code == 0 and "is the model's own" in err
        _, kept = interop.from_pretrained(tmp_path / str(number) / "model")
        np.testing.assert_array_equal(
            kept["sequence_classification"]["dense"]["kernel"], head["kernel"]
        )
    _, out, err = finetune(
        tmp_path / "turned",
        table(tmp_path / "other.tsv", ("no", "yes")),
        *STILL,
        workdir=tmp_path / "new",
    )
    assert "is new: that of the model is for other labels (wet, dry) than the task (no, yes)" in err
    assert json.loads(out)["head"].startswith("new")


def test_a_doubtful_result_says_so(tmp_path, model, finetune):
    code, out, err = finetune(model, table(tmp_path / "task.tsv"), *STILL)
    warnings = json.loads(out)["warnings"]
    assert code == 0 and any("no parameter moved" in line for line in warnings)
    assert json.loads((tmp_path / "ft" / "results.json").read_text())["warnings"] == warnings
    assert err.splitlines()[-len(warnings) :] == [
        f"jaxdistill: warning: {line}" for line in warnings
    ]
    found = json.loads(out)["heldout"]
    assert any("most frequent label" in line for line in warnings) == (
        found["accuracy"] <= found["majority_accuracy"]
    )


def test_a_diverged_run_is_not_done(tmp_path, model, finetune):
    task = table(tmp_path / "task.tsv")
    for _ in range(2):  # nor when it is called again
        code, out, err = finetune(
            model, task, "--epochs=1", "--batch_size=4", "--learning_rate=3e38"
        )
        assert code == 3 and out == "" and "updates were skipped" in err.splitlines()[-1]
    results = json.loads((tmp_path / "ft" / "results.json").read_text())
    assert any("skipped because they were not finite" in line for line in results["warnings"])
    assert not (tmp_path / "ft" / "model").exists()  # nor is there anything to take for one


@pytest.mark.parametrize(
    "option",
    [
        "epochs=1e30",
        "epochs=1e308",
        "epochs=nan",
        "epochs=inf",
        "epochs=-1",
        "epochs=0",
        "learning_rate=-1e-4",
        "learning_rate=nan",
        "learning_rate=inf",
        "learning_rate=1e39",
        "batch_size=0",
        "batch_size=-8",
        "batch_size=100000000",
        "sequence_length=1000000000",
        "sequence_length=-1",
        "seed=-1",
        "seed=99999999999999999999",
    ],
)
def test_a_number_that_cannot_be_meant_is_refused_before_anything_is_made(
    tmp_path, model, finetune, option
):
    name = option.partition("=")[0]
    refused(finetune(model, table(tmp_path / "task.tsv"), f"--{option}"), f"{name}=")
    assert not (tmp_path / "ft").exists()


def test_a_column_of_sentences_is_not_one_of_labels(tmp_path, model, finetune):
    refused(
        finetune(
            model,
            table(tmp_path / "task.tsv"),
            *SETTINGS,
            "--text_column=label",
            "--label_column=sentence",
        ),
        "column 'sentence'",
        "32 labels",
        "label column",
    )


def test_paths_may_be_paths_and_a_long_text_is_cut(tmp_path, model):
    """One field is longer than what csv takes by itself."""
    task, dev = table(tmp_path / "task.tsv"), table(tmp_path / "dev.tsv", seed=1)
    lines = task.read_text().splitlines()
    lines[1] = "river " * 30_000 + "\tdry"
    task.write_text("\n".join(lines) + "\n")
    results = jaxdistill.finetune(
        pathlib.Path(model),
        task,
        tmp_path / "ft",
        heldout=dev,
        epochs=1,
        batch_size=4,
        learning_rate=1e-3,
    )
    assert results["data"] == str(task) and pathlib.Path(results["model"]).is_dir()


def test_a_models_folder_is_no_workdir(tmp_path, model, finetune):
    before = {path: path.read_bytes() for path in model.iterdir()}
    refused(
        finetune(model, table(tmp_path / "task.tsv"), *SETTINGS, workdir=model),
        "a model's folder",
        "new or empty folder",
    )
    assert {path: path.read_bytes() for path in model.iterdir()} == before


@pytest.mark.parametrize(
    "rows, options, words",
    [
        ("text\tlabel\ngood\ta\nbad\t\nworse\tb\n", (), ["line 3 has no label"]),
        ("good\ta\nbad\tb\n" * 8, ("--text_column=0", "--label_column=0"), ["must differ"]),
        (
            "text\tlabel\n" + "good\ta\nbad\tb\n" * 8,
            ("--text_column=\u00b2", "--label_column=label"),
            ["no column", "\u00b2"],
        ),
        (
            "text\tlabel\n" + "good\ta\nbad\tb\n" * 8,
            (f"--text_column={'9' * 5000}", "--label_column=label"),
            ["no column"],
        ),
    ],
)
def test_a_table_that_cannot_be_meant_is_refused(tmp_path, model, finetune, rows, options, words):
    (tmp_path / "task.tsv").write_text(rows)
    refused(finetune(model, tmp_path / "task.tsv", *SETTINGS, *options), *words)


def test_a_damaged_model_of_a_finished_call_is_said(finetune, model, tmp_path):
    task = table(tmp_path / "task.tsv")
    assert finetune(model, task)[0] == 0
    (tmp_path / "ft" / "model" / "config.json").write_text("{")
    code, _, err = finetune(model, task)
    assert (
        code == 0
        and f"delete {tmp_path / 'ft' / 'model'}, and the same command writes it again" in err
    ), err
    shutil.rmtree(tmp_path / "ft" / "model")
    assert finetune(model, task)[0] == 0 and interop.from_pretrained(tmp_path / "ft" / "model")


def test_a_workdir_of_another_recipe_is_refused(finetune, model, tmp_path, finished):
    refused(
        finetune(model, table(tmp_path / "task.tsv"), workdir=finished[1]),
        "belongs to a run of recipe",
        "use another workdir",
    )
