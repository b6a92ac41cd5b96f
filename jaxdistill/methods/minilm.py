"""MiniLMv2 (Wang et al. 2021, arXiv:2012.15828): one layer's self-attention relations, from one
layer of the teacher.

The student's last layer learns how the teacher's queries relate to queries, keys to keys and values
to values; head counts and widths are free. Published: relation heads 48 for a base teacher and its
last layer, 64 for a large one and an upper-middle layer (21 of 24 in BERT-large)."""

from __future__ import annotations

from jaxdistill.errors import BadInput
from jaxdistill.methods.base import Facts, Objective
from jaxdistill.objectives.terms import Term
from jaxdistill.settings import Count, Weight


def relations(
    facts: Facts,
    *,
    query_relation: Weight = 1.0,
    key_relation: Weight = 1.0,
    value_relation: Weight = 1.0,
    relation_heads: Count = 48,
    teacher_layer: int = -1,
) -> Objective:
    """Q-Q, K-K and V-V relations (eqs. 5-8) of the last student layer; embeddings and blocks move,
    heads wait."""
    if teacher_layer < 0:
        raise BadInput(
            f"config.stages.{facts.stage}.teacher_layer={teacher_layer}: give the teacher's layer to "
            "learn from, counted from 0 (the last one, 11, of a base model; 20 of a large one)"
        )
    layer_map = (-1,) * (facts.num_layers - 1) + (teacher_layer,)
    weights = {
        "query_relation": query_relation,
        "key_relation": key_relation,
        "value_relation": value_relation,
    }
    terms = (
        Term(loss, weight, layer_map, options=(("heads", relation_heads),))
        for loss, weight in weights.items()
        if weight > 0
    )
    return Objective(tuple(terms), moves=("embeddings/", "layers/"))
