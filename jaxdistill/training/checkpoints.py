"""Orbax checkpoints of a stage in progress: the whole train state, and a JSON page of everything
else.

The page holds schema version, stage, step, seed, data position, the teacher's folder and digest,
the seconds spent and the records a stage keeps (per-layer losses). The teacher's parameters are
never here. A save is atomic and asynchronous; a resumed stage reads the newest one against
`eval_shape` and the mesh's shardings, and proves by checksums that it is what was saved: a damaged
one is set aside and the one before it read."""

from __future__ import annotations

import contextlib
import copy
import errno
import hashlib
import inspect
import json
import sys
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from jaxdistill import remote
from jaxdistill.errors import BadInput, JaxDistillError, TrainingStopped
from jaxdistill.training import hosts, sharding
from jaxdistill.training.state import TrainState

SCHEMA = 2
# tensorstore's names of errors that say nothing about what is stored: the same call may succeed
# later.
TRANSIENT = (
    "UNAVAILABLE",
    "DEADLINE_EXCEEDED",
    "PERMISSION_DENIED",
    "UNAUTHENTICATED",
    "RESOURCE_EXHAUSTED",
    "CANCELLED",
    "ABORTED",
)
# A folder that was deleted, a disk or a server that went away; a launcher tries again.
GONE = (
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EIO,
    errno.ESTALE,
    errno.ENOTCONN,
    errno.ENXIO,
    errno.ENODEV,
)


class Checkpoints:
    """The checkpoints of one stage under `directory`; the `keep` newest stay, and with `best` that
    of the lowest metric."""

    def __init__(self, directory: epath.PathLike, keep: int = 2, best: bool = False) -> None:
        self._directory = epath.Path(directory)
        if not remote.is_remote(self._directory):
            self._directory = self._directory.absolute()  # orbax takes no others
        lowest = BestN(
            get_metric_fn=_metric, n=1, reverse=True, keep_checkpoints_without_metrics=False
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=AnyPreservationPolicy([LatestN(keep), *([lowest] if best else [])]),
            best_fn=_metric if best else None,
            best_mode="min",
            create=True,
            cleanup_tmp_directories=True,
        )
        with disk_errors(self._directory):
            if best:
                hosts.together(lambda: self._drop_damaged_metrics() if hosts.first() else None)
            self._manager = ocp.CheckpointManager(self._directory, options=options)

    def _drop_damaged_metrics(self) -> None:
        """The manager reads all metrics when it is made, and a damaged one would end it."""
        for file in self._directory.glob("*/metrics/metrics"):
            try:
                float(json.loads(file.read_text())["metric"])
            except (ValueError, TypeError, KeyError) as error:
                print(
                    f"jaxdistill: {file} is damaged ({error}): that checkpoint is not the best",
                    file=sys.stderr,
                    flush=True,
                )
                file.parent.rmtree()

    def latest(self) -> int | None:
        """The newest complete step, or None."""
        return self._manager.latest_step()

    def holds(self, step: int) -> bool:
        """Whether `step` is saved, as the first process sees it: a listing may be older on another
        host."""
        return bool(hosts.largest(hosts.first() and step in self._manager.all_steps()))

    def best(self) -> int | None:
        """The step saved with the lowest metric, or None."""
        return self._manager.best_step()

    def save(
        self,
        state: TrainState,
        page: dict[str, Any],
        *,
        metric: float | None = None,
        wait: bool = False,
    ) -> None:
        """Saves `state` at its step, in the background once its checksums are taken; a step already
        saved is left alone. `wait`: for the end of it. `metric`: of those saved with one, the
        lowest is kept. Raises `TrainingStopped` if the disk is full."""
        step = int(state.step)
        with disk_errors(self._directory):
            if not self.holds(step):
                sums = checksums(state).tolist()
                if jax.default_backend() == "cpu":
                    # A CPU array may be handed over without a copy, and the next step donates its
                    # buffer.
                    state = jax.tree.map(jnp.copy, state)
                page = {"schema": SCHEMA, "checksums": sums, **copy.deepcopy(page)}
                self._manager.save(
                    step,
                    metrics=None if metric is None else {"metric": metric},
                    args=ocp.args.Composite(
                        state=ocp.args.StandardSave(state),
                        page=ocp.args.JsonSave({**page, "digest": _digest(page)}),
                    ),
                )
            if wait:
                self._manager.wait_until_finished()

    def restore(
        self, like: TrainState, mesh: jax.sharding.Mesh
    ) -> tuple[TrainState, dict[str, Any]]:
        """The newest (state, page) that is whole, placed on `mesh`; `like` gives shapes and dtypes
        (arrays or `ShapeDtypeStruct`s). Damaged newer ones are reported and renamed `damaged-STEP`.
        Raises `BadInput` if none is whole, or if another version of jaxdistill saved it."""
        damaged: dict[int, str] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                found = self._read(step, like, mesh)
            except Damaged as error:
                damaged[step] = str(error)
                continue
            self._set_aside(damaged, f"going on from step {step}")
            return found
        step, why = next(iter(damaged.items()), (0, "it is not there"))
        raise BadInput(
            f"checkpoint {self._directory / str(step)} cannot be read ({why})"
            + (f", nor can {len(damaged) - 1} before it" if len(damaged) > 1 else "")
            + f"; delete {self._directory} to run the stage from its start"
        )

    def restore_best(self, like: TrainState, mesh: jax.sharding.Mesh) -> TrainState | None:
        """The state saved with the lowest metric; None if there is none that is whole."""
        while (step := self.best()) is not None:
            try:
                return self._read(step, like, mesh)[0]
            except Damaged as error:
                self._set_aside({step: str(error)}, "the next best is handed on")
        return None

    def _read(
        self, step: int, like: TrainState, mesh: jax.sharding.Mesh
    ) -> tuple[TrainState, dict[str, Any]]:
        """One checkpoint. Raises `Damaged` on every process if one of them finds it so."""
        target = sharding.placed_shapes(mesh, like)
        folder = self._directory / str(step)

        def read() -> tuple[str, dict[str, Any], TrainState | None]:
            # By the handlers alone: the manager would wait for the other processes, of which one
            # may find damage.
            try:
                page = ocp.JsonCheckpointHandler().restore(folder / "page")
                if not isinstance(page, dict):
                    return "its page is no JSON object", {}, None
                if page.get("schema") != SCHEMA:
                    return "", page, None
                if page.pop("digest", None) != _digest(page):
                    return "its page is not the one that was saved", {}, None
                with _leftovers_unsaid():
                    return (
                        "",
                        page,
                        ocp.StandardCheckpointHandler().restore(
                            folder / "state", args=ocp.args.StandardRestore(target)
                        ),
                    )
            except (
                Exception
            ) as error:  # tensorstore, JSON or missing items: whatever a damaged folder leads to
                if isinstance(error, PermissionError) or any(
                    name in str(error) for name in TRANSIENT
                ):
                    raise
                return (str(error).splitlines() or [type(error).__name__])[0][:120], {}, None

        why, page, state = hosts.together(read)
        if hosts.largest(bool(why)):
            raise Damaged(why or "another process cannot read it")
        if state is None:
            raise BadInput(
                f"checkpoint {folder} has schema {page.get('schema')}, this version reads {SCHEMA}; finish the run "
                "with the version that began it, or use another workdir"
            )
        if checksums(state).tolist() != page.pop("checksums", None):
            raise Damaged("its contents are not those that were saved")
        return state, page

    def _set_aside(self, damaged: dict[int, str], then: str) -> None:
        """Renames checkpoints, so that their steps can be saved again and nothing is lost that
        somebody may want to see."""

        def rename() -> None:
            for step, why in damaged.items():
                aside = self._directory / f"damaged-{step}"
                print(
                    f"jaxdistill: checkpoint {self._directory / str(step)} is damaged ({why}): kept as {aside.name}, {then}",
                    file=sys.stderr,
                    flush=True,
                )
                aside.rmtree(missing_ok=True)
                (self._directory / str(step)).rename(aside)

        if damaged:
            hosts.together(lambda: rename() if hosts.first() else None)
            self._manager.reload()

    def close(self, *, delete: bool = False) -> None:
        """Waits for saves under way; `delete` removes them all, once the stage's result is safe
        elsewhere."""
        with disk_errors(self._directory):
            self._manager.wait_until_finished()
            self._manager.close()
        if delete and hosts.first():
            self._directory.rmtree(missing_ok=True)


class Damaged(Exception):
    """A checkpoint that is not what was saved; the message says why."""


def _digest(page: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(page, sort_keys=True).encode()).hexdigest()


def _metric(metrics: Any) -> float:
    return float(metrics["metric"])


@jax.jit
def _checksums(leaves: list[jax.Array]) -> jax.Array:
    def of(x: jax.Array) -> jax.Array:
        bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}")).astype(
            jnp.uint32
        )
        place = jnp.zeros(x.shape, jnp.uint32)
        for axis, size in enumerate(x.shape):
            place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
        mixed = bits ^ (
            place * jnp.uint32(0x9E3779B9)
        )  # MurmurHash3's mixing: no bit of a number but counts
        for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
            mixed = (mixed ^ (mixed >> shift)) * jnp.uint32(factor)
        return jnp.sum(mixed, dtype=jnp.uint32)

    return jnp.stack([of(x) for x in leaves])


def checksums(tree: Any) -> np.ndarray:
    """uint32[leaves]: a number for each array of at most 32-bit elements, in which every bit and
    its place counts. Sums of integers wrap around in any order, so it is the same on every mesh."""
    return np.asarray(_checksums(jax.tree.leaves(tree)))


@contextlib.contextmanager
def _leftovers_unsaid() -> Iterator[None]:
    """When orbax cannot read one array it drops the readers of the others, each of which would then
    write a traceback, some of them much later: the one line about the damage would be lost among
    hundreds."""
    shown = sys.unraisablehook

    def show(ignored: Any) -> None:
        loop_gone = isinstance(ignored.exc_value, RuntimeError) and "Event loop is closed" in str(
            ignored.exc_value
        )
        if not (loop_gone or inspect.iscoroutine(ignored.object)):
            shown(ignored)

    sys.unraisablehook = show
    yield
    sys.unraisablehook = shown  # not after an error


@contextlib.contextmanager
def disk_errors(path: epath.Path) -> Iterator[None]:
    """Turns a full or read-only disk into `TrainingStopped`, whatever was saved before being
    intact; one that is gone, or the folder, into `JaxDistillError`."""
    try:
        yield
    except (
        JaxDistillError,
        jax.errors.JaxRuntimeError,
    ):  # said already; or a device whose memory is full
        raise
    except Exception as error:
        text = str(error)
        full = isinstance(error, OSError) and error.errno in (
            errno.ENOSPC,
            errno.EDQUOT,
            errno.EACCES,
            errno.EROFS,
        )
        if (
            full
            or "No space left" in text
            or "RESOURCE_EXHAUSTED" in text
            or "Permission denied" in text
        ):
            raise TrainingStopped(
                f"cannot write {path}: {text.splitlines()[0]}; earlier checkpoints are intact: "
                "make room (or fix the permission) and run the same command to resume"
            ) from error
        if isinstance(error, OSError) and error.errno in GONE:
            raise JaxDistillError(
                f"{path} cannot be used any more ({text.splitlines()[0]}): is its folder, disk or server gone? "
                "Run the same command to resume from what is left"
            ) from error
        raise
