"""What a copying start takes from the teacher, and what it leaves."""

import jax
import numpy as np
import pytest

from jaxdistill.models import Model
from jaxdistill.models.parameters import digest, flatten
from jaxdistill.students.copying import copied_names, copy_embeddings_and_heads, random_start
from tests.conftest import STUDENT, TEACHER, random_params

WITHOUT_OPT = Model(STUDENT.config.replace(norm="layer_norm", activation="gelu"))


@pytest.mark.parametrize("student", [STUDENT, WITHOUT_OPT], ids=["no_norm", "layer_norm"])
def test_embeddings_and_heads_are_the_teachers_and_the_rest_is_as_it_was(student, teacher_params):
    """All but the blocks; the embedding norm only between norms of one kind (a NoNorm starts as the
    identity)."""
    params = random_start(student, 0)
    started, copied = copy_embeddings_and_heads(student, params, TEACHER, teacher_params)
    ours, theirs, before = flatten(started), flatten(teacher_params), flatten(params)
    expected = {name for name in ours if not name.startswith("layers/")}
    if student is STUDENT:
        expected -= {"embeddings/norm/scale", "embeddings/norm/bias"}
        assert (ours["embeddings/norm/scale"] == 1).all() and (
            ours["embeddings/norm/bias"] == 0
        ).all()
    assert copied == copied_names(student, TEACHER) == expected
    assert {
        "embeddings/word",
        "embeddings/projection/kernel",
        "mlm/extra_embedding",
        "mlm/norm/scale",
        "nsp/dense/bias",
    } < copied
    assert ours.keys() == before.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name] if name in copied else before[name])


def test_other_shapes_and_absent_heads_are_not_copied():
    wider = Model(TEACHER.config.replace(embedding_size=6, heads=("mlm",)))
    names = copied_names(STUDENT, wider)
    assert "embeddings/position" in names and "mlm/transform/kernel" in names
    assert not names & {
        "embeddings/word",
        "embeddings/projection/kernel",
        "mlm/extra_embedding",
        "nsp/dense/kernel",
    }


def test_copies_have_buffers_of_their_own():
    """The step donates the student's buffers; the teacher's must outlive it."""
    theirs = random_params(TEACHER, 1)
    started, _ = copy_embeddings_and_heads(STUDENT, random_params(STUDENT, 2), TEACHER, theirs)
    before = digest(theirs)
    jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)(started)
    assert digest(theirs) == before


def test_random_starts_of_one_seed_are_equal():
    assert (
        digest(random_start(STUDENT, 3))
        == digest(random_start(STUDENT, 3))
        != digest(random_start(STUDENT, 4))
    )
