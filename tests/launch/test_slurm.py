"""launch/slurm.sh against stand-ins: what is submitted, and what a job does with each exit code."""

import shutil

import pytest

from tests.launch.world import LAUNCH, World


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def train(world):
    return (
        "--config=mobilebert",
        f"--workdir={world.folder}",
        "--config.data.source=/my texts/it's $HOME.txt",
    )


def job(world, *options, script="slurm.sh", **environment):
    slurm = {"SLURM_JOB_ID": "4711", "SLURM_GPUS_ON_NODE": "8", "SLURM_NTASKS_PER_NODE": "8"}
    return world.run(script, *options, "--", *train(world), **{**slurm, **environment})


def test_a_job_is_submitted_with_one_process_a_gpu(world):
    done = world.run(
        "slurm.sh",
        "--partition=gpu",
        "--nodes=2",
        "--gpus_per_node=4",
        "--time=1-00:00:00",
        "--retries=5",
        "--create_flag=--account=a b",
        "--",
        *train(world),
    )
    assert done.returncode == 0 and done.stdout == "4711\n" and "scancel 4711" in done.stderr, (
        done.stderr
    )
    assert world.calls() == [
        [
            "sbatch",
            "--parsable",
            "--partition=gpu",
            "--nodes=2",
            "--gpus-per-node=4",
            "--ntasks-per-node=4",
            "--time=1-00:00:00",
            "--account=a b",
            str(LAUNCH / "slurm.sh"),
            "--retries=5",
            "--",
            *train(world),
        ]
    ]


def test_a_refused_job_says_that_nothing_costs(world):
    world["sbatch_fails"] = ["sbatch: error: invalid partition specified: gpu"]
    done = world.run("slurm.sh", "--partition=gpu", "--", *train(world))
    assert (
        done.returncode == 1
        and "invalid partition" in done.stderr
        and "nothing was submitted" in done.stderr
    )


def test_a_job_needs_the_program(world):
    (world.bin / "jaxdistill").unlink()
    path = f"{world.bin}:/usr/bin:/bin"
    done = world.run("slurm.sh", "--partition=gpu", "--", *train(world), PATH=path)
    assert (
        done.returncode == 2 and "activate the one that has it" in done.stderr and not world.calls()
    )


def test_a_job_runs_one_step_and_is_done(world):
    done = job(world)
    assert done.returncode == 0, done.stderr
    assert world.calls() == [
        ["srun", "--kill-on-bad-exit=0", "jaxdistill", "train", "--distributed", *train(world)]
    ]
    assert "gives its nodes back" in done.stderr


def test_a_preempted_job_is_queued_again(world):
    world["runs"] = ["75 -"]
    done = job(world)
    assert done.returncode == 75 and world.calls("scontrol") == [["scontrol", "requeue", "4711"]]
    assert len(world.calls("srun")) == 1 and "DONE" not in world
    assert job(world).returncode == 0  # its next turn


def test_a_cancelled_job_stays_cancelled(world):
    world["runs"], world["job_state"] = ["75 -"], ["COMPLETING"]
    assert job(world).returncode == 75 and not world.calls("scontrol")


@pytest.mark.parametrize("runs", [["1 -"], ["143 -"], ["0 -"], ["1 DONE"]])
def test_failures_and_a_missing_done_are_tried_again(world, runs):
    world["runs"] = runs
    assert job(world).returncode == 0 and len(world.calls("srun")) == 2 and world.pauses() == [30]


@pytest.mark.parametrize("code", [2, 3, 130])
def test_what_the_next_attempt_would_not_change_stops(world, code):
    world["runs"] = [f"{code} -"] * 3
    assert (
        job(world).returncode == code
        and len(world.calls("srun")) == 1
        and not world.calls("scontrol")
    )


def test_failures_in_a_row_end(world):
    world["runs"] = ["1 -"] * 9
    assert job(world, "--retries=2").returncode == 1 and world.pauses() == [30, 60]


def test_idle_gpus_are_refused(world):
    """JAX takes one GPU a process under Slurm: a node's others would idle, and be charged."""
    done = job(world, SLURM_NTASKS_PER_NODE="1")
    assert (
        done.returncode == 2
        and "give --ntasks-per-node=8" in done.stderr
        and not world.calls("srun")
    )


def test_slurms_copy_of_the_script_finds_its_neighbours(world, tmp_path):
    """Slurm runs a copy from a folder of its own."""
    copy = tmp_path / "slurm_script"
    shutil.copy(LAUNCH / "slurm.sh", copy)
    assert job(world, script=copy, JAXDISTILL_LAUNCH=str(LAUNCH)).returncode == 0
    assert job(world, script=copy, SLURM_SUBMIT_DIR=str(LAUNCH.parent)).returncode == 0
    done = job(world, script=copy, SLURM_SUBMIT_DIR=str(tmp_path))
    assert done.returncode == 2 and "submit from the top of the repository" in done.stderr


def test_slurm_reads_what_it_needs_from_the_top(world):
    lines = (LAUNCH / "slurm.sh").read_text().splitlines()
    head = lines[
        1 : next(i for i, line in enumerate(lines) if i and not line.startswith("#SBATCH"))
    ]
    assert {"#SBATCH --requeue", "#SBATCH --signal=TERM@120", "#SBATCH --open-mode=append"} < set(
        head
    )
