"""TinyBERT's stage: which losses, which layers, what moves."""

import pytest

from jaxdistill.errors import BadInput
from tests.conftest import make_stage


def test_embeddings_hidden_states_and_scores_by_a_layer_map():
    stage = make_stage("intermediate", 2, layer_map=(1, 2))
    assert {(term.loss, term.weight, term.layer_map, term.projection) for term in stage.terms} == {
        ("embedding_mse", 1.0, None, "hidden"),
        ("hidden_mse", 1.0, (1, 2), "hidden"),
        ("attention_mse", 1.0, (1, 2), ""),
    }
    assert (
        stage.moves == ("embeddings/", "layers/") and stage.heads() == stage.heads("teacher") == ()
    )
    assert (
        stage.taps("teacher") == ("attention_scores", "embeddings", "hidden")
        and stage.teacher_depth(2) == 3
    )


def test_without_a_projection_or_a_loss():
    stage = make_stage("intermediate", projection=False, embedding_mse=0.0, attention_mse=0.5)
    assert [(term.loss, term.weight, term.projection) for term in stage.terms] == [
        ("hidden_mse", 1.0, ""),
        ("attention_mse", 0.5, ""),
    ]
    assert stage.projections == ()


def test_a_layer_map_of_another_length_is_refused():
    with pytest.raises(BadInput, match="names 3 teacher layers for 2 student layers"):
        make_stage("intermediate", 2, layer_map=(0, 1, 2))
