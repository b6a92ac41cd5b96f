"""TinyBERT (Jiao et al. 2020, arXiv:1909.10351): what lies between input and prediction, compared
by squared errors.

Attention scores before the softmax (eq. 7), hidden states (eq. 8) and embeddings (eq. 9), all with
weight 1; the student is narrower, so its states pass a learned projection to the teacher's width.
General distillation is this stage alone on plain text, from a teacher that is not fine-tuned.
Published: 4 layers that follow layers 3, 6, 9 and 12 of BERT-base."""

from __future__ import annotations

from typing import Any

from jaxdistill.methods.base import Stage, Term
from jaxdistill.methods.settings import build, checked_layer_map

# One map for the embeddings and all layers, as in the released code (the paper has W_e and W_h).
PROJECTION = "hidden"


def intermediate(name: str, settings: Any, num_layers: int) -> Stage:
    """L_embd + the sum over layers of L_hidn + L_attn; embeddings, blocks and the projection move,
    heads wait."""
    layer_map = checked_layer_map(name, settings, num_layers)
    projection = PROJECTION if settings.projection else ""
    terms = (
        Term("embedding_mse", settings.embedding_mse, projection=projection),
        Term("hidden_mse", settings.hidden_mse, layer_map, projection=projection),
        Term("attention_mse", settings.attention_mse, layer_map),
    )
    return build(
        name,
        settings,
        tuple(term for term in terms if term.weight > 0),
        moves=("embeddings/", "layers/"),
    )
