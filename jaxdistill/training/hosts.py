"""Several hosts, one run: who writes, who waits, and what all must agree on. With one process all of it does nothing.

Every process runs the same program on its own rows; arrays on the mesh are global. The first process alone writes
metrics, finished stages and reports, into a workdir that all see. Called by cli, run, loop and workdir.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxdistill.errors import BadInput, JaxDistillError

Result = TypeVar("Result")


def connect(coordinator: str = "", num_processes: int | None = None, process_id: int | None = None,
            distributed: bool = False) -> None:
    """Joins the processes of a run, before anything else touches a device.

    `distributed`: the environment says who and where (TPU VMs, GKE, Slurm, MPI, as `jax.distributed.initialize` finds
    them); else all three of `coordinator` ("host:port" of process 0), `num_processes` and `process_id`; with none of
    them the process stays alone. Raises `BadInput` for some of the three, or when the others cannot be found.
    """
    given = {"coordinator": coordinator or None, "num_processes": num_processes, "process_id": process_id}
    missing = [f"--{name}" for name, value in given.items() if value is None]
    if len(missing) == len(given) and not distributed:
        return
    if missing and len(missing) < len(given):
        raise BadInput(f"{', '.join(missing)} missing: give --coordinator, --num_processes and --process_id together, or "
                       "--distributed where the environment knows them")
    with contextlib.suppress(AttributeError):  # host processes need a way to talk; accelerators bring their own
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(coordinator or None, num_processes, process_id)
    except (ValueError, RuntimeError) as error:
        raise BadInput(f"cannot join the processes of this run ({str(error).splitlines()[0]}); give --coordinator=HOST:PORT, "
                       "--num_processes and --process_id") from error


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
    """Calls `make` on the first process, then on the others, who find on a shared path what it made. An error anywhere
    ends all of them: none is left waiting for one that is gone."""
    result: Result | None = None
    error: JaxDistillError | None = None
    for turn in (True, False) if jax.process_count() > 1 else (True,):
        if first() == turn:
            try:
                result = make()
            except JaxDistillError as caught:
                error = caught
        if largest(int(error is not None)):
            raise error or BadInput("another process of this run stopped; its message says why")
    return result  # type: ignore[return-value]  # set in one of the turns


def check_same(what: str, digest: str) -> None:
    """Raises `BadInput` on every process unless all have the same `digest` (hexadecimal) of `what`."""
    if jax.process_count() == 1:
        return
    held = multihost_utils.process_allgather(np.frombuffer(bytes.fromhex(digest), np.uint8).astype(np.int32))
    if (held != held[0]).any():
        raise BadInput(f"the processes of this run have different {what} (here {digest[:12]}...); give all of them the same "
                       "source and versions, or a shared config.data.path")


def to_host(tree: Any) -> Any:
    """A tree of global arrays -> whole NumPy arrays, on every process."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return multihost_utils.process_allgather(tree, tiled=True)
