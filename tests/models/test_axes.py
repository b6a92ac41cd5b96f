"""The table of axes is true: an axis put in another order everywhere at once leaves the outputs alone, and
one that is wrongly named does not."""

import numpy as np
import pytest

from jaxdistill.errors import BadInput
from jaxdistill.models import PRESETS, Model, axes, preset
from jaxdistill.models.axes import TABLE, Axes, axes_of
from jaxdistill.models.heads import HEADS
from jaxdistill.models.parameters import flatten
from jaxdistill.models.sizes import forward_flops, parameter_shapes
from jaxdistill.students.extract import extract
from tests.conftest import random_params

LAYERS, HEADS_OF_LAYER = 2, 2


def small(name, **changes):
    """A preset in small, with every width of its own."""
    c = preset(name)
    return c.replace(
        **{
            "num_layers": LAYERS,
            "num_heads": HEADS_OF_LAYER,
            "vocab_size": 31,
            "hidden_size": 20,
            "intermediate_size": 14,
            "max_positions": 12,
            "bottleneck_size": None if c.bottleneck_size is None else 12,
            "embedding_size": None if c.embedding_size is None else 6,
            **changes,
        }
    )


def shuffled(config, rng):
    """Every axis that can be put in another order, in another order."""
    keep = {}
    for axis, size in Axes(config).sizes.items():
        lead = ()
        if axis in ("heads", "inner", "shared") or axis.startswith("ffn_"):
            lead = (LAYERS,)
        if axis in ("query", "value"):
            lead = (LAYERS, HEADS_OF_LAYER)
        if axis != "layer":
            keep[axis] = np.argsort(rng.random((*lead, size)), axis=-1)
    return keep


def outputs(config, params):
    rng = np.random.default_rng(1)
    batch = {
        "input_ids": rng.integers(1, 31, (3, 9)).astype(np.int32),
        "attention_mask": (np.arange(9) < np.array([9, 6, 4])[:, None]).astype(np.int32),
    }
    found, _ = Model(config).apply(params, batch, heads=config.heads)
    return {name: np.asarray(x) for name, x in found.items() if "logits" in name}


def difference(config):
    """How far outputs are from what they were, in parts of the largest."""
    params = random_params(Model(config))
    other = extract(config, params, shuffled(config, np.random.default_rng(0)))
    before, after = outputs(config, params), outputs(config, other)
    return max(
        np.abs(before[name] - after[name]).max() / np.abs(before[name]).max() for name in before
    )


@pytest.mark.parametrize("name", PRESETS)
def test_the_order_of_an_axis_is_free(name):
    config = small(name, heads=("mlm", "nsp"))
    assert difference(config) < 1e-5
    config = small(name, heads=("sequence_classification",), num_labels=3)
    assert difference(config) < 1e-5
    config = small(name, heads=("question_answering",))
    assert difference(config) < 1e-5


WRONG = [
    (r"layers/attention/value/kernel", 3, "query"),
    (r"layers/attention/out/kernel", 3, "label"),
    (r"layers/(ffn_\d+)/up/bias", 1, "label"),
    (r"layers/bottleneck_in/dense/kernel", 2, "label"),
    (r"layers/bottleneck_qk/.+", 1, "inner"),
    (r"embeddings/position", 1, "label"),
    (r"embeddings/projection/kernel", 0, "label"),
    (r"mlm/extra_embedding", 1, "label"),
    (r"mlm/.+", 0, "label"),
    (r"pooler/dense/bias", 0, "label"),
]


@pytest.mark.parametrize("pattern, at, name", WRONG, ids=[row[0] for row in WRONG])
def test_a_wrong_name_is_seen(pattern, at, name, monkeypatch):
    """The same with one entry of the table changed: the test above would fail."""
    kind = "bert_base" if "pooler" in pattern else "mobilebert"
    table = [
        (found, (*names[:at], name, *names[at + 1 :]) if found == pattern else names)
        for found, names in TABLE
    ]
    assert table != list(TABLE)
    monkeypatch.setattr(axes, "TABLE", table)
    axes_of.cache_clear()
    try:
        assert difference(small(kind, heads=("mlm", "nsp"))) > 1e-2
    finally:
        axes_of.cache_clear()


@pytest.mark.parametrize("name", PRESETS)
def test_sizes_are_those_of_the_arrays(name):
    """Of every parameter, through what its axes are made of."""
    config = small(name, heads=tuple(HEADS), embedding_features=5, num_labels=3)
    known = Axes(config)
    free = {"vocabulary", "position", "type", "label"}
    for parameter, leaf in flatten(parameter_shapes(config)).items():
        named = axes_of(parameter)
        assert len(named) == leaf.ndim, parameter
        for axis, size in zip(named, leaf.shape):
            parts = known.parts(axis)
            if not free & set(parts):
                assert sum(known.sizes[part] for part in parts) == size, (parameter, axis)


def test_a_parameter_of_ones_own_has_no_axes():
    with pytest.raises(BadInput, match="my_head/dense/kernel"):
        axes_of("my_head/dense/kernel")


def test_a_head_may_have_a_width_of_its_own():
    """Of attention: outputs, FLOPs and parameters follow it."""
    config = small("bert_base", heads=("mlm",), attention_head_size=3)
    shapes = flatten(parameter_shapes(config))
    assert shapes["layers/attention/query/kernel"].shape == (LAYERS, 20, 2, 3)
    assert shapes["layers/attention/out/kernel"].shape == (LAYERS, 2, 3, 20)
    assert difference(config) < 1e-5
    flops = [forward_flops(c, 7) for c in (config, config.replace(attention_head_size=None))]
    for part in ("attention_projections", "attention_products"):
        assert flops[0][part] / flops[1][part] == 3 / 10  # its own width is 20 over 2 heads
