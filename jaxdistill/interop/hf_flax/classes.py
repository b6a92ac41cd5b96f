"""Which classes there are, and how a module is loaded that needs transformers' Flax."""

from __future__ import annotations

import importlib
from typing import Any

from jaxdistill.errors import BadInput

_TASKS = (
    "PreTrainedModel",
    "Model",
    "ForPreTraining",
    "ForMaskedLM",
    "ForNextSentencePrediction",
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForQuestionAnswering",
    "ForMultipleChoice",
)
CLASSES = (
    "IBBertConfig",
    *(f"Flax{family}{task}" for family in ("MobileBert", "IBBert") for task in _TASKS),
)


def load(module: str) -> Any:
    """A module of this package that may need transformers' Flax; `BadInput` where the installed
    transformers has none."""
    try:
        return importlib.import_module(f"jaxdistill.interop.hf_flax.{module}")
    except ImportError as error:
        import transformers

        raise BadInput(
            f"transformers {transformers.__version__} has no Flax classes ({error}); they need "
            "'transformers>=4.57,<5'. A saved folder itself also loads in PyTorch under transformers 5, and "
            "jaxdistill.from_pretrained needs no transformers"
        ) from error
