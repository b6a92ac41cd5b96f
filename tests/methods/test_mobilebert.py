"""The stages of the published strategies, from a recipe's section: weights, what moves, and what
cannot be."""

import pytest

from jaxdistill import defaults
from jaxdistill.errors import BadInput
from jaxdistill.methods.kinds import KINDS
from tests.conftest import make_stage


def weights(stage):
    return {term.loss: term.weight for term in stage.terms}


@pytest.mark.parametrize("kind", ["progressive", "joint"])
def test_transfer_weights_are_the_published_ones_over_the_depth(kind):
    """100, 5000, 5 and 1, each divided by 24 (spec 2.2)."""
    stage = make_stage(kind, num_layers=24, steps=240)
    assert weights(stage) == pytest.approx(
        {"feature_map": 100 / 24, "mean": 5000 / 24, "variance": 5 / 24, "attention": 1 / 24}
    )


def test_distillation_is_alpha_and_its_complement_and_nsp():
    assert weights(make_stage("distill", alpha=0.3)) == pytest.approx(
        {"mlm": 0.3, "mlm_distillation": 0.7, "nsp": 1.0}
    )


def test_auxiliary_is_both_at_once():
    found = weights(make_stage("auxiliary", num_layers=4))
    assert (
        found == weights(make_stage("distill")) | weights(make_stage("joint", num_layers=4))
        and len(found) == 7
    )


def test_pretraining_and_classification_need_no_teacher():
    assert weights(make_stage("pretrain")) == {"mlm": 1.0, "nsp": 1.0}
    assert weights(make_stage("finetune")) == {"classification": 1.0}
    assert not make_stage("pretrain").needs_teacher and not make_stage("finetune").needs_teacher


@pytest.mark.parametrize(
    "kind, changes, losses",
    [
        ("joint", dict(mean=0.0, attention=0.0), {"feature_map", "variance"}),
        ("distill", dict(alpha=1.0), {"mlm", "nsp"}),
        ("distill", dict(alpha=0.0, nsp=0.0), {"mlm_distillation"}),
        ("pretrain", dict(nsp=0.0), {"mlm"}),
    ],
)
def test_a_weight_of_0_leaves_the_loss_out(kind, changes, losses):
    """Nothing is computed for it, and the teacher is not asked for what no loss reads."""
    stage = make_stage(kind, **changes)
    assert weights(stage).keys() == losses
    assert stage.needs_teacher == any(term.row.teacher for term in stage.terms)


def test_tf1_statistics_replaces_the_two_statistics():
    stage = make_stage("joint", tf1_statistics=True)
    assert weights(stage).keys() == {"feature_map", "mean_tf1", "variance_tf1", "attention"}
    assert "hidden_moments" in stage.taps("teacher") and "hidden_moments" not in stage.taps()


@pytest.mark.parametrize(
    "kind, moves",
    [
        ("progressive", ("layers/",)),
        ("joint", ("layers/",)),
        ("auxiliary", ("",)),
        ("distill", ("",)),
        ("pretrain", ("",)),
    ],
)
def test_what_moves(kind, moves):
    """Transfer trains blocks alone, the rest everything; a recipe's own patterns win everywhere."""
    assert make_stage(kind).moves == moves
    assert make_stage(kind, moves=("layers/attention", "embeddings/")).moves == (
        "layers/attention",
        "embeddings/",
    )


def test_depth_and_layer_maps():
    assert make_stage("progressive", freezing="soft").depth == "progressive_soft"
    assert make_stage("progressive", freezing="strict").depth == "progressive_strict"
    assert make_stage("joint").depth == "full"
    stage = make_stage("joint", num_layers=2, layer_map=(1, 4))
    assert {term.layer_map for term in stage.terms} == {(1, 4)}
    assert {term.layer_map for term in make_stage("joint").terms} == {None}


def test_settings_reach_the_stage():
    """Optimizer, schedule, batch, accumulation, dropout: each field of a section is the one of the
    stage."""
    stage = make_stage(
        "distill",
        optimizer="adamw",
        weight_decay=0.2,
        clip_norm=3.0,
        bias_correction=True,
        learning_rate=0.5,
        warmup_steps=3,
        decay="constant",
        end_ratio=0.1,
        steps=7,
        batch_size=6,
        accumulation=3,
        dropout=True,
        tf1_unmasked=True,
    )
    o, s = stage.optimizer, stage.schedule
    assert (o.name, o.weight_decay, o.clip_norm, o.bias_correction) == ("adamw", 0.2, 3.0, True)
    assert (o.beta1, o.beta2, o.eps) == (0.9, 0.999, 1e-6)
    assert (s.peak, s.warmup_steps, s.decay, s.end_ratio) == (0.5, 3, "constant", 0.1)
    assert (
        stage.steps,
        stage.batch_size,
        stage.accumulation,
        stage.dropout,
        stage.tf1_unmasked,
    ) == (7, 6, 3, True, True)
    assert make_stage("progressive", active_multiplier=1.5).active_multiplier == 1.5


@pytest.mark.parametrize(
    "kind, changes, message",
    [
        (
            "progressive",
            dict(freezing="hard"),
            "config.stages.it.freezing='hard' is unknown; valid: soft, strict",
        ),
        (
            "progressive",
            dict(steps=2),
            "config.stages.it.steps=2 is less than one step for each of 3",
        ),
        (
            "joint",
            dict(layer_map=(0, 1)),
            r"config.stages.it.layer_map=\(0, 1\) names 2 teacher layers for 3 student",
        ),
        (
            "distill",
            dict(batch_size=8, accumulation=3),
            "config.stages.it.batch_size or .accumulation",
        ),
        ("distill", dict(accumulation=0), "config.stages.it.accumulation=0"),
        ("distill", dict(learning_rate=float("nan")), "config.stages.it.learning_rate=nan"),
        ("distill", dict(warmup_steps=-3), "config.stages.it.warmup_steps=-3"),
        ("progressive", dict(dropout=True), "config.stages.it.dropout"),
        (
            "distill",
            dict(optimizer="lambs"),
            "config.stages.it.optimizer='lambs' is unknown; did you mean 'lamb'",
        ),
        (
            "distill",
            dict(decay="cosine"),
            "config.stages.it.decay='cosine' is unknown; valid: constant, linear",
        ),
        ("distill", dict(alpha=1.5), "config.stages.it.alpha=1.5"),
        ("distill", dict(alpha=-0.5), "config.stages.it.alpha=-0.5"),
        ("joint", dict(mean=-1.0), "config.stages.it.mean=-1.0"),
        (
            "joint",
            dict(feature_map=0.0, mean=0.0, variance=0.0, attention=0.0),
            "stage 'it' has no loss with a weight above 0",
        ),
    ],
)
def test_mistakes_name_the_line_to_change(kind, changes, message):
    with pytest.raises(BadInput, match=message):
        make_stage(kind, **changes)


def test_a_misspelt_field_or_kind_is_named_with_its_neighbour():
    with pytest.raises(BadInput, match="did you mean 'feature_map'"):
        defaults.stage("joint", "student", feature_maps=1.0)
    with pytest.raises(BadInput, match="did you mean 'progressive'"):
        defaults.stage("progresive", "student")
    assert set(KINDS) == {
        "pretrain",
        "progressive",
        "joint",
        "auxiliary",
        "distill",
        "relations",
        "self_attention",
        "intermediate",
        "distilbert",
        "patient",
        "hint",
        "finetune",
        "soft_labels",
        "topmost",
    }
