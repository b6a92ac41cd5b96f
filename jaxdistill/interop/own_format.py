"""Our own folder, for models that Hugging Face cannot express: config.json, model.safetensors.
Called by `pretrained`.

config.json is {"model_type": "jaxdistill", "format_version": 1, "config": the fields of
ModelConfig} and, if the classes of a classification head have names, "labels": those in order, and
"huggingface": what the Hugging Face config.json of the same model said beside its architecture; the
tensors carry our names ("layers/attention/query/kernel"), layers stacked, and come back equal to
the bit."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from etils import epath

from jaxdistill.errors import BadInput
from jaxdistill.interop import configs, convert, hf_torch
from jaxdistill.models import ModelConfig, Params, parameters

MODEL_TYPE = "jaxdistill"
FORMAT_VERSION = 1
# Keys of the Hugging Face config.json that the model came with, for the way back.
SAID = "huggingface"


def write(
    directory: epath.Path, config: ModelConfig, params: Params, labels: Sequence[str] | None = None
) -> None:
    """Both files into an existing folder. Raises `BadInput` if `params` or `labels` are not those
    of `config`."""
    flat = {name: np.asarray(array) for name, array in parameters.flatten(params).items()}
    convert.check_tree(config, flat)
    values: dict[str, Any] = {
        "model_type": MODEL_TYPE,
        "format_version": FORMAT_VERSION,
        "config": config.to_dict(),
    }
    if labels is not None:
        values["labels"] = configs.check_labels(config, labels)
    (directory / "config.json").write_text(json.dumps(values, indent=2) + "\n")
    hf_torch.write_file(
        directory / hf_torch.WEIGHTS,
        flat,
        {"format": MODEL_TYPE, "format_version": str(FORMAT_VERSION)},
    )


def read_config(values: dict[str, Any], where: str) -> ModelConfig:
    """The ModelConfig in a config.json of ours."""
    version = values.get("format_version")
    if version != FORMAT_VERSION:
        raise BadInput(
            f"{where} has format_version={version!r}; this jaxdistill reads {FORMAT_VERSION}. "
            "Use the jaxdistill that wrote it, or export the model again"
        )
    fields = values.get("config")
    if not isinstance(fields, dict):
        raise BadInput(
            f"{where} has no 'config' with the fields of the model; export the model again"
        )
    configs.check_kinds(fields, where)
    if not isinstance(fields.get("heads", []), list):
        raise BadInput(
            f"{where}: heads is {fields['heads']!r}; expected a list of names. Mend config.json"
        )
    try:
        return ModelConfig.from_dict(fields)
    except BadInput as error:
        raise BadInput(f"{where}: {error}") from error


def read_params(directory: epath.Path, config: ModelConfig) -> Params:
    """The parameters, exactly as stored. Raises `BadInput` for a missing, damaged or foreign
    file."""
    flat = hf_torch.read_state(directory, convert.largest_bytes(config))
    if flat is None:
        raise BadInput(f"{directory} has no {hf_torch.WEIGHTS}; export the model again")
    convert.check_tree(config, flat, str(directory / hf_torch.WEIGHTS))
    convert.check_finite(flat, str(directory / hf_torch.WEIGHTS))
    return parameters.unflatten({name: jnp.asarray(array) for name, array in flat.items()})
