"""The report: honest words, a table that survives missing numbers, atomic JSON, plots that can be
opened."""

import json

import numpy as np
import pytest

from jaxdistill import plots, report
from jaxdistill.training.metrics import MetricWriter


def results(student=2.5, copied=2.8, random=3.9, teacher=2.0, layers=4):
    losses = {
        "random_start": random,
        "student": student,
        "teacher": teacher,
        "copied_start": copied,
    }
    rows = [
        {"layer": i, "before": {"loss": 2.0 + i}, "after": {"loss": 1.0 + i}} for i in range(layers)
    ]
    return {
        "networks": {
            name: {
                "text": {"mlm_loss": loss, "mlm_accuracy": 0.5},
                "parameters": 24_581_888,
                "steps": 720,
                "seconds": 63.0,
            }
            for name, loss in losses.items()
            if loss is not None
        },
        "transfer": {"layers": rows},
        "stages": {
            "transfer": {"seconds": 60.0, "steps": 720, "sequences_per_second": 96.0},
            "distill": {"steps": 300, "final_loss": 2.25},
        },
        "corpus": {"name": "python"},
        "hardware": "2 CPU cores",
        "versions": {"jax": "0.10.2"},
        "seed": 0,
        "config_name": "smoke",
        "seconds": 100.0,
        "student_sha256": "ab" * 32,
    }


def write_metrics(workdir, stages=("transfer", "distill"), steps=300):
    with MetricWriter(workdir, tensorboard=False) as writer:
        for stage in stages:
            for network in ("student", "random_start"):
                for step in range(1, steps + 1):
                    writer.write(
                        stage, step, {"loss": 3.0 + 1.0 / step, "raw/mlm": 1.0}, network=network
                    )


def size(path):
    header = path.read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(header[16:20], "big"), int.from_bytes(header[20:24], "big")


def test_words_when_the_student_wins():
    lines = report.comparison(results())
    assert lines == [
        "Lowest held-out MLM loss: teacher, 2.0000.",
        "Lowest of the students: student, 2.5000.",
        "The student's loss is 1.4000 (35.9%) lower, so better than the random start's.",
        "The student's loss is 0.3000 (10.7%) lower, so better than the copied start's.",
    ]


def test_words_when_the_student_loses():
    lines = report.comparison(results(student=4.0, copied=3.2, random=4.0, teacher=3.5))
    assert lines[0] == "Lowest held-out MLM loss: copied start, 3.2000."
    assert "same as the random start's" in lines[1]
    assert (
        lines[2] == "The student's loss is 0.8000 (25.0%) HIGHER, so worse than the copied start's."
    )


def test_words_when_networks_are_missing():
    assert report.comparison({}) == ["No network has a held-out MLM loss."]
    lines = report.comparison(results(copied=None, teacher=None, random=float("nan")))
    assert lines[0] == "Lowest held-out MLM loss: student, 2.5000."
    assert (
        "not compared with the random start" in lines[1]
        and "not compared with the copied start" in lines[2]
    )
    assert "nothing to compare" in report.comparison(results(student=None))[-1]


def test_table():
    text = report.format_table(results())
    lines = text.splitlines()
    assert [line.split("  ")[0] for line in lines[2:6]] == [
        "teacher",
        "student",
        "copied start",
        "random start",
    ]
    assert (
        len({len(line) for line in lines[:6]}) == 1
        and "24,581,888" in lines[3]
        and "50.0%" in lines[3]
    )
    assert "NSP" not in text  # a column that nobody has
    assert "Stage transfer lowered the transfer loss of 4 of its 4 layers." in text
    assert "hardware: 2 CPU cores" in text and "versions: jax 0.10.2" in text
    assert report.format_table({}) == ""


def test_results_json_is_whole_and_valid(tmp_path):
    given = {
        "a": np.float32(1.5),
        "b": np.arange(3),
        "c": float("nan"),
        "d": {1: (True, None)},
        "e": tmp_path,
    }
    path = report.write_results(tmp_path / "new", given)
    assert json.loads(path.read_text()) == {
        "a": 1.5,
        "b": [0, 1, 2],
        "c": None,
        "d": {"1": [True, None]},
        "e": str(tmp_path),
    }
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["results.json"]


@pytest.mark.parametrize("layers", [1, 24])
def test_plots_of_a_whole_run(tmp_path, layers):
    write_metrics(tmp_path)
    drawn = {path.name for path in report.write_plots(tmp_path, results(layers=layers))}
    for name in ("loss_by_stage.png", "layer_transfer.png", "heldout.png"):
        width, height = size(tmp_path / "plots" / name)
        assert 600 <= width <= 2600 and 300 <= height <= 1500 and name in drawn


def test_plots_of_part_of_a_run(tmp_path):
    assert report.write_plots(tmp_path, {}) == []
    write_metrics(tmp_path, stages=("only",), steps=1)
    names = [
        path.name
        for path in report.write_plots(tmp_path, {"networks": {"student": {}}, "transfer": {}})
    ]
    assert names == ["loss_by_stage.png"]


def test_curves_carry_every_network_and_panels_every_stage(tmp_path):
    lines = [
        {"stage": s, "network": n, "step": i, "loss": l}
        for s in ("b", "a")
        for n in ("student", "mine")
        for i, l in ((1, 100.0), (2, 1.0), (3, None))
    ]
    figure = plots.loss_by_stage(lines, order=["a"])
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["a", "b"]
    assert [t.get_text() for t in figure.axes[0].get_legend().get_texts()] == ["student", "mine"]
    assert all(axes.get_yscale() == "log" for axes in figure.axes)
    assert [len(line.get_xdata()) for line in figure.axes[0].get_lines()] == [2, 2]


def test_wide_transfer_losses_are_logarithmic_and_two_stages_get_two_plots(tmp_path):
    assert plots.layer_transfer([(0, 1.0, 0.5), (1, 400.0, 2.0)]).axes[0].get_yscale() == "log"
    assert plots.layer_transfer([(0, 1.0, 0.5), (1, 2.0, 0.0)]).axes[0].get_yscale() == "linear"
    rows = results()["transfer"]
    names = [
        path.name
        for path in report.write_plots(tmp_path, {"transfer": {"first": rows, "second": rows}})
    ]
    assert names == ["layer_transfer_first.png", "layer_transfer_second.png"]
