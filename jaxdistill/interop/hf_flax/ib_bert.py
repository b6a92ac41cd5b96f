"""IBBertConfig: the inverted-bottleneck teacher as a config of transformers, `model_type` "ib_bert". Imports transformers.

transformers' PyTorch has no class for it: MobileBertSelfAttention projects queries and keys from the width inside a
block, IB-BERT from the width between blocks. So only the Flax classes of `models` read it.
"""

from __future__ import annotations

from typing import Any

from transformers.configuration_utils import PretrainedConfig

from jaxdistill.interop import configs
from jaxdistill.models import ModelConfig, preset


class IBBertConfig(PretrainedConfig):
    """MobileBertConfig's keys as far as they have a meaning here, and the two odd epsilons (None: `layer_norm_eps`).

    `intra_bottleneck_size` is the width inside a block, the wider one. Defaults are IB-BERT_LARGE's.
    """

    model_type = configs.IB_BERT

    def __init__(self, pad_token_id: int = 0, **keys: Any) -> None:
        for key, default in configs.to_ib_bert(preset("ib_bert_large")).items():
            setattr(self, key, keys.pop(key, default))
        super().__init__(pad_token_id=pad_token_id, **keys)

    @classmethod
    def from_model(cls, config: ModelConfig) -> IBBertConfig:
        """Of a network of ours. Raises `BadInput` if it is no inverted-bottleneck BERT."""
        values = configs.to_ib_bert(config)
        if {"sequence_classification", "token_classification"} & set(config.heads):
            values["num_labels"] = 1 if config.regression else config.num_labels
        return cls(**values)
