"""What distils on a task: soft labels with any distance and several teachers, PKD, FitNets; and DistilBERT
and MiniLM v1 on text. Which terms, which layers, what moves, and one step of each."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdistill import checks, defaults
from jaxdistill.errors import BadInput
from jaxdistill.methods.base import Cast
from jaxdistill.methods.kinds import build
from jaxdistill.models import Model, preset
from jaxdistill.models.parameters import flatten
from jaxdistill.objectives.distances import DISTANCES
from jaxdistill.objectives.ramps import Ramp
from jaxdistill.training import programs, sharding, state
from jaxdistill.training.step import Given, make_step
from tests.conftest import SMALL, pretraining_batch, random_params

HEADS = {
    "classification": "sequence_classification",
    "tagging": "token_classification",
    "span_start": "question_answering",
}
PLAIN = {name: value for name, value in SMALL.items() if name != "embedding_size"}
SHAPE = {**PLAIN, "hidden_dropout": 0.0, "attention_dropout": 0.0, "num_labels": 3}


def network(head="sequence_classification", **changes):
    return Model(preset("bert_base").replace(**{**SHAPE, **changes}, heads=(head,)))


def task_batch(seed=0, rows=8, length=7):
    batch = pretraining_batch(seed, rows, length)
    rng = np.random.default_rng(seed)
    mask = batch["attention_mask"]
    weights = (mask * (np.arange(length) > 0)).astype(np.float32)
    return {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")} | {
        "example_weights": (np.arange(rows) < rows - 1).astype(np.float32),
        "labels": rng.integers(0, 3, rows).astype(np.int32),
        "tags": rng.integers(0, 3, mask.shape).astype(np.int32),
        "tag_weights": weights,
        "start_positions": np.zeros(rows, np.int32),
        "end_positions": np.ones(rows, np.int32),
    }


def stage_of(kind, losses=("classification",), num_layers=3, model=None, **changes):
    section = defaults.stage(kind, "student", **{"steps": 5, "batch_size": 8, **changes})
    model = model or network(num_layers=num_layers)
    return build("it", section, model.config, losses)


@functools.lru_cache(8)
def jitted(cast):
    """A step that is compiled once, although it is called at several steps."""
    return jax.jit(make_step(cast))


def one_step(stage, student, teachers, batch, step=0, mesh=None):
    """(parameters after it, metrics) of a step from parameters of which none is 0."""
    cast = Cast(
        stage, student, tuple(sorted((name, model) for name, (model, _) in teachers.items()))
    )
    others = {name: params for name, (_, params) in teachers.items()}
    now = state.create(cast, random_params(student, 2), jax.random.key(4))
    now, given = now.replace(step=jnp.int32(step)), Given(others, np.int32(0))
    if mesh is None:
        now, metrics = jitted(cast)(now, given, batch)
    else:
        placed = (sharding.place(mesh, tree) for tree in (now, given))
        now, metrics = programs.compile_step(cast, mesh)(*placed, sharding.put_batch(mesh, batch))
    return flatten(jax.device_get(now.params)), jax.device_get(metrics)


def teacher(seed=1, **changes):
    model = network(**changes)
    return model, random_params(model, seed)


@pytest.mark.parametrize("loss", ["classification", "tagging", "span_start"])
def test_every_distance_of_every_task_has_its_terms(loss):
    losses = ("span_start", "span_end") if loss == "span_start" else (loss,)
    for distance in DISTANCES:
        if distance == "dist" and loss == "span_start":
            with pytest.raises(BadInput, match="distance='dist' compares classes"):
                stage_of("soft_labels", losses, distance=distance)
            continue
        stage = stage_of("soft_labels", losses, distance=distance, hard_labels=0.25)
        assert {term.name: term.weight for term in stage.terms} == {
            name: weight / len(losses)
            for one in losses
            for name, weight in ((one, 0.25), (f"{one}_{distance}", 0.75))
        }


def test_of_numbers_it_is_the_squared_distance():
    stage = stage_of("soft_labels", ("regression",), hard_labels=0.0)
    assert [(term.name, term.weight) for term in stage.terms] == [("regression_distillation", 1.0)]


def test_top_k_beside_another_distance_is_refused():
    with pytest.raises(BadInput, match="top_k=3 would do nothing beside distance='kl'"):
        stage_of("soft_labels", top_k=3)


def test_one_teacher_beside_several_is_refused():
    with pytest.raises(BadInput, match="teacher='x' would do nothing beside teachers="):
        stage_of("soft_labels", teacher="x", teachers=("teacher", "y"))


def test_dist_needs_the_whole_batch():
    student, (model, _) = network(), teacher()
    stage = stage_of("soft_labels", distance="dist", accumulation=2)
    cast = Cast(stage, student, (("teacher", model),))
    with pytest.raises(BadInput, match="compares the rows of a batch with each other"):
        checks.check_fit(cast)
    stored = dataclasses.replace(
        stage, terms=tuple(dataclasses.replace(t, teacher="batch") for t in stage.terms)
    )
    with pytest.raises(BadInput, match="compares the rows of a batch with each other"):
        checks.check_fit(Cast(stored, student))
    checks.check_fit(Cast(stage_of("soft_labels", accumulation=2), student, cast.others))


def test_dist_on_eight_devices_is_dist_on_one():
    """A batch that devices share counts as one: the mean of what each could see by itself is another
    number."""
    stage, batch = stage_of("soft_labels", distance="dist", hard_labels=0.0), task_batch()
    student, teachers = network(), {"teacher": teacher()}
    one, eight = (
        one_step(stage, student, teachers, batch, mesh=sharding.make_mesh(devices))
        for devices in (1, 8)
    )
    np.testing.assert_allclose(one[1]["loss"], eight[1]["loss"], rtol=1e-5)
    for name in one[0]:
        if "key/bias" not in name:
            np.testing.assert_allclose(one[0][name], eight[0][name], rtol=1e-4, atol=1e-6)
    apart = []
    for rows in (slice(0, 4), slice(4, 8)):
        part = {name: x[rows] for name, x in batch.items()}
        apart.append(float(one_step(stage, student, teachers, part)[1]["loss"]))
    weights = [4 / 7, 3 / 7]  # the last row only fills the batch
    assert abs(np.dot(apart, weights) - one[1]["loss"]) > 1e-3


def test_two_copies_of_a_teacher_are_one_and_two_teachers_are_the_mean_of_their_probabilities():
    batch, student, first = task_batch(), network(), teacher()
    one = stage_of("soft_labels", hard_labels=0.5)
    two = stage_of("soft_labels", hard_labels=0.5, teachers=("first", "second"))
    assert two.teachers == ("first", "second")
    ours, _ = one_step(one, student, {"teacher": first}, batch)
    copies, _ = one_step(two, student, {"first": first, "second": first}, batch)
    for name in ours:
        np.testing.assert_allclose(ours[name], copies[name], rtol=1e-5, atol=1e-7)

    second = teacher(seed=5)
    both, _ = one_step(two, student, {"first": first, "second": second}, batch)
    logits = [model.apply(params, batch)[0]["logits"] for model, params in (first, second)]
    mean = sum(jax.nn.softmax(x / 2.0) for x in logits) / 2
    stored = {**batch, "stored_logits": 2.0 * np.log(mean)}  # at the temperature it is them again
    alone = dataclasses.replace(
        one,
        terms=tuple(
            dataclasses.replace(t, teacher="batch" if t.row.teacher else t.teacher)
            for t in one.terms
        ),
    )
    expected, _ = one_step(alone, student, {}, stored)
    for name in both:
        if "key/bias" not in name:
            np.testing.assert_allclose(both[name], expected[name], rtol=1e-4, atol=1e-5)


def test_a_ramped_weight_and_temperature_are_those_of_the_step():
    batch, student, teachers = task_batch(), network(), {"teacher": teacher()}
    ramps = ("hard_labels: 0 to 1", "temperature: 8 to 2, cosine")
    stage = stage_of("soft_labels", ramps=ramps)
    assert stage.terms[0].weight == Ramp(0, 1, 5)
    for step, share, temperature in ((0, 0.0, 8.0), (1, 0.25, 7.1213203), (4, 1.0, 2.0)):
        ours, metrics = one_step(stage, student, teachers, batch, step)
        fixed = stage_of("soft_labels", hard_labels=0.25, temperature=temperature)
        weights = {"classification": share, "classification_kl": 1 - share}
        fixed = dataclasses.replace(
            fixed, terms=tuple(dataclasses.replace(t, weight=weights[t.name]) for t in fixed.terms)
        )
        expected, theirs = one_step(fixed, student, teachers, batch, step)
        for name in ("loss", "weighted/classification", "weighted/classification_kl"):
            np.testing.assert_allclose(metrics[name], theirs[name], rtol=1e-4)
        for name in ours:
            np.testing.assert_allclose(ours[name], expected[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "kind, changes, words",
    [
        ("soft_labels", dict(ramps=("temperture: 8 to 1",)), "is no weight or temperature; did you mean 'temperature'"),
        ("soft_labels", dict(ramps=("temperature: 8",)), "expected NAME: NUMBER to NUMBER"),
        ("soft_labels", dict(ramps=("hard_labels: 0 to 2",)), "2; expected 0"),
        ("soft_labels", dict(ramps=("temperature: 8 to 1", "temperature: 1 to 8")), "there twice"),
        ("soft_labels", dict(ramps=("hard_labels: 0 to 1",), hard_labels=0.3), "hard_labels=0.3 would do nothing"),
        ("finetune", dict(ramps=("learning_rate: 0 to 1",)), "a stage of kind 'finetune' has none"),
        ("progressive", dict(ramps=("active_multiplier: 1 to 3",)), "is no weight or temperature"),
        ("soft_labels", dict(layers=(2, 5)), r"layers=\(2, 5\): expected two numbers"),
        ("progressive", dict(layers=(0, 1)), "moves one layer after the other by itself"),
        ("patient", {}, r"layer_map=\(\): say which layer of the teacher"),
        ("patient", dict(layer_map=(0, 1)), "names 2 teacher layers for 3"),
        ("distilbert", {}, "teacher_layer=-1: give the teacher's last layer"),
        ("self_attention", {}, "teacher_layer=-1"),
        ("hint", dict(guided_layer=3), "guided_layer=3: the student's layers are 0 to 2"),
    ],
)  # fmt: skip
def test_mistakes(kind, changes, words):
    with pytest.raises(BadInput, match=words):
        stage_of(kind, **changes)


def test_only_some_layers_move_and_have_moments():
    student, batch = network(), task_batch()
    stage = stage_of("finetune", layers=(1, 2), moves=("layers/",))
    cast = Cast(stage, student)
    before = jax.device_get(flatten(random_params(student, 2)))
    moments = state.create(cast, random_params(student, 2)).optimizer.mu
    assert {x.shape[0] for x in moments.values()} == {1}
    after, _ = one_step(stage, student, {}, batch)
    whole, _ = one_step(stage_of("finetune", moves=("layers/",), clip_norm=0.0), student, {}, batch)
    part, _ = one_step(
        stage_of("finetune", moves=("layers/",), layers=(1, 2), clip_norm=0.0), student, {}, batch
    )
    for name, x in before.items():
        if name.startswith("layers/"):
            np.testing.assert_array_equal(after[name][[0, 2]], x[[0, 2]])
            np.testing.assert_allclose(part[name][1], whole[name][1], rtol=1e-5, atol=1e-7)
            if "key/bias" not in name:
                assert (after[name][1] != x[1]).any(), name
        else:
            np.testing.assert_array_equal(after[name], x)


def test_patient_distillation_by_hand():
    batch, student, (model, params) = task_batch(), network(), teacher()
    stage = stage_of(
        "patient", layer_map=(1, 2, -1), first_token_mse=0.3, hard_labels=0.4, temperature=3.0
    )
    _, metrics = one_step(stage, student, {"teacher": (model, params)}, batch)
    ours, our_taps = student.apply(random_params(student, 2), batch, taps=("hidden",))
    theirs, their_taps = model.apply(params, batch, taps=("hidden",))

    def unit(x):
        return np.asarray(x) / np.linalg.norm(x, axis=-1, keepdims=True)

    counts = batch["example_weights"].sum()
    follow = sum(
        ((unit(our_taps["hidden"][i][:7, 0]) - unit(their_taps["hidden"][at][:7, 0])) ** 2).sum()
        for i, at in ((0, 1), (1, 2))
    )
    log_p, log_q = (jax.nn.log_softmax(x["logits"][:7] / 3.0) for x in (theirs, ours))
    soft = 9.0 * float((jnp.exp(log_p) * (log_p - log_q)).sum())
    hard = -float(jax.nn.log_softmax(ours["logits"][:7])[np.arange(7), batch["labels"][:7]].sum())
    expected = (0.4 * hard + 0.6 * soft + 0.3 * follow) / counts
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)


def test_a_hint_moves_what_lies_below_it():
    student, (model, params) = network(hidden_size=4), teacher()
    stage = stage_of("hint", guided_layer=1, hint_layer=2)
    assert stage.layers == (0, 2) and stage.terms[0].layer_map == (-1, 2, -1)
    before = jax.device_get(flatten(random_params(student, 2)))
    after, _ = one_step(stage, student, {"teacher": (model, params)}, task_batch())
    for name, x in before.items():
        if name.startswith("layers/"):
            np.testing.assert_array_equal(after[name][2], x[2])
        moved = name.startswith(("layers/", "embeddings/"))
        if "key/bias" not in name and "token_type" not in name:
            assert (after[name] != x).any() == moved, name


@pytest.mark.parametrize("distilled", ["masked", "all"])
@pytest.mark.parametrize("fused", [False, True])
def test_distilbert_by_hand(distilled, fused):
    batch = pretraining_batch()
    student = network("mlm", num_layers=2)
    model, params = teacher(head="mlm")
    stage = stage_of("distilbert", (), 2, teacher_layer=2, distilled=distilled, temperature=3.0)
    stage = dataclasses.replace(stage, fused=fused)
    _, metrics = one_step(stage, student, {"teacher": (model, params)}, batch)
    everywhere = {name: x for name, x in batch.items() if name != "mlm_positions"}
    read, weights = (
        (batch, batch["mlm_weights"])
        if distilled == "masked"
        else (everywhere, batch["attention_mask"])
    )
    ours, our_taps = student.apply(random_params(student, 2), read, taps=("hidden",))
    theirs, their_taps = model.apply(params, read, taps=("hidden",))
    log_p, log_q = (jax.nn.log_softmax(x["mlm_logits"] / 3.0) for x in (theirs, ours))
    soft = 9.0 * ((jnp.exp(log_p) * (log_p - log_q)).sum(-1) * weights).sum() / weights.sum()
    a, b = our_taps["hidden"][1], their_taps["hidden"][2]
    cosines = (a * b).sum(-1) / jnp.linalg.norm(a, axis=-1) / jnp.linalg.norm(b, axis=-1)
    mask = batch["attention_mask"]
    cosine = ((1 - cosines) * mask).sum() / mask.sum()
    expected = 5 * soft + 2 * metrics["raw/mlm"] + cosine
    np.testing.assert_allclose(metrics["loss"], expected, rtol=2e-5)


def test_minilm_of_the_first_version_follows_one_layer_head_by_head():
    section = defaults.stage("self_attention", "student", steps=2, teacher_layer=1)
    stage = build("it", section, preset("bert_base").replace(**SHAPE))
    assert {(t.loss, t.layer_map, t.options) for t in stage.terms} == {
        ("attention_kl", (-1, -1, 1), ()),
        ("value_relation", (-1, -1, 1), (("heads", 2),)),
    }
    assert stage.moves == ("embeddings/", "layers/")
