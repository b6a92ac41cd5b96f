"""launch/on_worker.sh, as it runs on a worker: the run outlives the connection, and is found
again."""

import io
import os
import signal
import subprocess
import tarfile
import time

import pytest

from tests.launch.world import LAUNCH, World


@pytest.fixture
def worker(tmp_path):
    world = World(tmp_path)
    (world.bin / "tar").unlink()
    (tmp_path / "jaxdistill" / "code").mkdir(parents=True)
    return world


def start(worker, *arguments):
    environment = worker.environment(HOME=str(worker.folder.parent), JAXDISTILL_POLL="0.01")
    return subprocess.Popen(
        [str(LAUNCH / "on_worker.sh"), *arguments],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def write_command(worker, text):
    (worker.bin / "work").write_text(f"#!/usr/bin/env bash\n{text}\n")
    (worker.bin / "work").chmod(0o755)


def wait_for(path):
    for _ in range(500):
        if path.exists():
            return
        time.sleep(0.01)
    raise AssertionError(f"{path} did not come")


def test_a_command_runs_with_its_arguments_log_and_exit_code(worker):
    write_command(worker, 'printf "%s\\n" "$PWD" "$JAXDISTILL_PROCESS" "$@"; echo bad >&2; exit 75')
    running = start(worker, "run", "1", "work", "a b", "it's $HOME")
    said, _ = running.communicate(timeout=20)
    home = worker.folder.parent / "jaxdistill"
    assert running.returncode == 75 and said.splitlines() == [
        str(home / "code"),
        "0",
        "a b",
        "it's $HOME",
        "bad",
    ]
    write_command(worker, "echo again")
    running = start(worker, "run", "2", "work")
    assert (
        running.communicate(timeout=20)[0] == "again\n" and running.returncode == 0
    )  # not yesterday's log or code
    assert (home / "run.log").read_text().endswith("bad\nagain\n")


def test_a_lost_connection_leaves_the_run_and_the_next_call_joins_it(worker):
    go = worker.folder / "go"
    write_command(
        worker,
        'echo working; echo begun >>"$WORLD/begun"; until [[ -f $WORLD/go ]]; do /bin/sleep 0.01; done\n'
        "echo ended; exit 3",
    )
    first = start(worker, "run", "1", "work")
    wait_for(worker.folder / "begun")
    os.killpg(first.pid, signal.SIGKILL)  # all that hung on the connection
    first.communicate()
    second = start(worker, "run", "2", "work")
    assert second.stdout.readline() == "working\n"  # it has joined, and shows what was missed
    installing = start(worker, "install")  # must not touch the code of a run in progress
    assert (
        installing.communicate(timeout=20) and installing.returncode == 0 and not worker.calls("uv")
    )
    go.touch()
    said, _ = second.communicate(timeout=20)
    assert (
        second.returncode == 3
        and said.endswith("ended\n")
        and (worker.folder / "begun").read_text() == "begun\n"
    )


def test_a_killed_run_is_a_failure(worker):
    for i, (text, code) in enumerate(
        [("exit 0", 0), ("kill -9 $PPID", 1)]
    ):  # the shell that would write the exit code
        write_command(worker, text)
        running = start(worker, "run", str(i), "work")
        assert running.communicate(timeout=20) and running.returncode == code


def test_a_repeated_call_does_not_begin_again_what_has_ended(worker):
    """gcloud repeats a call that lost its connection; one worker alone would wait for the
    others."""
    write_command(worker, "echo begun; exit 75")
    for _ in range(2):
        running = start(worker, "run", "1", "work")
        assert running.communicate(timeout=20)[0] == "begun\n" and running.returncode == 75
    assert (worker.folder.parent / "jaxdistill" / "run.log").read_text() == "begun\n"


def test_installing_replaces_the_code_that_is_there(worker):
    home = worker.folder.parent
    (home / "jaxdistill" / "code" / "old.py").write_text("")
    with tarfile.open(home / "jaxdistill.tar.gz", "w:gz") as file:
        file.addfile(tarfile.TarInfo("new.py"), io.BytesIO())
    installing = start(worker, "install")
    assert installing.communicate(timeout=20) and installing.returncode == 0
    assert os.listdir(home / "jaxdistill" / "code") == ["new.py"]
    assert worker.calls("uv")[-1][-1] == f"{home}/jaxdistill/code[tpu]"
