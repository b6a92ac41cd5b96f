"""Knowledge distillation on a labelled task (Hinton et al. 2015, arXiv:1503.02531): the student learns
the teacher's probabilities, softened by a temperature, beside the true answer."""

from __future__ import annotations

from typing import Annotated

from jaxdistill.methods.base import Facts, Objective
from jaxdistill.objectives.terms import LOSSES, Term
from jaxdistill.settings import Within

Share = Annotated[float, Within(0, 1, "0 (the teacher's classes alone) to 1 (the true ones alone)")]
Temperature = Annotated[float, Within(0.01, 1000.0)]


def soft_labels(
    facts: Facts, *, hard_labels: Share = 0.5, temperature: Temperature = 2.0
) -> Objective:
    """hard_labels x the task's loss + (1 - hard_labels) x T^2 KL(teacher || student), of classes, tags
    or the two ends of a span; of a task that asks for a number, x (student - teacher)^2."""
    terms = []
    for loss in facts.task_losses:
        soft = f"{loss}_distillation"
        options = {"temperature": float(temperature)} if LOSSES.named(soft).options else {}
        share = 1.0 / len(facts.task_losses)
        terms += [
            Term(loss, share * hard_labels),
            Term(soft, share * (1.0 - hard_labels), options=tuple(options.items())),
        ]
    return Objective(tuple(term for term in terms if term.weight > 0))
