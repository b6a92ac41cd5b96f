"""launch/tpu_vm.sh against stand-ins: create, wait, install, run, delete, and what happens when
each of them fails."""

import os
import shlex
import signal
import subprocess
import time

import pytest

from tests.launch.world import LAUNCH, World

TRAIN = ("--config=mobilebert", "--workdir=gs://bucket/run")
MARK = (
    subprocess.run(["cksum"], input=b"gs://bucket/run", capture_output=True)
    .stdout.decode()
    .split()[0]
)


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def launch(world, *options, train=TRAIN):
    return world.run(
        "tpu_vm.sh", "--project=p", "--zone=z", "--type=v5e-16", *options, "--", *train
    )


def verbs(world):
    """The story of a launch in one word a call, pauses and looks left out."""
    story = []
    for call in world.calls("gcloud"):
        text = " ".join(call)
        for verb, sign in {
            "create": "queued-resources create",
            "delete": "queued-resources delete",
            "ask": "storage ls",
            "install": "on_worker.sh install",
            "run": "on_worker.sh run",
            "log": ":jaxdistill/run.log",
            "send": "jaxdistill.tar.gz",
        }.items():
            if sign in text:
                story.append(verb)
    return story


ONE = ["create", "send", "install", "run"]


def test_create_wait_install_run_ask_log_delete(world):
    done = launch(world)
    assert done.returncode == 0, done.stderr
    assert verbs(world) == [*ONE, "ask", "log", "delete"]
    (create,) = world.calls("create")
    assert {
        "jaxdistill",
        "--project=p",
        "--zone=z",
        "--node-id=jaxdistill",
        "--accelerator-type=v5litepod-16",
        "--runtime-version=v2-alpha-tpuv5-lite",
        f"--labels=jaxdistill={MARK}",
    } < set(create) and "--spot" not in create
    assert all("--worker=all" in call for call in world.calls("ssh"))
    run = world.calls("ssh")[-1][-1].removeprefix("--command=")
    assert shlex.split(run)[:3] == ["bash", "on_worker.sh", "run"] and shlex.split(run)[3].isdigit()
    assert shlex.split(run)[4:] == ["jaxdistill", "train", "--distributed", *TRAIN]
    for state in ("WAITING_FOR_RESOURCES", "PROVISIONING"):
        assert f"slice jaxdistill is {state}" in done.stderr
    assert (
        "STILL BILLED" not in done.stderr
        and "still billed: what is stored in gs://bucket/run" in done.stderr
    )
    assert "state" not in world and "DONE" in world


@pytest.mark.parametrize(
    "kind, image",
    [
        ("v2-8", "tpu-ubuntu2204-base"),
        ("v4-32", "tpu-ubuntu2204-base"),
        ("v5litepod-4", "v2-alpha-tpuv5-lite"),
        ("v5p-8", "v2-alpha-tpuv5"),
        ("v6e-8", "v2-alpha-tpuv6e"),
    ],
)
def test_plain_images(world, kind, image):
    assert launch(world, f"--type={kind}", "--create_flag=--network=my net").returncode == 0
    (create,) = world.calls("create")
    assert (
        f"--runtime-version={image}" in create
        and f"--accelerator-type={kind}" in create
        and "--network=my net" in create
    )


@pytest.mark.parametrize(
    "option, words",
    [
        ("--type=tpu7x-8", "gke_xpk.sh"),
        ("--type=h100", "unknown"),
        ("--runtime_version=tpu-vm-tf-2.16.1-pod-pjrt", "TensorFlow"),
        ("--name=My slice", "no name"),
    ],
)
def test_what_cannot_be_created_is_refused(world, option, words):
    done = launch(world, option)
    assert done.returncode == 2 and words in done.stderr and not world.calls()


@pytest.mark.parametrize(
    "code", [75, 255, 1]
)  # saved in time; ssh cut by it; some worker died of it
def test_a_slice_that_is_taken_away_is_made_again_and_the_run_goes_on(world, code):
    world["runs"] = [f"{code} - SUSPENDING"] * 2
    done = launch(world, "--spot", "--retries=0")  # preemptions are no failures
    assert done.returncode == 0, done.stderr
    assert verbs(world)[-7:] == [*ONE, "ask", "log", "delete"] and verbs(world).count("create") == 3
    assert all("--spot" in call for call in world.calls("create"))
    runs = [
        call[-1].split("on_worker.sh run ")[1].split(" ", 1)
        for call in world.calls("ssh")
        if "on_worker.sh run" in call[-1]
    ]
    assert (
        len({command for _, command in runs}) == 1 and len({number for number, _ in runs}) == 3
    )  # the same command resumes
    assert verbs(world).count("delete") == 3 and "state" not in world


def test_a_lost_ssh_finds_the_same_slice_again(world):
    world["runs"] = ["255 -", "255 -"]
    assert launch(world).returncode == 0
    assert verbs(world) == [*ONE, *ONE[1:], *ONE[1:], "ask", "log", "delete"]
    world["ssh_fails"] = ["ssh: connect to host: Connection timed out"]
    assert launch(world).returncode == 0 and len(world.calls("create")) == 2


def test_workers_out_of_reach_keep_what_runs_on_them(world):
    world["runs"] = ["255 -"] * 9
    done = launch(world, "--retries=2")
    assert done.returncode == 255 and "delete" not in verbs(world)
    assert "STILL BILLED" in done.stderr and "queued-resources delete jaxdistill" in done.stderr


def test_no_quota_is_asked_again_with_longer_pauses(world):
    world["create_fails"] = ["RESOURCE_EXHAUSTED: Quota limit exceeded"] * 7
    done = launch(world)
    assert done.returncode == 0 and "Quota limit exceeded" in done.stderr
    assert world.pauses()[:7] == [30, 60, 120, 240, 480, 480, 480]
    assert verbs(world)[6:] == ["create", *ONE, "ask", "log", "delete"]


def test_google_out_of_reach_creates_nothing_twice(world):
    world["runs"] = ["255 -"]
    world["describe_fails"] = ["", "network is unreachable"]
    assert launch(world).returncode == 0
    world["describe_fails"] = ["network is unreachable"] * 3
    assert launch(world).returncode == 0 and len(world.calls("create")) == 2


def test_success_without_done_is_not_done(world):
    world["runs"] = ["0 -", "0 -"]
    done = launch(world)
    assert done.returncode == 0 and verbs(world).count("run") == 3
    assert "gs://bucket/run/DONE is not there" in done.stderr


def test_done_without_success_is_not_done_either(world):
    world["runs"] = ["1 DONE"]
    assert launch(world).returncode == 0 and verbs(world).count("run") == 2


@pytest.mark.parametrize("code", [2, 3, 130])
def test_what_the_next_attempt_would_not_change_stops_and_is_not_billed_on(world, code):
    world["runs"] = [f"{code} -"] * 5
    done = launch(world)
    assert done.returncode == code and verbs(world) == [*ONE, "log", "delete"]
    assert "STILL BILLED" not in done.stderr


def test_a_refusal_of_google_stops(world):
    world["create_fails"] = ["ERROR: PERMISSION_DENIED: who are you?"] * 5
    done = launch(world)
    assert done.returncode == 2 and verbs(world) == ["create"] and "who are you?" in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        "ERROR: PERMISSION_DENIED: who are you?",
        "ERROR: (gcloud) You do not currently have an active account selected.",
    ],
)
def test_a_refusal_to_say_whether_there_is_a_slice_stops_too(world, words):
    """But not when the slice is known to be ours: it runs on, and a token that has expired may be
    renewed."""
    world["describe_fails"] = [words] * 5
    done = launch(world)
    assert (
        done.returncode == 2 and verbs(world) == [] and words in done.stderr and not world.pauses()
    )
    world["runs"], world["describe_fails"] = ["255 -"], ["", "", "", words, words]
    assert launch(world).returncode == 0 and verbs(world) == [
        *ONE,
        *ONE[1:],
        "ask",
        "log",
        "delete",
    ]


def test_failures_in_a_row_end_with_everything_deleted(world):
    world["runs"] = ["1 -"] * 3 + ["75 - SUSPENDED"] + ["1 -"] * 9
    done = launch(world, "--retries=3")
    assert (
        done.returncode == 1
        and verbs(world).count("run") == 3 + 1 + 4
        and verbs(world)[-1] == "delete"
    )
    assert "given up after 4 failures" in done.stderr and "STILL BILLED" not in done.stderr


@pytest.mark.parametrize("label", ["", "1234"])
def test_somebody_elses_slice_is_left_alone(world, label):
    world["state"], world["label"] = ["ACTIVE"], [label]
    done = launch(world)
    assert done.returncode == 2 and "is not of this run; give another --name" in done.stderr
    assert verbs(world) == [] and "state" in world and "STILL BILLED" not in done.stderr


def test_a_name_that_somebody_else_took_meanwhile_is_left_alone(world):
    world["create_fails"] = ["ALREADY_EXISTS"]
    assert launch(world).returncode == 2 and verbs(world) == ["create"]


def test_an_earlier_calls_slice_is_found_again(world):
    world["state"], world["label"] = ["PROVISIONING"], [MARK]
    assert launch(world).returncode == 0 and verbs(world) == [*ONE[1:], "ask", "log", "delete"]


def test_a_slice_that_somebody_deleted_stays_deleted(world):
    world["runs"] = ["255 - NONE"]
    done = launch(world)
    assert (
        done.returncode == 130
        and "somebody deleted" in done.stderr
        and verbs(world).count("create") == 1
    )


def test_only_the_slice_is_ever_deleted(world):
    world["runs"] = ["75 - SUSPENDED", "1 -", "0 -"]
    assert launch(world, "--name=mine").returncode == 0
    removing = [call for call in world.calls() if {"delete", "rm", "rb", "clean"} & set(call)]
    assert len(removing) == 2 and all(
        call[1:6] == ["compute", "tpus", "queued-resources", "delete", "mine"] for call in removing
    )


def test_a_slice_that_is_kept_or_cannot_be_deleted_is_said_to_cost(world):
    kept = launch(world, "--keep")
    world["delete_fails"] = ["the network is down"]
    stuck = launch(world)
    for done in (kept, stuck):
        assert (
            done.returncode == 0
            and "STILL BILLED until you delete it: slice jaxdistill (v5litepod-16, z)"
            in done.stderr
        )
        assert (
            "gcloud compute tpus queued-resources delete jaxdistill --project=p --zone=z --quiet --force"
            in done.stderr
        )


def test_an_interrupted_launcher_leaves_the_slice_and_says_so(world):
    world["state"], world["label"] = ["QUEUED"], [MARK]  # for ever
    command = [str(LAUNCH / "tpu_vm.sh"), "--project=p", "--zone=z", "--type=v5e-16", "--", *TRAIN]
    with subprocess.Popen(
        command, cwd=world.folder, env=world.environment(), text=True, stderr=subprocess.PIPE
    ) as running:
        while not world.calls("sleep"):
            time.sleep(0.01)
        os.kill(running.pid, signal.SIGTERM)
        said = running.stderr.read()
    assert running.returncode == 143 and "STILL BILLED" in said and verbs(world) == []


def test_arguments_with_spaces_reach_the_trainer(world):
    train = (
        "--config=mobilebert",
        "--workdir=gs://bucket/a run",
        "--config.data.source=/my texts/it's $HOME `id`.txt",
        "--config.x=",
    )
    assert launch(world, train=train).returncode == 0
    run = world.calls("ssh")[-1][-1].removeprefix("--command=")
    seen = subprocess.run(
        ["bash", "-c", run.replace("bash on_worker.sh run", "printf '%s\\n'")],
        capture_output=True,
        text=True,
    )
    assert seen.stdout.splitlines()[1:] == ["jaxdistill", "train", "--distributed", *train]
    assert world.calls("storage")[-1][-1] == "gs://bucket/a run/DONE"


def test_the_recipe_from_text_to_student_in_its_place(world):
    assert launch(world, "--speedrun").returncode == 0
    run = shlex.split(world.calls("ssh")[-1][-1].removeprefix("--command="))
    assert run[4:] == ["bash", "launch/speedrun.sh", "--", "--distributed", *TRAIN]
