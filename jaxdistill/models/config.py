"""What a network is: one frozen, hashable description from which every shape follows, and the
published presets.

BERT, IB-BERT, MobileBERT, MobileBERT without OPT, MobileBERT_TINY and everything between are points
of `ModelConfig`: an inter-block width, an optional narrower or wider intra-block width, and what
the attention reads. Field names are ours; `interop` alone knows other people's. Paper: Sun et al.
2020 (MobileBERT), tables 1-2; Devlin et al. 2019 (BERT)."""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxdistill.errors import BadInput, nearest

NORMS = ("layer_norm", "no_norm")
ACTIVATIONS = ("gelu", "gelu_tanh", "relu")
ATTENTION_INPUTS = ("hidden", "shared_bottleneck", "bottleneck")
POOLERS = ("tanh", "first_token", "none")
DTYPES = ("float32", "bfloat16")
# How tokens become one vector; several joined by "+" are concatenated, as in "first_token+mean".
POOLINGS = ("first_token", "max", "mean", "mean_sqrt_length", "weighted_mean", "last_token")
EMBEDDING_ACTIVATIONS = ("tanh", "identity", "relu", "gelu")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The architecture of one encoder and its heads.

    Widths: `hidden_size` D is what flows between blocks; `bottleneck_size` is what flows inside a
    block (None: no bottlenecks, a plain BERT block); `embedding_size` is the width of the word
    table (None: D). `attention_input` says what query, key and value are projected from: "hidden"
    (the block's input: BERT and IB-BERT), "shared_bottleneck" (query and key from one extra
    bottleneck, value from the block's input: MobileBERT) or "bottleneck" (all three from the
    bottleneck: MobileBERT_TINY). `norm_eps` is the epsilon of every LayerNorm but two:
    `embedding_norm_eps` and `ffn_norm_eps` (the norm of the last feed-forward network of a block)
    differ in Hugging Face's MobileBERT, which leaves them at 1e-5; None means `norm_eps`. `dtype`
    is that of matrix products and `residual_dtype` that in which hidden states are kept between
    layers and sub-layers; parameters, the sums on the residual stream, norms and softmax are
    float32 in any case. `embedding_features`: the width of a dense layer with
    `embedding_activation` behind the pooling; None: no such layer. `attention_head_size` K: the width
    of one attention head where it is not the width inside a block over `num_heads`; None: it is.
    `projected_size` P: the width of a linear map of the last hidden state, which is what heads of
    tokens read, and heads of a first token that no pooler takes (XtremeDistil's top projection); None:
    they read the hidden state."""

    vocab_size: int = 30522
    num_layers: int = 12
    hidden_size: int = 768
    num_heads: int = 12
    intermediate_size: int = 3072
    num_ffn: int = 1
    embedding_size: int | None = None
    trigram_input: bool = False
    bottleneck_size: int | None = None
    attention_input: str = "hidden"
    norm: str = "layer_norm"
    activation: str = "gelu"
    pooler: str = "tanh"
    hidden_dropout: float = 0.1
    attention_dropout: float = 0.1
    max_positions: int = 512
    type_vocab_size: int = 2
    norm_eps: float = 1e-12
    embedding_norm_eps: float | None = None
    ffn_norm_eps: float | None = None
    initializer_range: float = 0.02
    pad_token_id: int = 0
    heads: tuple[str, ...] = ("mlm", "nsp")
    num_labels: int = 2
    regression: bool = False
    embedding_pooling: str = "mean"
    normalize_embedding: bool = True
    embedding_features: int | None = None
    embedding_activation: str = "tanh"
    classifier_dropout: float = 0.1
    attention_head_size: int | None = None
    projected_size: int | None = None
    dtype: str = "float32"
    residual_dtype: str = "float32"

    def __post_init__(self) -> None:
        object.__setattr__(self, "heads", tuple(self.heads))
        for field, valid in (
            ("norm", NORMS),
            ("activation", ACTIVATIONS),
            ("attention_input", ATTENTION_INPUTS),
            ("pooler", POOLERS),
            ("dtype", DTYPES),
            ("residual_dtype", DTYPES),
            ("embedding_activation", EMBEDDING_ACTIVATIONS),
        ):
            if getattr(self, field) not in valid:
                raise BadInput(
                    f"model {field}={getattr(self, field)!r} is unknown; {nearest(getattr(self, field), valid)}"
                )
        for part in self.poolings:
            if part not in POOLINGS or self.poolings.count(part) > 1:
                raise BadInput(
                    f"model embedding_pooling={self.embedding_pooling!r}: expected one of {', '.join(POOLINGS)}, "
                    "or several different ones joined by '+'"
                )
        for field in (
            "vocab_size",
            "num_layers",
            "hidden_size",
            "num_heads",
            "intermediate_size",
            "num_ffn",
            "max_positions",
            "type_vocab_size",
            "num_labels",
        ):
            if int(getattr(self, field)) < 1:
                raise BadInput(
                    f"model {field}={getattr(self, field)!r} must be a positive whole number"
                )
        for field in ("embedding_features", "attention_head_size", "projected_size"):
            if getattr(self, field) is not None and int(getattr(self, field)) < 1:
                raise BadInput(
                    f"model {field}={getattr(self, field)!r} must be a positive whole number, or None"
                )
        if self.attention_head_size is None and self.inner_size % self.num_heads:
            raise BadInput(
                f"model width inside a block ({self.inner_size}) is not divisible by num_heads="
                f"{self.num_heads}; change num_heads or {'bottleneck_size' if self.bottleneck_size else 'hidden_size'}"
            )
        if self.bottleneck_size is None and self.attention_input != "hidden":
            raise BadInput(
                f"model attention_input={self.attention_input!r} needs a bottleneck_size; "
                "set one, or attention_input='hidden'"
            )
        if self.word_size > self.hidden_size:
            raise BadInput(
                f"model embedding_size={self.word_size} is wider than hidden_size={self.hidden_size}; "
                "the output table is the word table widened to hidden_size, so it cannot shrink"
            )
        if "nsp" in self.heads and self.pooler == "none":
            raise BadInput(
                "model heads include 'nsp', which reads the pooled first token, but pooler='none'; "
                "use pooler='first_token' or 'tanh'"
            )

    @property
    def inner_size(self) -> int:
        """Width of the residual stream inside a block."""
        return self.bottleneck_size or self.hidden_size

    @property
    def head_size(self) -> int:
        """Width K of one attention head."""
        return self.attention_head_size or self.inner_size // self.num_heads

    @property
    def word_size(self) -> int:
        """Width E of the word table."""
        return self.embedding_size or self.hidden_size

    @property
    def poolings(self) -> tuple[str, ...]:
        """The parts of `embedding_pooling`, in the order in which they are concatenated."""
        return tuple(self.embedding_pooling.split("+"))

    @property
    def has_embedding_projection(self) -> bool:
        """Whether a dense layer takes word vectors (or their trigrams) to the inter-block width."""
        return self.trigram_input or self.word_size != self.hidden_size

    def replace(self, **changes: Any) -> ModelConfig:
        """A copy with `changes`; a misspelt field is a `BadInput` with the nearest name."""
        check_fields(changes)
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready values; `from_dict` reads them back."""
        values = {**dataclasses.asdict(self), "heads": list(self.heads)}
        for younger in ("attention_head_size", "projected_size"):  # than digests that are kept
            if values[younger] is None:
                del values[younger]
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        check_fields(values)
        return cls(**values)


def check_fields(values: dict[str, Any]) -> None:
    """Raises `BadInput` naming the nearest field for any key that `ModelConfig` does not have."""
    valid = {field.name for field in dataclasses.fields(ModelConfig)}
    for name in values:
        if name not in valid:
            raise BadInput(f"model field {name!r} is unknown; {nearest(name, valid)}")


_IB: dict[str, Any] = dict(
    hidden_size=512, embedding_size=128, trigram_input=True, num_layers=24, num_heads=4
)
_MOBILE: dict[str, Any] = dict(
    _IB,
    bottleneck_size=128,
    intermediate_size=512,
    hidden_dropout=0.0,
    pooler="first_token",
    norm="no_norm",
    activation="relu",
)

PRESETS: dict[str, ModelConfig] = {
    "bert_base": ModelConfig(),
    "bert_large": ModelConfig(
        num_layers=24, hidden_size=1024, num_heads=16, intermediate_size=4096
    ),
    # The teacher: BERT_LARGE's width inside, the student's width between blocks. Google's gelu is
    # the tanh form.
    "ib_bert_large": ModelConfig(
        **_IB, bottleneck_size=1024, intermediate_size=4096, activation="gelu_tanh"
    ),
    "mobilebert": ModelConfig(**_MOBILE, num_ffn=4, attention_input="shared_bottleneck"),
    # "OPT" is two changes (NoNorm, relu), undone here. The two odd epsilons are Hugging Face's, so
    # that it exports.
    "mobilebert_without_opt": ModelConfig(
        **{**_MOBILE, "norm": "layer_norm", "activation": "gelu"},
        num_ffn=4,
        attention_input="shared_bottleneck",
        embedding_norm_eps=1e-5,
        ffn_norm_eps=1e-5,
    ),
    "mobilebert_tiny": ModelConfig(**_MOBILE, num_ffn=2, attention_input="bottleneck"),
}


def preset(name: str) -> ModelConfig:
    """The published configuration `name`; raises `BadInput` with the nearest name if there is
    none."""
    if name not in PRESETS:
        raise BadInput(f"model preset {name!r} is unknown; {nearest(name, PRESETS)}")
    return PRESETS[name]
