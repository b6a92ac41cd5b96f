"""XtremeDistilTransformers (Mukherjee et al. 2021, arXiv:2106.04563), its first stage: the student's states
learn the topmost states of a deeper teacher, each through a projection of its own, and its attention theirs.

What follows is `soft_labels` with distance="logit_mse", then `finetune`, both with the network unfrozen from the top
down, a group of layers in each stage: `configs/xtremedistil.py` lists them. Not as in the released code: pads
are left out of all means; layers are unfrozen one by one in order, where the code takes the whole encoder as one
group, and in the order of a Python set; the best state is chosen by held-out rows, and not by the test file."""

from __future__ import annotations

from typing import Any, Literal

from jaxdistill.errors import BadInput
from jaxdistill.methods.base import Facts, Objective
from jaxdistill.models.heads import PROJECTION
from jaxdistill.objectives.terms import Term
from jaxdistill.settings import CountOrZero, Weight

HEADS = "pooler|sequence_classification|token_classification|question_answering"


def topmost(
    facts: Facts,
    *,
    teacher_layer: CountOrZero = 11,
    states: Literal["all", "last"] = "all",
    hidden_mse: Weight = 1.0,
    attention_probability_mse: Weight = 0.0,
    first_token: bool = False,
    projection: bool = True,
) -> Objective:
    """Hidden state i of M follows the teacher's layer `teacher_layer` - (M - 1 - i), so that the last one follows
    `teacher_layer`, its last, counted from 0 (section 3 of the paper; the released code's default is
    states="last").

    `attention_probability_mse`: weight of the attention of the same layers, after the softmax.
    `first_token`: the first token's states alone, as the released code has them for classes (summed over the
    width, and not averaged); its embedding, the same in every text, follows nothing. Else the embeddings follow what
    lies as many states below: the teacher's embeddings, or a hidden state of a deeper one.

    A network with a `projected_size` learns its own projection here, in the place of the last state's: heads of tokens
    go on with it, and so do heads of texts where there is no pooler. The others end with the stage."""
    lowest = teacher_layer - facts.num_layers + 1
    if lowest < 0:
        raise BadInput(
            f"config.stages.{facts.stage}.teacher_layer={teacher_layer}: expected the teacher's last layer, counted from 0, "
            f"and at least {facts.num_layers - 1} for the {facts.num_layers} layers of the student"
        )
    follow = [lowest + layer for layer in range(facts.num_layers)]

    def learned(name: str) -> str:
        if facts.projects and name == f"state_{facts.num_layers}":
            return PROJECTION  # the network's own: later stages and heads go on with it
        return name if projection else ""

    terms = []
    for layer, at in enumerate(follow):
        if states == "last" and layer < facts.num_layers - 1:
            continue
        only = tuple(at if i == layer else -1 for i in range(facts.num_layers))
        name = f"state_{layer + 1}"
        if first_token:
            options = (("normalize", False),)
            terms.append(
                Term("first_token_mse", hidden_mse, only, projection=learned(name), options=options, name=name)
            )  # fmt: skip
        else:
            terms.append(Term("hidden_mse", hidden_mse, only, projection=learned(name), name=name))
    if states == "all" and not first_token:
        loss = "embedding_hidden_mse" if lowest else "embedding_mse"
        below = (lowest - 1,) if lowest else None
        terms.append(Term(loss, hidden_mse, below, projection=learned("state_0"), name="state_0"))
    terms.append(
        Term(
            "attention_probability_mse", attention_probability_mse, tuple(follow), name="attention"
        )
    )
    own = (f"{PROJECTION}/",) if facts.projects else ()
    return Objective(
        tuple(term for term in terms if term.weight > 0), moves=("embeddings/", "layers/", *own)
    )


def unfrozen(depth: int, projected: bool) -> list[dict[str, Any]]:
    """What moves in one stage after the other, as settings of it: the classifier, with the projection or, if that is
    `projected`, before it, every layer from the last one on, and the embeddings."""
    moves: tuple[str, ...] = (f"({HEADS})/" if projected else f"({HEADS}|{PROJECTION})/",)
    groups: list[dict[str, Any]] = [dict(moves=moves)]
    if projected:
        moves = (*moves, f"{PROJECTION}/")
        groups.append(dict(moves=moves))
    moves = (*moves, "layers/")
    groups += [dict(moves=moves, layers=(first, depth)) for first in reversed(range(depth))]
    return [*groups, dict(moves=(*moves, "embeddings/"))]
