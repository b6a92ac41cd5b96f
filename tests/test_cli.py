"""The command line: exit codes, one clear line for bad input, nothing overwritten."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from jaxdistill import cli, cli_commands
from tests.conftest import write_table


def run(capsys, *arguments):
    code = cli.main(arguments)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def assert_one_line(code, err, *words):
    assert (
        code == 2
        and err.startswith("jaxdistill: ")
        and err.count("\n") == 1
        and "Traceback" not in err
    )
    for word in words:
        assert word in err


@pytest.mark.parametrize(
    "preset, encoder, pretraining",
    [
        ("bert_base", 109_482_240, None),
        ("ib_bert_large", 294_467_840, None),
        ("mobilebert", 24_581_888, 36_597_564),
        ("mobilebert_tiny", 15_485_696, None),
    ],
)
def test_describe_prints_the_exact_counts(capsys, preset, encoder, pretraining):
    code, out, _ = run(capsys, "describe", f"--preset={preset}", "--json")
    facts = json.loads(out)
    assert code == 0 and facts["encoder_parameters"] == encoder
    assert pretraining is None or facts["pretraining_parameters"] == pretraining


def test_describe_a_recipe(capsys):
    code, out, _ = run(capsys, "describe", "--config=quickstart")
    assert code == 0 and "teacher" in out and "student" in out and "attention_scores" in out


def test_describe_a_recipe_whose_networks_have_the_head_of_a_task(capsys, tmp_path):
    """And whose student is projected to the teacher's width."""
    table = write_table(tmp_path / "task.tsv")
    code, out, _ = run(
        capsys, "describe", "--config=xtremedistil", f"--config.feeds.task.source={table}", "--json"
    )
    found = json.loads(out)
    assert code == 0 and found.keys() >= {"teacher", "student"}
    assert found["student"]["parameters"]["projection"] == 64 * 128 + 128
    assert found["student"]["parameters"]["head/sequence_classification"] == 64 * 2 + 2


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["describe", "--preset=mobilebrt"], ["did you mean 'mobilebert'"]),
        (["describe"], ["--preset", "--config"]),
        (
            ["train", "--config=quikstart", "--workdir=/nonexistent/x"],
            ["did you mean 'quickstart'"],
        ),
        (
            ["train", "--config=quickstart", "--config.stages.transfer.stepz=3", "--workdir=x"],
            ["steps"],
        ),
        (["train", "--config=quickstart", "--wrkdir=x"], ["--workdir"]),
        (["train", "--config=quickstart", "--workdir=x", "--confg.seed=1"], ["--confg.seed=1"]),
        (
            ["train", "--config=quickstart", "--workdir="],
            ["argument --workdir", "expected a folder"],
        ),
        (["trian"], ["train"]),
        (["export", "--model=/nonexistent/run", "--out=x"], ["/nonexistent/run"]),
        (["convert", "--model=x", "--out=y", "--to=msgpack"], ["'jaxdistill export' now"]),
        (["convert", "--help"], ["'jaxdistill export' now"]),
        (["evaluate", "--model=/nonexistent/model"], ["/nonexistent/model"]),
        (["seeds", "--config=quickstart", "--workdir=x", "--seeds=0,zwei"], ["0,1,2"]),
        (
            ["finetune", "--model=/nonexistent/model", "--data=x.tsv", "--workdir=x"],
            ["/nonexistent/model"],
        ),
    ],
)
def test_bad_input_is_one_line_and_exit_2(capsys, monkeypatch, tmp_path, arguments, words):
    monkeypatch.chdir(tmp_path)
    code, _, err = run(capsys, *arguments)
    assert_one_line(code, err, *words)
    assert list(tmp_path.iterdir()) == []


def test_a_workdir_that_is_not_ours_is_left_alone(capsys, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    code, _, err = run(capsys, "train", "--config=quickstart:smoke", f"--workdir={tmp_path}")
    assert_one_line(code, err, "not empty")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_source_that_does_not_exist(capsys, tmp_path):
    (tmp_path / "wiki.txt").write_text("text")
    code, _, err = run(
        capsys,
        "train",
        "--config=quickstart:smoke",
        f"--config.data.source={tmp_path / 'wki.txt'}",
        f"--workdir={tmp_path / 'run'}",
    )
    assert_one_line(code, err, "wki.txt", "wiki.txt")


def test_a_workdir_that_cannot_be_made(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, err = run(
        capsys, "train", "--config=quickstart:smoke", f"--workdir={tmp_path / 'file' / 'run'}"
    )
    assert_one_line(code, err, "writable")


def test_help_lists_every_command(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--help"])
    out = capsys.readouterr().out
    assert stopped.value.code == 0 and all(name in out for name in cli.COMMANDS)


def test_ctrl_c_saves_says_how_to_resume_and_exits_130(tmp_path, text_source):
    """A real process, a real SIGINT in mid-stage."""
    command = [
        sys.executable,
        "-m",
        "jaxdistill.cli",
        "train",
        "--config=quickstart:smoke",
        f"--workdir={tmp_path / 'run'}",
        f"--config.data.source={text_source}",
        "--config.stages.teacher.steps=200000",
        "--config.order=('teacher',)",
        "--config.data.heldout_fraction=0.25",
    ]

    def saved():
        return [
            path
            for path in (tmp_path / "run" / "checkpoints" / "teacher").glob("*")
            if path.name.isdigit()
        ]

    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = (
        time.monotonic() + 400
    )  # a machine may be busy; before the first step there is nothing to save
    while process.poll() is None and time.monotonic() < deadline and not saved():
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "run the same command to resume" in err and "Traceback" not in err
    assert "everything is saved" in err and saved()


def at_once(number):
    os.kill(os.getpid(), number)


def in_a_destructor(number):
    """Where Python drops every exception."""

    class Dropped:
        def __del__(self):
            at_once(number)
            for _ in range(100):  # the handler runs between two of these
                pass

    Dropped()
    time.sleep(5)


@pytest.mark.parametrize(
    "number, code, arrive",
    [
        (signal.SIGTERM, 75, at_once),
        (signal.SIGINT, 130, at_once),
        (signal.SIGTERM, 75, in_a_destructor),
        (signal.SIGINT, 130, in_a_destructor),
    ],
)
def test_a_signal_between_the_stages_is_one_line_too(capsys, monkeypatch, number, code, arrive):
    """While text is prepared or networks are evaluated no loop listens for it."""
    before = {which: signal.getsignal(which) for which in (signal.SIGTERM, signal.SIGINT)}
    monkeypatch.setattr("sys.unraisablehook", sys.unraisablehook)
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a process in the background may have been told to ignore it
    monkeypatch.setattr("jaxdistill.commands.describe_text", lambda *_: arrive(number))
    try:
        assert cli.main(["describe", "--preset=mobilebert"]) == code
    finally:
        for which, handler in before.items():
            signal.signal(which, handler)
    err = capsys.readouterr().err
    assert "run the same command to resume" in err and err.count("\n") == 1


IMPATIENT = """
import atexit, os, signal, sys
from jaxdistill import cli, commands

first, second = map(int, sys.argv[1:])
signal.signal(signal.SIGINT, signal.default_int_handler)

class Error:
    def write(self, text):
        os.kill(os.getpid(), second)
        sys.__stderr__.write(text)
    def flush(self): pass

def asked(*_):
    sys.stderr = Error()
    os.kill(os.getpid(), first)

commands.describe_text = asked
atexit.register(os.kill, os.getpid(), second)
sys.argv = ["jaxdistill", "describe", "--preset=mobilebert"]
sys.exit(cli.main())
"""


@pytest.mark.parametrize(
    "first, second, code", [("TERM", "TERM", 75), ("INT", "TERM", 130), ("TERM", "INT", 75)]
)
def test_a_second_signal_changes_nothing_once_the_first_ends_the_process(first, second, code):
    """Schedulers send it again and again; its exit code tells a launcher to go on at once."""
    numbers = [str(int(signal.Signals[f"SIG{name}"])) for name in (first, second)]
    done = subprocess.run(
        [sys.executable, "-c", IMPATIENT, *numbers], capture_output=True, text=True
    )
    assert (
        done.returncode == code and done.stderr.count("\n") == 1 and "to resume" in done.stderr
    ), done


DROPPED_TWICE = """
import os, signal, sys, time
from jaxdistill import cli, commands

class Ignored:
    @property
    def exc_type(self):
        os.kill(os.getpid(), signal.SIGTERM)  # while Python tells of the first one
        return KeyboardInterrupt

def asked(*_):
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    except KeyboardInterrupt:
        pass
    try:
        sys.unraisablehook(Ignored())
    except KeyboardInterrupt:
        print("lost")  # there is nobody else to tell
    time.sleep(5)

commands.describe_text = asked
sys.argv = ["jaxdistill", "describe", "--preset=mobilebert"]
sys.exit(cli.main())
"""


def test_a_signal_while_a_dropped_one_is_sent_again_is_not_lost():
    done = subprocess.run([sys.executable, "-c", DROPPED_TWICE], capture_output=True, text=True)
    assert done.returncode == 75 and "lost" not in done.stdout and done.stderr.count("\n") == 1, (
        done
    )


def test_what_was_compiled_is_kept_for_the_next_start(tmp_path, monkeypatch):
    """By every command that trains, in a folder that the environment may choose; a second process
    finds it there."""
    code = (
        "import sys; from jaxdistill.cli_commands import use_compilation_cache; use_compilation_cache(); import jax; "
        "jax.config.update('jax_persistent_cache_min_compile_time_secs', 0); "
        "jax.jit(lambda x: x * 3 + 1)(2.0); print(jax.config.jax_compilation_cache_dir)"
    )
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("JAX_COMP")
    }
    own = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "own")}
    for given, place in (({}, tmp_path / "cache" / "compiled"), (own, tmp_path / "own")):
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            env={**environment, "JAXDISTILL_CACHE": str(tmp_path / "cache"), **given},
        )
        assert done.stdout.strip() == str(place) and list(place.iterdir()), done.stderr
    used = []
    monkeypatch.setattr(cli_commands, "use_compilation_cache", lambda: used.append(1))
    for command in (
        ["train", "--config=x.py"],
        ["seeds", "--config=x.py"],
        ["finetune", "--model=x", "--data=x"],
    ):
        assert cli.main([*command, f"--workdir={tmp_path / 'w'}"]) == 2
    assert len(used) == 3
