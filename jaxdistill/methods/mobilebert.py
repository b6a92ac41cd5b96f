"""MobileBERT (Sun et al. 2020): the stages of its three training strategies.

Progressive transfer (PKT) then distillation is the published recipe; joint transfer (JKT) then
distillation and auxiliary transfer (AKT, one stage with everything) are the paper's comparisons
(section 3.6). Weights as in the released code: 100 feature map, 5000 mean, 5 variance, 1 attention,
each divided by the number of layers; alpha 0.5."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from jaxdistill.errors import BadInput
from jaxdistill.methods.base import Facts, Objective
from jaxdistill.methods.settings import LayerMap
from jaxdistill.objectives.terms import Term
from jaxdistill.settings import Weight, Within

# Blocks move, embeddings and heads stay as copied from the teacher (spec: "non-encoder variables:
# rate 0").
BLOCKS = ("layers/",)
Multiplier = Annotated[float, Within(0, 1e6, "a number from 0 to a million")]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transfer:
    """Knowledge transfer of one layer: L_FMT in its normalised and statistics parts, and L_AT (eqs.
    2-3). `tf1_statistics`: statistics as the released code takes them, of all teacher layers."""

    feature_map: Weight = 100.0
    mean: Weight = 5000.0
    variance: Weight = 5.0
    attention: Weight = 1.0
    layer_map: LayerMap = ()
    tf1_statistics: bool = False

    def terms(self, facts: Facts) -> tuple[Term, ...]:
        layer_map = facts.checked_layer_map(self.layer_map)
        statistics = "_tf1" if self.tf1_statistics else ""
        weights = {
            "feature_map": self.feature_map,
            f"mean{statistics}": self.mean,
            f"variance{statistics}": self.variance,
            "attention": self.attention,
        }
        return tuple(
            Term(loss, weight / facts.num_layers, layer_map)
            for loss, weight in weights.items()
            if weight > 0
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distillation:
    """alpha L_MLM + (1 - alpha) L_KD + L_NSP (eq. 5)."""

    alpha: Annotated[
        float, Within(0, 1, "0 (the teacher's words alone) to 1 (the true words alone)")
    ] = 0.5
    nsp: Weight = 1.0

    def terms(self) -> tuple[Term, ...]:
        weights = {"mlm": self.alpha, "mlm_distillation": 1.0 - self.alpha, "nsp": self.nsp}
        return tuple(Term(loss, weight) for loss, weight in weights.items() if weight > 0)


def pretrain(facts: Facts, *, nsp: Weight = 1.0) -> Objective:
    """MLM + NSP without a teacher: the teacher's own pre-training, and the baselines."""
    return Objective((Term("mlm", 1.0), *((Term("nsp", nsp),) if nsp > 0 else ())))


def progressive(
    facts: Facts,
    *,
    transfer: Transfer,
    freezing: Literal["soft", "strict"] = "soft",
    active_multiplier: Multiplier = 3.0,
) -> Objective:
    """PKT: one phase a layer, the layers below at a tenth of the rate (soft) or frozen (strict)."""
    if facts.steps < facts.num_layers:
        raise BadInput(
            f"config.stages.{facts.stage}.steps={facts.steps} is less than one step for each of "
            f"{facts.num_layers} layers; give at least {facts.num_layers}"
        )
    return Objective(
        transfer.terms(facts),
        moves=BLOCKS,
        depth=f"progressive_{freezing}",
        active_multiplier=active_multiplier,
    )


def joint(facts: Facts, *, transfer: Transfer) -> Objective:
    """JKT, first part: every layer's transfer loss at once, embeddings and heads frozen."""
    return Objective(transfer.terms(facts), moves=BLOCKS)


def auxiliary(facts: Facts, *, distillation: Distillation, transfer: Transfer) -> Objective:
    """AKT: distillation and every layer's transfer loss in one stage; everything moves."""
    return Objective(distillation.terms() + transfer.terms(facts))


def distill(facts: Facts, *, distillation: Distillation) -> Objective:
    """Pre-training distillation: the second stage of PKT and JKT; everything moves."""
    return Objective(distillation.terms())
