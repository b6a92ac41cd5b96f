"""What holds for every loss in `terms.LOSSES`, whatever it compares."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdistill.errors import BadInput
from jaxdistill.models.encoder import MASKED_SCORE
from jaxdistill.objectives import terms
from jaxdistill.objectives.terms import count_everything
from tests.conftest import rarely
from tests.objectives.examples import (
    COUNTS,
    LOSSES,
    PER_LAYER,
    REFERENCES,
    REPEATED,
    WITH_TEACHER,
    example,
    float64,
    tap,
)

GARBAGE = (0.0, 1e30, np.inf, np.nan)


def value_and_gradients(name, student, teacher, batch):
    """Sum / count, and its gradient at both taps."""
    loss = LOSSES[name]

    def scaled(pair):
        return loss.sum(pair[0], pair[1], batch) / loss.count(batch)

    value, (ours, theirs) = jax.value_and_grad(scaled)(
        (jnp.asarray(student), None if teacher is None else jnp.asarray(teacher))
    )
    return float(value), np.asarray(ours), None if theirs is None else np.asarray(theirs)


def widen(x, axes, by, value):
    """`by` more pads holding `value` at the end of each of `axes`."""
    return np.pad(
        x, [(0, by if axis in axes else 0) for axis in range(x.ndim)], constant_values=value
    )


def padded(name, student, teacher, batch, by, value):
    """The same rows in a longer batch, new positions holding `value` (masked keys what the mask
    gives them)."""
    longer = {
        **batch,
        "attention_mask": widen(batch["attention_mask"], (1,), by, 0),
        "input_ids": widen(batch["input_ids"], (1,), by, 0),
    }

    def grow(x, kind):
        if kind == "attention_scores":
            return widen(widen(x, (3,), by, MASKED_SCORE), (2,), by, value)
        along = {"hidden": (1,), "query": (1,), "key": (1,), "value": (1,), "hidden_moments": (2,)}
        return widen(x, along.get(kind, ()), by, value)

    return (
        grow(student, LOSSES[name].row.student),
        None if teacher is None else grow(teacher, LOSSES[name].row.teacher),
        longer,
    )


def test_every_loss_has_a_reference():
    assert REFERENCES.keys() == COUNTS.keys() == LOSSES.keys()


@pytest.mark.parametrize("unmasked", [False, True], ids=["masked", "tf1_unmasked"])
@pytest.mark.parametrize("name", rarely(list(LOSSES), *REPEATED))
def test_sum_and_count_against_loops(name, unmasked):
    """Only real tokens, words and rows count; under tf1_unmasked every token does."""
    student, teacher, batch = example(name)
    counted = count_everything(batch) if unmasked else batch
    by_hand = (
        {**batch, "attention_mask": np.ones_like(batch["attention_mask"])} if unmasked else batch
    )
    expected = REFERENCES[name](float64(student), float64(teacher), by_hand)
    np.testing.assert_allclose(LOSSES[name].sum(student, teacher, counted), expected, rtol=2e-5)
    assert float(LOSSES[name].count(counted)) == COUNTS[name](by_hand)


@pytest.mark.parametrize("name", rarely(WITH_TEACHER, *REPEATED))
def test_gradient_reaches_the_student_and_never_the_teacher(name):
    _, ours, theirs = value_and_gradients(name, *example(name))
    assert np.abs(ours).max() > 1e-4
    assert not theirs.any()


@pytest.mark.parametrize(
    "name",
    [
        "feature_map",
        "mean",
        "variance",
        "attention_kl",
        "query_relation",
        "hidden_mse",
        "hidden_cosine",
        "first_token_mse",
        "embedding_mse",
        "embedding_hidden_mse",
    ],
)
def test_distance_is_zero_for_equals_and_grows_when_tokens_are_permuted(name):
    student, teacher, batch = example(name)
    same = LOSSES[name].sum(teacher, teacher, batch)
    near = LOSSES[name].sum(teacher + np.float32(0.03) * student, teacher, batch)
    axis = 2 if LOSSES[name].row.student == "attention_scores" else 1
    permuted = np.take(
        teacher, [1, 2, 0, 3, 4, 5], axis=axis
    )  # stays within the real tokens of the first two rows
    assert (
        abs(float(same))
        < 1e-6
        < float(near)
        < 0.1 * float(LOSSES[name].sum(teacher, permuted, batch))
    )


@pytest.mark.parametrize("by", [1, 3])
@pytest.mark.parametrize("name", PER_LAYER)
def test_more_padding_changes_nothing(name, by):
    """Neither value nor gradient, whatever the pads hold; and the pads themselves get a gradient of
    exactly 0."""
    given = example(name)
    value, gradient, _ = value_and_gradients(name, *given)
    length = given[2]["input_ids"].shape[1]
    inside = (
        (..., slice(length), slice(length))
        if LOSSES[name].row.student == "attention_scores"
        else (slice(None), slice(length))
    )
    for garbage in GARBAGE:
        new_value, new_gradient, _ = value_and_gradients(name, *padded(name, *given, by, garbage))
        np.testing.assert_allclose(new_value, value, rtol=1e-6)
        np.testing.assert_allclose(new_gradient[inside], gradient, rtol=1e-5, atol=1e-9)
        rest = new_gradient.copy()
        rest[inside] = 0
        assert not rest.any()


@pytest.mark.parametrize("garbage", GARBAGE[1:])
@pytest.mark.parametrize("name", PER_LAYER)
def test_what_the_teacher_holds_at_pads_does_not_reach_the_student(name, garbage):
    """0 x inf is not 0: pads must be masked before the arithmetic, not after."""
    student, teacher, batch = example(name)
    value, gradient, _ = value_and_gradients(name, student, teacher, batch)
    pads = batch["attention_mask"] == 0
    spoilt = np.array(teacher)
    if LOSSES[name].row.teacher in ("hidden", "query", "key", "value"):
        spoilt[pads] = garbage
    elif LOSSES[name].row.teacher == "hidden_moments":
        spoilt[:, pads] = garbage
    else:
        spoilt = np.where(pads[:, None, :, None], np.float32(garbage), spoilt)
    new_value, new_gradient, _ = value_and_gradients(name, student, spoilt, batch)
    assert new_value == value
    np.testing.assert_array_equal(new_gradient, gradient)


@pytest.mark.parametrize("name", rarely(list(LOSSES), *REPEATED))
def test_twice_the_rows_is_the_same_loss(name):
    """The scale does not depend on the batch size, and each copy of a row gets half the
    gradient."""
    student, teacher, batch = example(name)
    value, gradient, _ = value_and_gradients(name, student, teacher, batch)
    twice = {key: np.concatenate([x, x]) for key, x in batch.items()}
    if teacher is not None:
        teacher = np.concatenate(
            [teacher, teacher], axis=1 if LOSSES[name].row.teacher == "hidden_moments" else 0
        )
    new_value, new_gradient, _ = value_and_gradients(
        name, np.concatenate([student, student]), teacher, twice
    )
    np.testing.assert_allclose(new_value, value, rtol=1e-6)
    noise = 1e-7 * np.abs(gradient).max()
    np.testing.assert_allclose(
        new_gradient, np.concatenate([gradient, gradient]) / 2, rtol=1e-5, atol=noise
    )


@pytest.mark.parametrize("name", PER_LAYER)
def test_a_row_of_pads_alone_is_finite(name):
    """Value and gradient, also where its taps are all equal (no variance) and all its keys are
    masked."""
    student, teacher, batch = example(name)
    batch = {
        **batch,
        "attention_mask": batch["attention_mask"] * np.asarray([[1], [1], [0]], np.int32),
    }
    student, teacher = (
        tap(kind, batch, 3) for kind in (LOSSES[name].row.student, LOSSES[name].row.teacher)
    )
    student[2], teacher[(slice(None), 2) if LOSSES[name].row.teacher == "hidden_moments" else 2] = (
        0.0,
        0.0,
    )
    if LOSSES[name].row.student == "attention_scores":
        student[2] = teacher[2] = MASKED_SCORE
    value, gradient, _ = value_and_gradients(name, student, teacher, batch)
    assert np.isfinite(value) and np.isfinite(gradient).all() and not gradient[2].any()


@pytest.mark.parametrize(
    "name", [name for name in PER_LAYER if LOSSES[name].row.student == "hidden"]
)
def test_a_token_without_variance_is_finite(name):
    student, teacher, batch = example(name)
    student[0, 1] = 0.5
    value, gradient, _ = value_and_gradients(name, student, teacher, batch)
    assert np.isfinite(value) and np.isfinite(gradient).all()


def test_an_unknown_loss_is_named_with_its_neighbour():
    with pytest.raises(
        BadInput, match="loss 'feature_maps' is unknown; did you mean 'feature_map'"
    ):
        terms.LOSSES.named("feature_maps")
