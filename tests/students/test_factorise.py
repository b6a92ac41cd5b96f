"""A word table in fewer dimensions, and a student that begins with it."""

import numpy as np
import pytest
from sklearn.decomposition import PCA

from jaxdistill import defaults, interop, run
from jaxdistill.errors import BadInput
from jaxdistill.students.factorise import factorised
from tests.conftest import tiny_config, write_text

TABLE = np.random.default_rng(0).normal(size=(50, 12)) @ np.diag(np.arange(1, 13)) + 3


@pytest.mark.parametrize("width", [1, 5, 12])
def test_scikit_learn_finds_the_same_components(width):
    ours, theirs = factorised(TABLE, width), PCA(width).fit_transform(TABLE)
    signs = np.sign((ours * theirs).sum(axis=0))
    np.testing.assert_allclose(ours, theirs * signs, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(factorised(TABLE[::-1], width)[::-1], ours, atol=1e-4)


def test_all_dimensions_keep_all_distances():
    table = factorised(TABLE, 12)
    before, after = (
        np.linalg.norm(x[:, None] - x[None], axis=-1) for x in (TABLE, table.astype(np.float64))
    )
    np.testing.assert_allclose(before, after, atol=1e-4)
    fewer = factorised(TABLE, 4)
    np.testing.assert_allclose(fewer, table[:, :4], atol=1e-5)  # the first ones are the same
    assert (np.var(table, axis=0)[:-1] >= np.var(table, axis=0)[1:]).all()


def config_of(folder, **changes):
    config = tiny_config(write_text(folder / "text.txt"))
    for name in ("random_start", "copied_start"):
        del config.networks[name], config.stages[name]
    config.networks.student.update({"start": "factorise"})
    config.networks.student.model.update({"embedding_size": 4, **changes})
    config.stages.still = defaults.stage(
        "pretrain", "student", steps=1, batch_size=8, learning_rate=0.0
    )
    config.order = ("teacher", "still")
    return config


def test_a_student_begins_with_it(tmp_path):
    run.train(config_of(tmp_path), tmp_path / "run")
    teacher, student = (
        interop.from_pretrained(tmp_path / "run" / "stages" / name)[1]
        for name in ("teacher", "still")
    )
    expected = factorised(teacher["embeddings"]["word"], 4)
    np.testing.assert_allclose(student["embeddings"]["word"], expected, atol=1e-7)


def test_a_wider_table_is_refused(tmp_path):
    with pytest.raises(BadInput, match="word table is .* x 8 and the student's .* x 12"):
        run.train(config_of(tmp_path, embedding_size=12), tmp_path / "run")
    assert not (tmp_path / "run").exists()
