"""A profiler window: a trace of some steps of a stage, for TensorBoard's profile plugin or xprof.
Called by the loop."""

from __future__ import annotations

import pathlib
import tempfile
from typing import Any

import jax
from etils import epath


class Profile:
    """Traces the steps from `first` up to, not including, `end` into `folder`/plugins/profile; ():
    none.

    A stage that ends, or stops, inside the window keeps what was traced. Every process traces its
    own devices."""

    def __init__(self, window: tuple[int, ...], folder: epath.PathLike) -> None:
        self._first, self._end = window or (-1, -1)
        self._folder = epath.Path(folder)
        self._local: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Profile:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def before(self, step: int, state: Any) -> None:
        """To be called before each step; `state` is waited for where the window begins or ends,
        since steps run behind."""
        if self._local is None and self._first <= step < self._end:
            jax.block_until_ready(state)
            # The profiler itself writes local files only.
            self._local = tempfile.TemporaryDirectory(prefix="jaxdistill-profile-")
            jax.profiler.start_trace(self._local.name)
        elif step >= self._end and self._local is not None:
            jax.block_until_ready(state)
            self._stop()

    def _stop(self) -> None:
        held, self._local = self._local, None
        if held is None:
            return
        jax.profiler.stop_trace()
        local = pathlib.Path(held.name)
        for path in filter(pathlib.Path.is_file, local.rglob("*")):
            target = self._folder / path.relative_to(local)
            if (
                jax.process_count() > 1
            ):  # the profiler names files after the host, which may run several processes
                target = target.with_name(f"{jax.process_index()}.{target.name}")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
        held.cleanup()
