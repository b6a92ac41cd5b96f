"""The process that compiles: one topology, every stage of a recipe, as a run would compile them.
Started by plan.

    python -m jaxdistill.planning.child REQUEST.json

Writes one JSON object a line: {"event": "compiling", ...}, {"event": "mesh", ...}, {"event":
"stage", ...}, and {"event": "refused", "message": ...} for what the recipe or the topology has
wrong. It alone touches libtpu."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import sys
import time
from typing import Any

import jax
from etils import epath
from jax.experimental import topologies as jax_topologies
from ml_collections import ConfigDict

from jaxdistill import inputs, interop, remote
from jaxdistill.checks import check_settings
from jaxdistill.configuration import run_code
from jaxdistill.data.feeds import MANY
from jaxdistill.errors import BadInput, nearest
from jaxdistill.methods.base import Stage
from jaxdistill.models import Model
from jaxdistill.planning import fit, roofline, topologies
from jaxdistill.planning.compiled import Program
from jaxdistill.recipe import Recipe
from jaxdistill.resolve import resolve
from jaxdistill.training import programs, sharding, state
from jaxdistill.training.programs import abstract_batch
from jaxdistill.training.speed import step_flops


def main(request: dict[str, Any]) -> None:
    """Plans what `request` asks for: topology, config, stages, fit."""
    topology = topologies.find(request["topology"])
    config = ConfigDict(request["config"])
    if config.code:  # which the parent has run
        run_code(epath.Path(config.code))
    mesh = sharding.make_mesh(**config.mesh, devices=devices_of(topology))
    if mesh.devices.size < topology.devices:
        raise BadInput(
            f"config.mesh={dict(config.mesh)} uses {mesh.devices.size} of {topology.devices} devices; leave one "
            "axis at -1, or name a smaller slice"
        )
    recipe = resolve_without_text(config, mesh)
    check_settings(config, mesh)
    tell("mesh", mesh=dict(mesh.shape), devices=mesh.devices.size, chips=topology.chips)
    names = [stage.name for stage in recipe.stages]
    for name in request["stages"] or ():
        if name not in names:
            raise BadInput(f"stage {name!r} is not in config.order; {nearest(name, names)}")
    for stage in recipe.stages:
        if not request["stages"] or stage.name in request["stages"]:
            tell("stage", **plan_stage(config, recipe, stage, mesh, topology, request["fit"]))


def tell(event: str, **fields: Any) -> None:
    """One line to the parent."""
    print(json.dumps({"event": event, **fields}), flush=True)


def devices_of(topology: topologies.Topology) -> list[Any]:
    """The devices of a slice that is not there."""
    jax.devices()  # the order is important: libtpu is asked only after the CPU is up
    try:
        found = jax_topologies.get_topology_desc(
            platform="tpu", topology_name=topology.name, **topology.options()
        ).devices
    except Exception as error:  # libtpu's own words for a shape that no slice has
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise BadInput(
            f"topology {topology.name!r}: libtpu does not know this slice ({first})"
        ) from error
    if len(found) != topology.devices:
        raise BadInput(
            f"topology {topology.name!r} has {len(found)} devices here, but {topology.devices} were expected; "
            "this libtpu and planning/topologies.py disagree"
        )
    return list(found)


def resolve_without_text(config: ConfigDict, mesh: jax.sharding.Mesh) -> Recipe:
    """The recipe's models and stages. Of a model given by a folder only config.json is read; its
    vocabulary counts."""
    given = {
        name: interop.read_config(section.init)
        for name, section in config.networks.items()
        if section.init
    }
    words = next((found.vocab_size for found in given.values()), config.data.vocab_size)
    return resolve(
        config,
        vocab_size=words,
        feeds=inputs.outline(config),
        mesh=mesh,
        loaded={name: Model(found) for name, found in given.items()},
    )


def plan_stage(
    config: ConfigDict,
    recipe: Recipe,
    stage: Stage,
    mesh: jax.sharding.Mesh,
    topology: topologies.Topology,
    with_fit: bool,
) -> dict[str, Any]:
    """What one stage needs and costs."""
    parts, shared = sharding.batch_parts(mesh), topology.generation.devices_a_chip
    rows = stage.batch_size // stage.accumulation
    found: dict[str, Any] = {
        "stage": stage.name,
        "batch_size": stage.batch_size,
        "accumulation": stage.accumulation,
        "rows_per_device": rows // parts,
        "rows_per_chip": rows / topology.chips,
        "length": recipe.feed(stage).length,
    }
    compiled, memory = compile_stage(recipe, stage, mesh, found["rows_per_device"])
    room = topology.generation.memory / shared
    per_chip = None if memory["total"] is None else memory["total"] * shared
    found |= {
        "memory": memory,
        "memory_limit": room,
        "memory_per_chip": per_chip,
        "fits": compiled is not None and memory["total"] <= room,
    }
    if compiled is not None:
        found |= costs(config, recipe, stage, mesh, topology, compiled)
    if with_fit:
        found |= {
            "largest_rows_per_device": search(
                recipe, stage, mesh, room, memory["total"] if compiled else None
            )
        }
        found["largest_rows_per_chip"] = found["largest_rows_per_device"] * parts / topology.chips
    return found


def compile_stage(
    recipe: Recipe, stage: Stage, mesh: jax.sharding.Mesh, rows: int
) -> tuple[Any, dict[str, Any]]:
    """(the compiled step or None when it needs too much memory, bytes on one device by kind), with
    `rows` a device."""
    tell("compiling", stage=stage.name, rows=rows)
    started = time.perf_counter()
    cast = recipe.cast(stage)
    now = state.shapes(cast)
    size = rows * sharding.batch_parts(mesh) * stage.accumulation
    batch = abstract_batch(recipe.feed(stage).row, size)
    step = programs.compile_step(cast, mesh)
    try:
        compiled = step.lower(now, programs.given_shapes(cast), batch).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error) and "Ran out of memory" not in str(error):
            raise
        return None, {"total": needed(str(error)), "compile_seconds": time.perf_counter() - started}
    m: Any = compiled.memory_analysis()
    new = m.output_size_in_bytes - m.alias_size_in_bytes
    return compiled, {
        "arguments": m.argument_size_in_bytes,
        "temporaries": m.temp_size_in_bytes,
        "results": new,
        "code": m.generated_code_size_in_bytes,
        "compile_seconds": time.perf_counter() - started,
        "total": m.argument_size_in_bytes
        + m.temp_size_in_bytes
        + new
        + m.generated_code_size_in_bytes,
    }


def needed(message: str) -> float | None:
    """Bytes that the compiler says it would have needed at least: "Used 18.54G of 15.75G hbm", or
    "memory required for HLO temporaries (40.00G) exceeds available HBM (15.75G)"."""
    found = re.search(r"Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm", message) or re.search(
        r"\(([\d.]+)([KMGT]?)\) exceeds available HBM", message
    )
    return float(found.group(1)) * 1024 ** " KMGT".index(found.group(2) or " ") if found else None


def costs(
    config: ConfigDict,
    recipe: Recipe,
    stage: Stage,
    mesh: jax.sharding.Mesh,
    topology: topologies.Topology,
    compiled: Any,
) -> dict[str, Any]:
    """FLOPs, traffic, time and length of one stage."""
    cast = recipe.cast(stage)
    layers = cast.model.config.num_layers
    maps = [term.layer_map for term in stage.terms if term.layer_map] or [tuple(range(layers))]
    depths = maps[0]  # the only one, where it is walked
    followed = sorted(at for layer_map in maps for at in layer_map if at >= 0)
    # Between two layers that a student's layers follow, a joint stage's teacher runs those that
    # none does.
    skipped = max(followed[-1] + 1 - len(set(followed)), 0) / len(followed)
    program = Program(
        compiled.as_text(),
        mesh.devices.size,
        mean_trips=sum(depths) / len(depths) if stage.progressive else skipped,
        branch_share=(layers - 1) / (2 * layers) if stage.progressive else 1.0,
    )
    totals = program.totals()
    feed = recipe.feed(stage)
    flops = step_flops(cast, feed.length, feed.predictions)
    section = config.stages[stage.name]
    # Epochs of a text that was not read.
    steps = None if section.epochs and feed.rows == MANY else stage.steps
    numbers = roofline.estimate(totals, sum(flops.values()), topology)
    return {
        **numbers,
        "program": dataclasses.asdict(totals),
        **roofline.whole_stage(
            numbers["step_seconds"], steps, stage.batch_size, feed.length, topology.chips
        ),
    }


def search(
    recipe: Recipe, stage: Stage, mesh: jax.sharding.Mesh, room: float, first: float | None
) -> int:
    """The most rows a device that fit. `first`: bytes with the recipe's own rows, None if they are
    too many."""
    start = stage.batch_size // stage.accumulation // sharding.batch_parts(mesh)

    def measure(rows: int) -> float | None:
        if rows == start:
            return first
        compiled, memory = compile_stage(recipe, stage, mesh, rows)
        return memory["total"] if compiled is not None else None

    return fit.largest(measure, start, room)


if __name__ == "__main__":
    with open(sys.argv[1]) as file:
        asked = json.load(file)
    try:
        main(asked)
    except (BadInput, ImportError) as problem:
        line = remote.lacks(problem) if isinstance(problem, ImportError) else problem
        if line is None:
            raise
        tell("refused", message=str(line))
    sys.stdout.flush()
    os._exit(0)  # libtpu has nothing to take leave of
