"""Packed rows are the same rows: every loss and every gradient, of networks with and without
trigrams and poolers.

The unpacked definition of a segment is that it stands alone in a row with at least one pad behind
it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdistill.data import packing
from jaxdistill.errors import BadInput
from jaxdistill.forward.heads import every_token
from jaxdistill.models import Model, preset
from jaxdistill.models.encoder import MASKED_SCORE, attention_bias
from jaxdistill.models.parameters import flatten
from jaxdistill.objectives.terms import LOSSES, Term
from tests.conftest import SMALL, STUDENT, TEACHER, pretraining_batch, random_params
from tests.objectives.examples import REPEATED

LENGTH, SLOTS = 15, 4
BERT = Model(preset("bert_base").replace(**{**SMALL, "embedding_size": None}))
NETWORKS = {"teacher": TEACHER, "student": STUDENT, "bert": BERT}
# Not those that a feed must hold something for, and of the distances between words one of each kind.
PRETRAINING = tuple(
    name
    for name, loss in LOSSES.items()
    if (not loss.head or loss.head in ("mlm", "nsp")) and name not in ("mlm_stored", *REPEATED)
)
OPTIONS = {"heads": 1, "temperature": 2.0, "normalize": True}


def rows_of(seed):
    """Lengths of the segments of each row: one fills its row, one row is filled by several, the
    others have pads."""
    rng = np.random.default_rng(seed)
    several = np.diff([0, *np.sort(rng.choice(np.arange(4, 12), 1)), LENGTH])
    rows = [
        [LENGTH],
        several.tolist(),
        [4, 5, 4],
        [int(rng.integers(4, 12))],
        rng.permutation([4, 6, 3]).tolist(),
    ]
    return [rows[i] for i in rng.permutation(len(rows))]


@functools.cache
def batches(seed):
    """(packed batch of rows of LENGTH, the same examples one a row of LENGTH + 1)."""
    rows = rows_of(seed)
    sizes = np.concatenate([np.array(row) for row in rows])
    plain = pretraining_batch(seed, rows=len(sizes), length=LENGTH)
    mask = (np.arange(LENGTH) < sizes[:, None]).astype(np.int32)
    rng = np.random.default_rng(seed)
    plain["input_ids"] = (rng.integers(1, SMALL["vocab_size"], mask.shape) * mask).astype(np.int32)
    plain["token_type_ids"] = ((np.arange(LENGTH) > 1) * mask).astype(np.int32)
    plain["mlm_positions"] %= sizes[:, None].astype(np.int32)
    plain["attention_mask"] = mask
    row = np.repeat(np.arange(len(rows)), [len(r) for r in rows])
    packed = packing.join(plain, row, num_rows=len(rows), pad=0, predictions=10, max_segments=SLOTS)
    assert packed["mlm_weights"].sum() == plain["mlm_weights"].sum()
    wider = {
        k: np.pad(v, ((0, 0), (0, 1))) if v.shape[1:] == (LENGTH,) else v for k, v in plain.items()
    }
    return packed, wider


def losses(model, params, other, other_params, batch, names=PRETRAINING):
    """Every loss by name: sum / count, per layer from layer 1 of both networks."""
    taps = ("hidden", "query", "key", "value", "attention_scores", "hidden_moments", "embeddings")
    ours, our_taps = model.apply(params, batch, taps=taps)
    theirs, their_taps = other.apply(other_params, batch, taps=taps)
    for network, weights, outputs in ((model, params, ours), (other, other_params, theirs)):
        found, _ = network.apply(weights, every_token(batch), heads=("mlm",))
        outputs["token_logits"] = found["mlm_logits"]
    found = {}
    for name in names:
        loss = LOSSES[name]
        term = Term(name, 1.0, options=tuple((option, OPTIONS[option]) for option in loss.options))
        if term.per_layer:
            target = (
                their_taps[loss.teacher]
                if loss.teacher == "hidden_moments"
                else their_taps[loss.teacher][1]
            )
            value = term.sum(our_taps[loss.student][1], target, batch)
        elif term.of_embeddings:
            value = term.sum(our_taps["embeddings"], their_taps["embeddings"], batch)
        else:
            value = term.sum(ours[loss.student], theirs.get(loss.teacher), batch)
        found[name] = value / loss.count(batch)
    return found


@functools.cache
def compiled(name, other):
    model, teacher = NETWORKS[name], NETWORKS[other]
    params, teacher_params = random_params(model, 2), random_params(teacher, 1)

    def both(batch):
        run = functools.partial(
            losses, model, other=teacher, other_params=teacher_params, batch=batch
        )
        return run(params), jax.jacrev(run)(params)

    return jax.jit(both)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(
    "name, other",
    [
        ("student", "teacher"),
        pytest.param("teacher", "student", marks=pytest.mark.slow),
        pytest.param("bert", "bert", marks=pytest.mark.slow),
    ],
)
def test_every_loss_and_gradient_is_that_of_unpacked_rows(name, other, seed):
    packed, plain = batches(seed)
    (ours, our_gradients), (theirs, their_gradients) = (
        compiled(name, other)(packed),
        compiled(name, other)(plain),
    )
    for loss in PRETRAINING:
        np.testing.assert_allclose(ours[loss], theirs[loss], rtol=2e-5, err_msg=loss)
        gradients = flatten(our_gradients[loss]), flatten(their_gradients[loss])
        largest = max(np.abs(x).max() for x in gradients[1].values())
        assert (
            largest > 0 or loss == "variance_tf1"
        )  # half its targets above, half below: a slope of 0
        for leaf in gradients[0]:
            message = f"{loss}: {leaf}"
            np.testing.assert_allclose(
                *(x[leaf] for x in gradients),
                rtol=1e-3,
                atol=1e-5 * largest + 1e-8,
                err_msg=message,
            )


def broken(batch, what):
    """The packed batch with one of its three fields as an unpacked batch would have it."""
    wrong = dict(batch)
    if what == "position_ids":
        wrong[what] = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), batch[what].shape)
    elif what == "segment_ids":
        wrong[what] = batch["attention_mask"]
    else:
        wrong[what] = np.zeros_like(batch[what])
    return wrong


@pytest.mark.parametrize(
    "field, harmed",
    [
        ("position_ids", PRETRAINING),
        ("segment_ids", PRETRAINING),
        ("cls_positions", ("nsp", "first_token_mse")),
    ],
)
def test_the_comparison_sees_each_field(field, harmed):
    """A batch with a mistake: the gradient of every loss that reads the field is off by far more
    than the tolerance."""
    packed, plain = batches(0)
    ours, theirs = (
        compiled("student", "teacher")(batch)[1] for batch in (broken(packed, field), plain)
    )

    def distance(loss):
        ours_flat, flat = flatten(ours[loss]), flatten(theirs[loss])
        return max(np.abs(ours_flat[leaf] - flat[leaf]).max() for leaf in flat) / max(
            np.abs(x).max() for x in flat.values()
        )

    assert {loss for loss in PRETRAINING if distance(loss) > 3e-3} == set(harmed)


def test_hidden_states_and_pooled_vectors_stand_where_their_segments_do():
    packed, plain = batches(1)
    for name, model in NETWORKS.items():
        run = jax.jit(lambda batch, model=model: model.apply(random_params(model), batch)[0])
        ours, theirs = run(packed), run(plain)
        row, slot = np.nonzero(packed["example_weights"])
        assert ours["pooler_output"].shape == (5, SLOTS, 8) and ours["nsp_logits"].shape == (
            5,
            SLOTS,
            2,
        )
        real = plain["attention_mask"] > 0
        same = dict(rtol=1e-4, atol=1e-5, err_msg=name)
        np.testing.assert_allclose(
            ours["last_hidden_state"][packed["segment_ids"] > 0],
            theirs["last_hidden_state"][real],
            **same,
        )
        for output in ("pooler_output", "nsp_logits"):
            np.testing.assert_allclose(ours[output][row, slot], theirs[output], **same)


def test_a_segment_that_fills_its_row_ends_with_the_pad_vector():
    """Unlike an unpacked row without pads, whose last right neighbour is zero."""
    ids = jnp.arange(1, 6)[None]
    fields = {
        "segment_ids": jnp.ones_like(ids),
        "position_ids": jnp.arange(5)[None],
        "cls_positions": jnp.zeros((1, 1), int),
    }
    params = random_params(STUDENT)
    packed, full = (STUDENT.embed(params, {"input_ids": ids, **more}) for more in (fields, {}))
    padded = STUDENT.embed(params, {"input_ids": jnp.pad(ids, ((0, 0), (0, 1)))})[:, :5]
    np.testing.assert_allclose(packed, padded, rtol=1e-6)
    np.testing.assert_allclose(packed[:, :4], full[:, :4], rtol=1e-6)
    assert not np.allclose(packed[:, 4], full[:, 4])


def test_bias_is_by_block_only_if_packed():
    packed, plain = batches(0)
    bias = np.asarray(attention_bias(packed))
    assert bias.shape == (5, 1, LENGTH, LENGTH) and bias.dtype == np.float32
    for row, query, key in np.ndindex(5, LENGTH, LENGTH):
        same = packed["segment_ids"][row, query] == packed["segment_ids"][row, key]
        assert bias[row, 0, query, key] == (0 if same else np.float32(MASKED_SCORE))
    assert attention_bias(plain).shape == (len(plain["input_ids"]), 1, 1, LENGTH + 1)


def test_labels_of_pooled_vectors_may_be_by_segment():
    """[B] and [B, S] give one sum; empty slots count for nothing."""
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(2, 3, 4)).astype(np.float32), rng.integers(0, 4, (2, 3))
    weights = np.array([[1, 1, 0], [1, 0, 0]], np.float32)
    for name, width in (("nsp", 4), ("classification", 4), ("regression", 1)):
        key = "nsp_labels" if name == "nsp" else "labels"
        by_row = {key: labels[weights > 0], "example_weights": np.ones(3, np.float32)}
        ours = LOSSES[name].sum(
            logits[..., :width], None, {key: labels, "example_weights": weights}
        )
        np.testing.assert_allclose(
            ours, LOSSES[name].sum(logits[weights > 0][:, :width], None, by_row), rtol=1e-6
        )


@pytest.mark.parametrize("head", ["question_answering", "embedding"])
def test_heads_that_read_whole_rows_are_refused(head):
    model, (packed, _) = Model(STUDENT.config.replace(heads=(head,))), batches(0)
    with pytest.raises(BadInput, match=f"{head}.*packed"):
        model.apply(random_params(model), packed)


@pytest.mark.parametrize("field", ["position_ids", "cls_positions"])
def test_a_packed_batch_without_a_field_is_refused(field):
    packed = {name: value for name, value in batches(0)[0].items() if name != field}
    with pytest.raises(BadInput, match=f"segment_ids but no {field}"):
        STUDENT.apply(random_params(STUDENT), packed)
