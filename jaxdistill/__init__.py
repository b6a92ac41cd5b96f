"""jaxdistill: compress BERT-type encoders with JAX. Everything a command does is one function here.

Names are loaded when they are first used, so that `import jaxdistill` stays light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_WHERE = {
    "train": "jaxdistill.run",
    "load_config": "jaxdistill.configuration",
    "prepare": "jaxdistill.commands",
    "evaluate": "jaxdistill.commands",
    "finetune": "jaxdistill.task_commands",
    "evaluate_task": "jaxdistill.task_commands",
    "predict": "jaxdistill.prediction",
    "seeds": "jaxdistill.commands",
    "search_mapping": "jaxdistill.commands",
    "export": "jaxdistill.conversion",
    "plan": "jaxdistill.planning.plan",
    "describe": "jaxdistill.commands",
    "from_pretrained": "jaxdistill.interop",
    "save_pretrained": "jaxdistill.interop",
    "register_with_transformers": "jaxdistill.interop.hf_flax",
    "Model": "jaxdistill.models",
    "ModelConfig": "jaxdistill.models",
    "preset": "jaxdistill.models",
}

if TYPE_CHECKING:
    from jaxdistill.commands import describe as describe
    from jaxdistill.commands import evaluate as evaluate
    from jaxdistill.commands import prepare as prepare
    from jaxdistill.commands import search_mapping as search_mapping
    from jaxdistill.commands import seeds as seeds
    from jaxdistill.configuration import load_config as load_config
    from jaxdistill.conversion import export as export
    from jaxdistill.interop import from_pretrained as from_pretrained
    from jaxdistill.interop import save_pretrained as save_pretrained
    from jaxdistill.interop.hf_flax import register_with_transformers as register_with_transformers
    from jaxdistill.models import Model as Model
    from jaxdistill.models import ModelConfig as ModelConfig
    from jaxdistill.models import preset as preset
    from jaxdistill.planning.plan import plan as plan
    from jaxdistill.prediction import predict as predict
    from jaxdistill.run import train as train
    from jaxdistill.task_commands import evaluate_task as evaluate_task
    from jaxdistill.task_commands import finetune as finetune

__all__ = ["__version__", *_WHERE]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'jaxdistill' has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
