"""What each objective's gradient needs at full size, plain and fused: temporaries on a TPU chip,
and operations.

    python benchmarks/objectives.py [--topology=v5e:2x2] [--shapes=8x512,32x128] [--only=joint] [--losses=fused]
                                    [--residual=bfloat16] [--json=FILE]

Compiled ahead of time for chips that need not be there (libtpu: pip install 'jaxdistill[plan]'):
IB-BERT_LARGE teacher, MobileBERT student, bfloat16 products, residual streams in float32 or as
`--residual` says, rows x tokens on a chip. What is compiled is the gradient of one micro-batch (its
gradients are outputs, not temporaries). Operations are those of matrix products, counted in the
traced program with the trip counts of its loops, against what the mathematics needs: teacher
forward + 3 x student forward (strict: both up to the active layer, the middle one here, and 3 x
that layer)."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.interpreters import partial_eval
from jax.sharding import Mesh

from jaxdistill import defaults
from jaxdistill.data.text import pretraining_row
from jaxdistill.forward.heads import head_terms
from jaxdistill.forward.scene import At, rows_on_a_device
from jaxdistill.methods.base import Cast, Stage
from jaxdistill.methods.kinds import build
from jaxdistill.models import Model, preset
from jaxdistill.models.encoder import in_compute_dtype
from jaxdistill.models.parameters import flatten
from jaxdistill.objectives import ramps
from jaxdistill.objectives.fused import Asked, layer_sums, relation_terms, weighted
from jaxdistill.training import sharding, state
from jaxdistill.training.programs import abstract_batch
from jaxdistill.training.step import Split, count_terms, make_scene

OBJECTIVES: dict[str, dict[str, Any]] = {
    "strict": dict(kind="progressive", freezing="strict"),
    "joint": dict(kind="joint"),
    "auxiliary": dict(kind="auxiliary"),
    "words": dict(kind="distill", nsp=0.0),
    "relations": dict(kind="relations", teacher_layer=20, relation_heads=64),
}
LAYER = 12


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--topology", default="v5e:2x2")
    parser.add_argument("--shapes", default="8x512,32x128", help="rows x tokens on a chip")
    parser.add_argument("--only", default=",".join(OBJECTIVES))
    parser.add_argument("--losses", default="plain,fused")
    parser.add_argument("--residual", default="float32", help="dtype of both residual streams")
    parser.add_argument("--json", default="")
    options = parser.parse_args()
    jax.devices()  # the CPU first: libtpu would look for a TPU of its own
    devices: Any = np.asarray(
        topologies.get_topology_desc(platform="tpu", topology_name=options.topology).devices
    )
    mesh = Mesh(devices.reshape(-1, 1, 1), sharding.AXES)
    lines = []
    print(
        f"{'objective':>10} {'rows x tokens':>13} {'losses':>7} {'temporaries':>12} {'operations':>11} {'compiled in':>11}"
    )
    for shape in options.shapes.split(","):
        rows, length = map(int, shape.split("x"))
        for name in options.only.split(","):
            for losses in options.losses.split(","):
                lines.append(measure(name, rows, length, losses == "fused", mesh, options.residual))
                line = lines[-1]
                print(
                    f"{name:>10} {shape:>13} {losses:>7} {line['temporaries_MiB']:8.1f} MiB "
                    f"{line['operations']:9.2f} x {line['compile_seconds']:9.0f} s",
                    flush=True,
                )
    if options.json:
        with open(options.json, "w") as file:
            json.dump(
                {
                    "topology": options.topology,
                    "jax": jax.__version__,
                    "residual_dtype": options.residual,
                    "lines": lines,
                },
                file,
                indent=1,
            )


def measure(
    name: str, rows: int, length: int, fused: bool, mesh: Mesh, residual: str = "float32"
) -> dict[str, Any]:
    """One line of the table."""
    batch_sharding = sharding.over_batch(mesh)
    student, teacher = (
        Model(
            preset(which).replace(dtype="bfloat16", residual_dtype=residual), batch_sharding, remat
        )
        for which, remat in (("mobilebert", "full"), ("ib_bert_large", "dots"))
    )
    settings = dict(OBJECTIVES[name])
    section = defaults.stage(
        settings.pop("kind"), "student", steps=240, batch_size=rows * mesh.size, **settings
    )
    stage = dataclasses.replace(build(name, section, student.config), fused=fused)
    function, arguments, needed = PROGRAMS.get(name, whole)(
        stage, student, teacher, rows * mesh.size, length
    )
    places = jax.tree.map(
        lambda x: (
            batch_sharding
            if x.ndim and x.shape[0] == rows * mesh.size
            else sharding.replicated(mesh)
        ),
        arguments,
    )
    started = time.perf_counter()
    lowered = jax.jit(function, in_shardings=places).lower(*arguments)
    memory: Any = lowered.compile().memory_analysis()
    return {
        "objective": name,
        "rows": rows,
        "length": length,
        "fused": fused,
        "temporaries_MiB": memory.temp_size_in_bytes / 2**20,
        "arguments_MiB": memory.argument_size_in_bytes / 2**20,
        "operations": operations(function, arguments) / needed,
        "compile_seconds": time.perf_counter() - started,
    }


Program = tuple[Callable[..., Any], tuple[Any, ...], float]


def whole(stage: Stage, student: Model, teacher: Model, rows: int, length: int) -> Program:
    """The gradient of everything that moves; (function, abstract arguments, operations needed)."""
    batch = abstract_batch(pretraining_row(length, max(1, round(0.15 * length))), rows)
    params = jax.eval_shape(student.init, jax.random.key(0))
    given = jax.eval_shape(
        lambda key: in_compute_dtype(teacher.config, teacher.init(key)), jax.random.key(0)
    )
    moving, frozen = jax.eval_shape(lambda p: state.split(stage, p, jnp.int32(LAYER)), params)

    def gradient(moving: Any, frozen: Any, given: Any, batch: Any, layer: jax.Array) -> Any:
        def total(moving: Any) -> jax.Array:
            counts = count_terms(stage, batch)
            scales = {
                term.name: ramps.at(term.weight, None) / counts[term.name] for term in stage.terms
            }
            cast = Cast(stage, student, (("teacher", teacher),))
            ours = Split(moving, frozen)
            scene = make_scene(cast, ours, {"teacher": given}, batch, scales, At(layer))
            assert stage.forward is not None
            return stage.forward(scene).value

        return jax.grad(total)(moving)

    forwards = [
        operations(run, arguments)
        for run, arguments in (
            (lambda p, b: student.apply(p, b, heads=stage.heads())[0], (params, batch)),
            (
                lambda p, b: teacher.apply(
                    p,
                    b,
                    heads=stage.heads("teacher"),
                    num_layers=stage.teacher_depth(student.config.num_layers),
                )[0],
                (given, batch),
            ),
        )
    ]
    needed = 3 * forwards[0] + forwards[1]
    if stage.depth == "progressive_strict":
        needed = (
            sum(forwards) * (LAYER + 1) / student.config.num_layers
            + 2 * forwards[0] / student.config.num_layers
        )
    return gradient, (moving, frozen, given, batch, jax.ShapeDtypeStruct((), jnp.int32)), needed


def words(stage: Stage, student: Model, teacher: Model, rows: int, length: int) -> Program:
    """The head alone: gradients of the last hidden state and of the head's parameters."""
    batch = abstract_batch(pretraining_row(length, max(1, round(0.15 * length))), rows)
    params = jax.eval_shape(student.init, jax.random.key(0))
    given = jax.eval_shape(
        lambda key: in_compute_dtype(teacher.config, teacher.init(key)), jax.random.key(0)
    )
    heads = [
        {**tree, "layers": {}, "embeddings": {"word": tree["embeddings"]["word"]}}
        for tree in (params, given)
    ]
    hidden = jax.ShapeDtypeStruct((rows, length, student.config.hidden_size), jnp.float32)

    def gradient(moving: Any, given: Any, theirs: jax.Array, batch: Any) -> Any:
        def total(moving: Any) -> jax.Array:
            ours, head = moving
            scales = {
                term.name: ramps.at(term.weight, None) / count_terms(stage, batch)[term.name]
                for term in stage.terms
            }
            cast = Cast(stage, student, (("teacher", teacher),))
            moving = Split(flatten(head), {})
            scene = make_scene(cast, moving, {"teacher": given}, batch, scales, At(jnp.int32(0)))
            return head_terms(scene, ours, {"teacher": theirs}).value

        return jax.grad(total)(moving)

    positions = rows * batch["mlm_positions"].shape[1]
    width, vocabulary = student.config.hidden_size, student.config.vocab_size
    return (
        gradient,
        ((hidden, heads[0]), heads[1], hidden, batch),
        4 * 2.0 * positions * width * (vocabulary + width),
    )


def relations(stage: Stage, student: Model, teacher: Model, rows: int, length: int) -> Program:
    """The relations of one layer alone: gradients of the student's queries, keys and values."""
    batch = abstract_batch(pretraining_row(length, 1), rows)
    terms = {term.name: term for term in stage.terms}
    a_device = rows_on_a_device(student, batch)
    taps = [
        {
            name: jax.ShapeDtypeStruct(
                (rows, length, m.config.num_heads, m.config.head_size), jnp.bfloat16
            )
            for name in stage.taps()
        }
        for m in (student, teacher)
    ]

    def gradient(ours: Any, theirs: Any, batch: Any) -> Any:
        def total(ours: Any) -> jax.Array:
            scales = {
                term.name: ramps.at(term.weight, None) / count_terms(stage, batch)[term.name]
                for term in stage.terms
            }
            if not stage.fused:
                return weighted(layer_sums(terms, ours, theirs, batch), scales)
            asked = Asked(terms, scales, jnp.bfloat16, a_device)
            values = (relation_terms(asked, name, ours, theirs, batch)[0] for name in terms)
            return sum(values, jnp.float32(0))

        return jax.grad(total)(ours)

    widths = [m.config.num_heads * m.config.head_size for m in (student, teacher)]
    return (
        gradient,
        (*taps, batch),
        len(stage.terms) * 2.0 * rows * length**2 * (3 * widths[0] + widths[1]),
    )


PROGRAMS: dict[str, Callable[..., Program]] = {"words": words, "relations": relations}


def operations(function: Callable[..., Any], arguments: tuple[Any, ...]) -> float:
    """The matrix products of a function, without those whose result nothing reads."""
    traced = jax.make_jaxpr(function)(*arguments).jaxpr
    return products(partial_eval.dce_jaxpr(traced, [True] * len(traced.outvars))[0])


def products(jaxpr: Any, layer: int = LAYER) -> float:
    """Multiplications and additions of all matrix products, loops times their length (loops of
    traced length: `layer`)."""
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            ((contract, _), _), shape = (
                equation.params["dimension_numbers"],
                equation.invars[0].aval.shape,
            )
            total += (
                2.0
                * np.prod(equation.outvars[0].aval.shape)
                * np.prod([shape[i] for i in contract])
            )
            continue
        times = {"scan": lambda e: e.params["length"], "while": lambda e: layer}.get(
            equation.primitive.name, lambda e: 1
        )(equation)
        inner = [
            sub
            for value in equation.params.values()
            for sub in (value if isinstance(value, (list, tuple)) else (value,))
            if hasattr(sub, "eqns") or hasattr(sub, "jaxpr")
        ]
        parts = [products(getattr(sub, "jaxpr", sub), layer) for sub in inner]
        total += times * (
            max(parts, default=0.0)
            if equation.primitive.name in ("cond", "custom_vjp_call")
            else sum(parts)
        )
    return total


if __name__ == "__main__":
    main()
