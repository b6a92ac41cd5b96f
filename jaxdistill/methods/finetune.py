"""Fine-tuning on a labelled task (Devlin et al. 2019, arXiv:1810.04805, section 3): whatever the task
asks for, from what it holds alone."""

from __future__ import annotations

from jaxdistill.methods.base import Facts, Objective
from jaxdistill.objectives.terms import Term


def finetune(facts: Facts) -> Objective:
    """The task's own loss: cross-entropy of classes, tags or the two ends of a span (their mean), or
    squared error."""
    losses = facts.task_losses
    return Objective(tuple(Term(loss, 1.0 / len(losses)) for loss in losses))
