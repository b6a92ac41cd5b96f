"""A network's projection, folded into the heads behind it: one product in place of two, the same outputs.

A head reads (x W + b) V + c, W and b the projection's, and so x (W V) + (b V + c). No class of transformers
has such a map. Called before a model is written."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from jaxdistill.interop import own_format
from jaxdistill.interop.configs import why_not_huggingface
from jaxdistill.models import Model, Params
from jaxdistill.models.heads import HEADS, PROJECTION, projects


def for_format(model: Model, params: Params, format: str | None = None) -> tuple[Model, Params]:
    """The model as it can be written in `format`: folded, where its projection is all that keeps it from a
    Hugging Face folder, and our own is not asked for."""
    plain = model.config.replace(projected_size=None)
    if format == own_format.MODEL_TYPE or why_not_huggingface(plain):
        return model, params
    return folded(model, params)


def folded(model: Model, params: Params) -> tuple[Model, Params]:
    """The same network without its projection: what heads give is equal but for rounding, of this dropout
    between the two alone is lost. Itself if it has none."""
    config = model.config
    if config.projected_size is None:
        return model, params
    outer = params[PROJECTION]["dense"]
    found = {name: tree for name, tree in params.items() if name != PROJECTION}
    for head in config.heads:
        if projects(config, HEADS[head].reads):
            found[head] = {**params[head], "dense": _product(outer, params[head]["dense"])}
    return dataclasses.replace(model, config=config.replace(projected_size=None)), found


def _product(first: Params, second: Params) -> dict[str, Any]:
    """The dense layer that is `first` and then `second`; summed in float64."""
    kernel_DxP, bias_P = (np.asarray(first[name], np.float64) for name in ("kernel", "bias"))
    kernel_PxC, bias_C = (np.asarray(second[name], np.float64) for name in ("kernel", "bias"))
    kernel_DxC, bias_C = kernel_DxP @ kernel_PxC, bias_P @ kernel_PxC + bias_C
    return {"kernel": kernel_DxC.astype(np.float32), "bias": bias_C.astype(np.float32)}
