"""Several hosts, one run: who writes, who waits, and what all must agree on. With one process all
of it does nothing.

Every process runs the same program on its own rows; arrays on the mesh are global. The first
process alone writes metrics, finished stages and reports, into a workdir that all see. Preparing a
very large text can outlast what the others wait for it: `jaxdistill prepare` does it beforehand.
Called by cli, run, workdir and interruption."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxdistill.errors import BadInput, JaxDistillError

Result = TypeVar("Result")


def connect(
    coordinator: str = "",
    num_processes: int | None = None,
    process_id: int | None = None,
    distributed: bool = False,
) -> None:
    """Joins the processes of a run, before anything else touches a device.

    `distributed`: the environment says who and where (TPU VMs, GKE, Slurm, MPI, as
    `jax.distributed.initialize` finds them); else all three of `coordinator` ("host:port" of
    process 0), `num_processes` and `process_id`; with none of them the process stays alone. Raises
    `BadInput` for some of the three, or where the environment knows no others; `JaxDistillError`
    when one that it knows is not there (yet: a launcher tries again)."""
    given = {
        "coordinator": coordinator or None,
        "num_processes": num_processes,
        "process_id": process_id,
    }
    missing = [f"--{name}" for name, value in given.items() if value is None]
    if len(missing) == len(given) and not distributed:
        return
    if missing and len(missing) < len(given):
        raise BadInput(
            f"{', '.join(missing)} missing: give --coordinator, --num_processes and --process_id together, or "
            "--distributed where the environment knows them"
        )
    jax.config.update("jax_cpu_collectives_implementation", "gloo")  # accelerators bring their own
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM from us
    try:
        jax.distributed.initialize(coordinator or None, num_processes, process_id)
    except (ValueError, RuntimeError) as error:
        kind = BadInput if isinstance(error, ValueError) else JaxDistillError
        raise kind(
            f"cannot join the processes of this run ({str(error).splitlines()[0]}); give --coordinator=HOST:PORT, "
            "--num_processes and --process_id"
        ) from error
    if not first():
        os.environ["JAXDISTILL_PROGRESS"] = "0"


def first() -> bool:
    """Whether this process is the one that writes."""
    return jax.process_index() == 0


def wait(name: str) -> None:
    """Returns once every process has come here; `name` must be the same on all."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def largest(value: int) -> int:
    """The largest `value` that any process gave."""
    if jax.process_count() == 1:
        return value
    return int(np.max(multihost_utils.process_allgather(np.int32(value))))


def in_turn(make: Callable[[], Result]) -> Result:
    """Calls `make` on the first process, then on the others, who find on a shared path what it
    made.

    An exception on one process ends `make`'s caller on all, with the same exit code: none waits for
    one that is gone."""
    result = together(make if first() else lambda: None)
    return together(lambda: result if first() else make())  # type: ignore[return-value]


def together(make: Callable[[], Result]) -> Result:
    """Calls `make` everywhere, and raises everywhere if it raised anywhere."""
    if jax.process_count() == 1:
        return make()
    result: Result | None = None
    error: BaseException | None = None
    try:
        result = make()
    except BaseException as caught:  # Ctrl-C too: the others must hear of it before it goes on
        error = caught
    code = largest(0 if error is None else getattr(error, "exit_code", 1))
    if error is not None:
        raise error
    if code:
        raise OtherProcessStopped(code)
    return result  # type: ignore[return-value]


class OtherProcessStopped(JaxDistillError):
    """Another process of this run ended; this one ends with the same exit code."""

    def __init__(self, exit_code: int) -> None:
        super().__init__("another process of this run stopped; its message says why")
        self.exit_code = exit_code


def check_same(what: str, value: Any) -> None:
    """Raises `BadInput` on every process unless all give an equal `value` (plain data)."""
    if jax.process_count() == 1:
        return
    sha = hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).digest()
    held = multihost_utils.process_allgather(np.frombuffer(sha, np.uint8).astype(np.int32))
    if (held != held[0]).any():
        raise BadInput(f"the processes of this run differ in {what}; give all of them the same")


def to_host(tree: Any) -> Any:
    """A tree of global arrays -> whole NumPy arrays, on every process."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return multihost_utils.process_allgather(tree, tiled=True)
