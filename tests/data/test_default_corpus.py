from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jaxdistill.data import default_corpus as corpora
from jaxdistill.data import prose

DOCSTRING = """Compute the arithmetic mean along the specified axis.

    Returns the average of the array elements.  The :class:`~a.b.Thing` is *not* copied, see ``numpy.var`` [1]_.

    Parameters
    ----------
    a : array_like
        Array containing numbers whose mean is desired. If `a` is not an array, a conversion is attempted.
    keepdims : bool, optional

    Args:
        inputs (`torch.Tensor` of shape `(a, b)`): The tensors that will be read by the model in order.

    - The first item of the list is kept as it is.

    .. code-block:: python

        This is code and it is not for the reader of the text.

    .. note:: This note is for the reader of the text.

    An example is given in the following lines::

        The literal block is not for the reader of the text.

    >>> np.mean(a)
    This is the output and it is not for the reader of the text.

    ```
    The fenced code is not for the reader of the text.
    ```

    | The table | is not for | the reader of the text. |
    x = foo(bar) + baz[1] / the_other and {a: b} of_the_reader.
    """


def test_prose_of_a_docstring() -> None:
    assert list(prose.prose(DOCSTRING)) == [
        ["Compute the arithmetic mean along the specified axis."],
        ["Returns the average of the array elements.", "The Thing is not copied, see numpy.var."],
        [
            "Array containing numbers whose mean is desired.",
            "If a is not an array, a conversion is attempted.",
        ],
        ["The tensors that will be read by the model in order."],
        ["The first item of the list is kept as it is."],
        ["This note is for the reader of the text."],
        ["An example is given in the following lines:"],
    ]


@pytest.fixture
def few_modules(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Only a slice of the standard library, which takes a moment instead of half a minute."""
    every = corpora.modules({"python": ""})
    chosen = [(name, path) for name, path in every if "/" not in name and name[0] in "abcdehilst"]
    monkeypatch.setattr(corpora, "modules", lambda versions: iter(chosen))
    monkeypatch.setenv("JAXDISTILL_CACHE", str(tmp_path / "cache"))


def test_corpus(few_modules: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = corpora.default_corpus()
    assert corpus.train_path.startswith(str(tmp_path / "cache"))
    train, heldout = Path(corpus.train_path).read_text(), Path(corpus.heldout_path).read_text()
    assert corpus.words_train == len(train.split()) > 20_000
    assert corpus.words_heldout == len(heldout.split()) > 0
    assert (
        corpus.versions["python"] and "numpy" in corpus.versions and "torch" not in corpus.versions
    )
    # No sentence twice, so none in both parts.
    sentences = [
        s
        for part in (train, heldout)
        for line in part.splitlines()
        for s in prose.split_sentences(line)
    ]
    assert len(sentences) - len(set(sentences)) < 0.002 * len(sentences)
    assert ">>>" not in train

    again = corpora.default_corpus(tmp_path / "other")
    assert again.digest == corpus.digest and again.train_path != corpus.train_path
    monkeypatch.setattr(corpora, "_build", None)
    assert corpora.default_corpus() == corpus


def test_split_is_by_module() -> None:
    names = [name for name, _ in corpora.modules(corpora.installed_versions())]
    assert names == [name for name, _ in corpora.modules(corpora.installed_versions())]
    assert len(names) > 3000 and not any("/tests/" in name for name in names)
    share = sum(map(corpora.is_held_out, names)) / len(names)
    assert 0.03 < share < 0.08
    parts: dict[str, set[bool]] = {}
    for name in names:
        if name.startswith("transformers/models/") and name.count("/") > 2:
            parts.setdefault(name.split("/")[2], set()).add(corpora.is_held_out(name))
    assert len(parts) > 50 and all(
        len(part) == 1 for part in parts.values()
    )  # a model's files stay together
    assert {True} in parts.values() and {False} in parts.values()


def test_near_duplicates_are_dropped() -> None:
    seen: set[bytes] = set()
    one = corpora.new_paragraphs(
        iter(["Construct a fast BERT tokenizer that is backed by a library."]), seen
    )
    other = corpora.new_paragraphs(
        iter(["Construct a fast RoBERTa tokenizer that is backed by a library."]), seen
    )
    assert len(one) == 1 and other == []


def test_strings_are_read_in_order_without_importing(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(
        '"""The module has a docstring that is long enough."""\nraise SystemExit("imported")\n'
        'class A:\n    """The class has a docstring that is long enough."""\n'
        '    def f(self):\n        """The function has a docstring that is long enough."""\n'
        'add("f", """\nThe call has a text that is long enough to keep.\n""")\n'
    )
    strings = [
        string.strip().split()[1] for string in corpora.documentation(corpora.epath.Path(path))
    ]
    assert strings == ["module", "class", "function", "call"]
    path.write_text("def broken(:\n    '''Not to be parsed by anyone, at any time.'''\n")
    assert list(corpora.documentation(corpora.epath.Path(path))) == []


def test_importing_the_room_is_light() -> None:
    code = (
        "import sys\n"
        "import jaxdistill.data.loader, jaxdistill.data.sources, jaxdistill.data.tokenizers, jaxdistill.data.prepare\n"
        "import jaxdistill.data.default_corpus, jaxdistill.data.classification, jaxdistill.data.tfds_text\n"
        "heavy = {'tensorflow', 'tensorflow_datasets', 'grain', 'tokenizers', 'transformers', 'jax', 'torch'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    root = Path(corpora.__file__).parents[2]
    result: Any = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True
    )
    assert result.stdout.strip() == "[]"
