"""Knowledge distillation on a labelled task (Hinton et al. 2015, arXiv:1503.02531): the student learns
the teacher's probabilities of the classes, softened by a temperature, beside the true class."""

from __future__ import annotations

from typing import Annotated

from jaxdistill.methods.base import Facts, Objective
from jaxdistill.objectives.terms import Term
from jaxdistill.settings import Within

Share = Annotated[float, Within(0, 1, "0 (the teacher's classes alone) to 1 (the true ones alone)")]
Temperature = Annotated[float, Within(0.01, 1000.0)]


def soft_labels(
    facts: Facts, *, hard_labels: Share = 0.5, temperature: Temperature = 2.0
) -> Objective:
    """hard_labels x cross-entropy of the true class + (1 - hard_labels) x T^2 KL(teacher || student)."""
    hard = Term("classification", hard_labels)
    soft = Term(
        "classification_distillation",
        1.0 - hard_labels,
        options=(("temperature", float(temperature)),),
    )
    return Objective(tuple(term for term in (hard, soft) if term.weight > 0))
