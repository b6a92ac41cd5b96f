"""TinyBERT (Jiao et al. 2020, arXiv:1909.10351): what lies between input and prediction, compared
by squared errors.

Attention scores before the softmax (eq. 7), hidden states (eq. 8) and embeddings (eq. 9), all with
weight 1; the student is narrower, so its states pass a learned projection to the teacher's width.
General distillation is this stage alone on plain text, from a teacher that is not fine-tuned.
Published: 4 layers that follow layers 3, 6, 9 and 12 of BERT-base."""

from __future__ import annotations

from jaxdistill.methods.base import Facts, Objective
from jaxdistill.methods.settings import LayerMap
from jaxdistill.objectives.terms import Term
from jaxdistill.settings import Weight

# One map for the embeddings and all layers, as in the released code (the paper has W_e and W_h).
PROJECTION = "hidden"


def intermediate(
    facts: Facts,
    *,
    hidden_mse: Weight = 1.0,
    attention_mse: Weight = 1.0,
    embedding_mse: Weight = 1.0,
    projection: bool = True,
    layer_map: LayerMap = (),
) -> Objective:
    """L_embd + the sum over layers of L_hidn + L_attn; embeddings, blocks and the projection move,
    heads wait. `projection`: whether the student's states pass the learned projection."""
    layers = facts.checked_layer_map(layer_map)
    learned = PROJECTION if projection else ""
    terms = (
        Term("embedding_mse", embedding_mse, projection=learned),
        Term("hidden_mse", hidden_mse, layers, projection=learned),
        Term("attention_mse", attention_mse, layers),
    )
    return Objective(
        tuple(term for term in terms if term.weight > 0), moves=("embeddings/", "layers/")
    )
