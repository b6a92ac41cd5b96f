"""Where numbers go while a run goes on: TensorBoard and `metrics.jsonl`.

TensorBoard files are written by tensorboard's own EventFileWriter: no TensorFlow, no clu. Each
(stage, network) is a TensorBoard run of its own, so the same tag of two networks is drawn in one
chart and a resumed stage can discard its own orphaned points without touching the others.
`metrics.jsonl` has one object a line: `{"stage": "distill", "network": "student", "step": 10,
"time": 1700000000.0, "loss": 3.2, ...}`.

A remote workdir (`gs://...`) cannot be appended to. Files are then written to a local spool
directory and copied up whole on `flush`, `close` and at most once a minute between; what a
preemption may lose is that minute. Called by the loop and by `run`, on the first process only; read
back by `report`."""

from __future__ import annotations

import json
import math
import sys
import tempfile
import time
import types
from collections.abc import Mapping
from typing import Any

from etils import epath

from jaxdistill import remote

FILE = "metrics.jsonl"
UPLOAD_SECONDS = 60.0


class MetricWriter:
    """Scalars by (stage, network, step) into `workdir`; appends to what an earlier process left
    there.

    `tensorboard=False` writes the JSONL file only. Usable as a context manager. Not thread-safe.
    """

    def __init__(self, workdir: epath.PathLike, *, tensorboard: bool = True) -> None:
        self._workdir = epath.Path(workdir)
        self._remote = remote.is_remote(self._workdir)
        self._spool: tempfile.TemporaryDirectory[str] | None = None
        self._local = self._workdir
        self._workdir.mkdir(parents=True, exist_ok=True)
        if self._remote:
            self._spool = tempfile.TemporaryDirectory(prefix="jaxdistill-metrics-")
            self._local = epath.Path(self._spool.name)
            if (self._workdir / FILE).exists():
                (self._local / FILE).write_bytes((self._workdir / FILE).read_bytes())
        self._path = self._local / FILE
        self._drop_torn_line()
        self._file = self._open()
        self._tensorboard = tensorboard
        self._event_writers: dict[str, Any] = {}
        self._restarted_at: dict[str, int] = {}
        self._uploaded = time.monotonic()

    def write(
        self, stage: str, step: int, scalars: Mapping[str, Any], network: str = "student"
    ) -> None:
        """One line and one TensorBoard point a name. Values are numbers or one-element arrays; what
        is not finite becomes null in the JSONL file (JSON has no NaN) and stays itself in
        TensorBoard."""
        values = {name: float(value) for name, value in scalars.items()}
        now = time.time()
        line = {
            "stage": stage,
            "network": network,
            "step": int(step),
            "time": round(now, 3),
            **{name: value if math.isfinite(value) else None for name, value in values.items()},
        }
        self._file.write(json.dumps(line) + "\n")
        if self._tensorboard:
            self._write_events(f"{stage}/{network}", int(step), now, values)
        if self._remote and time.monotonic() - self._uploaded > UPLOAD_SECONDS:
            self.flush()

    def rewind(self, stage: str, step: int, network: str = "student") -> None:
        """Forgets what (stage, network) measured beyond `step`: it is about to be run, or run
        again, from there.

        To be called whenever a stage starts or resumes. Lines of other stages and networks stay.
        """
        self._file.close()
        lines = self._path.read_bytes().decode(errors="replace").splitlines(keepends=True)

        def again(text: str) -> bool:
            line = _parse(text) or {}
            return (line.get("stage"), line.get("network")) == (stage, network) and line[
                "step"
            ] > step

        kept = [text for text in lines if not again(text)]
        if len(kept) < len(lines):
            self._replace("".join(kept))
        self._file = self._open()
        self._restarted_at[f"{stage}/{network}"] = step

    def _open(self) -> Any:
        # By lines: whoever follows the file sees each at once.
        return open(self._path, "a", buffering=1)

    def flush(self) -> None:
        """Everything written so far is on disk (or in the bucket) when this returns."""
        self._file.flush()
        for writer in self._event_writers.values():
            writer.flush()
        if self._remote:
            self._upload()

    def close(self) -> None:
        """Flushes and closes; a second call does nothing."""
        if self._file.closed:
            return
        self.flush()
        self._file.close()
        for writer in self._event_writers.values():
            writer.close()
        if self._spool is not None:
            self._spool.cleanup()

    def __enter__(self) -> MetricWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write_events(self, run: str, step: int, now: float, values: Mapping[str, float]) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2

        if run not in self._event_writers:
            self._event_writers[run] = _event_writer(str(self._local / "tensorboard" / run))
        writer = self._event_writers[run]
        if (
            run in self._restarted_at
        ):  # tells TensorBoard to hide the points of steps that are run again
            restart = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            writer.add_event(
                event_pb2.Event(
                    wall_time=now, step=self._restarted_at.pop(run) + 1, session_log=restart
                )
            )
        points = [
            summary_pb2.Summary.Value(tag=name, simple_value=value)
            for name, value in values.items()
        ]
        writer.add_event(
            event_pb2.Event(wall_time=now, step=step, summary=summary_pb2.Summary(value=points))
        )

    def _drop_torn_line(self) -> None:
        """A process killed in mid-write leaves half a line, to which the next one would be
        glued."""
        if self._path.exists():
            text = self._path.read_bytes().decode(errors="replace")
            if text and not text.endswith("\n"):
                self._replace(text[: text.rfind("\n") + 1])

    def _replace(self, text: str) -> None:
        """Through a second file, so that a kill in between loses nothing."""
        beside = self._path.with_name(FILE + ".tmp")
        beside.write_text(text)
        beside.replace(self._path)

    def _upload(self) -> None:
        # One folder a stage, one a network; epath refuses a recursive pattern.
        for path in [self._path, *(self._local / "tensorboard").glob("*/*/events.*")]:
            target = self._workdir / path.relative_to(self._local)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
        self._uploaded = time.monotonic()


def read_metrics(workdir: epath.PathLike) -> list[dict[str, Any]]:
    """The objects of `metrics.jsonl` in order of time; [] if there is none. Torn or foreign lines
    are skipped."""
    path = epath.Path(workdir) / FILE
    if not path.exists():
        return []
    return [
        line
        for line in map(_parse, path.read_bytes().decode(errors="replace").splitlines())
        if line is not None
    ]


def _parse(text: str) -> dict[str, Any] | None:
    try:
        line = json.loads(text)
    except ValueError:
        return None
    return (
        line
        if isinstance(line, dict) and "stage" in line and isinstance(line.get("step"), int)
        else None
    )


def _event_writer(directory: str) -> Any:
    """tensorboard's EventFileWriter. It would import TensorFlow where that is installed (seconds,
    and GPU memory), only to open a local file; `tensorboard.compat.notf` is tensorboard's own
    switch against that."""
    sys.modules.setdefault("tensorboard.compat.notf", types.ModuleType("tensorboard.compat.notf"))
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    return EventFileWriter(directory, max_queue_size=1000, flush_secs=30)
