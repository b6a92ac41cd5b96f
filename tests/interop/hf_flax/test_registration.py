"""`register_with_transformers`: auto classes, names on the transformers package, and where
transformers has no Flax."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from transformers import modeling_flax_pytorch_utils
from transformers.models.auto import modeling_flax_auto
from transformers.models.mobilebert.modeling_mobilebert import MobileBertModel
from transformers.utils.import_utils import direct_transformers_import

import jaxdistill
from jaxdistill.errors import BadInput
from jaxdistill.interop import hf_flax
from tests.interop.hf_flax import classes
from tests.interop.hf_flax.classes import MOST, class_of, config_of, model_of


@pytest.mark.parametrize("name", MOST)
def test_auto_classes_find_a_folder(name: str, tmp_path: Path) -> None:
    jaxdistill.register_with_transformers()
    jaxdistill.register_with_transformers()  # again changes nothing
    model_of(name).save_pretrained(tmp_path)
    kind = class_of(name).kind
    auto = getattr(modeling_flax_auto, "FlaxAutoModel" + ("" if kind == "Model" else kind))
    model, params = auto.from_pretrained(tmp_path, _do_init=False)
    assert type(model) is class_of(name)
    classes.assert_equal(params, model_of(name).params)
    assert type(transformers.AutoConfig.from_pretrained(tmp_path)) is class_of(name).config_class


def test_names_are_on_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """On each there is: transformers makes its package anew while it is imported, so a user may
    hold an older one."""
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "transformers", sys.modules["transformers"])
        newer = direct_transformers_import(str(Path(transformers.__file__).parent))
        assert newer is not transformers and not hasattr(newer, "FlaxMobileBertModel")
        jaxdistill.register_with_transformers()
        for package in (transformers, newer):
            for name in hf_flax.CLASSES:
                assert getattr(package, name) is getattr(hf_flax, name)


def test_from_flax_is_mended_once_and_only_where_it_is_broken(tmp_path: Path) -> None:
    """A network with storage is theirs to fill, as it always was; one on the meta device is made
    anew."""
    jaxdistill.register_with_transformers()
    load = modeling_flax_pytorch_utils.load_flax_checkpoint_in_pytorch_model
    jaxdistill.register_with_transformers()
    assert modeling_flax_pytorch_utils.load_flax_checkpoint_in_pytorch_model is load
    assert not hasattr(load.__wrapped__, "__wrapped__")
    model_of("FlaxMobileBertModel").save_pretrained(tmp_path)
    with torch.device("meta"):
        broken = MobileBertModel(config_of("FlaxMobileBertModel"))
    whole = MobileBertModel(config_of("FlaxMobileBertModel"))
    words = model_of("FlaxMobileBertModel").params["embeddings"]["word_embeddings"]["embedding"]
    for network in (whole, broken):
        loaded = load(network, str(tmp_path / "flax_model.msgpack"))
        assert (loaded is network) == (network is whole) and not any(
            value.is_meta for value in loaded.state_dict().values()
        )
        np.testing.assert_array_equal(
            loaded.state_dict()["embeddings.word_embeddings.weight"], words
        )


def test_pytorch_has_no_class_for_the_teacher(tmp_path: Path) -> None:
    jaxdistill.register_with_transformers()
    model_of("FlaxIBBertModel").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="IBBertConfig"):
        transformers.AutoModel.from_pretrained(tmp_path, from_flax=True)


def test_without_transformers_flax(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers 5 has no Flax: everything imports, and asking for a class says what to do."""
    for module in ("models", "module", "registration"):
        monkeypatch.delitem(sys.modules, f"jaxdistill.interop.hf_flax.{module}", raising=False)
    for module in ("transformers.modeling_flax_utils", "transformers.modeling_flax_outputs"):
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr(transformers, "__version__", "5.0.0")
    for ask in (lambda: hf_flax.FlaxMobileBertModel, jaxdistill.register_with_transformers):
        with pytest.raises(
            BadInput, match=r"transformers 5.0.0 has no Flax classes .* 'transformers>=4.57,<5'"
        ):
            ask()


def test_nothing_heavy_until_a_class_is_asked_for() -> None:
    """interop and its Flax package import no transformers; a misspelt name is an ordinary
    AttributeError."""
    code = (
        "import sys, jaxdistill.interop, jaxdistill.interop.hf_flax as h; "
        "print([m for m in ('torch', 'transformers', 'tensorflow') if m in sys.modules], hasattr(h, 'FlaxMobilBert'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] False"
    assert set(hf_flax.CLASSES) <= set(dir(hf_flax))
