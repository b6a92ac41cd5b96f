"""Other people's formats: the only room that knows foreign names. Hugging Face in and out, our own
folder, model cards.

Light to import: no PyTorch, TensorFlow or transformers, here or in any of the modules but the
classes of `hf_flax`."""

from jaxdistill.interop.configs import labels, why_not_huggingface
from jaxdistill.interop.folding import for_format
from jaxdistill.interop.model_card import model_card
from jaxdistill.interop.own_format import MODEL_TYPE as OWN_FORMAT
from jaxdistill.interop.pretrained import (
    FORMATS,
    Exported,
    Said,
    check_replaceable,
    damage,
    from_pretrained,
    has_weights,
    locate,
    read_config,
    said_by,
    save_pretrained,
    why_own_format,
)
from jaxdistill.interop.verify import verify_export

__all__ = [
    "FORMATS",
    "OWN_FORMAT",
    "Exported",
    "Said",
    "check_replaceable",
    "damage",
    "for_format",
    "from_pretrained",
    "has_weights",
    "labels",
    "locate",
    "model_card",
    "read_config",
    "said_by",
    "save_pretrained",
    "verify_export",
    "why_not_huggingface",
    "why_own_format",
]
