"""Patient knowledge distillation (PKD; Sun et al. 2019, arXiv:1908.09355): on a labelled task, the
student follows the teacher's classes, and the first token of some of its hidden states.

Published, of 12 layers into 6: "skip" follows every other layer, layer_map=(1, 3, 5, 7, 9, -1); "last" the
upper ones, (6, 7, 8, 9, 10, -1). The last layer follows none: its output is compared as classes."""

from __future__ import annotations

from jaxdistill.errors import BadInput
from jaxdistill.methods.base import Facts, Objective
from jaxdistill.methods.settings import LayerMap, Temperature
from jaxdistill.methods.soft_labels import Share, distillation
from jaxdistill.objectives.terms import Term
from jaxdistill.settings import Weight

# Where the student is narrower than the teacher, which the paper does not have: one map for all layers.
PROJECTION = "first_token"


def patient(
    facts: Facts,
    *,
    hard_labels: Share = 0.5,
    temperature: Temperature = 10.0,
    first_token_mse: Weight = 1.0,
    normalize: bool = True,
    projection: bool = False,
    layer_map: LayerMap = (),
) -> Objective:
    """(1 - alpha) L_CE + alpha L_DS + beta L_PT (eq. 8): hard_labels is 1 - alpha, first_token_mse is
    beta.

    L_PT is a sum over layers and over the width, a mean over texts, as in the paper. The released code
    takes the mean over layers and width too: its beta=100, of 5 layers of width 768, is 0.026 here.
    `normalize`: of vectors of length 1, as in the paper; without it the released code did best on its
    large tasks. `projection`: whether the student's states pass a learned projection to the teacher's
    width. Raises `BadInput` without a layer map."""
    if not layer_map:
        raise BadInput(
            f"config.stages.{facts.stage}.layer_map=(): say which layer of the teacher each student layer "
            "follows, counted from 0, -1 for none; published, of 12 layers into 6: (1, 3, 5, 7, 9, -1)"
        )
    follow = Term(
        "first_token_mse",
        first_token_mse,
        facts.checked_layer_map(layer_map),
        options=(("normalize", normalize),),
        projection=PROJECTION if projection else "",
    )
    share = 1.0 / len(facts.task_losses)
    hard = [Term(loss, share * hard_labels) for loss in facts.task_losses]
    soft = distillation(facts, share * (1.0 - hard_labels), temperature=temperature)
    return Objective(tuple(term for term in (*hard, *soft, follow) if term.weight > 0))
