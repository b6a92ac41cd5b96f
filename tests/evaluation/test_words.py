"""Rows of text masked once, with a teacher's likeliest words."""

import jax
import numpy as np
import pytest
from etils import epath

from jaxdistill.data.feeds import ALONE, Reader, Shape
from jaxdistill.data.loader import RowSettings
from jaxdistill.data.rows import training_batches
from jaxdistill.data.text import text_feed
from jaxdistill.errors import BadInput
from jaxdistill.evaluation.derivation import Making
from jaxdistill.evaluation.words import words
from jaxdistill.models import Model, preset
from jaxdistill.objectives import terms
from jaxdistill.objectives.terms import Term
from jaxdistill.training import sharding
from tests.conftest import SMALL, pretraining_batch, random_params

PLAIN = {name: value for name, value in SMALL.items() if name != "embedding_size"}
TEACHER = Model(preset("bert_base").replace(**PLAIN, heads=("mlm",)))


def text():
    """(feed, reader) of batches that never repeat."""
    feed = text_feed(RowSettings(0, 3, 0.15, False), 7, False)

    def batches(batch_size, first, _):
        while True:
            yield pretraining_batch(first, batch_size)
            first += batch_size

    def heldout(batch_size, most, _):
        for begin in range(0, most, batch_size):
            batch = pretraining_batch(1000 + begin, batch_size)
            yield {**batch, "row": np.arange(begin, begin + batch_size, dtype=np.int32)}

    return feed, Reader(batches, heldout)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_all_words_stored_are_the_teacher_itself(tmp_path, temperature):
    """Value and gradient, at any temperature; with fewer words as the distance of the top ones."""
    feed, reader = text()
    params = random_params(TEACHER, 1)
    making = Making(
        params, sharding.make_mesh(1), 8, ALONE, None, lambda part: epath.Path(tmp_path) / part, "x"
    )
    student = np.random.default_rng(0).normal(size=(8, 3, SMALL["vocab_size"])).astype(np.float32)
    for top_k in (SMALL["vocab_size"], 4):
        making = making._replace(fingerprint=f"{top_k}")
        made = words(feed, TEACHER, rows=20, top_k=top_k, temperature=temperature)
        found = made.read(reader, making)
        assert found.parts.train.number == made.rows(10**9) == 20
        batch = next(training_batches(found.parts.train, found.parts.order, 8))
        assert batch.keys() == {*feed.row, *made.row}
        assert {name: Shape(x.shape[1:], str(x.dtype)) for name, x in batch.items()} == {
            **feed.row,
            **made.row,
        }
        theirs = TEACHER.apply(params, batch, heads=("mlm",))[0]["mlm_logits"]
        options = (("temperature", temperature), ("k", top_k))
        whole = Term("mlm_top_k", 1.0, options=options)
        ours, expected = (
            jax.value_and_grad(function)(student)
            for function in (
                lambda x, b=batch: terms.LOSSES["mlm_stored"].sum(x, None, b),
                lambda x, b=batch, t=theirs, term=whole: term.sum(x, t, b),
            )
        )
        np.testing.assert_allclose(ours[0], expected[0], rtol=1e-4)
        np.testing.assert_allclose(ours[1], expected[1], rtol=1e-3, atol=1e-5)
    kept = (tmp_path / "words.safetensors").read_bytes()
    made.read(reader, making._replace(params=None))
    assert kept == (tmp_path / "words.safetensors").read_bytes()


def test_only_of_text_by_a_network_that_knows_words():
    feed, _ = text()
    bare = Model(preset("bert_base").replace(**PLAIN, heads=()))
    with pytest.raises(
        BadInput, match="words are stored of plain text, by a network with the head"
    ):
        words(feed, bare)
