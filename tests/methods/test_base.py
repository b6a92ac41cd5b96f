"""Stages as plain data: hashable, so that one is a static argument of a compiled step, and checked
when made."""

import dataclasses

import pytest

from jaxdistill.errors import BadInput
from jaxdistill.methods.base import Optimizer, Schedule, Stage, Term
from tests.conftest import make_stage


def test_a_stage_is_hashable_and_equal_to_its_twin():
    assert hash(make_stage("auxiliary")) == hash(make_stage("auxiliary"))
    assert make_stage("auxiliary") == make_stage("auxiliary") != make_stage("auxiliary", alpha=0.4)


@pytest.mark.parametrize(
    "kind, student, teacher",
    [
        ("distill", ((), ("mlm", "nsp")), ((), ("mlm",))),
        ("joint", (("attention_scores", "hidden"), ()), (("attention_scores", "hidden"), ())),
        (
            "auxiliary",
            (("attention_scores", "hidden"), ("mlm", "nsp")),
            (("attention_scores", "hidden"), ("mlm",)),
        ),
        ("pretrain", ((), ("mlm", "nsp")), ((), ())),
        ("finetune", ((), ("sequence_classification",)), ((), ())),
    ],
)
def test_only_what_the_losses_read_is_asked_for(kind, student, teacher):
    stage = make_stage(kind)
    assert (stage.taps(), stage.heads()) == student
    assert (stage.taps("teacher"), stage.heads("teacher")) == teacher


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            dict(depth="deep"),
            "depth='deep' is unknown; valid: full, progressive_soft, progressive_strict",
        ),
        (dict(steps=0), "steps=0; expected at least 1"),
        (dict(terms=()), "no loss with a weight above 0"),
        (
            dict(terms=(Term("mlm", 1.0),), depth="progressive_soft"),
            "every loss must be of one layer",
        ),
        (
            dict(terms=(Term("mean", 1.0), Term("mean", 2.0))),
            "two terms named 'mean', and sums are kept by name",
        ),
        (
            dict(terms=(Term("mean", 1.0), Term("variance", 2.0, name="mean"))),
            "two terms named 'mean'",
        ),
        (dict(terms=(Term("mean", 1.0, name="loss"),)), "a term named 'loss'"),
        (
            dict(
                terms=(Term("mean", 1.0, (0, 1, 2)), Term("variance", 2.0)),
                depth="progressive_soft",
            ),
            "have one layer map",
        ),
    ],
)
def test_impossible_stages_are_refused(changes, message):
    stage = make_stage("joint")
    fields = {field.name: getattr(stage, field.name) for field in dataclasses.fields(Stage)}
    with pytest.raises(BadInput, match=message):
        Stage(**{**fields, **changes})


def test_unknown_optimizers_and_decays_are_refused():
    with pytest.raises(BadInput, match="optimizer 'sgd' is unknown; valid: adamw, lamb"):
        Optimizer("sgd")
    with pytest.raises(BadInput, match="decay='cosine' is unknown; valid: constant, linear"):
        Schedule(1.0, decay="cosine")
