"""Analytic FLOPs of a step against products counted in its program; peaks and MFU."""

import jax
import numpy as np
import pytest

from jaxdistill import defaults
from jaxdistill.data.text import pretraining_row
from jaxdistill.models import Model, preset
from jaxdistill.resolve import build_stage
from jaxdistill.training import state
from jaxdistill.training.programs import abstract_batch
from jaxdistill.training.sharding import make_mesh
from jaxdistill.training.speed import mfu, peak_flops, rates, step_flops
from jaxdistill.training.step import make_step
from tests.conftest import cast_of, given

SHAPE = dict(
    num_layers=4,
    hidden_size=64,
    embedding_size=32,
    num_heads=4,
    max_positions=64,
    vocab_size=300,
    hidden_dropout=0.0,
    attention_dropout=0.0,
)
STUDENT = Model(
    preset("mobilebert").replace(**SHAPE, bottleneck_size=32, intermediate_size=64, num_ffn=2)
)
TEACHER = Model(preset("ib_bert_large").replace(**SHAPE, bottleneck_size=96, intermediate_size=192))
LENGTH, WORDS, ROWS = 32, 5, 4


def products(jaxpr, times=1.0):
    """FLOPs of all matrix products in a program, loops multiplied; of a `cond` its dearest branch,
    half the time."""
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += (
                2 * times * equation.outvars[0].aval.size * np.prod([shape[i] for i in contracted])
            )
        inner = (
            times * equation.params.get("length", 1) if equation.primitive.name == "scan" else times
        )
        if equation.primitive.name == "cond":
            share = (SHAPE["num_layers"] - 1) / (
                2 * SHAPE["num_layers"]
            )  # blocks below the active one, on average
            total += share * max(
                products(branch.jaxpr, inner) for branch in equation.params["branches"]
            )
            continue
        if equation.primitive.name == "while":  # the frozen blocks below the active one
            total += (
                (SHAPE["num_layers"] - 1) / 2 * products(equation.params["body_jaxpr"].jaxpr, inner)
            )
            continue
        for value in equation.params.values():
            if hasattr(value, "jaxpr") or hasattr(value, "eqns"):
                total += products(getattr(value, "jaxpr", value), inner)
    return total


@pytest.mark.parametrize(
    "kind, options",
    [
        ("pretrain", {}),
        ("distill", {}),
        ("joint", {}),
        ("auxiliary", {}),
        ("progressive", {}),
        ("progressive", {"freezing": "strict"}),
        ("pretrain", {"moves": ("mlm/", "nsp/")}),
    ],
)
def test_flops_of_a_step(kind, options):
    stage = build_stage(
        "s", defaults.stage(kind, "student", steps=8, batch_size=ROWS, **options), 1, STUDENT.config
    )
    cast = cast_of(stage, STUDENT, TEACHER)
    key = jax.random.key(0)
    start = jax.eval_shape(lambda k: state.create(cast, STUDENT.init(k)), key)
    theirs = given(cast, jax.eval_shape(TEACHER.init, key))
    program = jax.make_jaxpr(make_step(cast))(
        start, theirs, abstract_batch(pretraining_row(LENGTH, WORDS), ROWS)
    )
    counted, claimed = (products(program.jaxpr), sum(step_flops(cast, LENGTH, WORDS).values()))
    # The program also computes attention scores again and multiplies terms' own products; it spares
    # the gradient with respect to what does not move.
    assert 0.85 * claimed < counted < 1.2 * claimed, counted / claimed


@pytest.mark.parametrize(
    "kind, peak",
    [
        ("TPU v4", 275e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5", 459e12),
        ("TPU v5p", 459e12),
        ("TPU v6 lite", 918e12),
        ("TPU7x", 1153.5e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA B200", 2250e12),
        ("Abacus", None),
    ],
)
def test_peak_table(kind, peak):
    assert peak_flops(kind) == peak


def test_cpu_peak_is_measured_once_and_mfu():
    peak = peak_flops("cpu")
    assert peak is not None and 1e8 < peak < 1e14 and peak_flops("cpu") == peak
    assert mfu(1e12, 0.5, 4, 1e12) == 0.5
    assert mfu(1e12, 0.5, 4, None) is None


def test_rates():
    mesh = make_mesh(1)
    assert rates(0.0, 4, 32, {"student": 1e9}, mesh) == {}
    found = rates(2.0, 4, 32, {"student": 1e9, "teacher": 0.0}, mesh)
    assert found["sequences_per_second"] == 8 and found["tokens_per_second"] == 256
    assert (
        found["mfu_student"] == mfu(1e9, 0.5, 1, peak_flops("cpu")) and "mfu_teacher" not in found
    )
