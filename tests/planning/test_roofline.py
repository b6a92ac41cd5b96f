"""The arithmetic of a plan, by hand."""

import pytest

from jaxdistill.planning.compiled import Totals
from jaxdistill.planning.roofline import estimate, whole_recipe, whole_stage
from jaxdistill.planning.topologies import find


def test_the_longest_part_is_the_best_that_can_be():
    v5e = find("v5e:2x2")
    found = estimate(Totals(sent={"all-reduce": 2e9}, memory=0.819e9), 4 * 197e12 * 0.002, v5e)
    assert found["compute_seconds"] == pytest.approx(0.002)
    assert found["memory_seconds"] == pytest.approx(0.001)
    assert found["interconnect_seconds"] == found["best_seconds"] == pytest.approx(0.01)
    assert found["step_seconds"] == pytest.approx(0.01) and found["mfu"] == pytest.approx(0.2)


def test_an_estimate_adds_what_runs_one_after_another():
    totals = Totals(
        sent={"all-gather": 1e8},
        memory=2e8,
        outside=0.819e8,
        cycles=9e9,
        product_cycles=3e6,
        operations=100,
    )
    found = estimate(totals, 1.0, find("v5e:2x2"))
    assert found["step_seconds"] == pytest.approx(
        3e6 / 1.5e9 + 1e-4 + 100 * 1800 / 1.5e9 + 1e8 / 200e9
    )
    assert found["compiler_seconds"] == pytest.approx(6.0)


def test_devices_of_one_chip_share_its_memory_and_links():
    totals = Totals(sent={"all-reduce": 1e9}, memory=9e9)
    v3 = estimate(totals, 4 * 123e12, find("v3:2x2"))
    assert v3["memory_seconds"] == pytest.approx(2 * 9e9 / 900e9)
    assert v3["interconnect_seconds"] == pytest.approx(2 * 1e9 / 328e9)
    assert v3["compute_seconds"] == pytest.approx(1.0) and v3["flops_per_chip"] == pytest.approx(
        123e12
    )


def test_days_and_chip_hours():
    stage = whole_stage(0.5, 7200, 64, 128, chips=256)
    assert stage == {
        "tokens_per_second": 64 * 128 / 0.5,
        "steps": 7200,
        "days": pytest.approx(1 / 24),
        "chip_hours": pytest.approx(256),
    }
    unknown = whole_stage(0.5, None, 64, 128, chips=256)
    assert unknown["days"] is None
    assert whole_recipe([stage, stage]) == {
        "days": pytest.approx(1 / 12),
        "chip_hours": pytest.approx(512),
    }
    assert (
        whole_recipe([stage, unknown])
        == {"days": None, "chip_hours": None}
        == whole_recipe([stage, {}])
    )
