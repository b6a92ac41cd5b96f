"""launch/speedrun.sh against a stand-in `jaxdistill`, and its commands against the real command
line."""

import sys

import pytest

from jaxdistill.cli import build_parser, split_overrides
from tests.launch.world import World


@pytest.fixture
def world(tmp_path):
    world = World(tmp_path)
    (world.folder / "config.json").write_text(
        '{"data": {"sequence_length": 64}}'
    )  # as the trainer leaves it
    (world.bin / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (world.bin / "python").chmod(0o755)
    return world


def launch(world, *train, options=(), **environment):
    return world.run(
        "speedrun.sh", *options, "--", f"--workdir={world.folder}", *train, **environment
    )


def steps(world):
    return [call[1] for call in world.calls("jaxdistill")]


def test_from_text_to_student(world):
    override = "--config.data.source=/my texts/a.txt"
    done = launch(world, override, options=("--plan=v5e:4x4", "--evaluate_on=/held out"))
    assert done.returncode == 0, done.stderr
    workdir, student = f"--workdir={world.folder}", f"{world.folder}/exported"
    assert world.calls("jaxdistill") == [
        ["jaxdistill", *call]
        for call in (
            ["plan", "--config=mobilebert", "--topology=v5e:4x4", override],
            ["prepare", "--config=mobilebert", workdir, override],
            ["train", "--config=mobilebert", workdir, override],
            ["export", f"--model={world.folder}", f"--out={student}"],
            [
                "evaluate",
                f"--model={student}",
                "--source=/held out",
                f"--teacher={world.folder}/stages/teacher",
                "--sequence_length=64",
            ],
        )
    ]
    for _, command, *arguments in world.calls("jaxdistill"):  # the real command line takes them
        _, rest = build_parser().parse_known_args([command, *arguments])
        assert split_overrides(command, rest, True) == [
            word.removeprefix("--config.") for word in arguments if word == override
        ]
    assert "still billed: this machine" in done.stderr


def test_another_recipe_and_nothing_twice(world):
    assert launch(world, "--config", "mobilebert:smoke").returncode == 0
    assert steps(world) == ["prepare", "train", "export", "evaluate"]
    (exported := world.folder / "exported").mkdir()
    (exported / "README.md").write_text("card")
    assert launch(world, "--config=mobilebert:smoke").returncode == 0
    assert steps(world)[4:] == ["prepare", "train", "evaluate"]
    assert all("--config=mobilebert" not in call for call in world.calls())


def test_a_student_in_a_bucket_is_not_exported_twice(world):
    """`export` refuses a folder that is there. A container may read the bucket and have no
    gcloud."""
    (world.bin / "gcloud").write_text("#!/bin/sh\nexit 127\n")
    there = 'test "$3" = gs://b/run/exported'
    (world.bin / "python").write_text(
        f'#!/bin/sh\ncase "$2" in *README.md*) {there} ;; *) echo 64 ;; esac\n'
    )
    assert launch(world, "--workdir=gs://b/run").returncode == 0
    assert steps(world) == ["prepare", "train", "evaluate"]
    (world.bin / "python").write_text(
        '#!/bin/sh\ncase "$2" in *README.md*) exit 1 ;; *) echo 64 ;; esac\n'
    )
    assert launch(world, "--workdir=gs://b/run").returncode == 0 and steps(world)[3:] == [
        "prepare",
        "train",
        "export",
        "evaluate",
    ]


@pytest.mark.parametrize("code", [2, 3, 75, 130])
def test_a_step_that_fails_is_the_last(world, code):
    world["runs"] = [f"{code} -"]
    assert launch(world).returncode == code and steps(world) == ["prepare", "train"]
    world["prepare_fails"] = ["bad text"]
    assert launch(world).returncode == 2 and steps(world)[2:] == ["prepare"]


@pytest.mark.parametrize("name", ["SLURM_PROCID", "TPU_WORKER_ID", "JAXDISTILL_PROCESS"])
def test_of_several_processes_the_first_exports(world, name):
    assert launch(world, "--distributed", **{name: "1"}).returncode == 0
    assert steps(world) == ["train"]
    assert launch(world, "--distributed", **{name: "0"}).returncode == 0
    assert steps(world)[1:] == ["train", "export", "evaluate"]


def test_one_host_of_several_leaves_the_slice_alone_when_it_exports(world):
    """libtpu would wait there for the other hosts."""
    (world.bin / "jaxdistill").write_text('#!/bin/sh\necho "$1 on ${JAX_PLATFORMS-all}"\n')
    done = launch(world, "--distributed")
    assert done.stdout.splitlines() == ["train on all", "export on cpu", "evaluate on cpu"]
    assert launch(world).stdout.splitlines()[-1] == "evaluate on all"
