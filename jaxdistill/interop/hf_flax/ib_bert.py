"""IBBertConfig: the inverted-bottleneck teacher as a config of transformers, `model_type`
"ib_bert". Imports transformers.

Once registered, transformers' auto classes make it of a teacher's folder in our own format too, by
`OwnFormatConfig`.

transformers' PyTorch has no class for it: MobileBertSelfAttention projects queries and keys from
the width inside a block, IB-BERT from the width between blocks. So only the Flax classes of
`models` read it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers.configuration_utils import PretrainedConfig

from jaxdistill.interop import configs, own_format
from jaxdistill.models import ModelConfig, preset


class IBBertConfig(PretrainedConfig):
    """MobileBertConfig's keys as far as they have a meaning here, and the two odd epsilons (None:
    `layer_norm_eps`).

    `intra_bottleneck_size` is the width inside a block, the wider one. Defaults are
    IB-BERT_LARGE's."""

    model_type = configs.IB_BERT

    def __init__(self, pad_token_id: int = 0, **keys: Any) -> None:
        for key, default in configs.to_ib_bert(preset("ib_bert_large")).items():
            setattr(self, key, keys.pop(key, default))
        super().__init__(pad_token_id=pad_token_id, **keys)

    @classmethod
    def from_model(cls, config: ModelConfig, labels: Sequence[str] | None = None) -> IBBertConfig:
        """Of a network of ours; `labels`: names of its classes. Raises `BadInput` if it is no
        inverted-bottleneck BERT."""
        return cls(**configs.to_ib_bert(config), **configs.label_keys(config, labels))

    @classmethod
    def from_own_format(cls, values: dict[str, Any], where: str) -> IBBertConfig:
        """Of the config.json of a folder of our own format."""
        config = own_format.read_config(values, where)
        return cls.from_model(config, configs.labels(values, config))


class OwnFormatConfig(PretrainedConfig):
    """What auto classes find for a folder of our own format: it turns into the IBBertConfig of the
    teacher in it."""

    model_type = own_format.MODEL_TYPE

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Raises `BadInput` that says what to do if the folder holds no inverted-bottleneck
        BERT."""
        config = IBBertConfig.from_own_format(
            config_dict, str(kwargs.get("name_or_path", "this folder"))
        )
        return IBBertConfig.from_dict(config.to_dict(), **kwargs)
