"""MiniLMv2 (Wang et al. 2021, arXiv:2012.15828): one layer's self-attention relations, from one
layer of the teacher.

The student's last layer learns how the teacher's queries relate to queries, keys to keys and values
to values; head counts and widths are free. Published: relation heads 48 for a base teacher and its
last layer, 64 for a large one and an upper-middle layer (21 of 24 in BERT-large)."""

from __future__ import annotations

from typing import Any

from jaxdistill.errors import BadInput
from jaxdistill.methods.base import Stage, Term
from jaxdistill.methods.settings import build

LOSSES = ("query_relation", "key_relation", "value_relation")


def relations(name: str, settings: Any, num_layers: int) -> Stage:
    """Q-Q, K-K and V-V relations (eqs. 5-8) of the last student layer; embeddings and blocks move,
    heads wait."""
    if settings.teacher_layer < 0:
        raise BadInput(
            f"config.stages.{name}.teacher_layer={settings.teacher_layer}: give the teacher's layer to learn from, "
            "counted from 0 (the last one, 11, of a base model; 20 of a large one)"
        )
    layer_map = (-1,) * (num_layers - 1) + (int(settings.teacher_layer),)
    terms = tuple(
        Term(loss, settings[loss], layer_map, relation_heads=int(settings.relation_heads))
        for loss in LOSSES
        if settings[loss] > 0
    )
    return build(name, settings, terms, moves=("embeddings/", "layers/"))
