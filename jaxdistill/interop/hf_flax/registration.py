"""`register_with_transformers`: makes our Flax classes transformers' own. Imports transformers'
Flax when it is called."""

from __future__ import annotations

import functools
import gc
import importlib
from typing import Any

from jaxdistill.interop.hf_flax.classes import CLASSES, load


def register_with_transformers() -> None:
    """Registers FlaxMobileBert… and FlaxIBBert… with transformers; calling it again changes
    nothing.

    Afterwards `FlaxAutoModel…` of every task find them by a folder's config.json (also the teacher
    in our own format), `from transformers import FlaxMobileBertModel` works, and so does PyTorch's
    `MobileBert….from_pretrained(folder, from_flax=True)`, which looks for the Flax class of the
    same name there (as for BERT, that drops the encoder, with a warning, when a base model's folder
    goes into a class with a head: `jaxdistill export` the folder instead). Raises `BadInput` where
    transformers has no Flax classes (5 and later)."""
    models, ib_bert = load("models"), load("ib_bert")
    from transformers import AutoConfig, modeling_flax_pytorch_utils
    from transformers.models.auto import modeling_flax_auto
    from transformers.utils.import_utils import _LazyModule

    for kind in (ib_bert.IBBertConfig, ib_bert.OwnFormatConfig):
        AutoConfig.register(kind.model_type, kind, exist_ok=True)
    # This module makes the package anew, under the same name, when it is first imported: whoever
    # imported transformers before holds another one. So it comes first, and then the classes are
    # put on all there are.
    importlib.import_module("transformers.processing_utils")
    packages = [
        thing
        for thing in gc.get_objects()
        if type(thing) is _LazyModule and thing.__name__ == "transformers"
    ]
    for name in CLASSES:
        value = getattr(models, name)
        for package in packages:
            setattr(package, name, value)
        if name.startswith("Flax") and not name.endswith("PreTrainedModel"):
            auto = getattr(
                modeling_flax_auto,
                "FlaxAuto" + ("Model" if value.kind == "Model" else f"Model{value.kind}"),
            )
            auto.register(value.config_class, value, exist_ok=True)
    _mend_from_flax(modeling_flax_pytorch_utils)


def _mend_from_flax(utils: Any) -> None:
    """Makes PyTorch's `from_flax=True` work. transformers 4.57 gives it a network on the meta
    device, into which nothing can be copied, for BERT and every other model: one with storage takes
    its place, and their code goes on."""
    theirs = utils.load_flax_checkpoint_in_pytorch_model
    if hasattr(theirs, "__wrapped__"):
        return

    @functools.wraps(theirs)
    def load_flax_checkpoint_in_pytorch_model(model: Any, path: str) -> Any:
        if any(parameter.is_meta for parameter in model.parameters()):
            model = type(model)(model.config)
        return theirs(model, path)

    utils.load_flax_checkpoint_in_pytorch_model = load_flax_checkpoint_in_pytorch_model
