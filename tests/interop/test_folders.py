"""What is read from Hugging Face folders: shards, old names, half precision, heads; and what is
refused, and how."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors
from safetensors.numpy import load_file, save_file

from jaxdistill import interop
from jaxdistill.errors import BadInput
from jaxdistill.models import Model, ModelConfig, Params
from tests.interop.tiny import SHRUNK, random_params

CONFIG = ModelConfig(**SHRUNK)
WORDS = "bert.embeddings.word_embeddings.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A BERT with MLM and NSP, as a Hugging Face folder."""
    interop.save_pretrained(tmp_path / "bert", Model(CONFIG), random_params(CONFIG))
    return tmp_path / "bert"


def edit(folder: Path, change: Callable[[dict[str, np.ndarray]], Any]) -> None:
    """Rewrites the tensors."""
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def edit_config(folder: Path, **keys: Any) -> None:
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, **keys}))


def equal(a: Params, b: Params) -> bool:
    return jax.tree.structure(a) == jax.tree.structure(b) and jax.tree.all(
        jax.tree.map(np.array_equal, a, b)
    )


def test_files_and_metadata(folder: Path) -> None:
    """PyTorch names, the prefix, no tied copies, and the metadata without which transformers
    refuses the file."""
    with safetensors.safe_open(folder / "model.safetensors", "numpy") as file:
        assert file.metadata() == {"format": "pt"}
        names = set(file.keys())
    assert (
        WORDS in names
        and "cls.predictions.bias" in names
        and "bert.encoder.layer.1.output.dense.weight" in names
    )
    assert not any("decoder" in name for name in names)


def test_sharded(folder: Path) -> None:
    _, params = interop.from_pretrained(folder)
    state = load_file(folder / "model.safetensors")
    files = {
        name: f"model-0000{1 + i % 3}-of-00003.safetensors" for i, name in enumerate(sorted(state))
    }
    for file in set(files.values()):
        save_file({name: state[name] for name in state if files[name] == file}, folder / file)
    (folder / "model.safetensors").unlink()
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": files}))
    assert equal(interop.from_pretrained(folder)[1], params)

    (folder / "model-00002-of-00003.safetensors").rename(folder / "elsewhere.safetensors")
    with pytest.raises(BadInput, match="lacks the shard model-00002-of-00003"):
        interop.from_pretrained(folder)
    index.write_text(json.dumps({"weight_map": {**files, "more": files[WORDS]}}))
    (folder / "elsewhere.safetensors").rename(folder / "model-00002-of-00003.safetensors")
    with pytest.raises(BadInput, match="no shard holds, such as more"):
        interop.from_pretrained(folder)
    for bad in ("../x.safetensors", "/etc/passwd", "pytorch_model.bin"):
        index.write_text(json.dumps({"weight_map": {WORDS: bad}}))
        with pytest.raises(BadInput, match="expected a .safetensors file beside it"):
            interop.from_pretrained(folder)
    index.write_text("{}")
    with pytest.raises(BadInput, match="weight_map"):
        interop.from_pretrained(folder)


def test_old_names_buffers_and_tied_copies(folder: Path) -> None:
    """gamma/beta, position_ids, decoder copies and decoder.bias in place of bias, as old
    checkpoints have them."""
    _, params = interop.from_pretrained(folder)

    def age(state: dict[str, np.ndarray]) -> None:
        for name in [name for name in state if "LayerNorm" in name]:
            state[name.replace(".weight", ".gamma").replace(".bias", ".beta")] = state.pop(name)
        state["bert.embeddings.position_ids"] = np.arange(9)[None]
        state["cls.predictions.decoder.weight"] = state[WORDS].copy()
        state["cls.predictions.decoder.bias"] = state.pop("cls.predictions.bias")

    edit(folder, age)
    assert equal(interop.from_pretrained(folder)[1], params)


def test_base_model_folder_without_prefix(folder: Path) -> None:
    _, params = interop.from_pretrained(folder, heads=())
    edit(
        folder,
        lambda state: [
            state.update({name.removeprefix("bert."): state.pop(name)}) for name in list(state)
        ],
    )
    edit(folder, lambda state: [state.pop(name) for name in list(state) if name.startswith("cls.")])
    model, again = interop.from_pretrained(folder)
    assert model.config.heads == () and model.config.pooler == "tanh"
    assert equal(again, params)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_precisions_become_float32(folder: Path, dtype: Any) -> None:
    edit(
        folder,
        lambda state: [
            state.update({name: array.astype(dtype)}) for name, array in list(state.items())
        ],
    )
    stored = load_file(folder / "model.safetensors") if dtype != ml_dtypes.bfloat16 else None
    _, params = interop.from_pretrained(folder)
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(params))
    if stored is not None:
        np.testing.assert_array_equal(
            params["embeddings"]["word"], stored[WORDS].astype(np.float32)
        )


def test_untied_output_table_is_refused_only_when_it_matters(folder: Path) -> None:
    """A stale copy under tied embeddings is overwritten in transformers, so ignored here; an untied
    one is not."""
    _, params = interop.from_pretrained(folder)
    edit(folder, lambda state: state.update({"cls.predictions.decoder.weight": state[WORDS] + 1}))
    assert equal(interop.from_pretrained(folder)[1], params)
    edit_config(folder, tie_word_embeddings=False)
    with pytest.raises(BadInput, match="output table of its own"):
        interop.from_pretrained(folder)
    assert interop.from_pretrained(folder, heads=())[0].config.heads == ()


def test_pooler_absent(folder: Path) -> None:
    edit(folder, lambda state: [state.pop(name) for name in list(state) if "pooler" in name])
    with pytest.raises(BadInput, match="lacks pooler.dense.weight"):
        interop.from_pretrained(folder)
    model, params = interop.from_pretrained(folder, heads=("mlm",))
    assert model.config.pooler == "none" and "pooler" not in params


def test_heads_asked_for(folder: Path) -> None:
    assert interop.from_pretrained(folder)[0].config.heads == ("mlm", "nsp")
    model, params = interop.from_pretrained(folder, heads=("nsp",))
    assert model.config.heads == ("nsp",) and "mlm" not in params
    assert interop.from_pretrained(folder, heads=("embedding",))[0].config.heads == ("embedding",)
    with pytest.raises(BadInput, match="no head 'question_answering'; it holds mlm, nsp"):
        interop.from_pretrained(folder, heads=("question_answering",))
    with pytest.raises(BadInput, match="did you mean 'mlm'"):
        interop.from_pretrained(folder, heads=("mlmm",))


def test_dtype(folder: Path) -> None:
    model, params = interop.from_pretrained(folder, dtype="bfloat16")
    assert model.config.dtype == "bfloat16" and params["embeddings"]["word"].dtype == np.float32


def test_classifier_of_unknown_kind(tmp_path: Path) -> None:
    config = ModelConfig(**SHRUNK, heads=("token_classification",), num_labels=4)
    interop.save_pretrained(
        tmp_path / "x", Model(config), random_params(config), labels=list("abcd")
    )
    values = json.loads((tmp_path / "x" / "config.json").read_text())
    assert (
        values["id2label"] == {"0": "a", "1": "b", "2": "c", "3": "d"}
        and values["label2id"]["d"] == 3
    )
    assert interop.from_pretrained(tmp_path / "x")[0].config == config
    edit_config(tmp_path / "x", architectures=["BertForRanking"])
    with pytest.raises(BadInput, match="does not say of what"):
        interop.from_pretrained(tmp_path / "x")
    assert interop.from_pretrained(tmp_path / "x", heads=())[0].config.heads == ()
    again, _ = interop.from_pretrained(tmp_path / "x", heads=("sequence_classification",))
    assert again.config.num_labels == 4


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda s: s.pop(WORDS), "lacks 1 tensor: embeddings.word_embeddings.weight"),
        (
            lambda s: s.update({"bert.encoder.layer.2.output.dense.bias": np.ones(3)}),
            "holds unknown 1 .*layer.2",
        ),
        (lambda s: s.update({"crf.transitions": np.ones(3)}), r"crf.transitions; .*heads=\(\)"),
        (
            lambda s: s.update({WORDS: s[WORDS][:, :7]}),
            r"shape \[37, 7\] but the config says \[37, 12\]",
        ),
        (lambda s: s.update({WORDS: s[WORDS].astype(np.int8)}), "stored as int8"),
        (
            lambda s: [s.pop(k) for k in list(s) if "layer.1." in k],
            "lacks 16 tensors: .* and 12 more",
        ),
    ],
    ids=["missing", "extra layer", "extra head", "shape", "integers", "depth"],
)
def test_tensors_that_do_not_fit(
    folder: Path, change: Callable[[dict[str, np.ndarray]], Any], message: str
) -> None:
    edit(folder, change)
    with pytest.raises(BadInput, match=message):
        interop.from_pretrained(folder)


def test_foreign_head_can_be_left_aside(folder: Path) -> None:
    edit(folder, lambda state: state.update({"crf.transitions": np.ones(3)}))
    assert interop.from_pretrained(folder, heads=())[0].config.heads == ()


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:7],
        lambda data: data[:100],
        lambda data: data[:-1],
        lambda data: data + b"x",
        lambda data: b"\xff" * 8 + data[8:],
        lambda data: data[:8] + b"[" + data[9:],
    ],
    ids=[
        "empty",
        "7 bytes",
        "header cut",
        "last byte gone",
        "one byte more",
        "huge header",
        "no object",
    ],
)
def test_damaged_safetensors(folder: Path, damage: Callable[[bytes], bytes]) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(BadInput, match="model.safetensors cannot be read as safetensors"):
        interop.from_pretrained(folder)


def test_damaged_config(folder: Path) -> None:
    for content in (b"", b"{", b"[1]", b"\xff\xfe"):
        (folder / "config.json").write_bytes(content)
        with pytest.raises(BadInput, match="config.json"):
            interop.from_pretrained(folder)
    (folder / "config.json").unlink()
    with pytest.raises(BadInput, match="has no config.json; it holds README.md, model.safetensors"):
        interop.from_pretrained(folder)


def test_pickles_are_never_opened(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(BadInput, match="it holds README.md, config.json"):
        interop.from_pretrained(folder)
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(
        BadInput,
        match="a pickle .pytorch_model.bin., which is never opened .* convert it to safetensors",
    ):
        interop.from_pretrained(folder)
