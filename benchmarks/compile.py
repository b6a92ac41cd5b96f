"""Time to the first step of each stage of a recipe, in a new process: with an empty compilation
cache, and with a warm one.

    python benchmarks/compile.py [--config=quickstart] [--stages=transfer,distill] [--repeats=3] [--json=PATH]

From the start of the process to the end of the first step: imports, models, random parameters,
tracing, compilation."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from jaxdistill import configuration
from jaxdistill.resolve import active_order

STEP = Path(__file__).with_name("step.py")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config", default="quickstart", help="a recipe; --config.FIELD=VALUE changes it"
    )
    parser.add_argument("--stages", default="", help="only these of its stages")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", default="", help="write the numbers here")
    options, overrides = parser.parse_known_args()
    config = configuration.load_config(
        options.config, [text.removeprefix("--config.") for text in overrides]
    )
    lines: list[dict[str, Any]] = []
    print(f"{'stage':>16} {'cache':>6} {'first step':>11} {'range':>13} {'compilation':>12}")
    for stage in options.stages.split(",") if options.stages else active_order(config):
        found: dict[str, list[dict[str, Any]]] = {"empty": [], "warm": []}
        for _ in range(options.repeats):
            with tempfile.TemporaryDirectory() as cache:
                for state in found:
                    found[state].append(first_step(options.config, overrides, stage, cache))
        for state, runs in found.items():
            times = [run["first_step_seconds"] for run in runs]
            compiling = statistics.median(run["compile_seconds"] for run in runs)
            lines.append(
                {
                    "stage": stage,
                    "cache": state,
                    "first_step_seconds": times,
                    "compile_seconds": compiling,
                }
            )
            print(
                f"{stage:>16} {state:>6} {statistics.median(times):>9.1f} s {f'{min(times):.1f}-{max(times):.1f}':>13} "
                f"{compiling:>10.1f} s",
                flush=True,
            )
    if options.json:
        Path(options.json).write_text(json.dumps(lines, indent=1))


def first_step(config: str, overrides: list[str], stage: str, cache: str) -> dict[str, Any]:
    """The numbers that benchmarks/step.py gives for one step of `stage` in a process of its own."""
    environment = {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "step.json"
        command = [
            sys.executable,
            str(STEP),
            f"--config={config}",
            f"--stages={stage}",
            "--steps=1",
            f"--json={page}",
            *overrides,
        ]
        begin = time.time()
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr.strip().splitlines()[-1])
        numbers: dict[str, Any] = json.loads(page.read_text())["stages"][0]
    return {**numbers, "first_step_seconds": numbers["first_step_at"] - begin}


if __name__ == "__main__":
    main()
