"""Several processes, one run: two real ones with two devices each, killed, resumed by one with
four."""

import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest

from jaxdistill import run
from jaxdistill.configuration import load_config
from jaxdistill.errors import BadInput, JaxDistillError, Preempted
from jaxdistill.training import hosts
from jaxdistill.training.metrics import read_metrics
from tests.conftest import write_table, write_text

ROOT = pathlib.Path(__file__).parent.parent.parent
RECIPE = """
from jaxdistill import defaults
from tests.conftest import tiny_config

def get_config(variant=""):
    config = tiny_config({source!r})
    config.mesh.update({{"data": 2, "fsdp": 2}})
    config.stages.transfer.steps, config.checkpoint.every_steps = 120, 5
    config.stages.transfer.learning_rate = 1e-4  # at a large one the order of sums in float32 grows to anything
    config.order = ("teacher", "transfer", "distill")
    if variant == "task":
        config.feeds.rivers = defaults.task("classification", source={table!r}, sequence_length=16)
        config.networks.student.start = "random"
        config.networks.student.heads = ("sequence_classification",)
        config.stages.task = defaults.stage(
            "finetune", "student", feed="rivers", steps=80, batch_size=8, optimizer="adamw", dropout=True,
            learning_rate=3e-3, best="accuracy", best_every=5, patience=3,
        )
        config.order = ("task",)
    return config
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hosts")
    source, table = write_text(folder / "text.txt"), write_table(folder / "task.tsv")
    (folder / "recipe.py").write_text(RECIPE.format(source=str(source), table=str(table)))
    return folder / "recipe.py"


def launch(
    recipe,
    workdir,
    processes=2,
    settings=(),
    only_second=(),
    program_of_second=("-m", "jaxdistill.cli"),
):
    """Starts the processes of one run, two devices each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=2",
    }
    options = [
        "train",
        f"--config={recipe}",
        f"--workdir={workdir}",
        f"--coordinator=localhost:{port}",
        f"--num_processes={processes}",
        *settings,
    ]
    programs = ("-m", "jaxdistill.cli"), program_of_second
    commands = [
        [
            sys.executable,
            *programs[i > 0],
            *options,
            f"--process_id={i}",
            *(only_second if i else ()),
        ]
        for i in range(processes)
    ]
    return [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for command in commands
    ]


def finish(processes, timeout=240):
    """[(exit code, standard output, standard error)]."""
    found = []
    for process in processes:
        out, err = process.communicate(timeout=timeout)
        found.append((process.returncode, out, err))
    return found


def kill_after(processes, path, timeout=240):
    """Kills all of them, as a lost slice would, once `path` is there."""
    end = time.monotonic() + timeout
    while (
        not path.exists()
        and time.monotonic() < end
        and all(process.poll() is None for process in processes)
    ):
        time.sleep(0.05)
    for process in processes:
        process.send_signal(signal.SIGKILL)
    errors = [err for _, _, err in finish(processes)]
    assert path.exists(), errors


def losses(workdir):
    return [
        (row["stage"], row["step"], row["loss"]) for row in read_metrics(workdir) if "loss" in row
    ]


@pytest.mark.slow
def test_two_processes_killed_and_resumed_by_one(recipe, tmp_path):
    """A task's stage, whose program is small: losses of every step and the score are those of one
    uninterrupted process (float32 sums in another order)."""
    task, settings = f"{recipe}:task", ["stages.task.patience=0", "stages.task.steps=40"]
    config = load_config(task, settings)
    processes = launch(task, tmp_path / "two", settings=[f"--config.{text}" for text in settings])
    kill_after(processes, tmp_path / "two" / "checkpoints" / "task" / "10")
    assert losses(tmp_path / "two")[-1][1] < 40
    resumed, whole = run.train(config, tmp_path / "two"), run.train(config, tmp_path / "one")
    ours, theirs = losses(tmp_path / "two"), losses(tmp_path / "one")
    assert [row[:2] for row in ours] == [row[:2] for row in theirs]
    np.testing.assert_allclose([row[2] for row in ours], [row[2] for row in theirs], rtol=1e-3)
    scores = [found["networks"]["student"]["rivers"] for found in (resumed, whole)]
    assert scores[0] == pytest.approx(scores[1], rel=1e-3)


@pytest.mark.slow
def test_two_processes_killed_within_a_transfer_and_resumed_by_one(recipe, tmp_path):
    """Through a stage border: the teacher's stage is finished and read back, the next one resumes
    from its checkpoint; losses of every step and the final numbers are those of one uninterrupted
    process (float32 sums in another order)."""
    shorter = ["stages.transfer.steps=40", "order=('teacher', 'transfer')"]
    config = load_config(str(recipe), shorter)
    processes = launch(
        recipe, tmp_path / "two", settings=[f"--config.{setting}" for setting in shorter]
    )
    kill_after(processes, tmp_path / "two" / "checkpoints" / "transfer" / "10")
    before = losses(tmp_path / "two")
    assert {stage for stage, _, _ in before} == {"teacher", "transfer"} and before[-1][1] < 40
    resumed = run.train(config, tmp_path / "two")
    whole = run.train(config, tmp_path / "one")
    ours, theirs = losses(tmp_path / "two"), losses(tmp_path / "one")
    assert [row[:2] for row in ours] == [row[:2] for row in theirs]
    np.testing.assert_allclose([row[2] for row in ours], [row[2] for row in theirs], rtol=1e-3)
    for network in ("teacher", "student"):
        for name in ("mlm_loss", "nsp_loss"):
            assert resumed["networks"][network]["text"][name] == pytest.approx(
                whole["networks"][network]["text"][name], rel=1e-4
            )


def wait_for(path, processes=(), timeout=240):
    end = time.monotonic() + timeout
    while (
        not path.exists()
        and time.monotonic() < end
        and all(process.poll() is None for process in processes)
    ):
        time.sleep(0.05)
    assert path.exists()


@pytest.mark.slow
def test_preempted_by_turns_one_process_hands_over_to_two_and_they_to_one(recipe, tmp_path):
    """Each resumes from the other's checkpoint. Of the two only the second is told; both save the
    same step and end with 75 in time, and no DONE stands there before the end."""
    config, workdir = load_config(str(recipe)), tmp_path / "w"
    transfer = workdir / "checkpoints" / "transfer"

    def preempt():
        wait_for(transfer / "10")
        os.kill(os.getpid(), signal.SIGTERM)

    notice = threading.Thread(target=preempt)
    notice.start()
    with pytest.raises(Preempted, match="in stage 'transfer' after"):
        run.train(config, workdir)
    notice.join()
    first = max(int(path.name) for path in transfer.iterdir())
    processes = launch(recipe, workdir)
    wait_for(transfer / str(5 * (first // 5) + 20), processes)
    sent = time.monotonic()
    processes[1].send_signal(signal.SIGTERM)
    found = finish(processes)
    assert time.monotonic() - sent < 30 and [code for code, _, _ in found] == [75, 75], found
    told = [
        line for _, _, err in found for line in err.splitlines() if "everything is saved" in line
    ]
    steps = {line.split(" after ")[1].split()[0] for line in told}
    assert (
        steps == {str(max(int(path.name) for path in transfer.iterdir()))}
        and not (workdir / "DONE").exists()
    )
    resumed, whole = run.train(config, workdir), run.train(config, tmp_path / "one")
    ours, theirs = losses(workdir), losses(tmp_path / "one")
    assert [row[:2] for row in ours] == [row[:2] for row in theirs] and (workdir / "DONE").exists()
    np.testing.assert_allclose([row[2] for row in ours], [row[2] for row in theirs], rtol=1e-3)
    assert resumed["networks"]["student"]["text"]["mlm_loss"] == pytest.approx(
        whole["networks"]["student"]["text"]["mlm_loss"], rel=1e-4
    )


CANNOT_READ = """
import sys
import orbax.checkpoint as ocp
from jaxdistill import cli

real, newest = ocp.StandardCheckpointHandler.restore, []

def restore(self, folder, **options):
    newest.append(folder.parent.name)
    if folder.parent.name == newest[0]:
        raise ValueError("DATA_LOSS: a bad cable")
    return real(self, folder, **options)

ocp.StandardCheckpointHandler.restore = restore
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_damage_that_one_process_sees_sends_all_back(recipe, tmp_path):
    """The others have read it whole by then; none waits for one that went another way."""
    transfer = tmp_path / "checkpoints" / "transfer"
    kill_after(launch(recipe, tmp_path), transfer / "15")
    newest = max(int(path.name) for path in transfer.iterdir() if path.name.isdigit())
    processes = launch(recipe, tmp_path, program_of_second=("-c", CANNOT_READ))
    found = finish(processes)
    assert [code for code, _, _ in found] == [0, 0], found
    assert f"is damaged (another process cannot read it): kept as damaged-{newest}" in found[0][2]


@pytest.mark.slow
def test_the_same_processes_resume_to_the_bit(recipe, tmp_path):
    assert [code for code, _, _ in finish(launch(recipe, tmp_path / "whole"))] == [0, 0]
    processes = launch(recipe, tmp_path / "killed")
    kill_after(processes, tmp_path / "killed" / "checkpoints" / "transfer" / "10")
    shutil.copytree(tmp_path / "killed", tmp_path / "copy")
    found = finish(launch(recipe, tmp_path / "killed"))
    assert [code for code, _, _ in found] == [0, 0], found
    assert (
        "Everything is in" in found[0][1] and "Everything" not in found[1][1]
    )  # one process reports (gloo, too, prints)
    shas = [
        json.loads((tmp_path / name / "results.json").read_text())["student_sha256"]
        for name in ("whole", "killed")
    ]
    assert shas[0] == shas[1]


@pytest.mark.slow
def test_a_task_ends_early_on_all_processes_alike(recipe, tmp_path):
    """Two processes, killed and resumed, and one by itself: the same scores at the same steps, the same
    end, the same best state; the answers are those of the whole held-out set."""
    task = f"{recipe}:task"
    kill_after(launch(task, tmp_path / "two"), tmp_path / "two" / "checkpoints" / "task" / "10")
    found = finish(launch(task, tmp_path / "two"))
    assert [code for code, _, _ in found] == [0, 0], found
    assert [code for code, _, _ in finish(launch(task, tmp_path / "whole"))] == [0, 0]
    whole = run.train(load_config(task), tmp_path / "one")
    pages, rows, answers = [], [], []
    for name in ("two", "whole", "one"):
        folder = tmp_path / name
        pages.append(json.loads((folder / "stages" / "task" / "stage.json").read_text()))
        rows.append(json.loads((folder / "results.json").read_text())["networks"]["student"])
        answers.append((folder / "predictions" / "rivers" / "student.tsv").read_text())
    for page, row, text in zip(pages, rows, answers):
        assert page["measured"] == pages[2]["measured"] and page["best"] == pages[2]["best"]
        assert page["steps"] == pages[2]["steps"] < 80
        assert row["rivers"]["accuracy"] == whole["networks"]["student"]["rivers"]["accuracy"]
        assert text == answers[2]
    assert pages[0]["sha256"] == pages[1]["sha256"]


def complaints(found):
    """The one line that each process of a refused run prints."""
    lines = []
    for code, _, err in found:
        own = [line for line in err.splitlines() if line.startswith("jaxdistill:")]
        assert code == 2 and len(own) == 1 and "Traceback" not in err, err
        lines += own
    return lines


def test_bad_input_ends_every_process_with_one_line(recipe, tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "letter.txt").write_text("mine")
    assert all(
        "is not empty and holds no run" in line
        for line in complaints(finish(launch(recipe, tmp_path / "taken")))
    )
    assert sorted(path.name for path in (tmp_path / "taken").iterdir()) == ["letter.txt"]


@pytest.mark.slow
def test_processes_with_unlike_recipes_are_refused(recipe, tmp_path):
    """They would train on, each with updates of its own."""
    lines = complaints(
        finish(launch(recipe, tmp_path, only_second=["--config.stages.distill.learning_rate=0.5"]))
    )
    assert all("the processes of this run differ in their recipes" in line for line in lines)


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(coordinator="localhost:1"), "--num_processes, --process_id missing"),
        (dict(num_processes=2, process_id=0), "--coordinator missing"),
        (dict(coordinator="localhost:1", num_processes=2), "--process_id missing"),
    ],
)
def test_an_incomplete_address_is_refused(options, words):
    with pytest.raises(BadInput, match=words):
        hosts.connect(**options)


@pytest.mark.parametrize(
    "error, code",
    [
        (ValueError("coordinator_address should be defined."), 2),
        (RuntimeError("Failed to recognize coordinator address worker-0"), 1),
    ],
)
def test_a_process_that_is_late_is_no_bad_input(monkeypatch, error, code):
    """Exit code 2 ends a launcher's loop; the next attempt may find everybody."""

    def initialize(*_):
        raise error

    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    with pytest.raises(JaxDistillError, match="cannot join") as caught:
        hosts.connect(distributed=True)
    assert caught.value.exit_code == code


def test_one_process_is_alone():
    hosts.connect()
    hosts.wait("nobody")
    assert hosts.first() and hosts.largest(-3) == -3 and hosts.in_turn(lambda: 5) == 5
    with pytest.raises(BadInput, match="why"):
        hosts.in_turn(_refuse)


def _refuse():
    raise BadInput("why")
