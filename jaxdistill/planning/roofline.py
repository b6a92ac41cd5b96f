"""From what a compiled step does to how long it takes at best, and about. Called by child; plain
arithmetic, no jax."""

from __future__ import annotations

from typing import Any

from jaxdistill.planning.compiled import Totals
from jaxdistill.planning.topologies import Topology

ASSUMPTIONS = (
    "Nothing was run: these are numbers of programs compiled for these chips, and published peaks.",
    "Memory: arguments, results that replace none of them, temporaries and code of one step on one device, against the "
    "HBM of a device; the compiler keeps a part of that for itself.",
    "FLOPs: our count of matrix products that training needs, without what is computed again; of a progressive stage the "
    "mean over its phases.",
    "Sent: bytes that each device sends, by the collectives in the compiled program, loops multiplied, as rings.",
    "At best: the longest of FLOPs at the bfloat16 peak, HBM traffic and interconnect traffic at their published rates, all "
    "three wholly overlapped.",
    "Estimate: operations with matrix products at the compiler's own estimate of cycles; all others at the published rate "
    "of the HBM traffic they make, and the 1,800 cycles that the compiler charges for any operation; then the interconnect "
    "with nothing overlapped. MFU, tokens a second, days and chip-hours follow from it.",
    "Left out: waiting for input, evaluation, checkpoints, compilation, interruptions, and links between slices.",
)
GUESSED = (
    "Loops whose length only the running program knows (the frozen layers of progressive transfer) count as the mean "
    "over phases; conditions inside them likewise."
)
CYCLES_OF_ANY_OPERATION = 1800


def estimate(totals: Totals, flops: float, topology: Topology) -> dict[str, Any]:
    """Seconds of one step, by part and together. `flops`: useful FLOPs of the global batch;
    `totals`: of one device."""
    chip = topology.generation
    share = chip.devices_a_chip  # devices of one chip share its rates
    compute = flops / topology.chips / chip.flops
    memory = totals.memory * share / chip.memory_rate
    links = sum(totals.sent.values()) * share / chip.link_rate
    best = max(compute, memory, links)
    others = (
        totals.outside * share / chip.memory_rate
        + totals.operations * CYCLES_OF_ANY_OPERATION / chip.clock
    )
    about = max(best, totals.product_cycles / chip.clock + others + links)
    return {
        "flops": flops,
        "flops_per_chip": flops / topology.chips,
        "sent_bytes": dict(sorted(totals.sent.items())),
        "memory_bytes_moved": totals.memory,
        "compute_seconds": compute,
        "memory_seconds": memory,
        "interconnect_seconds": links,
        "compiler_seconds": totals.cycles / chip.clock,
        "best_seconds": best,
        "step_seconds": about,
        "mfu": compute / about if about else 0.0,
    }


def whole_stage(
    step_seconds: float, steps: int | None, batch_size: int, length: int, chips: int
) -> dict[str, Any]:
    """Speed and length of a stage; no length when its steps are not known without the text (`steps`
    None)."""
    found: dict[str, Any] = {
        "tokens_per_second": batch_size * length / step_seconds,
        "steps": steps,
    }
    hours = None if steps is None else steps * step_seconds / 3600
    return {
        **found,
        "days": None if hours is None else hours / 24,
        "chip_hours": None if hours is None else hours * chips,
    }


def whole_recipe(stages: list[dict[str, Any]]) -> dict[str, Any]:
    """Days and chip-hours of all stages one after another; None when one is unknown or does not
    fit."""
    return {
        name: None
        if any(stage.get(name) is None for stage in stages)
        else sum(stage[name] for stage in stages)
        for name in ("days", "chip_hours")
    }
