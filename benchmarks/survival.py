"""Kills a run again and again, and compares what it ends with to the uninterrupted run, to the bit.

    python benchmarks/survival.py [--kills=25] [--seed=0] [--json=PATH]
    python benchmarks/survival.py --restart [--config=quickstart]       # time from a killed run's restart to its next step
    python benchmarks/survival.py --sigterm [--step_seconds=0.05,2,30]  # time from SIGTERM to the end of the process

SIGKILL comes in turn at a random moment, while a checkpoint is being saved, while the network of a
finished stage is being written, and while the run ends (export, plots); every fifth time SIGTERM
comes instead, as to a preempted machine, which is not counted as a kill: the process must end by
itself with exit code 75. The run is the quickstart's in toy size on a text made here, saved after
every step; when it ends before all kills are spent, the next one begins in a new folder. Processes
are forked from one that has imported everything (and has touched no device), so that what is killed
is mostly work. Every start must find what the one before left usable, each run must end with exit
code 0, DONE, and the student of the uninterrupted run. `--restart` uses real processes of
`jaxdistill train`: start of the process to the end of its first step, compilation cache warm.
`--sigterm` makes each step of the toy run as long as asked, by matrix products inside the compiled
step, and sends SIGTERM at a random moment of its first steps; the process must end with exit code
75 and have saved."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import glob
import json
import multiprocessing
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

MOMENTS = ("any", "saving", "border", "ending", "preempted")
PREEMPTED = 75
OVERRIDES = (
    "checkpoint.every_steps=1",
    "baselines=False",
    "data.heldout_fraction=0.25",
    "log_every=1",
)


@dataclasses.dataclass
class Campaign:
    """What happened. `kills`: by SIGKILL, by moment, as the folder was found afterwards;
    `preempted`: seconds from SIGTERM to the end of each process that it ended; `lives`: how many
    runs came to DONE, `equal`: how many of them with the student of the uninterrupted one."""

    kills: dict[str, int] = dataclasses.field(default_factory=dict)
    starts: int = 0
    lives: int = 0
    equal: int = 0
    preempted: list[float] = dataclasses.field(default_factory=list)

    @property
    def killed(self) -> int:
        return sum(self.kills.values())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--restart",
        action="store_true",
        help="measure the time to the first step after a kill instead",
    )
    parser.add_argument("--config", default="quickstart", help="of --restart")
    parser.add_argument(
        "--sigterm", action="store_true", help="measure the time from SIGTERM to the end instead"
    )
    parser.add_argument("--step_seconds", default="0.05,2,30", help="of --sigterm")
    parser.add_argument(
        "--repeats", type=int, default=5, help="of --sigterm, for each length of a step"
    )
    parser.add_argument("--json", default="", help="write the numbers here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.restart:
            found: dict[str, Any] = {
                "config": options.config,
                "seconds": restart(options.config, Path(folder)),
            }
            times = found["seconds"]
            print(
                f"restart of {options.config} to the end of its first step: median {statistics.median(times):.1f} s, "
                f"{min(times):.1f} to {max(times):.1f} of {len(times)}"
            )
        elif options.sigterm:
            found = {"exit_seconds": {}}
            for length in map(float, options.step_seconds.split(",")):
                times = sigterm(length, options.repeats, options.seed, Path(folder))
                found["exit_seconds"][length] = times
                print(
                    f"steps of {length:g} s: SIGTERM to exit median {statistics.median(times):.1f} s, {min(times):.1f} to "
                    f"{max(times):.1f} of {len(times)}",
                    flush=True,
                )
        else:
            result = campaign(options.kills, options.seed, Path(folder))
            found = dataclasses.asdict(result)
            print(
                f"{result.killed} kills by SIGKILL in {result.starts} starts: "
                + ", ".join(f"{count} {moment}" for moment, count in sorted(result.kills.items()))
            )
            if times := result.preempted:
                print(
                    f"{len(times)} preempted: saved and ended with exit code 75 in {max(times):.1f} s at most"
                )
            print(
                f"{result.lives} runs ended, {result.equal} equal to the uninterrupted one to the bit"
            )
    if options.json:
        Path(options.json).write_text(json.dumps(found, indent=1))
    if (
        not options.restart
        and not options.sigterm
        and (result.equal != result.lives or not result.lives)
    ):
        sys.exit(1)


def campaign(kills: int, seed: int, folder: Path) -> Campaign:
    """`kills` kills, SIGTERM between them, and as many runs as they need; ends with a run that is
    let end. Raises `RuntimeError` when a start fails by itself, or when a run never ends."""
    rng, result = random.Random(seed), Campaign()
    source, context = text(folder, rng), forkserver()
    whole = folder / "whole"
    began = time.monotonic()
    first = start(context, source, whole)
    first.join()
    duration, expected = time.monotonic() - began, student(whole)
    if first.exitcode or not expected:
        raise RuntimeError(
            f"the uninterrupted run ended with exit code {first.exitcode}; see {whole}.log"
        )
    while result.killed < kills or not result.lives:
        workdir = folder / f"life-{result.lives}"
        while not (workdir / "DONE").exists():
            if result.starts > 20 * kills + 20:
                raise RuntimeError(f"no end in sight after {result.starts} starts")
            process = start(context, source, workdir)
            result.starts += 1
            kind = MOMENTS[(result.killed + len(result.preempted)) % len(MOMENTS)]
            if result.killed < kills and wait_for(kind, workdir, process, rng, duration):
                sent = time.monotonic()
                os.kill(process.pid or 0, signal.SIGTERM if kind == "preempted" else signal.SIGKILL)
                process.join()
                if process.exitcode == PREEMPTED:
                    result.preempted.append(time.monotonic() - sent)
                elif process.exitcode == -signal.SIGKILL:
                    result.kills[moment(workdir)] = result.kills.get(moment(workdir), 0) + 1
                if process.exitcode in (
                    PREEMPTED,
                    -signal.SIGKILL,
                    -signal.SIGTERM,
                ):  # the last: not even set up
                    continue
            process.join()
            if process.exitcode:
                raise RuntimeError(f"a start in {workdir} ended with exit code {process.exitcode}")
        result.lives += 1
        result.equal += student(workdir) == expected
    return result


def text(folder: Path, rng: random.Random) -> Path:
    """A text file of made-up documents."""
    source = folder / "text.txt"
    source.write_text(
        "\n\n".join("\n".join(sentence(rng) for _ in range(rng.randint(3, 6))) for _ in range(80))
    )
    return source


def forkserver() -> Any:
    """Forks processes that have imported everything and touched no device."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [
            "jaxdistill.run",
            "jaxdistill.cli",
            "jaxdistill.report",
            "jaxdistill.plots",
            "grain",
            "tensorflow_datasets",
            "transformers",
        ]
    )
    return context


def sentence(rng: random.Random) -> str:
    words = (
        "river",
        "stone",
        "engine",
        "winter",
        "paper",
        "garden",
        "signal",
        "copper",
        "market",
        "silver",
        "window",
        "letter",
        "turns",
        "holds",
        "finds",
        "keeps",
        "the",
        "old",
    )
    return " ".join(rng.choices(words, k=rng.randint(4, 9))).capitalize() + "."


def start(context: Any, source: Path, workdir: Path) -> Any:
    """A process that runs `jaxdistill train` there."""
    process = context.Process(target=train, args=(str(source), str(workdir)), daemon=True)
    process.start()
    return process


def train(source: str, workdir: str) -> None:
    """What the child does; what it prints goes to a file beside the workdir."""
    from jaxdistill import cli

    with (
        open(workdir + ".log", "a") as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        code = cli.main(
            [
                "train",
                "--config=quickstart:smoke",
                f"--workdir={workdir}",
                f"--config.data.source={source}",
                *(f"--config.{override}" for override in OVERRIDES),
            ]
        )
    sys.exit(code)


def wait_for(kind: str, workdir: Path, process: Any, rng: random.Random, duration: float) -> bool:
    """Returns at a moment of that kind: True, or False if the process ended before it came."""
    patterns = {
        "saving": "checkpoints/*/*orbax-checkpoint-tmp*",
        "border": "stages/*",
        "ending": "results.json",
    }
    at_random = kind not in patterns
    pattern = str(workdir / patterns.get(kind, "*"))
    seen = set(glob.glob(pattern))  # pathlib's raises when a folder goes away meanwhile
    latest = time.monotonic() + duration
    delay = rng.uniform(
        0, 0.8 * duration if at_random else {"ending": 1.0, "saving": 0.03, "border": 0.006}[kind]
    )
    while process.is_alive():
        # Of checkpoints and stages only those that begin now: what an earlier kill left says
        # nothing.
        new = at_random or set(glob.glob(pattern)) - seen or (kind == "ending" and seen)
        if new or time.monotonic() > latest:
            end = time.monotonic() + delay
            while process.is_alive() and time.monotonic() < end:
                time.sleep(0.001)
            return bool(process.is_alive())
        time.sleep(0.002)
    return False


def moment(workdir: Path) -> str:
    """What the kill met, by what it left."""
    if list(workdir.glob("checkpoints/*/*orbax-checkpoint-tmp*")):
        return "in a save"
    if any(not (path / "stage.json").exists() for path in workdir.glob("stages/*")):
        return "while a finished stage was written"
    if (workdir / "results.json").exists():
        return "in the report and export"
    if list(workdir.glob("checkpoints/*/*")):
        return "between two saves"
    return "between two stages" if list(workdir.glob("stages/*")) else "before the first step"


def student(workdir: Path) -> str:
    """The SHA-256 of the student at the end of a run; "" if it did not end."""
    if not (workdir / "DONE").exists():
        return ""
    sha: str = json.loads((workdir / "results.json").read_text())["student_sha256"]
    return sha


def sigterm(length: float, repeats: int, seed: int, folder: Path) -> list[float]:
    """Seconds from SIGTERM to the end of a process whose steps take `length` seconds. Raises
    `RuntimeError` if one does not end with exit code 75, or has saved nothing."""
    rng, context, times = random.Random(seed), forkserver(), []
    source = text(folder, rng)
    for attempt in range(repeats):
        workdir = folder / f"sigterm-{length:g}-{attempt}"
        process = context.Process(
            target=train_slowly, args=(str(source), str(workdir), length), daemon=True
        )
        process.start()
        while process.is_alive() and not Path(f"{workdir}.begun").exists():
            time.sleep(0.01)
        time.sleep(rng.uniform(1, 2) * max(length, 2.0))
        sent = time.monotonic()
        os.kill(process.pid or 0, signal.SIGTERM)
        process.join()
        times.append(time.monotonic() - sent)
        saved = [path for path in workdir.glob("checkpoints/*/*") if path.name.isdigit()]
        if process.exitcode != PREEMPTED or not saved:
            raise RuntimeError(
                f"exit code {process.exitcode}, {len(saved)} checkpoints; see {workdir}.log"
            )
    return times


def train_slowly(source: str, workdir: str, length: float) -> None:
    """As `train`, one long stage whose steps also multiply matrices for `length` seconds;
    WORKDIR.begun is written when the second batch is asked for: the first step is compiled."""
    import jax
    import jax.numpy as jnp

    from jaxdistill import cli, run
    from jaxdistill.training import programs

    def work(times: Any, start: Any) -> Any:
        return jax.lax.fori_loop(
            0, times, lambda _, x: jnp.tanh(x @ x), jnp.full((384, 384), 0.001) + start
        )[0, 0]

    compiled = jax.jit(work)

    def seconds(times: int) -> float:
        began = time.monotonic()
        compiled(times, 0.0).block_until_ready()
        return time.monotonic() - began

    seconds(10)
    times = round(length / min(seconds(100) / 100 for _ in range(5)))
    real_step, real_batches = programs.make_step, run.Run.batches

    def make_step(*arguments: Any) -> Any:
        step = real_step(*arguments)

        def longer(*given: Any) -> Any:  # one executable, whose outputs are there at once
            state, metrics = step(*given)
            return state, {**metrics, "work": work(times, 0 * metrics["loss"])}

        return longer

    def batches(*arguments: Any, **options: Any) -> Any:
        for number, batch in enumerate(real_batches(*arguments, **options)):
            if number == 1:
                Path(workdir + ".begun").touch()
            yield batch

    programs.make_step, run.Run.batches = make_step, batches  # type: ignore[assignment]
    with (
        open(workdir + ".log", "a") as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        code = cli.main(
            [
                "train",
                "--config=quickstart:smoke",
                f"--workdir={workdir}",
                f"--config.data.source={source}",
                "--config.order=('teacher',)",
                "--config.stages.teacher.steps=100000",
                "--config.data.heldout_fraction=0.25",
            ]
        )
    sys.exit(code)


def restart(config: str, folder: Path, repeats: int = 5) -> list[float]:
    """Seconds from the start of each resuming process to the end of its first step."""
    command = [
        sys.executable,
        "-m",
        "jaxdistill.cli",
        "train",
        f"--config={config}",
        f"--workdir={folder / 'run'}",
        "--config.log_every=1",
        "--config.checkpoint.every_steps=10",
    ]
    times, metrics = [], folder / "run" / "metrics.jsonl"
    for attempt in range(repeats + 1):
        before = metrics.stat().st_size if metrics.exists() else 0
        began = time.time()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        first = None
        while process.poll() is None:
            text = metrics.read_text() if metrics.exists() else ""
            times_told = [
                json.loads(line)["time"] for line in text.splitlines() if line.endswith("}")
            ]
            new = [told for told in times_told if told > began]
            first = first or min(new, default=None)
            saved = [
                path for path in (folder / "run").glob("checkpoints/*/*") if path.name.isdigit()
            ]
            if first and saved and (attempt or len(new) > 12):
                break
            time.sleep(0.05)
        process.kill()
        process.wait()
        if first is None:
            sys.exit(
                f"{' '.join(command)} ended before its first step (metrics: {before} bytes before)"
            )
        if attempt:  # the first one compiles
            times.append(first - began)
    shutil.rmtree(folder / "run")
    return times


if __name__ == "__main__":
    main()
