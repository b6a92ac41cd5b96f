"""The task of the notebooks: real paragraphs, balanced labels, nothing that gives the answer
away."""

import pytest

from jaxdistill.data.columns import read_columns
from jaxdistill.data.documentation_task import documentation_task
from jaxdistill.errors import BadInput

PACKAGES = ("numpy", "optax")


def test_balanced_disjoint_and_the_same_each_time(tmp_path):
    train, dev = documentation_task(tmp_path / "a", PACKAGES, examples=40)
    parts = [read_columns(str(file), ("text", "package")).cells for file in (train, dev)]
    assert [len(texts) for texts, _ in parts] == [64, 16]
    for texts, labels in parts:
        assert all(labels.count(name) == len(labels) / 2 for name in PACKAGES)
        assert not any(name in text.lower() for text in texts for name in PACKAGES)
        assert all(8 <= len(text.split()) < 60 for text in texts)
    assert not set(parts[0][0]) & set(parts[1][0])
    assert len(set(parts[0][0])) == 64
    documentation_task(tmp_path / "b", PACKAGES, examples=40)
    assert (tmp_path / "b" / "train.tsv").read_bytes() == train.read_bytes()


@pytest.mark.parametrize(
    "packages, examples, words",
    [
        (("numpy", "no-such-package"), 40, "'no-such-package' is not installed"),
        (("numpy",), 40, "at least two packages"),
        (("numpy", "six"), 4000, "ask for fewer"),
    ],
)
def test_what_cannot_be_had(tmp_path, packages, examples, words):
    with pytest.raises(BadInput, match=words):
        documentation_task(tmp_path / "x", packages, examples)
    assert not (tmp_path / "x").exists()
