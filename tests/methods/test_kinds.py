"""Settings read from a kind's signature, and kinds of one's own."""

import dataclasses
from typing import Annotated, Literal

import pytest

from jaxdistill import defaults
from jaxdistill.errors import BadInput
from jaxdistill.methods import kinds
from jaxdistill.methods.base import Objective, Patience
from jaxdistill.methods.settings import Common, LayerMap
from jaxdistill.models import preset
from jaxdistill.objectives.terms import Term
from jaxdistill.settings import Count, Weight, Within, settings_of
from tests.conftest import make_stage


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
    first: Weight = 2.0
    second: int = 3


def contrast(
    facts,
    *,
    group: Group,
    share: Annotated[float, Within(0, 1)] = 0.5,
    count: Count = 4,
    followed: LayerMap = (),
    mode: Literal["near", "far"] = "near",
):
    return Objective(
        (Term("mlm", group.first * share, name=f"{mode}{count}{group.second}{facts.num_layers}"),)
    )


@pytest.fixture
def registered(tables):
    kinds.register(contrast)


def test_settings_are_those_of_the_signature_with_groups_spread_out():
    found = {name: (s.default, s.type) for name, s in settings_of(contrast).items()}
    assert found == {
        "first": (2.0, float),
        "second": (3, int),
        "share": (0.5, float),
        "count": (4, int),
        "followed": ((), tuple),
        "mode": ("near", str),
    }


def test_a_kind_of_ones_own_is_a_stage_like_any_other(registered):
    section = defaults.stage("contrast", "student", steps=2, first=4.0, mode="far")
    stage = kinds.build("it", section, preset("bert_base").replace(num_layers=7))
    assert stage.terms == (Term("mlm", 2.0, name="far437"),)
    assert section.keys() - settings_of(Common).keys() == {
        "kind",
        "network",
        *settings_of(contrast),
    }
    assert kinds.register(contrast) is contrast  # twice is once


@pytest.mark.parametrize(
    "changes, words",
    [
        (dict(share=1.5), r"config.stages.it.share=1.5; expected 0 to 1"),
        (dict(share=float("nan")), r"share=nan; expected 0 to 1"),
        (dict(first=-1.0), r"first=-1.0; expected a finite number, 0 or more"),
        (dict(count=0), r"count=0; expected 1 to 2147483647"),
        (dict(followed=(0.5,)), r"followed=\(0.5,\); expected whole numbers"),
        (dict(mode="fare"), r"mode='fare' is unknown; did you mean 'far'"),
        (dict(skip_above=1.0), r"skip_above=1.0; expected 0 \(no update is skipped\) or 2"),
        (dict(moves=(3,)), r"moves=\(3,\); expected patterns"),
        (dict(decay="cosine"), r"decay='cosine' is unknown"),
    ],
)
def test_a_value_that_its_annotation_does_not_allow(registered, changes, words):
    section = defaults.stage("contrast", "student", steps=2, **changes)
    with pytest.raises(BadInput, match=words):
        kinds.build("it", section, preset("bert_base").replace(num_layers=7))


def test_what_cannot_be_a_kind(registered):
    def without_default(facts, *, weight: Weight): ...

    def without_annotation(facts, *, weight=1.0): ...

    def steps(facts, *, steps: Count = 1): ...

    def distill(facts): ...

    for kind, words in (
        (without_default, "keyword 'weight' needs a default and an annotation"),
        (without_annotation, "keyword 'weight' needs a default and an annotation"),
        (steps, "every stage has a setting 'steps'"),
        (distill, "'distill' is there already, from jaxdistill"),
    ):
        with pytest.raises(BadInput, match=words):
            kinds.register(kind)


def test_a_section_made_by_hand_with_a_field_of_another_kind():
    section = defaults.stage("distill", "student", steps=2)
    section.relation_heads = 3
    with pytest.raises(
        BadInput, match="no field 'relation_heads', a setting of relations; .*alpha, nsp"
    ):
        kinds.build("it", section, preset("bert_base").replace(num_layers=7))


@pytest.mark.parametrize(
    "changes",
    [{"patience": 2}, {"best_on": "task"}, {"best_every": 5}, {"best_or_start": True}],
    ids=lambda c: min(c),
)
def test_what_says_how_to_choose_needs_a_number_to_choose_by(changes):
    name = min(changes)
    with pytest.raises(
        BadInput, match=rf"{name}=.* needs a held-out number.*set config.stages.it.best"
    ):
        make_stage("pretrain", **changes)
    until = make_stage("pretrain", best="mlm", **changes).until
    assert until.metric == "mlm" and until.feed == changes.get("best_on", "text")


@pytest.mark.parametrize("rows", [(5,), (5, 5), (-1, 5), (1, 2, 3)])
def test_rows_are_two_numbers_in_order(rows):
    with pytest.raises(BadInput, match=r"config.stages.it.rows=.*as \(0, 100000\)"):
        kinds.build(
            "it", defaults.stage("pretrain", "student", steps=2, rows=rows), preset("bert_base")
        )


@pytest.mark.parametrize("higher", [False, True])
def test_patience_ends_after_numbers_that_are_no_better(higher):
    sign = -1 if higher else 1
    until = Patience("task", "number", evaluations=2, higher=higher)
    told = [sign * value for value in (5.0, 4.0, 4.5, 4.0)]
    assert [until.worn_out(told[:n]) for n in range(5)] == [False] * 4 + [True]
    assert not until.worn_out([*told[:3], sign * 3.0])
    assert until.worn_out([*told[:2], None, float("nan")])
    assert not dataclasses.replace(until, evaluations=0).worn_out(told)
