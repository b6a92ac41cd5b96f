"""A plan as text: a table for each topology, and one that compares them. Called by the command
line."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

GIB = 2.0**30


def format_plan(plan: dict[str, Any]) -> str:
    """What `plan` returned, as aligned plain text."""
    parts = [_topology(one) for one in plan["topologies"]]
    if len(plan["topologies"]) > 1:
        parts.append(_aligned(compared(plan["topologies"])))
    notes = "\n".join(
        textwrap.fill(line, 118, initial_indent="* ", subsequent_indent="  ")
        for line in plan["assumptions"]
    )
    return "\n\n".join([*parts, notes])


def _topology(one: dict[str, Any]) -> str:
    mesh = ", ".join(f"{axis} {size}" for axis, size in one["mesh"].items())
    rows: list[tuple[str, ...]] = [
        (
            "stage",
            "rows a device",
            "GiB of HBM",
            "fits",
            "TFLOP a chip",
            "MB sent",
            "at best",
            "estimate",
            "MFU",
            "tokens/s",
            "days",
            "chip-hours",
        )
    ]
    rows += [_stage(stage) for stage in one["stages"]]
    rows.append(("all", *[""] * 9, number(one["days"]), number(one["chip_hours"])))
    lines = [
        f"{one['topology']}: {one['chips']} chips, {one['devices']} devices; mesh {mesh}",
        _aligned(rows),
    ]
    for stage in one["stages"]:
        if stage.get("sent_bytes"):
            kinds = ", ".join(
                f"{kind} {size / 1e6:,.1f} MB" for kind, size in stage["sent_bytes"].items()
            )
            lines.append(f"{stage['stage']}: a device sends {kinds} a step")
        if "largest_rows_per_device" in stage:
            lines.append(
                f"{stage['stage']}: at most {stage['largest_rows_per_device']} rows a device at once, "
                f"{stage['largest_rows_per_chip']:g} a chip"
            )
    return "\n".join(lines)


def _stage(stage: dict[str, Any]) -> tuple[str, ...]:
    total = stage["memory"]["total"]
    room = (
        f"{'more' if total is None else f'{total / GIB:.2f}'} of {stage['memory_limit'] / GIB:.0f}"
    )
    first = (stage["stage"], str(stage["rows_per_device"]), room, "yes" if stage["fits"] else "NO")
    if "step_seconds" not in stage:
        return (*first, *["-"] * 8)
    return (
        *first,
        f"{stage['flops_per_chip'] / 1e12:.3g}",
        f"{sum(stage['sent_bytes'].values()) / 1e6:,.1f}",
        seconds(stage["best_seconds"]),
        seconds(stage["step_seconds"]),
        f"{stage['mfu']:.1%}",
        f"{stage['tokens_per_second']:,.0f}",
        number(stage["days"]),
        number(stage["chip_hours"]),
    )


def compared(found: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """One row a topology: whether all fits, steps by stage, the whole recipe."""
    names = [stage["stage"] for stage in found[0]["stages"]]
    rows: list[tuple[str, ...]] = [("topology", "chips", "all fit", *names, "days", "chip-hours")]
    for one in found:
        steps = [
            seconds(stage["step_seconds"]) if "step_seconds" in stage else "-"
            for stage in one["stages"]
        ]
        fits = "yes" if all(stage["fits"] for stage in one["stages"]) else "NO"
        rows.append(
            (
                one["topology"],
                str(one["chips"]),
                fits,
                *steps,
                number(one["days"]),
                number(one["chip_hours"]),
            )
        )
    return rows


def seconds(value: float) -> str:
    """0.0123 -> "12.3 ms"."""
    return (
        f"{value:.3g} s"
        if value >= 1
        else f"{1e3 * value:.3g} ms"
        if value >= 1e-3
        else f"{1e6 * value:.3g} us"
    )


def number(value: float | None) -> str:
    """Three digits; "-" for what is not known."""
    return "-" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _aligned(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:]))]
        ).rstrip()
        for row in rows
    )
