"""Rows a second of fine-tuning in batches of about equal length, and in packed rows, against padding all to one
length.

    python benchmarks/lengths.py --model=FOLDER --task=sst2 --data=FOLDER [--sequence_length=128]
                                 [--batch_size=32] [--packed=4] [--steps=50] [--plain_steps=5] [--rounds=3]
                                 [--json=FILE]

The ways run by turns on training rows of the task, after every shape of theirs was compiled: `steps`
batches that were sorted together, as many of any rows of which `packed` share a row, and `plain_steps` of the
one length, which all take the same time. What compiling took is told apart, and how many shapes there were.
Minimum, median and maximum over the rounds."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import statistics
import time
from typing import Any

import jax
import numpy as np

from jaxdistill import allocation, conversion, defaults, inputs
from jaxdistill.data.rows import training_batches
from jaxdistill.data.tasks import open_task
from jaxdistill.methods.base import Cast
from jaxdistill.methods.kinds import build
from jaxdistill.resolve import with_labels
from jaxdistill.training import programs, sharding
from jaxdistill.training.step import Given


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--task", default="sst2")
    parser.add_argument("--data", required=True)
    parser.add_argument("--sequence_length", type=int, default=128)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--packed", type=int, default=4, help="texts that share a packed row")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--plain_steps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", default="")
    options = parser.parse_args()
    allocation.reuse_freed_memory()  # as the command does
    model, params, tokenizer = conversion.load(options.model, heads=())
    section = defaults.task(
        options.task, source=options.data, sequence_length=options.sequence_length
    )
    feed = open_task("task", section, seed=0)
    config = model.config.replace(heads=(feed.head,))
    learner = with_labels(dataclasses.replace(model, config=config), feed.labels)
    fresh = jax.device_get(learner.init(jax.random.key(0)))
    stage = build(
        "finetune",
        defaults.stage(
            "finetune",
            "model",
            steps=10**6,
            batch_size=options.batch_size,
            optimizer="adamw",
            learning_rate=2e-5,
            dropout=True,
        ),
        config,
        feed.losses,
    )
    parts = feed.read(tokenizer).parts
    assert parts is not None
    orders = {
        "one length": dataclasses.replace(parts.order, buckets=False),
        "buckets": parts.order,
        "packed": dataclasses.replace(parts.order, packed=options.packed),
    }
    found: dict[str, Any] = {}
    for name, order in orders.items():
        batches = list(
            itertools.islice(
                training_batches(parts.train, order, options.batch_size),
                options.plain_steps if name == "one length" else options.steps,
            )
        )
        found[name] = Way(Cast(stage, learner), {**fresh, **params}, batches)
        found[name].compile()
    for _ in range(options.rounds):
        for way in found.values():
            way.run()
    lines = {name: way.line() for name, way in found.items()}
    lines["hardware"], lines["options"] = inputs.hardware(), vars(options)
    for name in orders:
        print(f"{name:>10}: {lines[name]}")
    plain = lines["one length"]["rows_per_second"][1]
    ratios = {name: lines[name]["rows_per_second"][1] / plain for name in ("buckets", "packed")}
    for name, ratio in ratios.items():
        print(f"{name} give {ratio:.1f} x the rows a second, on {lines['hardware']}")
    if options.json:
        with open(options.json, "w") as file:
            json.dump({**lines, "ratios": ratios}, file, indent=1)


class Way:
    """One way to pad, with its batches."""

    def __init__(self, cast: Cast, params: Any, batches: list[Any]) -> None:
        self.mesh = sharding.make_mesh(1)
        self.step = programs.compile_step(cast, self.mesh)
        self.given = sharding.place(self.mesh, Given({}, np.int32(0), {}))
        placed = sharding.place(self.mesh, jax.tree.map(np.array, params))
        self.state = programs.compile_start(cast, self.mesh)(placed, np.int32(0))
        self.batches = [sharding.put_batch(self.mesh, batch) for batch in batches]
        self.shapes = sorted({batch["input_ids"].shape[1] for batch in batches})
        tokens = sum(batch["attention_mask"].sum() for batch in batches)
        self.pads = 1 - tokens / sum(batch["attention_mask"].size for batch in batches)
        self.rows = int(sum(batch["example_weights"].sum() for batch in batches))
        self.seconds: list[float] = []
        self.compiled = 0.0

    def compile(self) -> None:
        """Runs one step of every shape."""
        begun = time.perf_counter()
        for length in self.shapes:
            batch = next(b for b in self.batches if b["input_ids"].shape[1] == length)
            self.state, metrics = self.step(self.state, self.given, batch)
            jax.block_until_ready(metrics)
        self.compiled = time.perf_counter() - begun

    def run(self) -> None:
        """All its steps."""
        begun = time.perf_counter()
        for batch in self.batches:
            self.state, metrics = self.step(self.state, self.given, batch)
        jax.block_until_ready(metrics)
        self.seconds.append(time.perf_counter() - begun)

    def line(self) -> dict[str, Any]:
        rates = [self.rows / seconds for seconds in self.seconds]
        return {
            "rows_per_second": [min(rates), statistics.median(rates), max(rates)],
            "pads": float(self.pads),
            "shapes": self.shapes,
            "compile_seconds": self.compiled,
        }


if __name__ == "__main__":
    main()
