"""Hugging Face Flax: FlaxMobileBert…, FlaxIBBert…, and the msgpack files that Flax classes load.

The classes are transformers' own in all but name, and they run our network. They are loaded when they are first asked
for, since transformers' Flax takes seconds to import; transformers 5 has none, and then asking is a `BadInput`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from jaxdistill.errors import BadInput
from jaxdistill.interop.hf_flax.weights import (
    INDEX,
    WEIGHTS,
    in_pytorch_names,
    state_from_tree,
    tree_from_state,
    write_state,
)

_TASKS = ("PreTrainedModel", "Model", "ForPreTraining", "ForMaskedLM", "ForNextSentencePrediction",
          "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "ForMultipleChoice")
CLASSES = ("IBBertConfig", *(f"Flax{family}{task}" for family in ("MobileBert", "IBBert") for task in _TASKS))

if TYPE_CHECKING:
    from jaxdistill.interop.hf_flax.ib_bert import IBBertConfig as IBBertConfig
    from jaxdistill.interop.hf_flax.models import *  # noqa: F403
    from jaxdistill.interop.hf_flax.registration import register_with_transformers as register_with_transformers

__all__ = ["CLASSES", "INDEX", "WEIGHTS", "in_pytorch_names", "register_with_transformers",
           "state_from_tree", "tree_from_state", "write_state"]


def __getattr__(name: str) -> Any:
    if name == "register_with_transformers":
        return load("registration").register_with_transformers
    if name in CLASSES:
        return getattr(load("models"), name)
    raise AttributeError(f"module 'jaxdistill.interop.hf_flax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *CLASSES})


def load(module: str) -> Any:
    """A module of this package that may need transformers' Flax; `BadInput` where the installed transformers has none."""
    try:
        return importlib.import_module(f"jaxdistill.interop.hf_flax.{module}")
    except ImportError as error:
        import transformers

        raise BadInput(f"transformers {transformers.__version__} has no Flax classes ({error}); they need "
                       "'transformers>=4.57,<5'. A saved folder itself also loads in PyTorch under transformers 5, and "
                       "jaxdistill.from_pretrained needs no transformers") from error
