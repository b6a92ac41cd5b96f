"""Would a kernel written by hand beat XLA? One layer's attention transfer with its gradient, in
Pallas and as it is trained.

    python benchmarks/kernel.py [--topology=v5e:2x2]     # pip install -e '.[plan]'; compiled for a TPU that need not be there
    python benchmarks/kernel.py --check                  # both on this machine's CPU: the same value and gradients

8 rows of 512 tokens, 4 heads 32 wide (student) and 256 wide (teacher), bfloat16. Both give the
cross-entropy of the attention distributions (MobileBERT eq. 3) and its gradients for the student's
queries and keys, from inputs that lie in memory as each likes them. Bytes are to and from HBM;
cycles are the compiler's own estimate, which for Pallas is of what lies around the kernel alone: it
has none for the kernel. It is kept as the record of a negative result."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental import topologies
from jax.experimental.layout import Format, Layout
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import SingleDeviceSharding

from jaxdistill.kernels.forward_gradient import gradient_in_chunks
from jaxdistill.models.block import attention_scores
from jaxdistill.models.encoder import attention_bias
from jaxdistill.objectives.relations import attention
from jaxdistill.planning.compiled import Program

B, L, A, K, T = 8, 512, 4, 32, 256  # rows, tokens, heads, head widths of student and teacher
Gradient = Callable[..., tuple[jax.Array, tuple[jax.Array, jax.Array]]]


def by_xla(parts: int) -> Gradient:
    """As objectives/fused.py has it: `parts` of the rows one after the other."""

    def function(moving: Any, slices: Any, shared: Any) -> Any:
        query, key, mask = jax.lax.optimization_barrier(slices)
        batch = {"input_ids": mask, "attention_mask": mask}
        bias = attention_bias(batch)
        return attention(
            attention_scores(moving[0], moving[1], bias), attention_scores(query, key, bias), batch
        ), ({}, None)

    def run(*inputs: jax.Array) -> Any:
        ours, theirs = (
            [x.reshape(parts, B // parts, *x.shape[1:]) for x in some]
            for some in (inputs[:2], inputs[2:])
        )

        def total(*moving: jax.Array) -> jax.Array:
            return gradient_in_chunks(function, jnp.bfloat16)(moving, tuple(theirs), None)[0]

        return jax.value_and_grad(total, argnums=(0, 1))(*ours)

    return run


def kernel(
    q: Any, k: Any, tq: Any, tk: Any, keys: Any, queries: Any, loss: Any, dq: Any, dk: Any
) -> None:
    """One head of one row: both [L, L] maps live and die on the chip."""

    def dot(a: jax.Array, b: jax.Array, of_a: int, of_b: int) -> jax.Array:
        return jax.lax.dot_general(
            a, b, (((of_a,), (of_b,)), ((), ())), preferred_element_type=jnp.float32
        )

    bias_1xL, real_Lx1 = jnp.where(keys[0] > 0, 0.0, -1e9), queries[0] > 0
    exps, sums, scores = [], [], []
    for query, key, width in ((q, k, K), (tq, tk, T)):
        s_LxL = jnp.where(real_Lx1, dot(query[0, 0], key[0, 0], 1, 1) * width**-0.5 + bias_1xL, 0.0)
        s_LxL = s_LxL - jnp.max(s_LxL, 1, keepdims=True)
        scores.append(s_LxL)
        exps.append(jnp.exp(s_LxL))
        sums.append(jnp.sum(exps[-1], 1, keepdims=True))
    target_LxL = exps[1] / sums[1]
    loss[0, 0] = (
        jnp.where(
            real_Lx1, jnp.log(sums[0]) - jnp.sum(target_LxL * scores[0], 1, keepdims=True), 0.0
        )
        / A
    )
    d_LxL = (jnp.where(real_Lx1, exps[0] / sums[0] - target_LxL, 0.0) * (K**-0.5 / A)).astype(
        jnp.bfloat16
    )
    dq[0, 0] = dot(d_LxL, k[0, 0], 1, 0).astype(jnp.bfloat16)
    dk[0, 0] = dot(d_LxL, q[0, 0], 0, 0).astype(jnp.bfloat16)


def by_pallas(interpret: bool = False) -> Gradient:
    """A grid of rows x heads."""

    def of_head(width: int) -> Any:
        return pl.BlockSpec((1, 1, L, width), lambda b, a: (b, a, 0, 0))

    def run(*inputs: jax.Array) -> Any:
        *heads, mask = inputs
        loss, dq, dk = pl.pallas_call(
            kernel,
            grid=(B, A),
            interpret=interpret,
            in_specs=[
                *map(of_head, (K, K, T, T)),
                pl.BlockSpec((1, 1, L), lambda b, a: (b, 0, 0)),
                pl.BlockSpec((1, L, 1), lambda b, a: (b, 0, 0)),
            ],
            out_specs=[*map(of_head, (1, K, K))],
            out_shape=[
                jax.ShapeDtypeStruct((B, A, L, 1), jnp.float32),
                *[jax.ShapeDtypeStruct((B, A, L, K), jnp.bfloat16)] * 2,
            ],
            compiler_params=pltpu.CompilerParams(
                vmem_limit_bytes=2**26, dimension_semantics=("parallel", "parallel")
            ),
        )(*(jnp.swapaxes(x, 1, 2) for x in heads), mask[:, None, :], mask[:, :, None])
        return jnp.sum(loss), (jnp.swapaxes(dq, 1, 2), jnp.swapaxes(dk, 1, 2))

    return run


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--topology", default="v5e:2x2")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    shapes = [jax.ShapeDtypeStruct((B, L, A, width), jnp.bfloat16) for width in (K, K, T, T)]
    if options.check:
        rng = np.random.default_rng(0)
        values = [jnp.asarray(rng.normal(size=x.shape), x.dtype) for x in shapes]
        mask = jnp.asarray((np.arange(L) < rng.integers(200, L + 1, B)[:, None]).astype(np.int32))
        (a, ours), (b, theirs) = (
            jax.jit(run)(*values, mask) for run in (by_xla(4), by_pallas(interpret=True))
        )
        apart = [
            float(
                np.max(np.abs(np.float32(x).reshape(y.shape) - np.float32(y)))
                / np.max(np.abs(np.float32(y)))
            )
            for x, y in zip(ours, theirs)
        ]
        print(
            f"values {a:.6g} and {b:.6g}; gradients differ by {apart[0]:.1%} and {apart[1]:.1%} of their largest number"
        )
        return
    jax.devices()  # the CPU first: libtpu would look for a TPU of its own
    devices: Any = topologies.get_topology_desc(
        platform="tpu", topology_name=options.topology
    ).devices
    place = Format(Layout.AUTO, SingleDeviceSharding(np.asarray(devices).reshape(-1)[0]))
    for name, run in (
        ("XLA, rows at once", by_xla(1)),
        ("XLA, rows in four parts", by_xla(4)),
        ("Pallas", by_pallas()),
    ):
        inputs = (*shapes, jax.ShapeDtypeStruct((B, L), jnp.int32))
        compiled = jax.jit(run, in_shardings=place, out_shardings=place).lower(*inputs).compile()
        totals = Program(compiled.as_text() or "", 1).totals()
        print(
            f"{name:>24}: {totals.memory / 1e6:.1f} MB to and from memory, {totals.cycles:,.0f} cycles estimated",
            flush=True,
        )


if __name__ == "__main__":
    main()
