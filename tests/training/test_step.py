"""One step of every kind of stage: what moves, what is compiled, what it equals, and what it
survives."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdistill.data import packing
from jaxdistill.methods.base import Optimizer, Term
from jaxdistill.models import Model
from jaxdistill.models.parameters import digest, flatten, unflatten
from jaxdistill.objectives.terms import LOSSES, count_everything
from jaxdistill.training import schedules, state
from jaxdistill.training.step import Given, make_losses
from tests.conftest import (
    STUDENT,
    TEACHER,
    cast_of,
    jitted_step,
    make_stage,
    pretraining_batch,
    random_params,
    rarely,
    shallower,
)
from tests.training.by_hand import ByHand, unstack

N = STUDENT.config.num_layers
SHORT = shallower(STUDENT, 2)
PROGRESSIVE = {
    "soft": dict(freezing="soft"),
    "strict": dict(freezing="strict"),
    "soft, fewer layers": dict(freezing="soft", layer_map=(0, 2)),
    "strict, fewer layers, tf1": dict(freezing="strict", layer_map=(2, 1), tf1_statistics=True),
    "soft, tf1": dict(freezing="soft", tf1_statistics=True, tf1_unmasked=True),
}


def setting(kind, **changes):
    """(stage, student) of a kind in `PROGRESSIVE`, or of any other stage."""
    if kind not in PROGRESSIVE:
        return make_stage(kind, **changes), STUDENT
    model = SHORT if "fewer" in kind else STUDENT
    changes = {
        "learning_rate": 0.02,
        "decay": "constant",
        "steps": 4 * model.config.num_layers,
        **PROGRESSIVE[kind],
        **changes,
    }
    return make_stage("progressive", num_layers=model.config.num_layers, **changes), model


def compiled(stage, model, teacher=TEACHER):
    return jitted_step(stage, model, teacher)


def batches(count, **options):
    return [pretraining_batch(seed=10 + i, **options) for i in range(count)]


def start(stage, model, step=0):
    return state.create(cast_of(stage, model), random_params(model, 2)).replace(
        step=jnp.int32(step)
    )


def bits(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def close(ours, expected, rtol=1e-4, atol=1e-6):
    assert ours.keys() == expected.keys()
    for name in expected:
        np.testing.assert_allclose(
            ours[name], expected[name], rtol=rtol, atol=atol, err_msg=str(name)
        )


def steady(params):
    """Without key biases: their gradient is 0 but for rounding, and Adam divides noise by noise."""
    return {
        key: value
        for key, value in params.items()
        if "key/bias" not in (key if isinstance(key, str) else key[0])
    }


def taps_by_full_forward(stage, params, teacher_params, model, batch):
    """Both models' taps of all layers from one plain forward each."""
    ours = model.apply(params, batch, taps=stage.taps(), heads=())[1]
    theirs = TEACHER.apply(teacher_params, batch, taps=stage.taps("teacher"), heads=())[1]
    return ours, theirs


def layer_loss(stage, ours, theirs, batch, layer, teacher_layer):
    """The weighted losses of one layer, written out."""
    masks = count_everything(batch) if stage.tf1_unmasked else batch
    total = 0.0
    for term in stage.terms:
        loss = LOSSES[term.loss]
        target = (
            theirs[loss.teacher]
            if loss.teacher == "hidden_moments"
            else theirs[loss.teacher][teacher_layer]
        )
        total += (
            term.weight * loss.sum(ours[loss.student][layer], target, masks) / loss.count(masks)
        )
    return total


def train_by_hand(stage, model, teacher_params, steps):
    """Progressive transfer as one would write it without any of the package's tricks: each layer's
    loss from a full forward, the gradient of the whole stack, one variable at a time. Returns the
    losses and the parameters' history."""
    params = random_params(model, 2)
    depth = model.config.num_layers
    layer_map = stage.terms[0].layer_map or tuple(range(depth))
    blocks = {name: value for name, value in flatten(params).items() if name.startswith("layers/")}
    frozen = {name: value for name, value in flatten(params).items() if name not in blocks}

    def loss(blocks, batch, layer, teacher_layer):
        ours, theirs = taps_by_full_forward(
            stage, unflatten({**frozen, **blocks}), teacher_params, model, batch
        )
        return layer_loss(stage, ours, theirs, batch, layer, teacher_layer)

    gradient = jax.jit(jax.value_and_grad(loss))
    slow, by_hand, losses = unstack(blocks), ByHand(stage.optimizer), []
    for step, batch in enumerate(batches(steps)):
        period = stage.steps // depth
        active, t = min(step // period, depth - 1), step % period
        profile = min(0.9 + 0.1 * np.sqrt(1 - t / period), 10 * t / period)
        lower = 0.1 if stage.depth == "progressive_soft" else 0.0
        stacked = {
            name: np.stack([slow[name, i] for i in range(depth)]).astype(np.float32)
            for name in blocks
        }
        value, g = gradient(stacked, batch, active, layer_map[active])
        learning = unstack(g)
        if (
            lower == 0.0
        ):  # strict: nothing but the active layer has a gradient, so it alone is in the norm
            learning = {key: value for key, value in learning.items() if key[1] == active}

        def multiplier(layer, active=active, profile=profile, lower=lower):
            return 3 * profile * (1.0 if layer == active else lower if layer < active else 0.0)

        by_hand.update(slow, learning, stage.schedule.peak, multiplier)
        losses.append(float(value))
    return losses, slow


@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=() if kind == "soft" else pytest.mark.slow) for kind in PROGRESSIVE],
)
def test_progressive_training_is_the_training_one_would_write_by_hand(kind, teacher_params):
    """Losses and parameters over all phases; one executable for all of them; embeddings and heads
    as they were; the teacher as it was."""
    stage, model = setting(kind)
    expected, slow = train_by_hand(stage, model, teacher_params, stage.steps)
    step, now, losses, before = (
        compiled(stage, model),
        start(stage, model),
        [],
        digest(teacher_params),
    )
    programs = set()
    for batch in batches(stage.steps):
        now, metrics = step(now, teacher_params, batch)
        losses.append(float(metrics["loss"]))
        programs.add(step.programs())
    np.testing.assert_allclose(losses, expected, rtol=1e-3)
    ours = {key: value for key, value in unstack(flatten(now.params)).items() if key[1] is not None}
    close(steady(ours), steady(slow), rtol=2e-3, atol=2e-3)
    assert len(programs) == 1 and digest(teacher_params) == before


@pytest.mark.parametrize("kind", ["soft", "strict"])
def test_which_layers_change_in_which_phase(kind, teacher_params):
    """Active always, below only when soft and then a tenth as fast, above never, embeddings and
    heads never; at a phase's first step nothing. The state of strict freezing has no layer axis."""
    stage, model = setting(kind)
    step, now, period = compiled(stage, model), start(stage, model), 4
    names = [name for name in flatten(now.params) if name.startswith("layers/")]
    assert list(now.optimizer.mu) == list(now.optimizer.nu) == names
    for name, moment in now.optimizer.mu.items():
        whole = flatten(now.params)[name].shape
        assert moment.shape == (whole[1:] if kind == "strict" else whole)
    for i, batch in enumerate(batches(stage.steps)):
        old, (now, metrics) = unstack(flatten(now.params)), step(now, teacher_params, batch)
        new, active = unstack(flatten(now.params)), i // period
        assert int(metrics["layer"]) == active
        moved = {key[1] for key in new if not np.array_equal(old[key], new[key])}
        learning = set(range(active + 1)) if kind == "soft" else {active}
        assert moved == (set() if i % period == 0 else learning), i
        if (
            kind == "soft" and i == 2 * period + 1
        ):  # first updates of fresh moments: u is +-3.16, so a bias tells the rate
            lower, upper = (
                np.abs(new["layers/ffn_0/down/bias", k] - old["layers/ffn_0/down/bias", k]).max()
                for k in (0, 2)
            )
            np.testing.assert_allclose(lower / upper, 0.1, rtol=0.02)


@pytest.mark.parametrize("kind", [kind for kind in PROGRESSIVE if "fewer" in kind])
def test_reported_layer_losses_are_those_of_the_full_forward(kind, teacher_params):
    """`make_losses` with a traced layer, for every layer, shallower students and maps included."""
    stage, model = setting(kind)
    batch, params = pretraining_batch(3), random_params(model, 2)
    losses = jax.jit(make_losses(cast_of(stage, model)))
    ours, theirs = jax.jit(functools.partial(taps_by_full_forward, stage, model=model))(
        params, teacher_params, batch=batch
    )
    layer_map = stage.terms[0].layer_map or range(model.config.num_layers)
    for layer, teacher_layer in enumerate(layer_map):
        sums, counts = losses(params, Given({"teacher": teacher_params}, 0), batch, np.int32(layer))
        total = sum(term.weight * sums[term.name] / counts[term.name] for term in stage.terms)
        np.testing.assert_allclose(
            total, layer_loss(stage, ours, theirs, batch, layer, teacher_layer), rtol=1e-5
        )
    assert losses._cache_size() == 1


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="", marks=pytest.mark.slow),
        pytest.param(dict(layer_map=(2, 0)), id="map"),
        pytest.param(dict(tf1_statistics=True), id="tf1"),
    ],
)
def test_joint_is_the_sum_over_layers(changes, teacher_params):
    """One loss over all layers; the teacher stops at the last one that is read."""
    model = SHORT if "layer_map" in changes else STUDENT
    depth = model.config.num_layers
    stage, batch, params = (
        make_stage("joint", num_layers=depth, **changes),
        pretraining_batch(3),
        random_params(model, 2),
    )
    _, metrics = compiled(stage, model)(start(stage, model), teacher_params, batch)
    ours, theirs = jax.jit(functools.partial(taps_by_full_forward, stage, model=model))(
        params, teacher_params, batch=batch
    )
    expected = sum(
        layer_loss(stage, ours, theirs, batch, layer, teacher_layer)
        for layer, teacher_layer in enumerate(changes.get("layer_map", range(depth)))
    )
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)
    parts = sum(float(metrics[f"weighted/{term.name}"]) for term in stage.terms)
    np.testing.assert_allclose(metrics["loss"], parts, rtol=1e-6)


def test_distillation_loss_is_that_of_the_outputs(teacher_params):
    """Head terms against a plain forward; under tf1_unmasked the number of words is 1e-5 more."""
    batch, params = pretraining_batch(3), random_params(STUDENT, 2)
    batch["mlm_weights"] *= 1e-4  # so that 1e-5 can be seen
    ours, theirs = (
        jax.jit(STUDENT.apply)(params, batch)[0],
        jax.jit(TEACHER.apply)(teacher_params, batch)[0],
    )
    for unmasked in (False, True):
        stage = make_stage("distill", alpha=0.25, nsp=0.5, tf1_unmasked=unmasked)
        _, metrics = compiled(stage, STUDENT)(start(stage, STUDENT), teacher_params, batch)
        words = batch["mlm_weights"].sum() + (1e-5 if unmasked else 0)
        expected = (
            0.25 * LOSSES["mlm"].sum(ours["mlm_logits"], None, batch) / words
            + 0.75
            * LOSSES["mlm_distillation"].sum(ours["mlm_logits"], theirs["mlm_logits"], batch)
            / words
            + 0.5 * LOSSES["nsp"].sum(ours["nsp_logits"], None, batch) / 8
        )
        np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)


@pytest.mark.parametrize("kind", rarely(["soft", "strict", "auxiliary"], "soft", "auxiliary"))
def test_micro_batches_are_one_batch(kind, teacher_params):
    """With unequal numbers of words and tokens in the parts: losses, gradients (in the moments),
    then parameters."""
    given = pretraining_batch(3)
    assert len(set(given["mlm_weights"].reshape(2, 4, -1).sum((0, 2)))) > 1
    found = []
    for parts in (1, 4):
        stage, model = setting(kind, accumulation=parts, clip_norm=0.0, batch_size=8)
        now, metrics = compiled(stage, model)(start(stage, model, 5), teacher_params, given)
        found.append((metrics, flatten(now.optimizer.mu), flatten(now.params)))
    for metrics, mu, params in found[1:]:
        close(metrics, found[0][0], rtol=1e-5)
        close(mu, found[0][1], rtol=1e-4, atol=1e-6)
        close(steady(params), steady(found[0][2]), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["pretrain", "soft", "strict"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_update_that_is_not_finite_is_skipped_and_counted(kind, value, teacher_params):
    """Parameters, moments and their count stay, to the bit; the step goes on; the next good batch
    trains again."""
    stage, model = setting(kind)
    step, good, now = compiled(stage, model), pretraining_batch(3), start(stage, model, 5)
    bad, spoilt = dict(good), teacher_params
    if kind == "pretrain":
        bad["mlm_weights"] = np.where(good["mlm_weights"] > 0, np.float32(value), 0)
    else:
        flat = flatten(teacher_params)
        spoilt = unflatten(
            {**flat, "embeddings/position": flat["embeddings/position"].at[1].set(value)}
        )
    now, _ = step(now, teacher_params, good)
    programs = step.programs()
    for tries in (1, 2):
        held, (now, metrics) = now, step(now, spoilt, bad)
        assert bits((now.params, now.optimizer)) == bits((held.params, held.optimizer))
        assert (int(now.step), int(now.skipped), int(now.skipped_in_a_row)) == (
            6 + tries,
            tries,
            tries,
        )
        assert int(metrics["skipped"]) == int(metrics["skipped_in_a_row"]) == tries
    stage_step = now.replace(step=jnp.int32(6))
    after, metrics = step(stage_step, teacher_params, good)
    assert (int(after.skipped), int(after.skipped_in_a_row)) == (2, 0) and np.isfinite(
        metrics["loss"]
    )
    assert bits(after.params) != bits(held.params) and step.programs() == programs


@pytest.mark.slow
def test_residual_streams_in_bfloat16_train_as_in_float32(teacher_params):
    stage, model = setting("joint", learning_rate=0.002, decay="constant", steps=12)
    batch, losses = pretraining_batch(3), {}
    for residual in ("float32", "bfloat16"):
        student, teacher = (
            Model(m.config.replace(dtype="bfloat16", residual_dtype=residual))
            for m in (model, TEACHER)
        )
        now, step = start(stage, student), compiled(stage, student, teacher)
        for _ in range(6):
            now, metrics = step(now, teacher_params, batch)
            losses.setdefault(residual, []).append(float(metrics["loss"]))
    assert losses["bfloat16"][-1] < 0.9 * losses["bfloat16"][0]
    np.testing.assert_allclose(losses["bfloat16"], losses["float32"], rtol=0.05)


def test_dropout_is_a_function_of_seed_and_step():
    """Equal for equal seed and step, another for another of either, and off unless the stage has
    it."""

    def loss(dropout, seed, step):
        stage = make_stage("pretrain", dropout=dropout)
        return float(
            compiled(stage, STUDENT)(start(stage, STUDENT, step), {}, pretraining_batch(3), seed)[
                1
            ]["loss"]
        )

    assert loss(True, 0, 1) == loss(True, 0, 1)
    assert len({loss(True, 0, 1), loss(True, 0, 2), loss(True, 1, 1), loss(False, 0, 1)}) == 4
    assert loss(False, 0, 1) == loss(False, 0, 2)


@pytest.mark.parametrize(
    "moves, inside, outside",
    [
        (("embeddings/word", "layers/attention"), {"embeddings", "layers"}, {"nsp", "mlm"}),
        (("",), {"embeddings", "layers", "mlm", "nsp"}, set()),
    ],
)
def test_frozen_means_absent(moves, inside, outside):
    """What no pattern matches has no moments and does not change; what one matches has, and
    does."""
    stage = make_stage("pretrain", moves=moves, learning_rate=0.1)
    now = start(stage, STUDENT)
    expected = {name for name in flatten(now.params) if name.startswith(moves)}
    assert set(now.optimizer.mu) == set(now.optimizer.nu) == expected
    assert {name.split("/")[0] for name in expected} == inside
    after, _ = compiled(stage, STUDENT)(now, {}, pretraining_batch(3))
    changed = {
        name
        for name, value in flatten(after.params).items()
        if not np.array_equal(value, flatten(now.params)[name])
    }
    assert changed <= expected and {name.split("/")[0] for name in changed} == inside
    assert not {name.split("/")[0] for name in changed} & outside


def test_soft_transfer_moves_what_the_recipe_names_besides_blocks(teacher_params):
    """`moves` of a transfer stage is not ignored: the word table then learns with the layers."""
    stage, model = setting("soft", moves=("layers/attention", "embeddings/word"))
    now = start(stage, model, 5)
    after, _ = compiled(stage, model)(now, teacher_params, pretraining_batch(3))
    old, new = flatten(now.params), flatten(after.params)
    changed = {name for name in new if not np.array_equal(old[name], new[name])}
    assert "embeddings/word" in changed and changed <= set(now.optimizer.mu)
    assert all(
        name.startswith(("layers/attention", "embeddings/word")) for name in now.optimizer.mu
    )


def test_padding_changes_no_gradient(teacher_params):
    """From 1 pad to many in every row: the same losses and the same moments, for losses on layers
    and on heads."""
    short = pretraining_batch(3)
    short = {k: np.pad(v, ((0, 0), (0, 1))) if v.shape[1:] == (7,) else v for k, v in short.items()}
    long = {k: np.pad(v, ((0, 0), (0, 5))) if v.shape[1:] == (8,) else v for k, v in short.items()}
    stage = make_stage("auxiliary", clip_norm=0.0)
    step = compiled(stage, STUDENT)
    (one, first), (other, second) = (
        step(start(stage, STUDENT), teacher_params, batch) for batch in (short, long)
    )
    np.testing.assert_allclose(first["loss"], second["loss"], rtol=1e-5)
    moments = [flatten(x.optimizer.mu) for x in (one, other)]
    for name in moments[0]:
        np.testing.assert_allclose(*(m[name] for m in moments), rtol=1e-3, atol=2e-6, err_msg=name)


@pytest.mark.parametrize(
    "kind, changes",
    [
        pytest.param("strict", {}, marks=pytest.mark.slow),
        ("auxiliary", {}),
        pytest.param("relations", dict(relation_heads=2, teacher_layer=1), marks=pytest.mark.slow),
    ],
    ids=["strict", "auxiliary", "relations"],
)
def test_packing_changes_no_gradient(kind, changes, teacher_params):
    """Twelve examples one a row, or in eight packed rows and two micro-batches, fused: the same
    losses and the same moments."""
    plain = pretraining_batch(3, rows=12)
    plain = {
        k: np.pad(v, ((0, 0), (0, 8))) if v.shape[1:] == (7,) else v for k, v in plain.items()
    }  # 15 columns
    row = np.array([0, 0, 1, 2, 2, 3, 4, 4, 5, 6, 6, 7])
    packed = packing.join(plain, row, num_rows=8, pad=0, predictions=6, max_segments=3)
    found = []
    for batch, parts in ((plain, 1), (packed, 2)):
        stage, model = setting(kind, accumulation=parts, clip_norm=0.0, **changes)
        stage = dataclasses.replace(stage, fused=parts > 1)
        now, metrics = compiled(stage, model)(start(stage, model, 5), teacher_params, batch)
        found.append((metrics, flatten(now.optimizer.mu)))
    close(found[1][0], found[0][0], rtol=1e-5)
    close(found[1][1], found[0][1], rtol=1e-3, atol=2e-6)


def test_numbers_are_by_the_names_of_terms(teacher_params):
    """Two terms of one loss, in micro-batches; and what tf1_unmasked adds to the number of words is
    by the loss."""
    terms = (
        Term("mean", 2.0, name="first"),
        Term("mean", 3.0, name="second"),
        Term("mlm", 1.0, name="words"),
    )
    stage = dataclasses.replace(make_stage("joint", accumulation=2), terms=terms, tf1_unmasked=True)
    batch = pretraining_batch(3)
    batch["mlm_weights"] *= 1e-4  # so that 1e-5 can be seen
    _, metrics = compiled(stage, STUDENT)(start(stage, STUDENT), teacher_params, batch)
    assert {name for name in metrics if name.startswith("raw/")} == {
        "raw/first",
        "raw/second",
        "raw/words",
    }
    np.testing.assert_allclose(metrics["raw/first"], metrics["raw/second"], rtol=1e-6)
    np.testing.assert_allclose(metrics["weighted/second"], 3 * metrics["raw/second"], rtol=1e-6)
    np.testing.assert_allclose(
        metrics["loss"], sum(metrics[f"weighted/{term.name}"] for term in terms), rtol=1e-6
    )
    plain = jax.jit(STUDENT.apply)(random_params(STUDENT, 2), batch)[0]["mlm_logits"]
    np.testing.assert_allclose(
        metrics["raw/words"],
        LOSSES["mlm"].sum(plain, None, batch) / (batch["mlm_weights"].sum() + 1e-5),
        rtol=1e-5,
    )


def test_multipliers_and_rate_are_reported():
    stage, model = setting("soft")
    _, metrics = compiled(stage, model)(
        start(stage, model, 5), random_params(TEACHER, 1), pretraining_batch(3)
    )
    assert float(metrics["learning_rate"]) == pytest.approx(0.02)
    assert float(schedules.layer_multipliers(stage, N, 5)[1]) == pytest.approx(
        3 * min(0.9 + 0.1 * np.sqrt(0.75), 2.5)
    )
    assert isinstance(stage.optimizer, Optimizer)
