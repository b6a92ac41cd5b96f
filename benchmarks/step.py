"""How fast each stage of a recipe trains on this machine: steps, sequences, MFU of teacher and
student apart, memory.

    python benchmarks/step.py [--config=wiki] [--config.mesh.fsdp=2 ...] [--stages=transfer,distill] [--forward] [--json=PATH]

The networks have random weights and the batches random words; the step is the one that `jaxdistill
train` runs. Times are medians over `--steps` steps after the first, with the range. Memory is what
the compiled step needs beside its arguments (temporaries), and the peak of the device so far where
it reports one (one stage a call gives that stage's). `roofline`: the least time that the step's
FLOPs need at the device's bfloat16 peak, or the traffic of the compiled program (loops multiplied)
at its memory's rate, whichever is longer, over the time it took; on GPUs whose rate is known here.
`--forward` also times the teacher's forward pass alone, as a stage runs it."""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import time
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from jaxdistill import allocation, configuration, inputs
from jaxdistill.data import packing
from jaxdistill.errors import BadInput
from jaxdistill.methods.base import Cast, Stage
from jaxdistill.models import Model, Params
from jaxdistill.models.encoder import in_compute_dtype
from jaxdistill.models.sizes import parameter_shapes
from jaxdistill.planning.compiled import Program
from jaxdistill.recipe import Recipe
from jaxdistill.resolve import resolve
from jaxdistill.startup import choose_stages
from jaxdistill.students.copying import random_start
from jaxdistill.training import programs, sharding
from jaxdistill.training.speed import mfu, peak_flops, rates, step_flops
from jaxdistill.training.step import Given

# Bytes a second of a GPU's memory (manufacturer's sheets); the first match counts.
MEMORY_RATES = (
    ("NVIDIA H100 PCIe", 2.0e12),
    ("NVIDIA H100 NVL", 3.9e12),
    ("NVIDIA H100", 3.35e12),
    ("NVIDIA H200", 4.8e12),
)


def random_batch(config: ConfigDict, batch_size: int, vocab_size: int) -> dict[str, np.ndarray]:
    """A full batch of random words; with packing two texts in each row."""
    length, words = config.data.sequence_length, config.data.max_predictions
    if not config.data.packing:
        return random_texts(batch_size, length, words, vocab_size)
    half = random_texts(2 * batch_size, length // 2, min(words, length // 2), vocab_size)
    wide = {
        name: np.pad(x, ((0, 0), (0, length - length // 2))) if x.shape[1:] == (length // 2,) else x
        for name, x in half.items()
        if not name.startswith("mlm")
    }
    return packing.join(
        {**half, **wide},
        np.repeat(np.arange(batch_size), 2),
        num_rows=batch_size,
        pad=0,
        predictions=inputs.feed_of_text(config).predictions,
        max_segments=packing.segments_a_row(length),
    )


def random_texts(
    batch_size: int, length: int, words: int, vocab_size: int
) -> dict[str, np.ndarray]:
    """One text a row, without pads."""
    rng = np.random.default_rng(0)
    ids = rng.integers(0, vocab_size, (batch_size, length)).astype(np.int32)
    positions = np.sort(
        rng.permuted(np.tile(np.arange(length, dtype=np.int32), (batch_size, 1)), axis=1)[:, :words]
    )
    return {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "token_type_ids": np.tile(
            (np.arange(length) >= length // 2).astype(np.int32), (batch_size, 1)
        ),
        "mlm_positions": positions,
        "mlm_labels": np.take_along_axis(ids, positions, 1),
        "mlm_weights": np.ones(positions.shape, np.float32),
        "nsp_labels": rng.integers(0, 2, batch_size).astype(np.int32),
        "example_weights": np.ones(batch_size, np.float32),
    }


def start(model: Model, seed: int, mesh: jax.sharding.Mesh) -> Params:
    """Random parameters, made where they belong."""
    return random_start(model, seed, sharding.shardings(mesh, parameter_shapes(model.config)))


def forward(
    cast: Cast,
    others: dict[str, Params],
    batch: Any,
    steps: int,
    flops: float,
    mesh: jax.sharding.Mesh,
) -> dict[str, Any]:
    """Seconds and MFU of the teacher's forward pass alone, to where the stage's losses read it."""
    name, teacher = cast.others[0]
    teacher = dataclasses.replace(teacher, batch_sharding=sharding.over_batch(mesh))
    heads, depth = cast.stage.heads(name), cast.model.config.num_layers
    last = cast.stage.teacher_depth(depth, name)
    run = jax.jit(lambda p, b: teacher.apply(p, b, heads=heads, num_layers=last)[0])
    seconds = []
    for _ in range(steps + 1):
        begin = time.perf_counter()
        jax.block_until_ready(run(others[name], batch))
        seconds.append(time.perf_counter() - begin)
    median = statistics.median(seconds[1:])
    device = mesh.devices.flat[0]
    devices = 1 if device.platform == "cpu" else mesh.size  # the peak of a CPU is the host's
    return {
        "forward_seconds": median,
        "forward_seconds_range": [min(seconds[1:]), max(seconds[1:])],
        "forward_mfu": mfu(flops, median, devices, peak_flops(device.device_kind)),
    }


def best_seconds(text: str, flops: float, mesh: jax.sharding.Mesh) -> float | None:
    """The longest of computing and moving, each at its published rate; None where a rate is not
    known."""
    kind = mesh.devices.flat[0].device_kind
    rate = next((rate for start, rate in MEMORY_RATES if kind.startswith(start)), None)
    peak = peak_flops(kind)
    if rate is None or peak is None:
        return None
    return max(flops / mesh.size / peak, Program(text, mesh.size).totals().memory / rate)


def measure(
    config: ConfigDict,
    recipe: Recipe,
    stage: Stage,
    mesh: jax.sharding.Mesh,
    steps: int,
    alone: bool,
) -> dict[str, Any]:
    """The numbers of one stage; `alone`: of the teacher's forward pass too."""
    cast = recipe.cast(stage)
    model = cast.model
    others = {
        name: in_compute_dtype(other.config, start(other, 0, mesh)) for name, other in cast.others
    }
    given = sharding.place(mesh, Given(others, np.int32(0)))
    now = programs.compile_start(cast, mesh)(start(model, 1, mesh), 2)
    batch = sharding.put_batch(
        mesh, random_batch(config, stage.batch_size, model.config.vocab_size)
    )
    step = programs.compile_step(cast, mesh)
    begin = time.perf_counter()
    compiled = step.lower(now, given, batch).compile()
    compile_seconds = time.perf_counter() - begin
    memory = compiled.memory_analysis()
    seconds = []
    for _ in range(steps + 1):
        begin = time.perf_counter()
        now, metrics = compiled(now, given, batch)
        jax.block_until_ready((now, metrics))
        seconds.append(time.perf_counter() - begin)
        if len(seconds) == 1:
            first_step_at = time.time()
    median = statistics.median(seconds[1:])
    flops = step_flops(cast, config.data.sequence_length, inputs.feed_of_text(config).predictions)
    stats = mesh.devices.flat[0].memory_stats() or {}
    best = best_seconds(compiled.as_text() or "", sum(flops.values()), mesh)
    found = (
        {}
        if not alone or not cast.others
        else forward(cast, given.others, batch, steps, flops["teacher"], mesh)
    )
    return {
        "stage": stage.name,
        "rows": stage.batch_size,
        "length": config.data.sequence_length,
        "compile_seconds": compile_seconds,
        "first_step_at": first_step_at,  # the clock's time, for compile.py
        "step_seconds": median,
        "step_seconds_range": [min(seconds[1:]), max(seconds[1:])],
        "temporaries_MiB": memory.temp_size_in_bytes / 2**20 if memory else None,
        "peak_MiB": stats.get("peak_bytes_in_use", 0) / 2**20 or None,
        "teacher_GFLOP": flops["teacher"] / 1e9,
        "student_GFLOP": flops["student"] / 1e9,
        "best_seconds": best,
        **found,
        **rates(1 / median, stage.batch_size, config.data.sequence_length, flops, mesh),
    }


def share(part: float | None, whole: float) -> str:
    return "-" if part is None else f"{part / whole:.1%}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config", default="wiki", help="a recipe; --config.FIELD=VALUE changes it"
    )
    parser.add_argument("--stages", default="", help="only these of its stages")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument(
        "--forward", action="store_true", help="also time the teacher's forward pass alone"
    )
    parser.add_argument("--json", default="", help="write the numbers here")
    arguments, overrides = parser.parse_known_args()
    allocation.reuse_freed_memory()  # as the command does
    config = configuration.load_config(
        arguments.config, [text.removeprefix("--config.") for text in overrides]
    )
    mesh = sharding.make_mesh(**config.mesh)
    feeds = inputs.outline(config)
    recipe = resolve(config, vocab_size=config.data.vocab_size, feeds=feeds, mesh=mesh)
    chosen = choose_stages(recipe, arguments.stages.split(",") if arguments.stages else None)
    lines = []
    print(f"{inputs.hardware()}; {dict(mesh.shape)}; jax {jax.__version__}")
    print(
        f"{'stage':>16} {'rows':>5} {'ms a step':>10} {'range':>13} {'rows/s':>8} {'MFU teacher':>12} {'MFU student':>12} "
        f"{'temp MiB':>9} {'roofline':>8}"
    )
    for stage in chosen:
        line = measure(config, recipe, stage, mesh, arguments.steps, arguments.forward)
        lines.append(line)
        low, high = (1e3 * value for value in line["step_seconds_range"])
        shares = [
            f"{line[name]:.1%}" if name in line else "-" for name in ("mfu_teacher", "mfu_student")
        ]
        print(
            f"{stage.name:>16} {stage.batch_size:>5} {1e3 * line['step_seconds']:>10.1f} {f'{low:.0f}-{high:.0f}':>13} "
            f"{line['sequences_per_second']:>8.1f} {shares[0]:>12} {shares[1]:>12} {line['temporaries_MiB'] or 0:>9.0f} "
            f"{share(line['best_seconds'], line['step_seconds']):>8}",
            flush=True,
        )
        if "forward_seconds" in line:
            low, high = (1e3 * value for value in line["forward_seconds_range"])
            print(
                f"{'teacher forward':>16} {stage.batch_size:>5} {1e3 * line['forward_seconds']:>10.1f} "
                f"{f'{low:.0f}-{high:.0f}':>13} {stage.batch_size / line['forward_seconds']:>8.1f} "
                f"{share(line['forward_mfu'], 1.0):>12}",
                flush=True,
            )
    if arguments.json:
        report = {
            "config": arguments.config,
            "overrides": overrides,
            "hardware": inputs.hardware(),
            "versions": inputs.versions(),
            "mesh": dict(mesh.shape),
            "stages": lines,
        }
        epath.Path(arguments.json).write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    try:
        main()
    except BadInput as error:
        sys.exit(f"{error}")
