"""What all launch scripts do alike: help, refusals, dry run, arguments that survive, shellcheck."""

import shlex
import shutil
import subprocess

import pytest

from tests.launch.world import LAUNCH, World

TRAIN = (
    "--",
    "--config=mobilebert",
    "--workdir=gs://bucket/a run",
    "--config.data.source=/my texts/it's $HOME.txt",
)
GIVEN = {
    "tpu_vm.sh": ("--project=p", "--zone=z", "--type=v5e-16"),
    "gke_xpk.sh": ("--project=p", "--zone=z", "--cluster=c", "--type=v5e-16"),
    "slurm.sh": ("--partition=gpu",),
    "speedrun.sh": (),
}


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def refused(done):
    assert done.returncode == 2 and done.stdout == "", done
    (line,) = [line for line in done.stderr.splitlines() if "--help" in line]
    return line


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
def test_shellcheck():
    scripts = sorted(map(str, LAUNCH.glob("*.sh")))
    done = subprocess.run(
        ["shellcheck", *scripts], cwd=LAUNCH.parent, capture_output=True, text=True
    )
    assert len(scripts) == 6 and done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", GIVEN)
def test_help_names_every_option(script, world):
    done = world.run(script, "--help")
    assert done.returncode == 0 and done.stdout.startswith(
        ("Runs `jaxdistill train`", "The published recipe")
    )
    assert "set -" not in done.stdout and "#SBATCH" not in done.stdout
    (parse,) = [
        line for line in (LAUNCH / script).read_text().splitlines() if line.startswith("parse ")
    ]
    valued, flags = shlex.split(parse)[1:3]
    for option in [*valued.split(), *flags.split(), "dry_run"]:
        assert f"--{option}" in done.stdout, option


@pytest.mark.parametrize("script", GIVEN)
def test_what_is_missing_is_one_line_and_calls_nothing(script, world):
    for i, option in enumerate(GIVEN[script]):
        others = GIVEN[script][:i] + GIVEN[script][i + 1 :]
        assert f"missing: {option.split('=')[0]}=" in refused(world.run(script, *others, *TRAIN))
    assert "--workdir=... among the arguments of train" in refused(
        world.run(script, *GIVEN[script], "--", "--config=mobilebert")
    )
    assert "'--zoen=z' is unknown" in refused(world.run(script, *GIVEN[script], "--zoen=z", *TRAIN))
    assert "'--config=mobilebert' is unknown" in refused(
        world.run(script, *GIVEN[script], "--config=mobilebert", *TRAIN)
    )
    assert "come after --" in refused(world.run(script, *GIVEN[script], "mobilebert", *TRAIN))
    assert "--config.order" in refused(
        world.run(script, *GIVEN[script], *TRAIN, "--stages=teacher")
    )  # would never be done
    for number in ("many", "-1", "08"):
        assert f"--retries={number} is no number" in refused(
            world.run(script, *GIVEN[script], f"--retries={number}", *TRAIN)
        )
    assert not world.calls()


@pytest.mark.parametrize("script", [script for script in GIVEN if GIVEN[script]])
def test_what_is_missing_comes_with_how_to_call_it(script, world):
    line = refused(world.run(script, *TRAIN))
    assert (
        f"usage: launch/{script} {' '.join(GIVEN[script])[:9]}" in line and " -- --config=" in line
    )


@pytest.mark.parametrize("script", [script for script in GIVEN if GIVEN[script]])
def test_an_option_is_no_value_of_the_one_before_it(script, world):
    """It was: a dry run whose last option lacked its value created a slice."""
    for option in GIVEN[script]:
        name = option.split("=")[0]
        assert f"{name}=..." in refused(
            world.run(script, *GIVEN[script], name, "--dry-run", *TRAIN)
        )
    assert not world.calls()


@pytest.mark.parametrize(
    "script, program",
    [
        ("tpu_vm.sh", "gcloud"),
        ("gke_xpk.sh", "xpk"),
        ("gke_xpk.sh", "kubectl"),
        ("gke_xpk.sh", "gcloud"),
        ("slurm.sh", "sbatch"),
    ],
)
def test_a_program_that_is_not_there_is_one_line_and_no_attempt(script, program, world):
    for tool in (
        "bash",
        "dirname",
        "sed",
        "cksum",
        "cut",
        "mktemp",
        "rm",
        "grep",
        "cat",
        "tee",
        "env",
    ):
        if not (world.bin / tool).exists():
            (world.bin / tool).symlink_to(shutil.which(tool))
    (world.bin / program).unlink()
    done = world.run(script, *GIVEN[script], *TRAIN, PATH=str(world.bin))
    assert (
        f"{program} is not installed here" in refused(done)
        and not world.calls()
        and "BILLED" not in done.stderr
    )
    assert (
        world.run(script, *GIVEN[script], "--dry-run", *TRAIN, PATH=str(world.bin)).returncode == 0
    )  # it needs none


@pytest.mark.parametrize("script", ["tpu_vm.sh", "gke_xpk.sh"])
def test_a_workdir_that_would_go_with_the_machine_is_refused(script, world):
    assert "gs://BUCKET/RUN" in refused(
        world.run(script, *GIVEN[script], "--", "--config=x", "--workdir=/tmp/run")
    )
    assert not world.calls()


@pytest.mark.parametrize("script", GIVEN)
def test_a_dry_run_prints_commands_and_calls_nothing(script, world):
    done = world.run(script, *GIVEN[script], "--dry-run", *TRAIN)
    assert done.returncode == 0 and not world.calls(), done
    assert "dry run: nothing was" in done.stderr and "BILLED" not in done.stderr
    assert "jaxdistill train" in done.stdout
    words = trained(done.stdout)
    for argument in TRAIN[1:]:
        assert argument in words, (argument, words)


def trained(text):
    """The words that reach `jaxdistill train`, through as many shells as a printed command has to
    go."""
    (line,) = [line for line in text.splitlines() if "jaxdistill train" in line]
    words = shlex.split(line)
    while not any(word == "train" for word in words):
        (inner,) = [word for word in words if "jaxdistill train" in word]
        words = shlex.split(inner.removeprefix("--command="))
    return words


def test_a_printed_command_is_the_command(world):
    """--name value and --name=value are one; quotes, dollars and spaces arrive as they were given."""
    assert (
        world.run(
            "slurm.sh", "--partition", "a b", "--create_flag=--comment=it's $HOME", *TRAIN
        ).returncode
        == 0
    )
    ((_, *arguments),) = world.calls("sbatch")
    assert (
        "--partition=a b" in arguments
        and "--comment=it's $HOME" in arguments
        and arguments[-3:] == list(TRAIN[1:])
    )
    printed = world.run(
        "slurm.sh", "--partition", "a b", "--create_flag=--comment=it's $HOME", "--dry-run", *TRAIN
    ).stdout
    assert shlex.split(printed.splitlines()[0]) == ["sbatch", *arguments]
