"""A model card says what the results say, and nothing else."""

from __future__ import annotations

import re

from jaxdistill.interop import model_card
from jaxdistill.models import preset

RESULTS = {
    "config_name": "mobilebert_small",
    "seed": 7,
    "seconds": 1234.5678,
    "hardware": "1 x H200",
    "corpus": {"name": "installed_text", "tokens": 21_000_000, "digest": "abc123"},
    "versions": {"jax": "0.10.2"},
    "networks": {
        "student": {
            "text": {"mlm_loss": 2.34567, "mlm_accuracy": 0.4321, "teacher_kl": 0.25},
            "parameters": 24_581_888,
        },
        "teacher": {"text": {"mlm_loss": 1.5, "nsp_accuracy": 0.9}},
    },
}


def test_numbers_are_those_of_the_results() -> None:
    card = model_card(RESULTS, config=preset("mobilebert"), base_model="someone/teacher")
    assert "| student | 24,581,888 | 2.346 | 0.4321 |  | 0.25 |" in card
    assert "| teacher |  | 1.5 |  | 0.9 |  |" in card
    assert "top-1" not in card  # no network has it
    assert (
        "| wall time, seconds | 1235 |" in card
        and "digest abc123" in card
        and "| seed | 7 |" in card
    )
    assert "MobileBertForPreTraining.from_pretrained" in card
    head = card.split("---")[1]
    assert (
        'license: "apache-2.0"' in head
        and 'base_model: "someone/teacher"' in head
        and '"mobilebert"' in head
    )


def test_missing_results_leave_no_trace() -> None:
    card = model_card({})
    assert "|" not in card and "None" not in card and card.startswith("---\n")
    assert "Evaluation" not in model_card({"networks": {"student": {}}})


def test_reason_is_told_and_transformers_not_advertised() -> None:
    card = model_card({}, config=preset("ib_bert_large"), reason="because of the block input")
    assert "because of the block input" in card and "transformers" not in card
    assert "jaxdistill's own format" in model_card({}, config=preset("ib_bert_large"))


def test_cells_cannot_break_the_table() -> None:
    card = model_card({"command": "a | b\nc"})
    assert "| command | a \\| b c |" in card
    assert not re.search(r"\n\n\n", card)
