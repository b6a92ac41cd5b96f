"""`jaxdistill plan`: what a recipe needs and costs on TPU slices that are not there. Called by the
command line and users.

Compilation happens in a child process for each topology, with an environment of its own: libtpu
wants the platform set before JAX is imported, and nothing of it may stay behind in the process of a
user or beside a training run."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import IO, Any

from ml_collections import ConfigDict

from jaxdistill.configuration import Overrides, as_config, as_names
from jaxdistill.errors import BadInput, JaxDistillError
from jaxdistill.planning import roofline, topologies

CHILD = (sys.executable, "-m", "jaxdistill.planning.child")
# libtpu's compiler recurses deeply: with the usual 8 MiB of stack it dies on strict progressive stages.
WITH_A_DEEP_STACK = ("/bin/sh", "-c", 'ulimit -S -s "$(ulimit -H -s)"; exec "$@"', "sh")
# What a child must not take over: flags for this machine's devices, and the cache, whose programs
# tell no memory.
NOT_INHERITED = (
    "XLA_FLAGS",
    "JAX_PLATFORMS",
    "JAX_PLATFORM_NAME",
    "JAX_COMPILATION_CACHE_DIR",
    "JAX_NUM_CPU_DEVICES",
)
CHILD_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "JAX_ENABLE_COMPILATION_CACHE": "false",
    "TPU_SKIP_MDS_QUERY": "1",  # no machine to ask what TPU it has
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # a run beside it may hold libtpu, and so may another plan
    "TPU_LOG_DIR": "disabled",
    "TPU_STDERR_LOG_LEVEL": "2",
}


def plan(
    config: str | os.PathLike[str] | ConfigDict,
    topology: str | Sequence[str],
    overrides: Overrides = (),
    *,
    stages: str | Sequence[str] | None = None,
    fit: bool = False,
    show: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """What every stage of `config` needs and costs on each topology; JSON-ready.

    `config`, `overrides`: as `train` takes them. `topology`: one or several, as "v5e:16x16".
    `stages`: only these. `fit`: also the most rows a device that fit. `show` gets a line whenever a
    compilation begins: they take minutes. Raises `BadInput` for what is wrong with recipe, topology
    or installation."""
    config, stages = as_config(config, overrides), as_names(stages, "stages")
    chosen = topologies.find_all(as_names(topology, "topology") or [])
    if importlib.util.find_spec("libtpu") is None:
        raise BadInput(
            "planning compiles with libtpu, which is not installed; pip install 'jax[tpu]'"
        )
    found = [plan_one(config, one, stages, fit, show) for one in chosen]
    guessed = any(
        stage.get("program", {}).get("guessed") for one in found for stage in one["stages"]
    )
    return {
        "config": config.name,
        "topologies": found,
        "assumptions": [*roofline.ASSUMPTIONS, *([roofline.GUESSED] if guessed else [])],
    }


def plan_one(
    config: ConfigDict,
    topology: topologies.Topology,
    stages: Sequence[str] | None,
    fit: bool,
    show: Callable[[str], None],
) -> dict[str, Any]:
    """One topology's part of `plan`."""
    request = {
        "topology": topology.name,
        "config": config.to_dict(),
        "stages": list(stages or ()),
        "fit": fit,
    }
    found: dict[str, Any] = {
        "topology": topology.name,
        "chips": topology.chips,
        "devices": topology.devices,
        "stages": [],
    }
    with contextlib.closing(ask_child(request)) as told:
        for event in told:
            kind = event.pop("event")
            if kind == "refused":
                raise BadInput(f"{topology.name}: {event['message']}")
            if kind == "compiling":
                show(
                    f"{topology.name}: compiling stage {event['stage']!r} with {event['rows']} rows a device"
                )
            elif kind == "stage":
                found["stages"].append(event)
            else:
                found |= event
    return found | roofline.whole_recipe(found["stages"])


def ask_child(request: dict[str, Any]) -> Generator[dict[str, Any], None, None]:
    """Events of a child that answers `request`. One that dies is a `JaxDistillError` that says
    where its log is."""
    descriptor, log_path = tempfile.mkstemp(prefix="jaxdistill-plan-", suffix=".log")
    died = False
    try:
        with (
            tempfile.NamedTemporaryFile("w", suffix=".json") as asked,
            os.fdopen(descriptor, "w") as log,
        ):
            json.dump(request, asked)
            asked.flush()
            with subprocess.Popen(
                [*WITH_A_DEEP_STACK, *CHILD, asked.name],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=child_environment(),
            ) as child:
                try:
                    assert child.stdout is not None
                    yield from events(child.stdout, log)
                except BaseException:  # Ctrl-C, or what the child said was refused
                    child.kill()
                    raise
        died = child.returncode != 0
        if died:
            raise JaxDistillError(
                f"{request['topology']}: the process that compiles died with code {child.returncode}; its "
                f"log is {log_path}"
            )
    finally:
        if not died:
            os.unlink(log_path)


def events(lines: IO[str], log: IO[str]) -> Iterator[dict[str, Any]]:
    """The JSON lines; anything else that a library printed goes to the log."""
    for line in lines:
        if line.startswith('{"event"'):
            yield json.loads(line)
        else:
            log.write(line)


def child_environment() -> dict[str, str]:
    """The child's own: this one's without what is meant for this machine's devices.
    LIBTPU_INIT_ARGS stays, as a run on the slice would have it."""
    inherited = {name: value for name, value in os.environ.items() if name not in NOT_INHERITED}
    packages = os.pathsep.join(
        path for path in sys.path if path
    )  # the same code as here, wherever it was found
    return {**inherited, **CHILD_ENVIRONMENT, "PYTHONPATH": packages}
