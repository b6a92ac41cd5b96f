"""The name table itself: every parameter has exactly one row, and no two rows share a name."""

from __future__ import annotations

import numpy as np
import pytest

from jaxdistill.interop import convert, names
from jaxdistill.models import PRESETS, ModelConfig
from jaxdistill.models.heads import HEADS

CONFIGS = {
    **PRESETS,
    "three_ffn": ModelConfig(num_ffn=3),
    "no_pooler": ModelConfig(pooler="none", heads=("mlm",)),
    **{head: ModelConfig(heads=(head,)) for head in HEADS},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_one_row_a_parameter(name: str) -> None:
    config = CONFIGS[name]
    rows = names.rows(config)
    shapes = convert.our_shapes(config)
    assert sorted(row.ours for row in rows) == sorted(shapes)
    assert len({row.theirs for row in rows}) == len(rows)
    assert all(row.stacked == row.ours.startswith("layers/") for row in rows)


@pytest.mark.parametrize("layout", names.LAYOUTS)
def test_layouts_are_inverted(layout: str) -> None:
    shape = {
        "same": (5,),
        "linear": (3, 5),
        "heads": (2, 4),
        "to_heads": (3, 2, 4),
        "from_heads": (2, 4, 3),
    }[layout]
    ours = np.random.default_rng(0).normal(size=shape)
    theirs = names.LAYOUTS[layout].to_theirs(ours)
    assert theirs.shape == names.LAYOUTS[layout].shape(shape) and theirs.flags.c_contiguous
    np.testing.assert_array_equal(names.LAYOUTS[layout].to_ours(theirs, shape), ours)


def test_heads_are_flattened_head_major() -> None:
    """Column a * K + k of their query belongs to head a."""
    ours = np.arange(3 * 2 * 4).reshape(3, 2, 4)
    theirs = names.LAYOUTS["to_heads"].to_theirs(ours)
    assert all(
        theirs[a * 4 + k, i] == ours[i, a, k] for i in range(3) for a in range(2) for k in range(4)
    )
    out = names.LAYOUTS["from_heads"].to_theirs(ours.transpose(1, 2, 0))
    assert all(
        out[i, a * 4 + k] == ours[i, a, k] for i in range(3) for a in range(2) for k in range(4)
    )
