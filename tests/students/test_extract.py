"""A student cut out of its teacher: which places, and what is left of the arithmetic."""

import numpy as np
import pytest

from jaxdistill.errors import BadInput
from jaxdistill.models import Model
from jaxdistill.models.axes import Axes
from jaxdistill.models.parameters import flatten
from jaxdistill.models.sizes import parameter_shapes
from jaxdistill.students import extract as extraction
from jaxdistill.students.extract import choose, extract, random_scores, smaller, uniform_layers
from tests.conftest import STUDENT, TEACHER, pretraining_batch, random_params
from tests.models.test_axes import small

KINDS = ("bert_base", "ib_bert_large", "mobilebert", "mobilebert_tiny")


def thinner(config, **changes):
    """Smaller along every axis."""
    sizes = dict(num_layers=1, hidden_size=16, intermediate_size=9)
    sizes |= {"bottleneck_size": 8} if config.bottleneck_size else {}
    sizes |= {"embedding_size": 4} if config.embedding_size else {}
    return config.replace(**{**sizes, **changes})


def cut(config, student, seed=0, layers=(1,)):
    params = random_params(Model(config))
    keep = choose(config, student, random_scores(config, seed), layers)
    return params, keep, extract(config, params, keep)


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_has_the_students_shape(kind):
    config = small(kind)
    student = thinner(config)
    extraction.check(config, student, "it")
    _, _, found = cut(config, student)
    shapes = flatten(parameter_shapes(student))
    assert {name: x.shape for name, x in flatten(found).items()} == {
        name: x.shape for name, x in shapes.items()
    }
    logits = Model(student).apply(found, {"input_ids": np.ones((2, 5), np.int32)})[0]["mlm_logits"]
    assert np.isfinite(logits).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_student_of_the_teachers_size_is_the_teacher(kind):
    config = small(kind)
    params, keep, found = cut(config, config, layers=range(config.num_layers))
    assert keep.keys() == {"layer"}
    for name, x in flatten(params).items():
        np.testing.assert_array_equal(flatten(found)[name], x)


def test_against_a_slow_reference():
    """One block of BERT, entry by entry."""
    config = small("bert_base")
    student = thinner(config)
    params, keep, found = cut(config, student)
    before, after = flatten(params), flatten(found)
    wide = keep["hidden"]
    for head in range(2):
        for i, place in enumerate(wide):
            for k in range(student.head_size):
                own = keep["query"][1, head, k], keep["value"][1, head, k]
                for name, at in (("query", own[0]), ("key", own[0]), ("value", own[1])):
                    kernel, small_one = (
                        x[f"layers/attention/{name}/kernel"] for x in (before, after)
                    )
                    assert small_one[0, i, head, k] == kernel[1, place, head, at]
                out, small_out = (x["layers/attention/out/kernel"] for x in (before, after))
                assert small_out[0, head, k, i] == out[1, head, own[1], place]
        for j, neuron in enumerate(keep["ffn_0"][1]):
            up, small_up = (x["layers/ffn_0/up/kernel"] for x in (before, after))
            assert (small_up[0, :, j] == np.asarray(up)[1, wide, neuron]).all()
    np.testing.assert_array_equal(
        after["embeddings/word"], np.asarray(before["embeddings/word"])[:, wide]
    )


def test_trigrams_and_the_heads_table_follow_words():
    """A projection reads three word vectors, and the MLM head writes one beside what it adds."""
    config = small("mobilebert")
    student = thinner(config)
    params, keep, found = cut(config, student)
    words, extra, wide = keep["word"], keep["extra"], keep["hidden"]
    rows = np.concatenate([words + i * config.word_size for i in range(3)])
    kernel = np.asarray(params["embeddings"]["projection"]["kernel"])
    np.testing.assert_array_equal(
        found["embeddings"]["projection"]["kernel"], kernel[np.ix_(rows, wide)]
    )
    columns = np.concatenate([words, config.word_size + extra])
    kernel = np.asarray(params["mlm"]["transform"]["kernel"])
    np.testing.assert_array_equal(
        found["mlm"]["transform"]["kernel"], kernel[np.ix_(wide, columns)]
    )


def test_as_many_heads_as_before_are_narrower_whether_named_or_not():
    config = small("bert_base")
    assert smaller(config, hidden_size=8, num_heads=config.num_heads) == smaller(
        config, hidden_size=8
    )
    assert smaller(config, num_heads=1).head_size == config.head_size


def test_whole_heads_keep_their_width():
    config = small("bert_base")
    student = config.replace(num_heads=1, attention_head_size=config.head_size)
    params, keep, found = cut(config, student, layers=(0, 1))
    assert keep["heads"].shape == (2, 1) and "query" not in keep
    for layer in range(2):
        head = keep["heads"][layer, 0]
        np.testing.assert_array_equal(
            found["layers"]["attention"]["query"]["kernel"][layer, :, 0],
            params["layers"]["attention"]["query"]["kernel"][layer, :, head],
        )


def test_the_best_places_in_their_order():
    config = small("bert_base")
    student = thinner(config, hidden_size=4, num_heads=2)
    scores = {"hidden": np.zeros(20), "ffn_0": np.zeros((2, 14))}
    scores["hidden"][[17, 3, 11, 5]] = [4, 3, 2, 1]
    scores["ffn_0"][1, :9] = -1  # of the layer that is taken the last five, and then the first
    keep = choose(config, student, scores, (1,))
    assert keep["hidden"].tolist() == [3, 5, 11, 17]
    assert keep["ffn_0"][1].tolist() == [0, 1, 2, 3, 9, 10, 11, 12, 13]
    assert keep["query"].shape == (2,)  # without scores: the first ones, of every head


def test_chance_is_the_seeds_alone():
    config = small("bert_base")
    first, again, other = (random_scores(config, seed) for seed in (1, 1, 2))
    assert all((first[axis] == again[axis]).all() for axis in first)
    assert any((first[axis] != other[axis]).any() for axis in first)
    # Nested: a smaller student is a part of the larger one's.
    narrow, wide = (
        set(choose(config, thinner(config, hidden_size=d), first, (0,))["hidden"]) for d in (8, 16)
    )
    assert narrow < wide


@pytest.mark.parametrize(
    "sizes, layers",
    [((12, 4), (2, 5, 8, 11)), ((12, 6), (1, 3, 5, 7, 9, 11)), ((6, 4), (0, 2, 3, 5))],
)
def test_layers_at_equal_distances(sizes, layers):
    assert uniform_layers(*sizes) == layers


def test_what_is_left_out_is_all_that_is_lost():
    """Neurons that write nothing may go: outputs stay."""
    config = small("ib_bert_large")
    params = random_params(Model(config))
    silent = {0: (1, 4, 7), 1: (0, 2, 13)}
    down = np.array(params["layers"]["ffn_0"]["down"]["kernel"])
    scores = {"ffn_0": np.ones((2, 14))}
    for layer, neurons in silent.items():
        down[layer, neurons] = 0
        scores["ffn_0"][layer, list(neurons)] = 0
    params["layers"]["ffn_0"]["down"]["kernel"] = down
    student = config.replace(intermediate_size=11)
    found = extract(config, params, choose(config, student, scores, (0, 1)))
    batch = pretraining_batch(length=6)
    before, after = (
        Model(c).apply(p, batch)[0]["mlm_logits"] for c, p in ((config, params), (student, found))
    )
    np.testing.assert_allclose(before, after, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "teacher, student, said",
    [
        (TEACHER.config, STUDENT.config, "of another kind: .*attention_input='shared_bottleneck' .its own is 'hidden'"),
        (TEACHER.config, TEACHER.config.replace(bottleneck_size=14), "bottleneck_size=14 exceeds its 12"),
        (small("bert_base"), small("bert_base", num_layers=3), "num_layers=3 exceeds its 2"),
        (small("bert_base"), small("bert_base", embedding_size=4), "of another kind: embedding_size=4"),
        (
            small("mobilebert"),
            small("mobilebert", hidden_size=16, embedding_size=1, bottleneck_size=8),
            "extra=15 exceeds its 14",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_cut_out_is_said(teacher, student, said):
    with pytest.raises(BadInput, match=said):
        extraction.check(teacher, student, "network 'student'")


def test_every_axis_is_chosen_by_chance():
    for kind in KINDS:
        config = small(kind)
        scores = random_scores(config, 0)
        assert scores.keys() == Axes(config).sizes.keys()
