"""prepare, evaluate and seeds as functions, on toy networks and texts."""

import json

import pytest

from jaxdistill import commands, defaults
from jaxdistill.errors import BadInput
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
