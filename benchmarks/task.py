"""Whole jobs, from reading the table to the last score: one distillation on a task in this package, in TextBrewer
and in a plain Hugging Face loop, run by turns.

    python benchmarks/task.py --data=SST-2 --teacher=DIR --workdir=DIR [--epochs=3] [--window=300]
                              [--only=packed,dynamic] [--json=FILE]              # pip install -e '.[peers]'

`--teacher` is a fine-tuned classifier, as tasks.py or `jaxdistill finetune` makes one. A student of 3 layers
of width 192, the same random weights for all, learns its logits (KL at temperature 2), the true labels, and
its hidden states 2, 4 and 6, each through a projection: AdamW, batches of 32, no dropout. Every contestant is a
process of its own; one runs at a time, for `--window` steps, while the others are stopped. Seconds are those it
ran. Two orders of the rows, the same rows in each step of those that share one:

    any      packed   here, 4 texts share a row
             stored   the same; the teacher's outputs are computed once, at first use, and stored
             textbrewer  padded to 128 tokens, as in TextBrewer's example
             dynamic  a plain PyTorch loop, padded to the longest text of the batch
    grouped  buckets  here, texts of about equal length share a batch
             group_by_length  the plain loop on those batches

Losses of hidden states at step 10 must be equal to 1e-3, or nothing is reported. A contestant `NAME:1` runs with seed 1. Every
finished one goes at once into `--json`."""

from __future__ import annotations

import argparse
import json
import math
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import time
from typing import Any

from task_jobs import ORDERS, OURS, TOLD, compete, make_student

from jaxdistill import inputs

TOLERANCE = 1e-3


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, type=pathlib.Path)
    parser.add_argument("--teacher", required=True, type=pathlib.Path)
    parser.add_argument("--workdir", required=True, type=pathlib.Path)
    parser.add_argument("--epochs", type=float, default=3.0)
    parser.add_argument("--window", type=int, default=300)
    parser.add_argument("--only", default=",".join(ORDERS))
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("--worker", default="", help=argparse.SUPPRESS)
    return parser.parse_args()


class Runner:
    """A contestant's process, which runs only in its turns."""

    def __init__(self, spelled: str, options: argparse.Namespace) -> None:
        self.name, _, seed = spelled.partition(":")
        self.seed = int(seed or 0)
        self.folder = options.workdir / f"{self.name}-{self.seed}"
        self.folder.mkdir(parents=True)
        self.log = (self.folder / "log.txt").open("w")
        command = [sys.executable, __file__, *sys.argv[1:], f"--worker={self.name}:{self.seed}"]
        self.turns: list[tuple[float, float]] = []
        self.process: subprocess.Popen[bytes] | None = None
        self.start = lambda: subprocess.Popen(
            command, stdout=self.log, stderr=self.log, start_new_session=True
        )

    def turn(self, window: int) -> None:
        """Lets it run until it is `window` steps further, or ends."""
        begun = time.time()
        if self.process is None:
            self.process = self.start()
        else:
            os.killpg(self.process.pid, signal.SIGCONT)
        first = self.steps()
        while self.process.poll() is None and self.steps() < first + window:
            time.sleep(0.1)
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGSTOP)
        self.turns.append((begun, time.time()))
        if self.process.poll():
            raise SystemExit(f"{self.name} failed; see {self.folder / 'log.txt'}")

    @property
    def done(self) -> bool:
        return self.process is not None and self.process.poll() is not None

    def stop(self) -> None:
        """Ends it, finished or not."""
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)

    def lines(self) -> list[dict[str, Any]]:
        """What it said so far; the last line may be torn."""
        path = self.folder / ("run" if self.name in OURS else ".") / "metrics.jsonl"
        text = path.read_text() if path.exists() else ""
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]

    def steps(self) -> int:
        return max((line["step"] for line in self.lines()), default=0)

    def ran(self, moment: float) -> float:
        """Seconds that it had run at a moment."""
        return sum(min(end, moment) - begin for begin, end in self.turns if begin < moment)

    def rates(self) -> list[float]:
        """Steps a second in each turn, from its first line to its last one."""
        told = [(line["time"], line["step"]) for line in self.lines() if "loss" in line]
        found = []
        for begin, end in self.turns:
            inside = [(moment, step) for moment, step in told if begin <= moment <= end]
            if len(inside) > 2:
                (t, first), (u, last) = inside[0], inside[-1]
                found.append((last - first) / (u - t))
        return found

    def scores(self) -> list[tuple[int, float]]:
        """(step, dev accuracy)."""
        if self.name in OURS:
            page = json.loads((self.folder / "run/stages/distill/stage.json").read_text())
            return [(step, value) for step, value in page["measured"]]
        return [(x["step"], x["accuracy"]) for x in self.lines() if "accuracy" in x]

    def page(self) -> dict[str, Any]:
        """What is reported of it."""
        scores, rates = self.scores(), self.rates()
        best, accuracy = max(scores, key=lambda score: (score[1], -score[0]))
        reached = [line["time"] for line in self.lines() if line["step"] >= best]
        compiled = self.folder / "compile.json"
        return {
            "name": self.name,
            "seed": self.seed,
            "order": ORDERS[self.name],
            "steps": self.steps(),
            "seconds": round(self.ran(self.turns[-1][1]), 1),
            "compile_seconds": round(json.loads(compiled.read_text()), 1)
            if compiled.exists()
            else 0.0,
            "steps_per_second": statistics.median(rates or [math.nan]),
            "windows": [round(rate, 3) for rate in rates],
            "best_accuracy": accuracy,
            "seconds_to_best": round(self.ran(reached[0]), 1) if reached else None,
            "last_accuracy": scores[-1][1],
            "first_losses": {
                key: value
                for key, value in sorted(self.lines()[0].items())
                if key.startswith("raw/hidden_")
            },
        }


def race(options: argparse.Namespace) -> int:
    """Runs all by turns, tells what each needed, and what the first order's needs are made of."""
    options.workdir.mkdir(parents=True)
    make_student(options)
    runners = [Runner(name, options) for name in options.only.split(",")]
    facts = {"hardware": inputs.hardware(), "epochs": options.epochs, "window": options.window}
    pages: list[dict[str, Any]] = []
    try:
        while left := [runner for runner in runners if not runner.done]:
            for runner in left:
                runner.turn(options.window)
                print(
                    f"{runner.name:>16} {runner.steps():>6} steps, {runner.ran(time.time()):>7.0f} s",
                    flush=True,
                )
                if runner.done:
                    pages.append(runner.page())
                    if options.json:
                        options.json.write_text(
                            json.dumps({**facts, "runs": pages}, indent=1) + "\n"
                        )
    finally:
        for runner in runners:
            runner.stop()
    check(pages)
    print("\n".join(table(pages)))
    return 0


def table(pages: list[dict[str, Any]]) -> list[str]:
    """As docs/results.md has it."""
    heads = ["run", "seed", "rows of a step", "steps a second (range)", "seconds in all"]
    heads += ["of them compiling", "best dev accuracy", "after seconds", "last"]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for page in pages:
        windows = page["windows"] or [math.nan]
        rate = f"{page['steps_per_second']:.2f} ({min(windows):.2f} to {max(windows):.2f})"
        cells = [page["name"], page["seed"], page["order"], rate, f"{page['seconds']:,.0f}"]
        cells += [f"{page['compile_seconds']:.0f}", f"{page['best_accuracy']:.1%}"]
        cells += [f"{page['seconds_to_best'] or math.nan:,.0f}", f"{page['last_accuracy']:.1%}"]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines


def check(pages: list[dict[str, Any]]) -> None:
    """Exits unless all that share rows and a seed had the same losses when they were first told."""
    for page in pages:
        for other in pages:
            if (page["order"], page["seed"]) != (other["order"], other["seed"]):
                continue
            for name, value in page["first_losses"].items():
                theirs = other["first_losses"][name]
                if abs(value - theirs) > TOLERANCE * abs(value):
                    raise SystemExit(
                        f"{name} at step {TOLD} is {value:.6f} in {page['name']} and {theirs:.6f} in "
                        f"{other['name']}: not the same work, so no ratio means anything"
                    )


def main() -> None:
    options = parse()
    if options.worker:
        compete(options.worker, options)
    else:
        raise SystemExit(race(options))


if __name__ == "__main__":
    main()
