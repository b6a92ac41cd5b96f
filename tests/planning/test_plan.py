"""The parent: what it asks of its child, what it makes of the answers, and of a child that dies."""

import json
import os
import subprocess
import sys

import pytest

from jaxdistill import cli
from jaxdistill.configuration import load_config
from jaxdistill.errors import BadInput, JaxDistillError
from jaxdistill.planning import plan as planning
from jaxdistill.planning.table import format_plan

FAKE = """
import json, os, sys
asked = json.load(open(sys.argv[1]))
print("a library says hello")
print(json.dumps({"event": "mesh", "mesh": {"data": 4, "fsdp": 1, "tensor": 1}}), flush=True)
for name in asked["stages"] or asked["config"]["order"]:
    print(json.dumps({"event": "compiling", "stage": name, "rows": 8}), flush=True)
    fits = name != "distill" or asked["topology"] != "v3:2x2"
    memory = {"total": 2**30 if fits else 2**35}
    told = {"event": "stage", "stage": name, "rows_per_device": 8, "memory": memory, "memory_limit": 2**34, "fits": fits}
    if fits:
        told |= {"flops_per_chip": 1e12, "sent_bytes": {"all-reduce": 1e6}, "best_seconds": 0.01, "step_seconds": 0.02,
                 "mfu": 0.25, "tokens_per_second": 1e6, "days": 0.5, "chip_hours": 48.0,
                 "program": {"guessed": float(name == "transfer")}}
    if asked["fit"]:
        told |= {"largest_rows_per_device": 96, "largest_rows_per_chip": 192}
    print(json.dumps(told), flush=True)
"""


@pytest.fixture
def child(monkeypatch, tmp_path):
    """Puts a script in the child's place; nothing here needs libtpu."""
    monkeypatch.setattr(planning.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(planning.tempfile, "tempdir", str(tmp_path / "logs"))
    (tmp_path / "logs").mkdir()

    def put(source):
        (tmp_path / "child.py").write_text(source)
        monkeypatch.setattr(planning, "CHILD", (sys.executable, str(tmp_path / "child.py")))

    put(FAKE)
    return put


def test_stages_sums_and_lines(child, tmp_path):
    lines = []
    found = planning.plan(load_config("mobilebert:smoke"), ["v5e:2x2"], show=lines.append)
    one = found["topologies"][0]
    assert [stage["stage"] for stage in one["stages"]] == ["teacher", "transfer", "distill"]
    assert (one["days"], one["chip_hours"], one["chips"]) == (1.5, 144.0, 4)
    assert lines[1] == "v5e:2x2: compiling stage 'transfer' with 8 rows a device"
    assert any("mean over phases" in line for line in found["assumptions"][-1:])
    assert not list((tmp_path / "logs").iterdir())
    assert (
        "mean over phases"
        not in planning.plan(load_config("mobilebert:smoke"), ["v5e:2x2"], stages=["teacher"])[
            "assumptions"
        ][-1]
    )


def test_the_command(child, capsys):
    options = [
        "plan",
        "--config=mobilebert:smoke",
        "--topology=v5e:2x2,v3:2x2",
        "--topology=v6e:2x2",
    ]
    assert cli.main([*options, "--fit"]) == 0
    out, err = capsys.readouterr()
    rows = [line.split() for line in out.splitlines()]
    assert [
        "v5e:2x2",
        "4",
        "yes",
        "20",
        "ms",
        "20",
        "ms",
        "20",
        "ms",
        "1.5",
        "144",
    ] in rows  # the comparison
    assert ["v3:2x2", "4", "NO", "20", "ms", "20", "ms", "-", "-", "-"] in rows
    assert (
        "at most 96 rows a device at once, 192 a chip" in out
        and "all-reduce 1.0 MB" in out
        and "* Nothing was run" in out
    )
    assert err.count("compiling stage") == 9
    assert cli.main([*options, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["topologies"][1]["stages"][2]["fits"] is False


def test_without_a_number_that_the_compiler_did_not_say():
    stage = {
        "stage": "s",
        "rows_per_device": 8,
        "memory": {"total": None},
        "memory_limit": 2**34,
        "fits": False,
    }
    one = {
        "topology": "v5e:2x2",
        "chips": 4,
        "devices": 4,
        "mesh": {"data": 4},
        "stages": [stage],
        "days": None,
        "chip_hours": None,
    }
    assert "more of 16" in format_plan({"topologies": [one], "assumptions": []})


def test_an_unknown_topology_is_one_line(capsys):
    assert cli.main(["plan", "--config=quickstart", "--topology=v9:2x2"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "v6e" in err and "tpu7x" in err


def test_without_libtpu(monkeypatch, capsys):
    monkeypatch.setattr(planning.importlib.util, "find_spec", lambda name: None)
    assert cli.main(["plan", "--config=quickstart", "--topology=v5e:2x2"]) == 2
    assert "pip install 'jax[tpu]'" in capsys.readouterr().err


def test_what_the_child_refuses(child, tmp_path):
    child('print(\'{"event": "refused", "message": "batch_size=8 does not divide by 256"}\')')
    with pytest.raises(BadInput, match="v5e:16x16: batch_size=8 does not divide by 256"):
        planning.plan(load_config("quickstart"), ["v5e:16x16"])
    assert not list((tmp_path / "logs").iterdir())


def test_a_child_that_dies_says_where_its_log_is(child, tmp_path):
    child("import sys; print('said before'); sys.stderr.write('the reason\\n'); sys.exit(7)")
    with pytest.raises(
        JaxDistillError, match=r"v5e:2x2: .* died with code 7; its log is (\S+)"
    ) as error:
        planning.plan(load_config("quickstart"), ["v5e:2x2"])
    assert not isinstance(error.value, BadInput)
    log = (tmp_path / "logs" / os.path.basename(str(error.value).split()[-1])).read_text()
    assert "the reason" in log and "said before" in log


def test_the_environment_of_the_child(monkeypatch):
    """Flags for this machine's devices would be wrong for a TPU's compiler, and this process keeps
    its own."""
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--xla_tpu_x=1")
    before = dict(os.environ)
    inner = planning.child_environment()
    assert (
        "XLA_FLAGS" not in inner
        and inner["JAX_PLATFORMS"] == "cpu"
        and inner["LIBTPU_INIT_ARGS"] == "--xla_tpu_x=1"
    )
    assert dict(os.environ) == before


def test_the_compiler_gets_all_the_stack_there_is():
    """With 8 MiB libtpu dies on a full-size strict stage."""
    limits = "import resource; print(*resource.getrlimit(resource.RLIMIT_STACK))"
    said = subprocess.check_output(
        [*planning.WITH_A_DEEP_STACK, sys.executable, "-c", limits], text=True
    )
    soft, hard = said.split()
    assert soft == hard
