"""launch/gke_xpk.sh against stand-ins: one workload at a time, made again until the run is done,
nobody else's touched."""

import shlex
import subprocess

import pytest

from tests.launch.world import World

TRAIN = ("--config=mobilebert", "--workdir=gs://bucket/run")


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def launch(world, *options, train=TRAIN):
    return world.run(
        "gke_xpk.sh",
        "--project=p",
        "--zone=z",
        "--cluster=c",
        "--type=v5e-16",
        *options,
        "--",
        *train,
    )


def verbs(world):
    return [call[2] for call in world.calls("xpk")]


ONE = ["create", "list", "delete"]


def test_create_wait_ask_delete(world):
    done = launch(world, "--create_flag=--priority=high")
    assert done.returncode == 0 and verbs(world) == ONE and "DONE" in world, done.stderr
    create, wait, delete = world.calls("xpk")
    assert {
        "--workload=jaxdistill",
        "--cluster=c",
        "--project=p",
        "--zone=z",
        "--tpu-type=v5litepod-16",
        "--num-slices=1",
        "--base-docker-image=python:3.11",
        "--termination-grace-period-seconds=60",
        "--priority=high",
    } < set(create)
    command = create[-1].removeprefix("--command=")
    assert (
        command.endswith(f"&& exec jaxdistill train --distributed {shlex.join(TRAIN)}")
        and "pip install" in command
    )
    assert "--wait-for-job-completion=jaxdistill" in wait and "--force" in delete
    assert (
        "still billed: cluster c in z, with all its nodes" in done.stderr
        and "STILL BILLED" not in done.stderr
    )
    assert not [call for call in world.calls() if call[1] == "cluster"]


def test_names_are_what_xpk_takes(world):
    for name in ("seventeen-letters", "Name", "a_b", "-a"):
        done = launch(world, f"--name={name}")
        assert done.returncode == 2 and "at most 16" in done.stderr and not world.calls()
    assert launch(world, "--name=sixteen-letters0").returncode == 0


def test_preempted_workloads_are_made_again(world):
    world["runs"] = ["75 -"] * 3
    done = launch(world, "--retries=0")
    assert done.returncode == 0 and verbs(world) == ONE * 4
    assert len({tuple(call) for call in world.calls("create")}) == 1


@pytest.mark.parametrize("runs", [["1 -"], ["137 -"], ["0 -"], ["1 DONE"]])
def test_failures_and_a_missing_done_are_tried_again(world, runs):
    world["runs"] = runs
    assert launch(world).returncode == 0 and verbs(world) == ONE * 2


@pytest.mark.parametrize("code", [2, 3])
def test_what_the_next_attempt_would_not_change_stops(world, code):
    world["runs"] = [f"{code} -"] * 3
    done = launch(world)
    assert (
        done.returncode == code and verbs(world) == ONE and "what the trainer said" in done.stdout
    )
    assert "STILL BILLED" not in done.stderr


def test_failures_in_a_row_end(world):
    world["runs"] = ["1 -"] * 9
    assert (
        launch(world, "--retries=3").returncode == 1
        and verbs(world) == ONE * 4
        and world.pauses() == [30, 60, 120]
    )


def test_no_quota_is_asked_again(world):
    world["create_fails"] = ["quota exceeded"] * 3
    assert launch(world).returncode == 0 and verbs(world) == ["create"] * 3 + ONE


def test_a_lost_connection_waits_for_the_same_workload(world):
    world["list_fails"] = ["could not reach the cluster"] * 2
    assert launch(world).returncode == 0 and verbs(world) == [
        "create",
        "list",
        "list",
        "list",
        "delete",
    ]
    world["list_fails"] = ["could not reach the cluster"] * 9
    done = launch(world, "--retries=1")
    assert (
        done.returncode == 1
        and "STILL BILLED until it ends or you delete it: workload jaxdistill" in done.stderr
    )


def test_somebody_elses_workload_is_left_alone(world):
    for command in (
        "sleep 1d",
        "export JAXDISTILL_RUN=1; jaxdistill train --workdir=gs://bucket/run2",
    ):
        world["workload"] = [command]
        done = launch(world)
        assert done.returncode == 2 and "is not of this run" in done.stderr and "workload" in world
    assert "delete" not in verbs(world) and "STILL BILLED" not in done.stderr


def test_an_earlier_calls_workload_is_waited_for(world):
    world["list_fails"] = ["lost"] * 2
    assert launch(world, "--retries=0").returncode == 1 and "workload" in world
    assert launch(world, "--retries=1").returncode == 0
    assert verbs(world) == ["create", "list", "create", "list", "list", "delete"]


def test_never_a_delete_without_a_name(world):
    """It would delete every workload of the cluster."""
    world["runs"] = ["75 -", "1 -", "0 -"]
    assert launch(world, "--name=mine").returncode == 0
    assert (
        all("--workload=mine" in call for call in world.calls("delete"))
        and len(world.calls("delete")) == 4
    )


def test_arguments_with_spaces_reach_the_trainer(world):
    train = (
        "--config=mobilebert",
        "--workdir=gs://bucket/a run",
        "--config.data.source=/my texts/it's $HOME `id`.txt",
    )
    assert launch(world, "--image=gcr.io/p/i", train=train).returncode == 0
    (create,) = world.calls("create")
    command = create[-1].removeprefix("--command=").replace("exec jaxdistill", "printf '%s\\n'")
    seen = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert seen.stdout.splitlines() == ["train", "--distributed", *train]
    assert "--docker-image=gcr.io/p/i" in create and not [
        word for word in create if word.startswith("--base")
    ]
