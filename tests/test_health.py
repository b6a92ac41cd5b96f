"""What numbers say against a network on a task: it is no better than an answer without looking."""

import pytest

from jaxdistill.health import score_warnings


@pytest.mark.parametrize(
    "numbers, said",
    [
        (
            {"accuracy": 0.5, "majority_accuracy": 0.5},
            "not above that of always answering the most",
        ),
        ({"accuracy": 0.51, "majority_accuracy": 0.5}, ""),
        ({"entity_f1": 0.0, "majority_entity_f1": 0.0, "token_accuracy": 0.9}, "entity f1"),
        ({"macro_f1": 0.02, "majority_macro_f1": 0.02}, "macro f1"),
        ({"f1": 0.5, "exact": 0.4, "no_answer_f1_baseline": 0.52}, "of never answering, 0.5200"),
        ({"f1": 0.5, "exact": 0.4}, ""),
        ({"mse": 2.0, "mean_baseline_mse": 1.9}, "not below that of always answering the mean"),
        ({"mse": 1.8, "mean_baseline_mse": 1.9}, ""),
        ({"mrr@10": 0.01, "random_mrr@10": 0.012}, "not above that of a random order, 0.0120"),
    ],
)
def test_a_number_that_is_no_better_is_said(numbers, said):
    found = score_warnings("student", "it", numbers, 71)
    assert len(found) == bool(said)
    if said:
        assert said in found[0] and "'student'" in found[0] and "71 held-out rows" in found[0]
