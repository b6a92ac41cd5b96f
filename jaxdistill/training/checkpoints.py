"""Orbax checkpoints of a stage in progress: the whole train state, and a JSON page of everything else.

The page holds schema version, stage, step, seed, data position, the teacher's folder and digest, the seconds spent and
the records a stage keeps (per-layer losses). The teacher's parameters are never here. A save is atomic and
asynchronous; a resumed stage reads the newest one against `eval_shape` and the mesh's shardings.
"""

from __future__ import annotations

import contextlib
import copy
import errno
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath

from jaxdistill import remote
from jaxdistill.errors import BadInput, TrainingStopped
from jaxdistill.training import hosts, sharding
from jaxdistill.training.state import TrainState

SCHEMA = 1


class Checkpoints:
    """The checkpoints of one stage under `directory`; `keep` newest ones stay."""

    def __init__(self, directory: epath.PathLike, keep: int = 2) -> None:
        self._directory = epath.Path(directory)
        if not remote.is_remote(self._directory):
            self._directory = self._directory.absolute()  # orbax takes no others
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True, cleanup_tmp_directories=True)
        with disk_errors(self._directory):
            self._manager = ocp.CheckpointManager(self._directory, options=options)

    def latest(self) -> int | None:
        """The newest complete step, or None."""
        return self._manager.latest_step()

    def save(self, state: TrainState, page: dict[str, Any], *, wait: bool = False) -> None:
        """Starts saving `state` at its step (a step already saved is left alone); `wait` for the end of it."""
        step = int(state.step)
        with disk_errors(self._directory):
            if step not in self._manager.all_steps():
                if jax.default_backend() == "cpu":
                    # A CPU array may be handed over without a copy, and the next step donates its buffer.
                    state = jax.tree.map(jnp.copy, state)
                self._manager.save(step, args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state), page=ocp.args.JsonSave({"schema": SCHEMA, **copy.deepcopy(page)})))
            if wait:
                self._manager.wait_until_finished()

    def restore(self, like: TrainState, mesh: jax.sharding.Mesh) -> tuple[TrainState, dict[str, Any]]:
        """The newest (state, page), placed on `mesh`; `like` gives shapes and dtypes (arrays or `ShapeDtypeStruct`s)."""
        target = jax.tree.map(lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), like,
                              sharding.shardings(mesh, like))
        step = self.latest()
        try:
            restored = self._manager.restore(step, args=ocp.args.Composite(
                state=ocp.args.StandardRestore(target), page=ocp.args.JsonRestore()))
        except Exception as error:  # tensorstore, JSON or missing items: whatever a damaged folder leads to
            raise BadInput(f"checkpoint {self._directory / str(step)} cannot be read ({str(error).splitlines()[0][:120]}); "
                           "delete that folder to go back to the one before it") from error
        page = restored["page"]
        if page.get("schema") != SCHEMA:
            raise BadInput(f"checkpoint {self._directory / str(step)} has schema {page.get('schema')}, this version reads "
                           f"{SCHEMA}; finish the run with the version that began it, or use another workdir")
        return restored["state"], page

    def close(self, *, delete: bool = False) -> None:
        """Waits for saves under way; `delete` removes them all, once the stage's result is safe elsewhere."""
        with disk_errors(self._directory):
            self._manager.wait_until_finished()
            self._manager.close()
        if delete and hosts.first():
            self._directory.rmtree(missing_ok=True)


@contextlib.contextmanager
def disk_errors(path: epath.Path) -> Iterator[None]:
    """Turns a full or read-only disk into `TrainingStopped`; whatever was saved before is intact."""
    try:
        yield
    except Exception as error:
        text = str(error)
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS)
        if full or "No space left" in text or "RESOURCE_EXHAUSTED" in text or "Permission denied" in text:
            raise TrainingStopped(f"cannot write {path}: {text.splitlines()[0]}; earlier checkpoints are intact: "
                                  "make room (or fix the permission) and run the same command to resume") from error
        raise
