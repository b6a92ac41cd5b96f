"""DistilBERT (Sanh et al. 2019, arXiv:1910.01108): on plain text, the student learns the teacher's
distribution over the vocabulary, the true masked words, and the direction of the last hidden state.

Published: half the teacher's layers, which begin as its layers 0, 2, 4, 7, 9 and 11
(`config.networks.student.layers`); weights 5, 2 and 1, as the authors say they used them."""

from __future__ import annotations

from typing import Literal

from jaxdistill.errors import BadInput
from jaxdistill.methods.base import Facts, Objective
from jaxdistill.methods.settings import Temperature
from jaxdistill.objectives.terms import Term
from jaxdistill.settings import Weight

PROJECTION = "hidden"  # of a student that is narrower, which the paper does not have


def distilbert(
    facts: Facts,
    *,
    soft_words: Weight = 5.0,
    mlm: Weight = 2.0,
    hidden_cosine: Weight = 1.0,
    temperature: Temperature = 2.0,
    distilled: Literal["masked", "all", "stored"] = "masked",
    projection: bool = False,
    teacher_layer: int = -1,
) -> Objective:
    """soft_words x T^2 KL(teacher || student) + mlm x L_MLM + hidden_cosine x (1 - cos) of the last
    hidden states.

    `distilled`: whether the distributions are compared at the masked words alone, or at all tokens as
    in the released code, which takes a vocabulary-sized product at every token; "stored": from a feed that
    holds the teacher's likeliest words (derived "words"), at its temperature. `teacher_layer`: whose
    hidden state the student's last one follows, counted from 0; the teacher's last. Raises `BadInput`
    without it."""
    if hidden_cosine > 0 and teacher_layer < 0:
        raise BadInput(
            f"config.stages.{facts.stage}.teacher_layer={teacher_layer}: give the teacher's last layer, counted "
            "from 0 (11 of a base model), or hidden_cosine=0"
        )
    last = (-1,) * (facts.num_layers - 1) + (teacher_layer,)
    learned = PROJECTION if projection else ""
    options = (("temperature", temperature),)
    soft = {
        "masked": Term("mlm_kl", soft_words, options=options),
        "all": Term("token_kl", soft_words, options=options),
        "stored": Term("mlm_stored", soft_words),
    }
    terms = (
        soft[distilled],
        Term("mlm", mlm),
        Term("hidden_cosine", hidden_cosine, last, projection=learned),
    )
    return Objective(tuple(term for term in terms if term.weight > 0))
