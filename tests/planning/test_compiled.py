"""Bytes of a program counted by hand; then a program that XLA itself compiled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from jaxdistill.planning.compiled import (
    Instruction,
    Program,
    bytes_sent,
    group_size,
    in_memory,
    size,
)
from tests.planning.program import TEXT

ARRAY = 400  # f32[100]


def program(text=TEXT, **options):
    return Program(text, devices=8, **options)


def test_collectives_within_loops_count_as_often_as_they_run():
    sent = program(mean_trips=11.5, branch_share=0.25).totals().sent
    assert sent == {
        "all-reduce": pytest.approx(3 * 5 * ARRAY * 2 * 3 / 4),  # groups of 4
        "all-gather": pytest.approx(
            3 * 8 * ARRAY * 7 / 8
        ),  # of the result, not of operand and result
        "collective-permute": pytest.approx(11.5 * ARRAY),
        "all-to-all": pytest.approx(ARRAY * 7 / 8),  # no groups: everybody
        "reduce-scatter": pytest.approx(
            0.25 * 50 * 3
        ),  # bf16[25] by an axis of 4; the condition's dearer branch
    }


def test_loops_and_their_lengths():
    found = program()
    loops = {
        i.name: found.trips(c, i)
        for c in found.computations.values()
        for i in c.instructions.values()
        if i.opcode == "while"
    }
    assert loops == {"inner": 5, "outer": 3, "traced": None}
    assert found.totals().guessed == 1


def test_a_length_that_xla_says_is_taken():
    said = TEXT.replace(
        "body=%traced_body", 'body=%traced_body, backend_config={"known_trip_count":{"n":"7"}}'
    )
    assert (
        program(said).totals().sent["collective-permute"] == 7 * ARRAY
        and program(said).totals().guessed == 0
    )


def test_a_bound_that_the_loop_changes_is_no_length():
    changing = TEXT.replace("tuple(%next, %ar, %n)", "tuple(%next, %ar, %next)")
    assert program(changing).totals().guessed == 2


def test_of_a_slice_only_the_slice_is_read():
    """A layer's weights are sliced out of the stack in every turn of a loop; the stack is not read
    24 times."""
    found = program()
    main = found.computations["main"]
    assert (
        found._moved(main, main.instructions["row"]) == 4096 + 4 + 4096
    )  # the slice, which layer, the result
    totals = found.totals()
    assert totals.cycles == 1825 and totals.product_cycles == 0 and totals.operations == 1


@pytest.mark.parametrize(
    "shape, plain, in_hbm",
    [
        ("f32[2,3]{1,0:T(8,128)}", 24, 8 * 128 * 4),
        ("f32[2,3]{0,1:T(8,128)}", 24, 128 * 8 * 4),
        ("bf16[4,256]{1,0:T(4,128)(2,1)}", 2048, 2048),
        ("bf16[4,256]{1,0:T(4,128)(2,1)S(1)}", 2048, 0),  # in the chip's own memory
        ("(f32[], s8[100], pred[3])", 107, 107),
        ("(f32[10]{0:T(128)S(1)}, f32[10]{0:T(128)})", 80, 512),
    ],
)
def test_sizes_and_the_padding_of_tiles(shape, plain, in_hbm):
    assert (size(shape), in_memory(shape)) == (plain, in_hbm)


@pytest.mark.parametrize(
    "groups, n",
    [
        ("replica_groups={{0,2},{1,3}}", 2),
        ("replica_groups=[2,4]<=[8]", 4),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", 2),
        ("replica_groups={}", 8),
        ("replica_groups=mesh['a'=2,'b'=4] {'a','b'}, use", 8),
        ("replica_groups=mesh['a'=8] {'a':(2)4}", 4),
    ],
)
def test_groups(groups, n):
    assert group_size(", channel_id=1, " + groups, 8) == n


def test_a_collective_under_other_work_is_sent_once():
    """It is in the fusion that begins it, in those that it runs under, and in the one that ends it;
    another has a channel of its own."""
    fused = """
%{name} (p: f32[25]) -> f32[100] {{
  %p = f32[25] parameter(0)
  ROOT %ag = f32[100] all-gather(%p), channel_id={channel}, replica_groups={{{{0,1,2,3}}}}, dimensions={{0}}
}}
"""
    entry = """
ENTRY %main (x: f32[25]) -> f32[100] {
  %x = f32[25] parameter(0)
  %a = f32[100] fusion(%x), kind=kCustom, calls=%begin
  %b = f32[100] fusion(%x), kind=kOutput, calls=%under
  %c = f32[100] fusion(%x), kind=kOutput, calls=%other
  ROOT %d = f32[100] fusion(%x), kind=kCustom, calls=%end
}
"""
    text = (
        "".join(
            fused.format(name=name, channel=channel)
            for name, channel in (("begin", 1), ("under", 1), ("other", 2), ("end", 1))
        )
        + entry
    )
    assert Program(text, devices=4).totals().sent == {"all-gather": 2 * 400 * 3 / 4}


def test_alone_nothing_is_sent():
    one = Instruction("x", "f32[100]", "all-reduce", "%y", ", replica_groups={{0}}")
    assert bytes_sent("all-reduce", one, 8) == 0


def test_a_program_of_xla():
    """Two nested scans with a sum over eight devices: on this machine's own compiler, whatever
    words it has."""
    mesh = Mesh(np.array(jax.devices()), ("d",))

    def inner(x, _):
        return jnp.sin(x), jax.lax.psum(x, "d")

    def outer(x, _):
        return jax.lax.scan(inner, x, None, length=6)

    def both(x):
        return jax.lax.scan(outer, x, None, length=4)[1]

    mapped = jax.shard_map(
        both, mesh=mesh, in_specs=PartitionSpec("d"), out_specs=PartitionSpec(), check_vma=False
    )
    text = jax.jit(mapped).lower(jax.ShapeDtypeStruct((80,), jnp.float32)).compile().as_text()
    totals = Program(text, devices=8).totals()
    assert totals.guessed == 0 and totals.sent["all-reduce"] == pytest.approx(
        4 * 6 * 40 * 2 * 7 / 8
    )
