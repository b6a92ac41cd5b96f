"""Knowledge distillation on a labelled task (Hinton et al. 2015, arXiv:1503.02531): the student learns
the teacher's probabilities, softened by a temperature, beside the true answer."""

from __future__ import annotations

from typing import Annotated

from jaxdistill.errors import BadInput
from jaxdistill.methods.base import Facts, Objective
from jaxdistill.methods.settings import Temperature
from jaxdistill.objectives.distances import DISTANCES
from jaxdistill.objectives.ramps import Number
from jaxdistill.objectives.terms import LOSSES, Term
from jaxdistill.settings import Count, Each, MayRamp, OneOf, Within, settings_of

Share = Annotated[
    float, Within(0, 1, "0 (the teacher's classes alone) to 1 (the true ones alone)"), MayRamp()
]
Name = Annotated[str, OneOf(tuple(DISTANCES))]
Names = Annotated[tuple[str, ...], Each(str, "names of networks")]


def soft_labels(
    facts: Facts,
    *,
    hard_labels: Share = 0.5,
    temperature: Temperature = 2.0,
    distance: Name = "kl",
    top_k: Count = 10,
    teachers: Names = (),
) -> Objective:
    """hard_labels x the task's loss + (1 - hard_labels) x T^2 KL(teacher || student), of classes, tags
    or the two ends of a span; of a task that asks for a number, x (student - teacher)^2.

    `distance`: another one than KL, of `objectives.distances`; `top_k` is that one's number of classes.
    `teachers`: several networks in place of the stage's one, each with the same weight. For KL and
    numbers that is to learn from the mean of their probabilities or numbers: what differs does not
    depend on the student."""
    if top_k != settings_of(soft_labels)["top_k"].default and distance != "top_k":
        raise BadInput(
            f"config.stages.{facts.stage}.top_k={top_k} would do nothing beside distance={distance!r}; set "
            "distance='top_k', or leave it out"
        )
    if teachers and facts.teacher != "teacher":
        raise BadInput(
            f"config.stages.{facts.stage}.teacher={facts.teacher!r} would do nothing beside teachers={teachers}; "
            "name it there too, or leave one of the two out"
        )
    shares = 1.0 / len(facts.task_losses)
    hard = [Term(loss, shares * hard_labels) for loss in facts.task_losses]
    soft = distillation(
        facts,
        shares * (1.0 - hard_labels),
        temperature=temperature,
        distance=distance,
        top_k=top_k,
        teachers=teachers,
    )
    return Objective(tuple(term for term in (*hard, *soft) if term.weight > 0))


def distillation(
    facts: Facts,
    weight: Number,
    *,
    temperature: Number,
    distance: str = "kl",
    top_k: int = 10,
    teachers: tuple[str, ...] = (),
) -> tuple[Term, ...]:
    """The terms by which the outputs of a task follow those of `teachers`, or of the stage's own
    teacher; each loss of the task with `weight`."""
    terms = []
    for loss in facts.task_losses:
        soft = f"{loss}_{distance}"
        if loss == "regression":
            soft = "regression_distillation"
        elif soft not in LOSSES:
            raise BadInput(
                f"config.stages.{facts.stage}.distance={distance!r} compares classes with each other, and "
                "the ends of a span are none; take 'kl' or another distance"
            )
        values = {"temperature": temperature, "k": top_k}
        options = tuple((name, values[name]) for name in LOSSES[soft].options)
        if not teachers:
            terms.append(Term(soft, weight, options=options))
        for name in teachers:
            share = weight / len(teachers)
            named = f"{soft}_{name}" if len(teachers) > 1 else ""
            terms.append(Term(soft, share, options=options, teacher=name, name=named))
    return tuple(terms)
