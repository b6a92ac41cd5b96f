"""`describe`: the issue's exact counts, plain JSON, and a table that lines up."""

import json

import pytest

from jaxdistill.description import describe, format_description
from jaxdistill.models import ModelConfig, preset

SMALL = ModelConfig(
    vocab_size=40, num_layers=2, hidden_size=8, num_heads=2, intermediate_size=12, max_positions=32
)


@pytest.mark.parametrize(
    "name, encoder",
    [
        ("bert_base", 109_482_240),
        ("ib_bert_large", 294_467_840),
        ("mobilebert", 24_581_888),
        ("mobilebert_tiny", 15_485_696),
    ],
)
def test_exact_counts(name, encoder):
    description = describe(preset(name))
    assert description["encoder_parameters"] == description["parameters"]["encoder"] == encoder
    if name == "mobilebert":
        assert (
            description["pretraining_parameters"] == description["total_parameters"] == 36_597_564
        )
    assert sorted(description["flops"]) == ["128", "512"]
    assert json.loads(json.dumps(description)) == description


def test_flops_sum_to_the_encoder_and_exclude_heads():
    flops = describe(preset("bert_base"))["flops"]["128"]
    outside = ("encoder", "pooler", "head/mlm", "head/nsp")
    assert flops["encoder"] == sum(value for part, value in flops.items() if part not in outside)
    assert flops["encoder"] == pytest.approx(22.35e9, rel=1e-3)


def test_short_models_and_other_heads():
    description = describe(SMALL.replace(heads=("question_answering",), pooler="none"))
    assert list(description["flops"]) == ["32"] and description["tap_length"] == 32
    assert description["taps"]["attention_scores"] == {
        "shape": [2, 1, 2, 32, 32],
        "dtype": "float32",
    }
    assert description["pretraining_parameters"] != description["total_parameters"]
    assert "question answering" in format_description(description)


def test_table_is_aligned_plain_text():
    text = format_description(describe(preset("mobilebert")))
    assert "\x1b" not in text and max(map(len, text.splitlines())) <= 100
    assert "24,581,888" in text and "36,597,564" in text and "5.39 G" in text
    column = {
        line.index(number) + len(number)
        for line in text.splitlines()
        for number in ("24,581,888", "842,240", "3,906,816")
        if line.endswith(number)
    }
    assert len(column) == 1
