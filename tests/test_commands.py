"""prepare, evaluate, export, seeds and finetune as functions, on toy networks and texts."""

import errno
import json
import pathlib

import jax
import numpy as np
import pytest

from jaxdistill import commands, defaults, interop, run
from jaxdistill.errors import BadInput, TrainingStopped
from jaxdistill.models import Model
from jaxdistill.workdir import lock
from tests.conftest import tiny_config, write_text


def test_prepare_writes_what_train_then_finds(tmp_path):
    config = tiny_config(write_text(tmp_path / "text.txt"))
    facts = commands.prepare(config, tmp_path / "run")
    assert facts["train"]["records"] > facts["heldout"]["records"] > 0
    before = {
        path: path.stat().st_mtime_ns
        for path in (tmp_path / "run" / "data").rglob("*")
        if path.is_file()
    }
    assert commands.prepare(config, tmp_path / "run") == facts
    assert before == {
        path: path.stat().st_mtime_ns
        for path in (tmp_path / "run" / "data").rglob("*")
        if path.is_file()
    }


def test_export_gives_the_students_weights_and_the_runs_numbers(finished, tmp_path):
    config, workdir, results = finished
    line = commands.export(workdir, tmp_path / "out")
    assert "huggingface" in line
    model, params = interop.from_pretrained(tmp_path / "out")
    trained, theirs = interop.from_pretrained(workdir / "stages" / "distill")
    batch = {"input_ids": np.arange(1, 9).reshape(1, 8)}
    np.testing.assert_allclose(
        model.apply(params, batch)[0]["mlm_logits"],
        trained.apply(theirs, batch)[0]["mlm_logits"],
        rtol=1e-5,
        atol=1e-6,
    )
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"{results['networks']['student']['text']['mlm_loss']:.4g}" in card
    with pytest.raises(BadInput, match="not empty"):
        commands.export(workdir, tmp_path / "out")


def test_export_of_the_teacher_says_why_it_is_in_our_own_format(finished, tmp_path):
    line = commands.export(finished[1], tmp_path / "teacher", "teacher")
    assert "jaxdistill format" in line and len(line) > 80
    with pytest.raises(BadInput, match="finished: teacher, student"):
        commands.export(finished[1], tmp_path / "x", "studnt")


def test_evaluate_agrees_with_the_run_and_compares_with_a_teacher(finished, tmp_path):
    config, workdir, _ = finished
    numbers = commands.evaluate(
        str(workdir / "student"),
        config.data.source,
        sequence_length=24,
        batch_size=8,
        cache=tmp_path,
        teacher=str(workdir / "student"),
    )
    assert (
        numbers["teacher_kl"] == pytest.approx(0.0, abs=1e-5) and numbers["top1_agreement"] == 1.0
    )
    assert 0 < numbers["mlm_loss"] < 20 and 0 <= numbers["nsp_accuracy"] <= 1
    with pytest.raises(BadInput, match="max_positions"):
        commands.evaluate(
            str(workdir / "student"), config.data.source, sequence_length=64, cache=tmp_path
        )


def test_seeds_reports_spread_and_paired_margins(tmp_path):
    config = tiny_config(write_text(tmp_path / "text.txt"))
    config.order, config.baselines = ("alone", "random_start"), True
    config.networks.student.start = "random"
    config.stages.alone = defaults.stage("pretrain", "student", steps=2, batch_size=8)
    found = commands.seeds(config, tmp_path / "runs", (0, 1))
    losses = found["mlm_loss"]
    assert len(set(losses["student"])) == 2  # seeds differ
    assert found["spread"]["student"]["range"] == pytest.approx(
        max(losses["student"]) - min(losses["student"])
    )
    margins = [b - s for b, s in zip(losses["random_start"], losses["student"])]
    assert found["margin"]["random_start"]["by_seed"] == pytest.approx(margins)
    assert json.loads((tmp_path / "runs" / "seeds.json").read_text())["seeds"] == [0, 1]


def test_the_margin_of_a_score_is_upwards():
    table, facts = commands._spread({"student": [0.9, 0.8], "alone": [0.7, 0.75]}, higher=True)
    margin = facts["margin"]["alone"]
    assert margin["by_seed"] == pytest.approx([0.2, 0.05]) and not margin["beyond_spread"]
    assert "student against alone: higher by 0.0500 to 0.2000, not beyond" in table
    _, facts = commands._spread({"student": [1.0, 1.1], "alone": [2.0, 2.1]}, higher=False)
    assert facts["margin"]["alone"]["beyond_spread"]


def task_file(path, rows=160):
    """The label is whether the word "river" is in the sentence: learnable by any encoder."""
    rng = np.random.default_rng(0)
    words = np.array(["stone", "engine", "winter", "paper", "garden", "signal"])
    lines = ["sentence\tlabel"]
    for i in range(rows):
        sentence = list(rng.choice(words, 4))
        if i % 2:
            sentence[rng.integers(4)] = "river"
        lines.append(" ".join(sentence) + "\t" + ("wet" if i % 2 else "dry"))
    path.write_text("\n".join(lines) + "\n")
    return path


def test_finetune_learns_writes_predictions_and_a_model(finished, tmp_path):
    file = task_file(tmp_path / "task.tsv")
    results = commands.finetune(
        str(finished[1] / "student"),
        str(file),
        tmp_path / "ft",
        text_column="sentence",
        label_column="label",
        epochs=4,
        batch_size=8,
        learning_rate=3e-3,
        sequence_length=16,
    )
    assert results["accuracy"] > max(results["majority_accuracy"], 0.5) + 0.2
    rows = pathlib.Path(results["predictions"]).read_text().splitlines()
    assert rows[0] == "label\tprediction\ttext" and len(rows) == 1 + results["dev_examples"]
    right = np.mean([row.split("\t")[0] == row.split("\t")[1] for row in rows[1:]])
    assert right == pytest.approx(results["accuracy"])
    model, params = interop.from_pretrained(tmp_path / "ft" / "model")
    assert isinstance(model, Model) and model.config.heads == ("sequence_classification",)
    assert jax.tree.leaves(params)
    again = commands.finetune(
        str(finished[1] / "student"),
        str(file),
        tmp_path / "ft",
        text_column="sentence",
        label_column="label",
        epochs=4,
        batch_size=8,
        learning_rate=3e-3,
        sequence_length=16,
    )
    assert again["accuracy"] == results["accuracy"]
    with pytest.raises(BadInput, match="epochs"):
        commands.finetune(
            str(finished[1] / "student"),
            str(file),
            tmp_path / "ft",
            text_column="sentence",
            label_column="label",
            epochs=3,
            batch_size=8,
            learning_rate=3e-3,
            sequence_length=16,
        )


def test_finetune_holds_its_workdir_and_says_when_the_disk_is_full(finished, tmp_path, monkeypatch):
    def train(*_):
        with pytest.raises(BadInput, match="in use by another run"), lock(tmp_path / "ft"):
            pass
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(run.Run, "batches", train)
    with pytest.raises(TrainingStopped, match="cannot write .*make room"):
        commands.finetune(
            str(finished[1] / "student"),
            str(task_file(tmp_path / "task.tsv")),
            tmp_path / "ft",
            sequence_length=16,
        )


def test_finetune_refuses_what_it_cannot_use(finished, tmp_path):
    student = str(finished[1] / "student")
    file = task_file(tmp_path / "task.tsv")
    with pytest.raises(BadInput, match="did you mean 'label'"):
        commands.finetune(
            student,
            str(file),
            tmp_path / "a",
            text_column="sentence",
            label_column="lable",
            sequence_length=16,
        )
    with pytest.raises(BadInput, match="max_positions"):
        commands.finetune(
            student, str(file), tmp_path / "a", text_column=0, label_column=1, sequence_length=128
        )
    assert not (tmp_path / "a").exists()
