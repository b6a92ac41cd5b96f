"""MiniLM: one layer's self-attention, from one layer of the teacher.

`relations`, the second version (Wang et al. 2021, arXiv:2012.15828): the student's last layer learns
how the teacher's queries relate to queries, keys to keys and values to values; head counts and widths
are free. Published: relation heads 48 for a base teacher and its last layer, 64 for a large one and an
upper-middle layer (21 of 24 in BERT-large). `self_attention`, the first (Wang et al. 2020,
arXiv:2002.10957): attention distributions and value relations, head by head."""

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
    layer_map = _last(facts, teacher_layer)
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


def self_attention(
    facts: Facts, *, attention: Weight = 1.0, value_relation: Weight = 1.0, teacher_layer: int = -1
) -> Objective:
    """Attention distributions and value relations of the last student layer, head by head, so that
    teacher and student have as many heads; embeddings and blocks move, heads wait.

    A student of half the teacher's layers and width, or less, learns it from a teacher assistant: a
    network as deep as the teacher and as wide as the student, which learns it first (section 3.3)."""
    options = (("heads", facts.num_heads),)
    layer_map = _last(facts, teacher_layer)
    terms = (
        Term("attention_kl", attention, layer_map),
        Term("value_relation", value_relation, layer_map, options=options),
    )
    return Objective(
        tuple(term for term in terms if term.weight > 0), moves=("embeddings/", "layers/")
    )


def _last(facts: Facts, teacher_layer: int) -> tuple[int, ...]:
    """The layer map by which the last layer alone follows one of the teacher's."""
    if teacher_layer < 0:
        raise BadInput(
            f"config.stages.{facts.stage}.teacher_layer={teacher_layer}: give the teacher's layer to "
            "learn from, counted from 0 (the last one, 11, of a base model; 20 of a large one)"
        )
    return (-1,) * (facts.num_layers - 1) + (teacher_layer,)
