"""flax_model.msgpack holds exactly the tree that transformers' own conversion gives, and comes
back."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import flax.serialization
import flax.traverse_util
import jax
import numpy as np
import pytest
import torch
from transformers.modeling_flax_pytorch_utils import rename_key_and_reshape_tensor
from transformers.models.bert import modeling_flax_bert

from jaxdistill import interop
from jaxdistill.errors import BadInput
from tests.interop import oracle


def exported(variant: str, folder: Path) -> torch.nn.Module:
    """A random network, saved by transformers, loaded and exported again by us into `folder`, as
    msgpack."""
    network = oracle.random_torch(variant)
    network.save_pretrained(folder.parent / "theirs")
    interop.save_pretrained(
        folder, *interop.from_pretrained(folder.parent / "theirs"), format="msgpack"
    )
    return network


def flat_tree(folder: Path) -> dict[str, np.ndarray]:
    tree = flax.serialization.msgpack_restore((folder / "flax_model.msgpack").read_bytes())
    return flax.traverse_util.flatten_dict(tree, sep="/")


def assert_trees_equal(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert ours.keys() == theirs.keys()
    for name in theirs:
        np.testing.assert_array_equal(
            np.asarray(ours[name]), np.asarray(theirs[name]), err_msg=name
        )


@pytest.mark.parametrize("variant", ["bert", "bert_relu_base", "bert_rows"])
def test_bert_tree_is_what_flax_from_pt_gives(variant: str, tmp_path: Path) -> None:
    """FlaxBert…(from_pt=True).params, name for name and to the bit; and the Flax class computes the
    same from ours."""
    network = exported(variant, tmp_path / "ours")
    kind = getattr(modeling_flax_bert, "Flax" + type(network).__name__)
    converted = kind.from_pretrained(tmp_path / "theirs", from_pt=True)
    expected = flax.traverse_util.flatten_dict(converted.params, sep="/")
    assert_trees_equal(flat_tree(tmp_path / "ours"), expected)
    interop.save_pretrained(
        tmp_path / "pt", *interop.from_pretrained(tmp_path / "ours")
    )  # safetensors, the default
    for folder in ("ours", "pt"):
        loaded = kind.from_pretrained(tmp_path / folder)
        assert_trees_equal(flax.traverse_util.flatten_dict(loaded.params, sep="/"), expected)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize(
    "variant", ["mobilebert", "tiny", "tanh_pooler_one_ffn", "no_trigram_same_width", "mobile_rows"]
)
def test_mobilebert_tree_is_what_transformers_renaming_gives(variant: str, tmp_path: Path) -> None:
    """transformers has no Flax MobileBERT: its own renaming, told of each leaf by the kind of
    PyTorch module."""
    network = exported(variant, tmp_path / "ours")
    leaf_names = {
        "Embedding": "embedding",
        "LayerNorm": "scale",
        "NoNorm": "scale",
        "Linear": "kernel",
    }
    targets: dict[tuple[str, ...], Any] = {}
    for name, module in network.named_modules():
        if type(module).__name__ in leaf_names:
            targets[(*name.split("."), leaf_names[type(module).__name__])] = None
    expected = {}
    for name, value in network.state_dict().items():
        if ".decoder." in name:  # tied, so no leaf of a Flax module
            continue
        if "embedding_transformation" in name and variant == "no_trigram_same_width":
            value = torch.zeros_like(value)  # owned, never read: written as zeros
        key, array = rename_key_and_reshape_tensor(
            tuple(name.split(".")), value.numpy(), targets, "mobilebert"
        )
        expected["/".join(key)] = array
    assert_trees_equal(flat_tree(tmp_path / "ours"), expected)


@pytest.mark.parametrize("variant", ["bert", "mobilebert", "tiny", "mobile_spans"])
def test_msgpack_alone_loads(variant: str, tmp_path: Path) -> None:
    """The msgpack gives the same parameters as the safetensors to the bit."""
    exported(variant, tmp_path / "ours")
    model, params = interop.from_pretrained(tmp_path / "theirs")
    again, same = interop.from_pretrained(tmp_path / "ours")
    assert again == model
    assert jax.tree.all(jax.tree.map(np.array_equal, params, same))


def nested(depth: int) -> bytes:
    return b"\x81\xa1a" * depth + b"\xc0"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xc1",
        b"not msgpack",
        nested(5),
        nested(100_000),
        b"\xdd\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xffab",
        flax.serialization.msgpack_serialize({"a": 1}),
        flax.serialization.msgpack_serialize({"a": {"b": "text"}}),
        flax.serialization.msgpack_serialize([np.ones(2)]),
        b"\x81\xa1a\xc7\x09\x01\x93\x91\x02\xa1O\xc4\x02ab",  # an array of Python objects
    ],
    ids=lambda content: repr(content[:12]),
)
def test_damaged_and_hostile_msgpack(content: bytes, tmp_path: Path) -> None:
    exported("bert", tmp_path / "ours")
    (tmp_path / "ours" / "flax_model.msgpack").write_bytes(content)
    with pytest.raises(BadInput, match="flax_model.msgpack"):
        interop.from_pretrained(tmp_path / "ours")


def test_msgpack_cut_short(tmp_path: Path) -> None:
    exported("bert", tmp_path / "ours")
    path = tmp_path / "ours" / "flax_model.msgpack"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(BadInput, match="damaged or cut short"):
        interop.from_pretrained(tmp_path / "ours")


def test_msgpack_far_too_large_is_not_read(tmp_path: Path) -> None:
    exported("bert", tmp_path / "ours")
    with (tmp_path / "ours" / "flax_model.msgpack").open("wb") as file:
        file.truncate(2**31)  # sparse: takes no disk
    with pytest.raises(BadInput, match="2,147,483,648 bytes"):
        interop.from_pretrained(tmp_path / "ours")
    shutil.rmtree(tmp_path / "ours")
