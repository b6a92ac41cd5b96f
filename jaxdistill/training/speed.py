"""How fast a stage runs and how fast the machine could go at best: analytic FLOPs of a step, peaks,
MFU. Called by run."""

from __future__ import annotations

import functools
import math
import time

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxdistill.methods.base import Cast
from jaxdistill.models import Model
from jaxdistill.models.parameters import is_stacked
from jaxdistill.models.sizes import (
    TRAINING_FLOPS_PER_FORWARD_FLOP,
    encoder_flops,
    forward_flops,
    parameter_shapes,
)
from jaxdistill.objectives.terms import Term
from jaxdistill.training import state

# Dense bfloat16 peak of one JAX device (manufacturers' sheets), by the start of `device_kind`; the
# first match counts. A device of TPU v2, v3 and 7x is half a chip.
PEAK_FLOPS: tuple[tuple[str, float], ...] = (
    ("TPU v2", 22.5e12),
    ("TPU v3", 61.5e12),
    ("TPU v4 lite", 138e12),
    ("TPU v4", 275e12),
    ("TPU v5 lite", 197e12),
    ("TPU v5e", 197e12),
    ("TPU v5", 459e12),
    ("TPU v6 lite", 918e12),
    ("TPU v6e", 918e12),
    ("TPU7x", 1153.5e12),
    ("TPU v7x", 1153.5e12),
    ("NVIDIA A100", 312e12),
    ("NVIDIA H100 PCIe", 756e12),
    ("NVIDIA H100 NVL", 835e12),
    ("NVIDIA H100", 989e12),
    ("NVIDIA H200 NVL", 835e12),
    ("NVIDIA H200", 989e12),
    ("NVIDIA GH200", 989e12),
    ("NVIDIA B200", 2250e12),
    ("NVIDIA GB200", 2500e12),
)


def peak_flops(device_kind: str) -> float | None:
    """Peak FLOP/s of one device of this `jax.Device.device_kind`; None if it is not in the table.

    For "cpu" there is no such figure: a float32 matrix product is timed instead (about 0.3 s, once
    a process)."""
    if device_kind.lower() == "cpu":
        return _measured_cpu_flops()
    return next(
        (peak for prefix, peak in PEAK_FLOPS if device_kind.lower().startswith(prefix.lower())),
        None,
    )


@functools.cache
def _measured_cpu_flops(size: int = 1024, seconds: float = 0.25) -> float:
    """The best of repeated products: on a shared machine the mean measures the neighbours."""
    cpu = jax.local_devices(backend="cpu")[0]
    a = jax.device_put(jnp.ones((size, size), jnp.float32), cpu)
    product = jax.jit(jnp.matmul)
    product(a, a).block_until_ready()
    best, end = math.inf, time.perf_counter() + seconds
    while (start := time.perf_counter()) < end:
        product(a, a).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def mfu(
    flops_per_step: float, seconds_per_step: float, n_devices: int, peak: float | None
) -> float | None:
    """Model FLOPs utilisation: the fraction of `n_devices` x `peak` FLOP/s that `flops_per_step` of
    useful work over the whole global batch makes up; None where the peak is unknown."""
    if not peak or seconds_per_step <= 0:
        return None
    return flops_per_step / (seconds_per_step * n_devices * peak)


def step_flops(cast: Cast, length: int, masked_positions: int) -> dict[str, float]:
    """Analytic FLOPs of one step over the global batch of rows of `length` tokens: `student`
    (forward, and backward down to the lowest part that moves) and `teacher` (forward, of all networks that are only read). What the
    backward pass computes again is not counted, as MFU wants it.

    All positions of a row count, pads too, and a packed row's attention as that of one text: it is
    what is computed.

    A progressive phase is counted as the mean over its layers: both models run up to the active
    layer alone, and the backward pass reaches one block (strict) or all below as well (soft)."""
    stage, model = cast.stage, cast.model
    backward = TRAINING_FLOPS_PER_FORWARD_FLOP - 1
    others = 0.0
    if not stage.progressive:
        student = _forward(model, stage.heads(), length, masked_positions)
        projected = {(term.reads, term.layer_map): term for term in stage.terms if term.projection}
        for term in projected.values():
            width = cast.projected_widths[term.projection]
            student += _projected_states(term, model) * (
                2 * length * model.config.hidden_size * width
            )
        student += backward * (student - _below(cast, length))
        for name, other in cast.others:
            depth = stage.teacher_depth(model.config.num_layers, name)
            others += (
                float(encoder_flops(other.config, length, depth))
                if depth is not None
                else _forward(other, stage.heads(name), length, masked_positions)
            )
    else:
        student = _mean_up_to(model, tuple(range(model.config.num_layers)), length)
        reached = (
            student
            if stage.depth == "progressive_soft"
            else (encoder_flops(model.config, length, 1) - encoder_flops(model.config, length, 0))
        )
        student += backward * reached
        layer_map = stage.terms[0].layer_map or tuple(range(model.config.num_layers))
        others = sum(_mean_up_to(other, layer_map, length) for _, other in cast.others)
    return {"student": student * stage.batch_size, "teacher": others * stage.batch_size}


def _below(cast: Cast, length: int) -> float:
    """FLOPs of a sequence's forward pass through what lies below everything that moves. Where only upper layers
    do, the step still goes back through all: one scan holds them."""
    stage, config = cast.stage, cast.model.config
    moving = state.moving_names(stage, parameter_shapes(config))
    if any(name.startswith("embeddings/") for name in moving) or stage.projections:
        return 0.0
    if any(is_stacked(name) for name in moving):
        return float(encoder_flops(config, length, stage.layers[0] if stage.layers else 0))
    return float(encoder_flops(config, length))


def _forward(model: Model, heads: tuple[str, ...], length: int, masked_positions: int) -> float:
    return float(sum(forward_flops(model.config, length, masked_positions, heads).values()))


def _projected_states(term: Term, model: Model) -> int:
    """How many states of the student a term's projection widens."""
    if not term.per_layer:
        return 1
    return (
        model.config.num_layers if term.layer_map is None else sum(at >= 0 for at in term.layer_map)
    )


def _mean_up_to(model: Model, layers: tuple[int, ...], length: int) -> float:
    return sum(encoder_flops(model.config, length, layer + 1) for layer in layers) / len(layers)


def rates(
    steps_per_second: float, batch_size: int, length: float, flops: dict[str, float], mesh: Mesh
) -> dict[str, float]:
    """Speeds of the loop, MFU of teacher and student apart; nothing before the first interval has
    passed."""
    if steps_per_second <= 0:
        return {}
    found = {
        "steps_per_second": steps_per_second,
        "sequences_per_second": steps_per_second * batch_size,
        "tokens_per_second": steps_per_second * batch_size * length,
    }
    devices = mesh.devices.size
    peak = peak_flops(mesh.devices.flat[0].device_kind)
    if peak is not None and jax.default_backend() == "cpu":
        devices = (
            jax.process_count()
        )  # the devices of a host share the cores that the peak was measured on
    for name, amount in flops.items():
        share = mfu(amount, 1.0 / steps_per_second, devices, peak)
        if share is not None and amount:
            found[f"mfu_{name}"] = share
    return found
