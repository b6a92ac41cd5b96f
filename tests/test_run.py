"""Whole runs on a small text file: what they leave, and that stopping, splitting or repeating one
changes nothing."""

import dataclasses
import json
import os
import re
import shutil
import signal
import time
import types

import numpy as np
import pytest

from jaxdistill import inputs, run, startup
from jaxdistill.data.feeds import only
from jaxdistill.errors import BadInput, Interrupted, TrainingStopped
from jaxdistill.interop import from_pretrained
from jaxdistill.models.parameters import digest
from jaxdistill.resolve import resolve
from jaxdistill.training import sharding
from jaxdistill.workdir import Workdir
from tests.conftest import cast_of, given, make_stage, pretraining_batch, tiny_config, write_text

TIMES = ("seconds", "sequences_per_second", "tokens_per_second")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("text") / "text.txt")


@pytest.fixture(scope="module")
def finished(source, tmp_path_factory):
    """(workdir, results) of an uninterrupted run; nobody writes into it."""
    workdir = tmp_path_factory.mktemp("run") / "w"
    return workdir, run.train(tiny_config(source), workdir)


@pytest.fixture(autouse=True)
def no_more_plots(finished, monkeypatch):
    """The first run draws them; they take longer than the rest of a repeated one."""
    monkeypatch.setattr(run.report, "write_plots", lambda *_: [])


def untimed(results):
    """Results without what a clock measured."""
    if not isinstance(results, dict):
        return results
    return {name: untimed(value) for name, value in results.items() if name not in TIMES}


def interrupt(monkeypatch, stage, after):
    """Sends SIGINT while batch number `after` of the stage that follows is fetched."""
    real, names = run.Run.batches, []

    def batches(self, *given):
        for i, batch in enumerate(real(self, *given)):
            if current() == stage and i == after:
                os.kill(os.getpid(), signal.SIGINT)
            yield batch

    original = run.Run.stage

    def tracked(self, which):
        names.append(which.name)
        return original(self, which)

    def current():
        return names[-1]

    monkeypatch.setattr(run.Run, "stage", tracked)
    monkeypatch.setattr(run.Run, "batches", batches)


def metrics(workdir):
    """[(stage, step, loss)] of the log."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [(row["stage"], row["step"], row["loss"]) for row in rows]


def test_a_run_finishes_and_leaves_everything(finished):
    workdir, results = finished
    networks, stages = results["networks"], results["stages"]
    assert networks.keys() == {"teacher", "student"} and stages.keys() == {
        "teacher",
        "transfer",
        "distill",
    }
    assert all(
        row.keys() == {"text", "parameters", "steps", "seconds", "sha256"}
        for row in networks.values()
    )
    measured = {"mlm_loss", "mlm_accuracy", "nsp_loss", "nsp_accuracy"}
    assert networks["teacher"]["text"].keys() == measured
    agreement = {"teacher_kl", "top1_agreement", "top5_agreement"}
    assert networks["student"]["text"].keys() == measured | agreement
    assert all(np.isfinite([*row["text"].values()]).all() for row in networks.values())
    assert networks["student"]["steps"] == 11 and networks["teacher"]["steps"] == 6
    assert all(stage["skipped"] == 0 and stage["seconds"] > 0 for stage in stages.values())
    layers = stages["transfer"]["layers"]
    assert [row["layer"] for row in layers] == [0, 1] and results["transfer"] == {
        "stage": "transfer",
        "layers": layers,
    }
    assert all(
        {"loss", "feature_map", "mean", "variance", "attention"} == row[when].keys()
        for row in layers
        for when in ("before", "after")
    )
    assert results["student_sha256"] == networks["student"]["sha256"]
    assert results["heldout_rows"] > 0 and results["corpus"]["source"].endswith("text.txt")
    assert {"config_name", "seed", "hardware", "versions", "seconds"} < results.keys()
    assert 0 < results["unigram_mlm_loss"] < np.log(120) + 1  # about evenly, over its vocabulary
    assert untimed(json.loads((workdir / "results.json").read_text())) == untimed(results)
    for stage, network in (("teacher", "teacher"), ("distill", "student")):
        params = from_pretrained(workdir / "stages" / stage)[1]
        assert digest(params) == networks[network]["sha256"]
    assert list((workdir / "plots").glob("*.png"))
    assert (workdir / "DONE").read_text().split() == ["teacher", "transfer", "distill"]
    assert not list((workdir / "checkpoints").iterdir())  # nothing in progress
    assert [row[:2] for row in metrics(workdir)] == [
        (name, i + 1)
        for name, n in (("teacher", 6), ("transfer", 6), ("distill", 5))
        for i in range(n)
    ]


def test_the_same_call_again_trains_nothing_and_says_the_same(
    finished, source, tmp_path, monkeypatch
):
    workdir, results = finished
    shutil.copytree(workdir, tmp_path / "w")
    config = tiny_config(source)
    before = config.to_json()
    monkeypatch.setattr(run.loop, "run_stage", lambda *_, **__: pytest.fail("it trains again"))
    assert untimed(run.train(config, tmp_path / "w")) == untimed(results)
    assert config.to_json() == before  # a run does not write into its recipe
    assert metrics(tmp_path / "w") == metrics(workdir)


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "stage, after",
    [
        pytest.param("teacher", 2, marks=SLOW),
        pytest.param("transfer", 0, marks=SLOW),
        ("transfer", 3),
        ("distill", 1),
        pytest.param("distill", 4, marks=SLOW),
    ],
)
def test_interrupted_and_resumed_is_uninterrupted(
    finished, source, tmp_path, monkeypatch, stage, after
):
    """To the bit: networks, per-layer losses, every number of the results, every line of the
    log."""
    workdir, results = finished
    folder = tmp_path / "w"
    shutil.copytree(
        workdir, folder
    )  # go back to the start of `stage`: cheaper than training the ones before it
    order = ["teacher", "transfer", "distill"]
    for name in order[order.index(stage) :]:
        shutil.rmtree(folder / "stages" / name)
    kept = [row for row in metrics(workdir) if row[0] in order[: order.index(stage)]]
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(lines[: len(kept)]))
    with monkeypatch.context() as patch:
        interrupt(patch, stage, after)
        with pytest.raises(Interrupted, match=f"in stage '{stage}' after {after + 1} of"):
            run.train(tiny_config(source), folder)
    assert Workdir(folder).finished(stage) is None
    found = run.train(tiny_config(source), folder)
    assert found["student_sha256"] == results["student_sha256"]
    assert untimed(found) == untimed(results)
    assert metrics(folder) == metrics(workdir)


def test_the_best_state_of_a_stage_and_a_trace_of_its_steps(source, tmp_path, monkeypatch):
    """Held-out losses stand in the log beside the steps they were measured at; the lowest one's
    network is handed on."""
    config = tiny_config(source)
    config.order, config.profile = ("teacher",), (1, 3)
    config.stages.teacher.update({"best": "mlm", "steps": 5, "learning_rate": 3.0})  # it gets worse
    kept = {}
    real = run.Checkpoints.save
    monkeypatch.setattr(
        run.Checkpoints,
        "save",
        lambda self, state, page, **options: (
            kept.update({int(state.step): digest(state.params)}),
            real(self, state, page, **options),
        ),
    )
    found = run.train(config, tmp_path / "w")
    rows = [
        json.loads(line) for line in (tmp_path / "w" / "metrics.jsonl").read_text().splitlines()
    ]
    measured = {row["step"]: row["heldout/mlm"] for row in rows if "heldout/mlm" in row}
    best = min(measured, key=measured.get)
    assert measured.keys() == {2, 4, 5} == kept.keys() and best < 5
    assert found["networks"]["teacher"]["sha256"] == kept[best] and len(set(kept.values())) == 3
    assert (
        json.loads((tmp_path / "w" / "stages" / "teacher" / "stage.json").read_text())["best"]
        == best
    )
    assert list(
        (tmp_path / "w" / "tensorboard" / "teacher" / "teacher").glob(
            "plugins/profile/*/*.xplane.pb"
        )
    )


def packed_config(source):
    config = tiny_config(source)
    config.data.packing, config.order, config.objectives.fused = True, ("teacher", "transfer"), True
    config.stages.teacher.update({"steps": 0, "epochs": 1.0})
    return config


@SLOW
def test_a_packed_run_resumes_to_the_bit_and_has_fewer_rows_an_epoch(
    finished, source, tmp_path, monkeypatch
):
    results = run.train(packed_config(source), tmp_path / "whole")
    steps = results["stages"]["teacher"]["steps"]
    records = results["corpus"]["train"]["records"]
    assert 8 * steps < 0.9 * records
    shutil.copytree(tmp_path / "whole", tmp_path / "w")
    shutil.rmtree(tmp_path / "w" / "stages" / "transfer")
    with monkeypatch.context() as patch:
        interrupt(patch, "transfer", 3)
        with pytest.raises(Interrupted):
            run.train(packed_config(source), tmp_path / "w")
    assert untimed(run.train(packed_config(source), tmp_path / "w")) == untimed(results)
    with pytest.raises(BadInput, match="config.data.packing=True, now False"):
        run.train(tiny_config(source), tmp_path / "w")


def test_a_workdir_that_is_older_than_a_field_goes_on(finished, source, tmp_path, monkeypatch):
    """What the field is by default is what it was."""
    workdir, results = finished
    shutil.copytree(workdir, tmp_path / "w")
    monkeypatch.setattr(run.loop, "run_stage", lambda *_, **__: pytest.fail("it trains again"))
    for file, strip in [
        (
            tmp_path / "w" / "config.json",
            lambda page: (page.pop("objectives"), page["data"].pop("packing")),
        ),
        *(
            (path, lambda page: [line.pop("tf1_unmasked") for line in page["lineage"]])
            for path in (tmp_path / "w" / "stages").glob("*/stage.json")
        ),
    ]:
        page = json.loads(file.read_text())
        strip(page)
        file.write_text(json.dumps(page))
    assert untimed(run.train(tiny_config(source), tmp_path / "w")) == untimed(results)
    config = tiny_config(source)
    config.data.packing = True
    with pytest.raises(BadInput, match="config.data.packing=False, now True"):
        run.train(config, tmp_path / "w")


def test_losses_that_cannot_be_fused_say_what_they_cost(source):
    config = tiny_config(source)
    config.objectives.fused = True
    mesh = sharding.make_mesh(1)
    recipe = resolve(config, vocab_size=120, feeds=inputs.outline(config), mesh=mesh)
    stage = dataclasses.replace(make_stage("joint", num_layers=2, layer_map=(1, 0)), fused=True)
    # Two layers of 24 tokens: hidden 16 wide and two maps of scores, float32, of both networks.
    expected = 2 * 2 * 4 * (24 * 16 + 2 * 24 * 24) / 2**20
    assert f"keeps every layer's taps, {expected:,.2g} MiB a row" in startup.kept_taps(
        recipe, stage
    )
    assert startup.kept_taps(recipe, make_stage("joint", num_layers=2)) == ""
    assert startup.kept_taps(recipe, dataclasses.replace(stage, fused=False)) == ""
    assert all(startup.kept_taps(recipe, stage) == "" for stage in recipe.stages)


def test_a_packed_run_needs_one_pad(source, tmp_path):
    config = packed_config(source)
    config.networks.teacher.model.pad_token_id = 3
    with pytest.raises(BadInput, match="one .PAD.*pad_token_id 3"):
        run.train(config, tmp_path / "w")


def test_killed_within_a_stage(finished, source, tmp_path, monkeypatch):
    """Goes on from the last checkpoint; lines of the log that came after it are not there twice."""
    workdir, results = finished
    folder = tmp_path / "w"
    shutil.copytree(workdir, folder)
    shutil.rmtree(folder / "stages" / "distill")
    config, real = tiny_config(source), run.Run.batches
    config.checkpoint.every_steps = 2

    def crashing(*args, **options):
        for i, batch in enumerate(real(*args, **options)):
            while i == 4 and not (folder / "checkpoints" / "distill" / "2").exists():
                time.sleep(0.05)
            if i == 4:
                raise RuntimeError("power cut")
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(run.Run, "batches", crashing)
        patch.setattr(run.Checkpoints, "save", save_once(run.Checkpoints.save))
        with pytest.raises(RuntimeError, match="power cut"):
            run.train(config, folder)
    assert untimed(run.train(config, folder)) == untimed(results)
    assert metrics(folder) == metrics(workdir)


def save_once(real):
    """Checkpoints beyond the first are lost."""
    return lambda self, state, page, **options: (
        real(self, state, page, **options) if int(state.step) == 2 else None
    )


@SLOW
def test_killed_between_stages(finished, source, tmp_path, monkeypatch):
    """A stage whose folder is not marked as whole is not there."""
    workdir, results = finished
    folder = tmp_path / "w"
    shutil.copytree(workdir, folder)
    shutil.rmtree(folder / "stages" / "distill")
    (folder / "stages" / "transfer" / "stage.json").unlink()
    (folder / "stages" / "transfer" / "model.safetensors").write_bytes(b"half a fi")
    assert run.train(tiny_config(source), folder)["student_sha256"] == results["student_sha256"]


def test_stages_one_at_a_time_are_all_at_once(finished, source, tmp_path):
    """Also their order is checked, and the results of the last call are those of the whole run."""
    _, results = finished
    for name, missing in (("distill", "teacher"), ("transfer", "teacher")):
        with pytest.raises(
            BadInput, match=f"stage '{name}' follows '{missing}', which is not finished.*--stages="
        ):
            run.train(tiny_config(source), tmp_path, stages=[name])
    with pytest.raises(
        BadInput, match="stage 'distil' is not in config.order; did you mean 'distill'"
    ):
        run.train(tiny_config(source), tmp_path, stages=["distil"])
    only = run.train(tiny_config(source), tmp_path, stages=["teacher"])
    assert (
        only["networks"].keys() == {"teacher"}
        and only["stages"].keys() == {"teacher"}
        and "student_sha256" not in only
    )
    with pytest.raises(BadInput, match="stage 'distill' follows 'transfer', which is not finished"):
        run.train(tiny_config(source), tmp_path, stages=["distill"])
    (tmp_path / "DONE").write_text("of a shorter order")
    run.train(tiny_config(source), tmp_path, stages=["transfer"])
    assert not (tmp_path / "DONE").exists()  # a launcher would stop here
    found = run.train(tiny_config(source), tmp_path, stages=["distill"])
    assert untimed(found) == untimed(results) and (tmp_path / "DONE").exists()


def test_done_is_written_after_everything_else(finished, source, tmp_path, monkeypatch):
    """A run that dies in its last line of work is not done; what an earlier call said does not
    count."""
    folder = tmp_path / "w"
    shutil.copytree(finished[0], folder)
    shutil.rmtree(folder / "plots")  # so that there is something left to do

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(run.report, "write_plots", killed)
        run.train(tiny_config(source), folder)
    assert not (folder / "DONE").exists()
    with pytest.raises(
        BadInput, match="not in config.order"
    ):  # nothing was begun, nothing is taken back
        (folder / "DONE").write_text("before")
        run.train(tiny_config(source), folder, stages=["distil"])
    assert (folder / "DONE").read_text() == "before"
    run.train(tiny_config(source), folder)
    assert (folder / "DONE").read_text() == "teacher\ntransfer\ndistill\n"


@pytest.mark.parametrize(
    "change, field",
    [
        (lambda c: c.stages.transfer.update(mean=10.0), "stages.transfer.mean=5000.0, now 10.0"),
        (lambda c: c.update(seed=1), "seed=0, now 1"),
        (
            lambda c: c.networks.student.model.update(num_ffn=3),
            "networks.student.model.num_ffn=2, now 3",
        ),
        (lambda c: c.data.update(mask_rate=0.2), "data.mask_rate=0.15, now 0.2"),
    ],
)
def test_another_recipe_is_refused_on_a_workdir(finished, source, change, field):
    workdir, _ = finished
    before = (workdir / "config.json").read_text()
    config = tiny_config(source)
    change(config)
    with pytest.raises(
        BadInput, match=f"of recipe 'tiny' with config.{field}; use another workdir"
    ):
        run.train(config, workdir)
    assert (workdir / "config.json").read_text() == before


def test_a_folder_that_is_no_run_is_refused(tmp_path, source):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(BadInput, match="not empty and holds no run; give a new or empty folder"):
        run.train(tiny_config(source), tmp_path)


def test_weights_that_are_not_the_stages_own_are_refused(finished, source, tmp_path):
    """Another teacher under a finished student, and a file that is not the one stage.json
    describes."""
    shutil.copytree(finished[0], tmp_path / "w")
    stages = tmp_path / "w" / "stages"
    page = json.loads((stages / "distill" / "stage.json").read_text())
    page["teachers"]["teacher"]["sha256"] = "0" * 64
    (stages / "distill" / "stage.json").write_text(json.dumps(page))
    with pytest.raises(
        BadInput,
        match="stage 'distill' in this workdir was run with another teacher 'teacher' .sha256 000000000000",
    ):
        run.train(tiny_config(source), tmp_path / "w")
    shutil.copy(stages / "distill" / "model.safetensors", stages / "transfer" / "model.safetensors")
    with pytest.raises(
        BadInput, match="transfer are not those that its stage.json describes; delete that folder"
    ):
        run.train(tiny_config(source), tmp_path / "w")


def test_a_teacher_from_a_folder(finished, source, tmp_path):
    """Our own format: the same student as with the teacher trained in the run; stages of the
    teacher are left out."""
    workdir, results = finished
    config = tiny_config(source)
    config.networks.teacher.init, config.order = (
        str(workdir / "stages" / "teacher"),
        ("transfer", "distill"),
    )
    found = run.train(config, tmp_path)  # with the tokenizer that lies beside that teacher
    assert found["student_sha256"] == results["student_sha256"]
    assert found["networks"]["teacher"]["sha256"] == results["networks"]["teacher"]["sha256"]
    page = json.loads((tmp_path / "stages" / "distill" / "stage.json").read_text())
    assert page["teachers"]["teacher"] == {
        "path": config.networks.teacher.init,
        "sha256": results["networks"]["teacher"]["sha256"],
    }


@SLOW
def test_baselines_are_run_only_when_wanted_and_join_a_finished_run(finished, source, tmp_path):
    """They change nothing for the student; their teacher is the run's."""
    workdir, results = finished
    shutil.copytree(workdir, tmp_path / "w")
    config = tiny_config(source)
    config.baselines = True
    found = run.train(config, tmp_path / "w")
    assert found["networks"].keys() == {"teacher", "student", "random_start", "copied_start"}
    assert untimed(found["networks"]["student"]) == untimed(results["networks"]["student"])
    assert {"teacher_kl", "top1_agreement"} < found["networks"]["random_start"]["text"].keys()
    assert len({row["sha256"] for row in found["networks"].values()}) == 4


@SLOW
def test_the_number_of_devices_changes_no_result(finished, source, tmp_path):
    """But for the order of sums in float32: eight devices against one, losses to 1e-4 at the
    end."""
    workdir, results = finished
    config = tiny_config(source)
    config.mesh.data = 8
    found = run.train(config, tmp_path)
    for network in ("teacher", "student"):
        for name in ("mlm_loss", "nsp_loss"):
            assert found["networks"][network]["text"][name] == pytest.approx(
                results["networks"][network]["text"][name], rel=1e-4
            )
    ours, theirs = metrics(tmp_path), metrics(workdir)
    assert [row[:2] for row in ours] == [row[:2] for row in theirs]
    np.testing.assert_allclose([row[2] for row in ours], [row[2] for row in theirs], rtol=1e-3)


def test_rows_that_only_fill_a_batch_do_not_count_in_layer_losses(
    source, teacher_params, student_params
):
    """The last held-out batch is filled with copies: the same losses as without them."""
    rows = pretraining_batch(3)
    fake = types.SimpleNamespace(config=tiny_config(source), mesh=sharding.make_mesh(1))

    def losses(batch):
        fake.readers = types.SimpleNamespace(heldout=lambda feed, most: [only(batch, 5)])
        cast = cast_of(make_stage("progressive"))
        evaluate = run.Run._evaluator(fake, cast, given(cast, teacher_params))
        return evaluate(1, student_params)

    assert losses(rows) == pytest.approx(
        losses({name: value[:5] for name, value in rows.items()}), rel=1e-5
    )


def test_training_that_diverges_stops_and_says_what_to_change(source, tmp_path):
    config = tiny_config(source)
    config.stages.teacher.update({"learning_rate": 1e38, "steps": 20, "optimizer": "adamw"})
    config.max_skipped_in_a_row = 2
    with pytest.raises(TrainingStopped, match="config.stages.teacher.learning_rate"):
        run.train(config, tmp_path)


def test_the_student_is_exported_and_verified(finished, source, tmp_path):
    workdir, results = finished
    shutil.copytree(workdir, tmp_path / "w")
    config = tiny_config(source)
    config.export = True
    exported = run.train(config, tmp_path / "w")["export"]
    assert (
        exported["format"] == "huggingface"
        and (tmp_path / "w" / "student" / "model.safetensors").exists()
    )
    assert digest(from_pretrained(tmp_path / "w" / "student")[1]) == results["student_sha256"]


def test_a_bad_first_command_does_not_take_the_workdir(tmp_path, text_source):
    """Nothing depends on a recipe before its first stage: the corrected command may use the same
    folder."""
    config = tiny_config(text_source)
    config.order = ("teacher",)
    config.data.source = str(tmp_path / "typo.txt")
    with pytest.raises(BadInput, match="typo.txt"):
        run.train(config, tmp_path / "run")
    config.data.source = str(text_source)
    assert run.train(config, tmp_path / "run")["stages"]["teacher"]["steps"] == 6


def test_another_order_of_the_same_network_is_refused(tmp_path, text_source):
    """`order` may grow, but a finished stage is only taken for what it is: the end of the stages
    before it."""
    config = tiny_config(text_source)
    config.order = ("teacher", "transfer", "distill")
    run.train(config, tmp_path / "run")
    config.order = ("teacher", "distill")
    with pytest.raises(BadInput, match="transfer -> distill, now asked distill"):
        run.train(config, tmp_path / "run")


def test_two_runs_on_one_workdir_at_once_are_refused(tmp_path, text_source):
    from jaxdistill.workdir import lock

    config = tiny_config(text_source)
    (tmp_path / "run").mkdir()
    stored = json.dumps({"stages": {}, "order": []})
    (tmp_path / "run" / "config.json").write_text(stored)
    with lock(tmp_path / "run"), pytest.raises(BadInput, match="in use by another run"):
        run.train(config, tmp_path / "run")
    assert (
        tmp_path / "run" / "config.json"
    ).read_text() == stored  # the recipe of the run that is under way


def test_a_folder_in_which_a_kill_left_the_lock_alone_is_new(tmp_path, text_source):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").write_text("")
    assert Workdir(tmp_path / "run", tiny_config(text_source)).contents() == []


@pytest.mark.parametrize(
    "field, value",
    [
        ("log_every", 0),
        ("checkpoint.every_steps", 0),
        ("evaluation.batch_size", 0),
        ("data.mask_rate", 0.0),
        ("data.max_predictions", 0),
        ("checkpoint.keep", 0),
        ("checkpoint.every_minutes", -1.0),
        ("watchdog_minutes", float("nan")),
        ("watchdog_minutes", 1e12),
        ("profile", (5,)),
        ("profile", (5, 5)),
        ("profile", (1, 2, 3)),
        ("profile", ("a", "b")),
        ("profile", (10**6, 10**6 + 5)),
    ],
)
def test_settings_out_of_range_are_refused_before_anything_is_written(
    tmp_path, text_source, field, value
):
    config = tiny_config(text_source)
    section, _, name = field.rpartition(".")
    (config[section] if section else config)[name] = value
    words = "no stage has more than" if value == (10**6, 10**6 + 5) else "expected"
    with pytest.raises(BadInput, match=re.escape(f"config.{field}={value}") + f".*{words}"):
        run.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("text", ["", "{", "[]", "{}"])
def test_a_damaged_stage_page_is_one_clear_line(tmp_path, text_source, text):
    config = tiny_config(text_source)
    config.order = ("teacher",)
    config.stages.teacher.steps = 2
    run.train(config, tmp_path / "run")
    (tmp_path / "run" / "stages" / "teacher" / "stage.json").write_text(text)
    with pytest.raises(BadInput, match="damaged"):
        run.train(config, tmp_path / "run")
