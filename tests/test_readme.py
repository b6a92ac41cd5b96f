"""The code blocks of README's "Use your student" run as they stand, on a small student."""

import re
from pathlib import Path

import numpy as np
import pytest
import transformers

import jaxdistill
from tests.conftest import SMALL, random_params

ROOT = Path(__file__).parent.parent
FOLDER = "/tmp/quickstart/student"
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "quick", "brown", "fox")


def blocks() -> list[str]:
    section = re.search(
        r"## Use your student\n(.*?)\n## ", (ROOT / "README.md").read_text(), re.S
    ).group(1)
    return re.findall(r"```python\n(.*?)```", section, re.S)


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("readme")
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    tokenizer = transformers.BertTokenizerFast(str(folder / "vocab.txt"))
    config = jaxdistill.preset("mobilebert").replace(
        **{**SMALL, "num_layers": 2, "bottleneck_size": 4, "num_ffn": 2}
    )
    model = jaxdistill.Model(config)
    jaxdistill.save_pretrained(folder / "student", model, random_params(model), tokenizer)
    return folder / "student"


def test_use_your_student(student: Path) -> None:
    """Six lines for Flax, five for PyTorch, and all three ways give the same logits."""
    ours, flax, torch = blocks()
    assert [len(block.strip().splitlines()) for block in (flax, torch)] == [6, 5]
    tokenizer = transformers.AutoTokenizer.from_pretrained(student)
    encoded = tokenizer("The quick brown fox", return_tensors="np")
    assert (encoded["input_ids"] > 1).all()  # no word unknown
    logits = []
    for block in (ours, flax, torch):
        assert block.count(FOLDER) >= 1
        names: dict[str, object] = {}
        exec(block.replace(FOLDER, str(student)), names)
        logits.append(names["outputs"]["mlm_logits"] if "outputs" in names else names["logits"])
    expected = np.asarray(logits[0])
    assert expected.shape == (1, 6, SMALL["vocab_size"]) and names["student"].training is False
    for given in (np.asarray(logits[1]), logits[2].detach().numpy()):
        np.testing.assert_allclose(given, expected, atol=1e-4 * np.abs(expected).max())
