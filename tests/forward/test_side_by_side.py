"""Fused against plain: the same sums and the same gradients, for every objective and layer map, in
less memory."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdistill.forward.scene import At, rows_on_a_device
from jaxdistill.forward.side_by_side import walks
from jaxdistill.methods.base import Term
from jaxdistill.models import Model
from jaxdistill.models.encoder import in_compute_dtype
from jaxdistill.models.parameters import flatten, unflatten
from jaxdistill.objectives import fused
from jaxdistill.training import sharding, state
from jaxdistill.training.step import Split, count_terms, make_scene
from tests.conftest import (
    STUDENT,
    TEACHER,
    cast_of,
    make_stage,
    pretraining_batch,
    random_params,
    rarely,
    run_forward,
    shallower,
)

SHORT = shallower(STUDENT, 2)
NARROW = Model(STUDENT.config.replace(num_layers=2, hidden_size=12))  # not the teacher's width
CASES = {
    "pretrain": (STUDENT, dict(kind="pretrain")),
    "distill": (STUDENT, dict(kind="distill")),
    "distill, the teacher's words alone": (STUDENT, dict(kind="distill", alpha=0.0, nsp=0.0)),
    "joint": (STUDENT, dict(kind="joint")),
    "joint, hidden states alone": (STUDENT, dict(kind="joint", attention=0.0)),
    "joint, attention alone": (
        STUDENT,
        dict(kind="joint", feature_map=0.0, mean=0.0, variance=0.0),
    ),
    "joint, some layers": (SHORT, dict(kind="joint", layer_map=(0, 2))),
    "joint, upper layers": (SHORT, dict(kind="joint", layer_map=(1, 2))),
    "joint, lower layers": (SHORT, dict(kind="joint", layer_map=(0, 1))),
    "joint, one layer twice": (STUDENT, dict(kind="joint", layer_map=(0, 2, 2))),
    "joint, one layer for all": (STUDENT, dict(kind="joint", layer_map=(1, 1, 1))),
    "joint, backwards": (SHORT, dict(kind="joint", layer_map=(2, 0))),
    "joint, tf1": (STUDENT, dict(kind="joint", tf1_unmasked=True)),
    "joint, tf1 statistics": (STUDENT, dict(kind="joint", tf1_statistics=True)),
    "relations": (SHORT, dict(kind="relations", relation_heads=4, teacher_layer=1)),
    "relations, values alone": (
        STUDENT,
        dict(
            kind="relations",
            relation_heads=2,
            teacher_layer=2,
            query_relation=0.0,
            key_relation=0.0,
        ),
    ),
    "auxiliary, only some layers": (STUDENT, dict(kind="auxiliary", layer_map=(-1, 0, -1))),
    "auxiliary, one layer, dropout": (
        STUDENT,
        dict(kind="auxiliary", layer_map=(0, -1, 2), dropout=True),
    ),
    "joint, one layer twice, one not at all": (STUDENT, dict(kind="joint", layer_map=(1, -1, 1))),
    "auxiliary": (STUDENT, dict(kind="auxiliary")),
    "auxiliary with dropout": (STUDENT, dict(kind="auxiliary", dropout=True)),
    "auxiliary, lower layers": (SHORT, dict(kind="auxiliary", layer_map=(0, 1))),
    "intermediate": (NARROW, dict(kind="intermediate", layer_map=(0, 2))),
    "intermediate, only one layer, dropout": (
        NARROW,
        dict(kind="intermediate", layer_map=(-1, 1), dropout=True),
    ),
    "intermediate, backwards": (NARROW, dict(kind="intermediate", layer_map=(2, 0))),
    "intermediate, hidden states alone": (
        NARROW,
        dict(kind="intermediate", layer_map=(1, 1), attention_mse=0.0, embedding_mse=0.0),
    ),
    "intermediate, embeddings alone": (
        NARROW,
        dict(kind="intermediate", layer_map=(1, 1), attention_mse=0.0, hidden_mse=0.0),
    ),
    "intermediate, no projection": (STUDENT, dict(kind="intermediate", projection=False)),
    "soft": (STUDENT, dict(kind="progressive")),
    "strict": (STUDENT, dict(kind="progressive", freezing="strict")),
    "strict, some layers, tf1": (
        SHORT,
        dict(kind="progressive", freezing="strict", layer_map=(2, 1), tf1_unmasked=True),
    ),
}

RARE = {
    name
    for name in CASES
    if name.endswith(
        (
            "alone",
            "no projection",
            "for all",
            "upper layers",
            "lower layers",
            "some layers",
            "not at all",
            "joint, tf1",
            "with dropout",
            "intermediate, backwards",
            "only one layer, dropout",
            "pretrain",
        )
    )
}


def case(name):
    """(stage, student) of a case, the stage plain."""
    model, changes = CASES[name]
    changes = dict(changes)
    stage = make_stage(changes.pop("kind"), num_layers=model.config.num_layers, **changes)
    return dataclasses.replace(stage, fused=False), model


def with_projections(stage, model):
    """The student's parameters, and those of the stage's losses."""
    return state.create(cast_of(stage, model), random_params(model, 2), jax.random.key(7)).params


def results(stage, model, params, teacher_params, batch, layer=1, teacher=TEACHER):
    """(value, raw sums, gradient by name) of one micro-batch."""
    counts = count_terms(stage, batch)
    scales = {term.name: term.weight / counts[term.name] for term in stage.terms}
    moving, frozen = state.split(stage, params, jnp.int32(layer))
    key = jax.random.key(5) if stage.dropout else None
    run = jitted(
        stage,
        model,
        teacher if stage.needs_teacher else None,
        (fused.CHUNK_NUMBERS, fused.MOST_PARTS),
    )
    (value, sums), gradient = run(
        moving, frozen, teacher_params, batch, jnp.int32(layer), key, scales
    )
    return value, sums, gradient


@functools.lru_cache(64)
def jitted(stage, model, teacher, constants):
    """One program for all layers, and for all tests that compare with it. `constants`: what it
    depends on beside arguments."""
    del constants

    def total(moving, frozen, teacher_params, batch, layer, key, scales):
        cast = cast_of(stage, model, teacher)
        return run_forward(cast, (moving, frozen), teacher_params, batch, scales, At(layer, key))

    return jax.jit(jax.value_and_grad(total, has_aux=True))


def check(ours, plain, rtol=1e-5):
    np.testing.assert_allclose(ours[0], plain[0], rtol=rtol)
    for got, expected in zip(ours[1:], plain[1:]):
        assert got.keys() == expected.keys()
        for name in expected:
            if (
                "key/bias" in name
            ):  # it moves all scores of a query alike: its gradient is 0 but for rounding
                continue
            size = float(jnp.max(jnp.abs(expected[name])))
            np.testing.assert_allclose(
                got[name], expected[name], rtol=0, atol=rtol * size + 1e-9, err_msg=name
            )


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in RARE else name for name in CASES]
)
def test_fused_equals_plain(name, teacher_params):
    """Values, raw sums and every gradient to 1e-5 of its largest entry, on padded rows of unlike
    lengths."""
    stage, model = case(name)
    params, batch = with_projections(stage, model), pretraining_batch(3)
    layers = range(model.config.num_layers) if stage.progressive else (0,)
    for layer in layers:
        both = [
            results(
                dataclasses.replace(stage, fused=on), model, params, teacher_params, batch, layer
            )
            for on in (True, False)
        ]
        check(*both)
        assert any(float(jnp.max(jnp.abs(g))) > 0 for g in both[1][2].values())


@pytest.mark.parametrize("fused_on", rarely([False, True], False))
@pytest.mark.parametrize(
    "maps",
    [
        pytest.param(((0, 1, 2),) * 2, id="one map", marks=pytest.mark.slow),
        pytest.param(((0, -1, -1), (-1, -1, 1)), id="two"),
    ],
)
def test_two_terms_of_one_loss_have_sums_of_their_own(maps, fused_on, teacher_params):
    """Each is what it is alone, and the gradient is that of both."""
    whole = make_stage(
        "intermediate", projection=False, attention_mse=0.0, embedding_mse=0.0, layer_map=(0, 1, 2)
    )
    terms = tuple(
        Term("hidden_mse", weight, layer_map, name=f"hidden_{i}")
        for i, (weight, layer_map) in enumerate(zip((2.0, 0.5), maps))
    )
    params, batch = random_params(STUDENT, 2), pretraining_batch(3)
    both, *alone = (
        results(
            dataclasses.replace(whole, terms=some, fused=fused_on),
            STUDENT,
            params,
            teacher_params,
            batch,
        )
        for some in (terms, terms[:1], terms[1:])
    )
    np.testing.assert_allclose(both[0], alone[0][0] + alone[1][0], rtol=1e-6)
    sums = {**alone[0][1], **alone[1][1]}
    assert both[1].keys() == sums.keys() == {"hidden_0", "hidden_1"}
    check(
        (both[0], both[1], both[2]),
        (both[0], sums, {name: alone[0][2][name] + alone[1][2][name] for name in both[2]}),
    )


@pytest.mark.parametrize(
    "name", rarely(["auxiliary", "strict", "relations"], "auxiliary", "relations")
)
def test_the_number_of_rows_at_once_changes_nothing(name, teacher_params, monkeypatch):
    """Rows of a layer in chunks, on one device and on several: whose rows they are, and in which
    order they come back."""
    stage, model = case(name)
    params, batch = random_params(model, 2), pretraining_batch(3)
    plain = results(stage, model, params, teacher_params, batch)
    monkeypatch.setattr(
        fused, "CHUNK_NUMBERS", TEACHER.config.num_heads * batch["input_ids"].shape[1] ** 2
    )
    check(
        results(dataclasses.replace(stage, fused=True), model, params, teacher_params, batch), plain
    )
    where = sharding.over_batch(sharding.make_mesh(2, 2, 2))
    check(
        results(
            dataclasses.replace(stage, fused=True),
            dataclasses.replace(model, batch_sharding=where),
            params,
            teacher_params,
            jax.device_put(batch, where),
        ),
        plain,
    )


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_the_number_of_relation_heads_at_once_changes_nothing(heads, teacher_params, monkeypatch):
    stage, model = case("relations")
    params, batch = random_params(model, 2), pretraining_batch(3)
    plain = results(stage, model, params, teacher_params, batch)
    monkeypatch.setattr(
        fused, "CHUNK_NUMBERS", heads * batch["input_ids"].size * batch["input_ids"].shape[1]
    )
    check(
        results(dataclasses.replace(stage, fused=True), model, params, teacher_params, batch), plain
    )


@pytest.mark.parametrize("chunk", [1, 2, 3, 100])
def test_the_size_of_a_chunk_of_words_changes_nothing(chunk, teacher_params, monkeypatch):
    stage, model = case("distill")
    params, batch = random_params(model, 2), pretraining_batch(3)
    plain = results(stage, model, params, teacher_params, batch)
    monkeypatch.setattr(
        fused, "CHUNK_NUMBERS", chunk * len(batch["input_ids"]) * model.config.vocab_size
    )
    check(
        results(dataclasses.replace(stage, fused=True), model, params, teacher_params, batch), plain
    )


@pytest.mark.parametrize(
    "name",
    ["soft", *(pytest.param(name, marks=pytest.mark.slow) for name in ("auxiliary", "strict"))],
)
def test_fused_equals_plain_with_residual_streams_in_bfloat16(name, teacher_params):
    """To what eight bits allow: hidden states and their gradients are rounded to them, in another
    order."""
    stage, model = case(name)
    student, teacher = (
        Model(m.config.replace(residual_dtype="bfloat16")) for m in (model, TEACHER)
    )
    params, batch = random_params(model, 2), pretraining_batch(3)
    ours, plain = (
        results(
            dataclasses.replace(stage, fused=on),
            student,
            params,
            teacher_params,
            batch,
            teacher=teacher,
        )
        for on in (True, False)
    )
    exact = results(stage, model, params, teacher_params, batch)
    check(ours, plain, rtol=0.02)
    check(ours, exact, rtol=0.1)
    assert {str(g.dtype) for g in ours[2].values()} == {"float32"}


def test_the_scale_of_a_loss_reaches_its_gradient(teacher_params):
    """The gradient kept from the forward pass is multiplied by what arrives from behind."""
    stage, model = case("auxiliary")
    stage = dataclasses.replace(stage, fused=True)
    params, batch = random_params(model, 2), pretraining_batch(3)
    scales = {term.name: jnp.float32(1) for term in stage.terms}

    def gradient(factor):
        def total(moving):
            cast = cast_of(stage, model)
            return factor * run_forward(cast, (moving, {}), teacher_params, batch, scales)[0]

        return jax.jit(jax.grad(total))(flatten(params))

    once, thrice = gradient(1.0), gradient(3.0)
    for name in once:
        np.testing.assert_allclose(thrice[name], 3 * once[name], rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    "name, layer_map, expected",
    [
        ("joint", (), True),
        ("joint", (0, 0, 1), True),
        ("joint", (2, 1, 0), False),
        ("distill", (), False),
    ],
)
def test_which_stages_walk_both_stacks(name, layer_map, expected):
    assert (
        walks(make_stage(name, **({"layer_map": layer_map} if layer_map else {})).terms) is expected
    )
    assert not walks(make_stage("joint", tf1_statistics=True).terms)


@pytest.mark.parametrize(
    "name, fused_on",
    [
        ("distill", True),
        pytest.param("distill", False, marks=pytest.mark.slow),
        pytest.param("auxiliary", True, marks=pytest.mark.slow),
    ],
)
def test_every_term_reads_the_network_that_it_names(name, fused_on):
    """Two teachers at half the weight each give the mean of what each gives alone."""
    stage, model = case(name)
    stage = dataclasses.replace(stage, fused=fused_on)
    params, batch = random_params(model, 2), pretraining_batch(3)
    teachers = {"first": random_params(TEACHER, 1), "second": random_params(TEACHER, 5)}
    counts = count_terms(stage, batch)

    def run(stage):
        def total(moving):
            scales = {t.name: t.weight / counts[t.loss] for t in stage.terms}
            ours, at = Split(moving, {}), At(jnp.int32(0))
            scene = make_scene(cast_of(stage, model), ours, teachers, batch, scales, at)
            return stage.forward(scene).value

        return jax.jit(jax.value_and_grad(total))(flatten(params))

    def reading(*networks):
        terms = tuple(
            dataclasses.replace(
                term, teacher=n, name=f"{term.loss} of {n}", weight=term.weight / len(networks)
            )
            for term in stage.terms
            for n in networks
        )
        return run(dataclasses.replace(stage, terms=terms))

    alone, both = [reading(n) for n in teachers], reading(*teachers)
    assert abs(alone[0][0] - alone[1][0]) > 1e-3
    check(both, jax.tree.map(lambda first, second: (first + second) / 2, *alone))


@pytest.mark.parametrize("fused_on", [False, True])
def test_stored_outputs_teach_as_their_network_does(fused_on):
    """A term whose teacher is "batch" reads what stands there; no network is asked."""
    heads = dict(heads=("sequence_classification",), num_labels=3)
    student, teacher = (Model(m.config.replace(**heads)) for m in (STUDENT, TEACHER))
    params, theirs = random_params(student, 2), random_params(teacher, 1)
    batch = {**pretraining_batch(3), "labels": np.arange(8, dtype=np.int32) % 3}
    live = dataclasses.replace(make_stage("soft_labels"), fused=fused_on)
    stored = dataclasses.replace(make_stage("soft_labels", teacher="batch"), fused=fused_on)
    assert stored.teachers == () and live.teachers == ("teacher",)
    logits = teacher.apply(theirs, batch)[0]["logits"]

    def run(stage, batch):
        def total(moving):
            scales = {term.name: jnp.float32(term.weight) for term in stage.terms}
            cast = cast_of(stage, student, teacher)
            return run_forward(cast, (moving, {}), theirs, batch, scales)[0]

        return jax.jit(jax.value_and_grad(total))(flatten(params))

    ours, expected = run(stored, {**batch, "stored_logits": logits}), run(live, batch)
    for a, b in zip(*map(jax.tree.leaves, (ours, expected)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    other = run(stored, {**batch, "stored_logits": logits + jnp.array([3.0, 0.0, 0.0])})
    assert abs(float(other[0] - ours[0])) > 1e-3


LARGE = dict(hidden_size=32, num_heads=4, intermediate_size=32, max_positions=128)


def temporaries(name, fused_on, **sizes):
    """Bytes of temporaries of one compiled gradient, with rows long and a vocabulary large enough
    to matter."""
    student = Model(STUDENT.config.replace(**LARGE, **sizes), remat="full")
    teacher = Model(TEACHER.config.replace(**LARGE, **sizes))
    stage = dataclasses.replace(make_stage(name, num_layers=sizes["num_layers"]), fused=fused_on)
    batch = pretraining_batch(rows=8, length=128, predictions=3)
    batch = {key: np.tile(x, (1, 8)) if key.startswith("mlm_") else x for key, x in batch.items()}
    params, teacher_params = (
        flatten(jax.eval_shape(m.init, jax.random.key(0))) for m in (student, teacher)
    )
    moving = {key: x for key, x in params.items() if name != "joint" or key.startswith("layers/")}
    frozen = {key: x for key, x in params.items() if key not in moving}
    scales = {term.name: jnp.float32(1) for term in stage.terms}

    def total(moving, frozen, teacher_params):
        cast = cast_of(stage, student, teacher)
        return run_forward(cast, (moving, frozen), unflatten(teacher_params), batch, scales)[0]

    compiled = jax.jit(jax.grad(total)).lower(moving, frozen, teacher_params).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize(
    "name, part, sizes",
    [
        ("joint", 0.25, dict(num_layers=16, vocab_size=100)),
        pytest.param("distill", 0.7, dict(num_layers=2, vocab_size=20_000), marks=pytest.mark.slow),
    ],
)
def test_fused_needs_a_fraction_of_the_memory(name, part, sizes, monkeypatch):
    monkeypatch.setattr(fused, "CHUNK_NUMBERS", 8 * sizes["vocab_size"] * 4)
    assert temporaries(name, True, **sizes) <= part * temporaries(name, False, **sizes)


def test_a_teacher_in_its_compute_dtype_gives_the_same_outputs_to_the_bit():
    for model in (TEACHER, STUDENT):
        half = Model(model.config.replace(dtype="bfloat16"))
        params, batch = random_params(model, 1), pretraining_batch(3)
        smaller = in_compute_dtype(half.config, params)
        dtypes = {name: leaf.dtype for name, leaf in flatten(smaller).items()}
        assert (
            dtypes["layers/attention/query/kernel"] == jnp.bfloat16
            and dtypes["layers/attention/norm/scale"] == jnp.float32
        )
        assert (
            dtypes["layers/attention/norm/bias"] == jnp.float32
            and dtypes["mlm/bias"] == jnp.float32
        )
        run = jax.jit(
            functools.partial(half.apply, batch=batch, taps=("hidden", "attention_scores"))
        )
        expected, got = run(params), run(smaller)
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected)):
            np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
        assert in_compute_dtype(model.config, params) is params


def test_rows_on_a_device_follow_the_mesh():
    batch = pretraining_batch(rows=16)
    mesh = sharding.make_mesh(2, 2, 2)
    assert rows_on_a_device(STUDENT, batch) == 16
    assert (
        rows_on_a_device(
            dataclasses.replace(STUDENT, batch_sharding=sharding.over_batch(mesh)), batch
        )
        == 4
    )
