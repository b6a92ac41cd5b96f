"""Runs that survive: killed at any moment, preempted, out of disk space; each goes on and ends as
if nothing had been."""

import json
import pathlib
import shutil
import subprocess
import sys

import pytest

from tests.conftest import tiny_config

ROOT = pathlib.Path(__file__).parent.parent
sys.path.append(str(ROOT / "benchmarks"))  # which the processes that it starts inherit

import survival  # noqa: E402


@pytest.mark.slow  # one kill at a time: test_run.py
def test_a_killed_run_ends_as_the_uninterrupted_one(tmp_path):
    """To the bit, wherever the kills come; DONE only at the end; preempted processes say so and end
    in time."""
    result = survival.campaign(25, 1, tmp_path)
    said = "".join(log.read_text() for log in tmp_path.glob("*.log"))
    assert result.killed >= 25 and result.equal == result.lives > 0 and "Traceback" not in said
    assert {"in a save", "in the report and export"} < result.kills.keys() and len(
        result.preempted
    ) >= 4
    assert max(result.preempted) < 30
    assert "everything is saved, run the same command to resume" in said


FULL_DISK = """
import json, os, sys, time
from jaxdistill import run
from jaxdistill.errors import TrainingStopped
from tests.conftest import tiny_config

workdir, filler = "disk/run", "disk/filler"
config, real = tiny_config(sys.argv[1]), run.Run.batches

def fill():
    with open(filler, "wb", buffering=0) as file:
        try:
            while file.write(bytes(2**12)): pass
        except OSError: pass

def batches(*args, **options):
    for i, batch in enumerate(real(*args, **options)):
        while i == 3 and not os.path.exists(workdir + "/checkpoints/transfer/2"): time.sleep(0.05)
        if i == 3: fill()
        yield batch

run.Run.batches = batches
try:
    run.train(config, workdir, stages=["transfer"])
except TrainingStopped as error:
    print(json.dumps([error.exit_code, str(error)]))
run.Run.batches = real
os.remove(filler)
left = sorted(name for name in os.listdir(workdir + "/checkpoints/transfer") if name.isdigit())
print(json.dumps(left))
print(json.dumps(run.train(config, workdir)["student_sha256"]))
"""


OF_ITS_OWN = ("unshare", "--user", "--map-root-user", "--mount")


@pytest.mark.slow
def test_a_full_disk_stops_the_run_and_keeps_the_last_good_checkpoint(finished, tmp_path):
    """A real one, which fills up between two checkpoints: one line, exit code 3, and after making
    room the same student."""
    if (
        not shutil.which("unshare")
        or subprocess.run([*OF_ITS_OWN, "mount", "-t", "tmpfs", "tmpfs", "/mnt"]).returncode
    ):
        pytest.skip("a small disk of one's own needs Linux user namespaces")
    config, workdir, results = finished
    assert tiny_config(config.data.source).to_dict() | {
        "export": 0,
        "order": 0,
    } == config.to_dict() | {"export": 0, "order": 0}
    (tmp_path / "disk").mkdir()
    (tmp_path / "full_disk.py").write_text(FULL_DISK)
    shutil.copytree(
        workdir,
        tmp_path / "begun",
        ignore=shutil.ignore_patterns("transfer", "distill", "student", "plots", "DONE"),
    )
    script = (
        "mount -t tmpfs -o size=8m tmpfs disk && cp -r begun disk/run && "
        f"PYTHONPATH={ROOT} {sys.executable} full_disk.py {config.data.source}"
    )
    done = subprocess.run(
        [*OF_ITS_OWN, "sh", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    stopped, left, sha = map(json.loads, done.stdout.splitlines()[-3:])
    assert (
        stopped[0] == 3
        and "earlier checkpoints are intact: make room" in stopped[1]
        and "\n" not in stopped[1]
    )
    assert stopped[1].count("cannot write") == 1
    assert left == ["2"] and sha == results["student_sha256"]
