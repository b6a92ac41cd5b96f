"""MobileBERT (Sun et al. 2020): the stages of its three training strategies, from a stage's
settings.

Progressive transfer (PKT) then distillation is the published recipe; joint transfer (JKT) then
distillation and auxiliary transfer (AKT, one stage with everything) are the paper's comparisons
(section 3.6). Weights as in the released code: 100 feature map, 5000 mean, 5 variance, 1 attention,
each divided by the number of layers; alpha 0.5."""

from __future__ import annotations

from typing import Any

from jaxdistill.errors import BadInput
from jaxdistill.methods.base import Stage, Term
from jaxdistill.methods.settings import build, checked_layer_map

# Blocks move, embeddings and heads stay as copied from the teacher (spec: "non-encoder variables:
# rate 0").
BLOCKS = ("layers/",)


def transfer_terms(name: str, settings: Any, num_layers: int) -> tuple[Term, ...]:
    """Knowledge transfer of one layer: L_FMT in its normalised and statistics parts, and L_AT (eqs.
    2-3)."""
    layer_map = checked_layer_map(name, settings, num_layers)
    statistics = "_tf1" if settings.tf1_statistics else ""
    weights = {
        "feature_map": settings.feature_map,
        f"mean{statistics}": settings.mean,
        f"variance{statistics}": settings.variance,
        "attention": settings.attention,
    }
    return tuple(
        Term(loss, weight / num_layers, layer_map) for loss, weight in weights.items() if weight > 0
    )


def distillation_terms(settings: Any) -> tuple[Term, ...]:
    """alpha L_MLM + (1 - alpha) L_KD + L_NSP (eq. 5)."""
    weights = {"mlm": settings.alpha, "mlm_distillation": 1.0 - settings.alpha, "nsp": settings.nsp}
    return tuple(Term(loss, weight) for loss, weight in weights.items() if weight > 0)


def pretrain(name: str, settings: Any, num_layers: int) -> Stage:
    """MLM + NSP without a teacher: the teacher's own pre-training, and the baselines."""
    del num_layers
    terms = (Term("mlm", 1.0), *((Term("nsp", settings.nsp),) if settings.nsp > 0 else ()))
    return build(name, settings, terms)


def progressive(name: str, settings: Any, num_layers: int) -> Stage:
    """PKT: one phase a layer, the layers below at a tenth of the rate (soft) or frozen (strict)."""
    if settings.freezing not in ("soft", "strict"):
        raise BadInput(
            f"config.stages.{name}.freezing={settings.freezing!r} is unknown; valid: soft, strict"
        )
    if settings.steps < num_layers:
        raise BadInput(
            f"config.stages.{name}.steps={settings.steps} is less than one step for each of {num_layers} "
            f"layers; give at least {num_layers}"
        )
    return build(
        name,
        settings,
        transfer_terms(name, settings, num_layers),
        moves=BLOCKS,
        depth=f"progressive_{settings.freezing}",
    )


def joint(name: str, settings: Any, num_layers: int) -> Stage:
    """JKT, first part: every layer's transfer loss at once, embeddings and heads frozen."""
    return build(name, settings, transfer_terms(name, settings, num_layers), moves=BLOCKS)


def auxiliary(name: str, settings: Any, num_layers: int) -> Stage:
    """AKT: distillation and every layer's transfer loss in one stage; everything moves."""
    return build(
        name, settings, distillation_terms(settings) + transfer_terms(name, settings, num_layers)
    )


def distill(name: str, settings: Any, num_layers: int) -> Stage:
    """Pre-training distillation: the second stage of PKT and JKT; everything moves."""
    del num_layers
    return build(name, settings, distillation_terms(settings))


def classify(name: str, settings: Any, num_layers: int) -> Stage:
    """Fine-tuning on one labelled text classification task (section 4.3 of the paper fine-tunes so
    on GLUE)."""
    del num_layers
    return build(name, settings, (Term("classification", 1.0),))
