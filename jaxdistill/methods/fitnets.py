"""FitNets (Romero et al. 2015, arXiv:1412.6550): the student's lower part first learns a hint, a hidden
state from the middle of the teacher; the whole student then learns the teacher's classes
(`soft_labels`)."""

from __future__ import annotations

from jaxdistill.errors import BadInput
from jaxdistill.methods.base import Facts, Objective
from jaxdistill.methods.settings import LayerMap
from jaxdistill.objectives.terms import Term

PROJECTION = "hint"  # the paper's regressor


def hint(
    facts: Facts, *, guided_layer: int = -1, hint_layer: int = -1, projection: bool = True
) -> Objective:
    """The mean squared error of one hidden state, through a learned projection (eq. 3); what lies
    below it moves, layers above and heads wait.

    `guided_layer`: of the student; `hint_layer`: of the teacher, both counted from 0, -1 the middle
    one of the student, and the same of the teacher."""
    guided = (facts.num_layers - 1) // 2 if guided_layer < 0 else guided_layer
    followed = guided if hint_layer < 0 else hint_layer
    if guided >= facts.num_layers:
        raise BadInput(
            f"config.stages.{facts.stage}.guided_layer={guided}: the student's layers are 0 to "
            f"{facts.num_layers - 1}"
        )
    layer_map: LayerMap = tuple(
        followed if layer == guided else -1 for layer in range(facts.num_layers)
    )
    return Objective(
        (Term("hidden_mse", 1.0, layer_map, projection=PROJECTION if projection else ""),),
        moves=("embeddings/", "layers/"),
        layers=(0, guided + 1),
    )
