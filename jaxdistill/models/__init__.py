"""What a network is. `Model(config).apply(params, batch, taps=(...)) -> (outputs, taps)`."""

from jaxdistill.models.config import PRESETS, ModelConfig, preset
from jaxdistill.models.encoder import TAPS, Arrays, Batch, Model, Params

__all__ = ["PRESETS", "TAPS", "Arrays", "Batch", "Model", "ModelConfig", "Params", "preset"]
