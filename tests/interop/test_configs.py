"""ModelConfig <-> config.json: explicit keys, the class's own defaults, and what cannot be
expressed."""

from __future__ import annotations

import re
from typing import Any

import pytest
from transformers.models.bert.configuration_bert import BertConfig
from transformers.models.mobilebert.configuration_mobilebert import MobileBertConfig

from jaxdistill.errors import BadInput
from jaxdistill.interop import configs, why_not_huggingface
from jaxdistill.models import PRESETS, ModelConfig, preset

# google/mobilebert-uncased/config.json, as on the Hub.
PUBLISHED = {
    "attention_probs_dropout_prob": 0.1,
    "classifier_activation": False,
    "embedding_size": 128,
    "hidden_act": "relu",
    "hidden_dropout_prob": 0.0,
    "hidden_size": 512,
    "initializer_range": 0.02,
    "intermediate_size": 512,
    "intra_bottleneck_size": 128,
    "key_query_shared_bottleneck": True,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "model_type": "mobilebert",
    "normalization_type": "no_norm",
    "num_attention_heads": 4,
    "num_feedforward_networks": 4,
    "num_hidden_layers": 24,
    "pad_token_id": 0,
    "trigram_input": True,
    "true_hidden_size": 128,
    "type_vocab_size": 2,
    "use_bottleneck": True,
    "use_bottleneck_attention": False,
    "vocab_size": 30522,
}


def test_the_published_mobilebert_is_our_preset() -> None:
    ours = preset("mobilebert")
    assert configs.from_huggingface(PUBLISHED, "here") == ours.replace(heads=())
    written = configs.to_huggingface(ours)
    assert {key: written[key] for key in PUBLISHED} == PUBLISHED


def test_every_key_is_explicit() -> None:
    """No key of the class is left to its default, so a changed default in transformers changes
    nothing."""
    plumbing = set(BertConfig().to_dict()) & set(MobileBertConfig().to_dict()) - set(
        configs.SHARED_KEYS
    )
    for family, name in ((MobileBertConfig, "mobilebert"), (BertConfig, "bert_base")):
        own = set(family().to_dict()) - plumbing - {"use_cache"}
        assert own <= set(configs.to_huggingface(preset(name)))
        read = family(**configs.to_huggingface(preset(name)))
        assert (
            read.hidden_act == ("relu" if name == "mobilebert" else "gelu")
            and read.classifier_dropout == 0.1
        )


@pytest.mark.parametrize("family", [BertConfig, MobileBertConfig])
def test_missing_keys_mean_the_defaults_of_the_class(family: Any) -> None:
    """An all-default config.json is nearly empty; classifier_activation is True then, unlike the
    published file."""
    everything = family().to_dict()
    read = configs.from_huggingface(everything, "here")
    assert configs.from_huggingface({"model_type": family.model_type}, "here") == read
    assert read.pooler == "tanh"


@pytest.mark.parametrize(
    "act, ours",
    [
        ("gelu", "gelu"),
        ("gelu_new", "gelu_tanh"),
        ("gelu_pytorch_tanh", "gelu_tanh"),
        ("relu", "relu"),
    ],
)
def test_activations(act: str, ours: str) -> None:
    """Theirs "gelu" is exact; Google's is the tanh form."""
    read = configs.from_huggingface({**PUBLISHED, "hidden_act": act}, "here")
    assert read.activation == ours
    assert configs.from_huggingface(configs.to_huggingface(read), "here") == read


def test_epsilons_of_layer_norm_mobilebert() -> None:
    read = configs.from_huggingface({**PUBLISHED, "normalization_type": "layer_norm"}, "here")
    assert (read.norm_eps, read.embedding_norm_eps, read.ffn_norm_eps) == (1e-12, 1e-5, 1e-5)


def test_classifier_dropout() -> None:
    """theirs falls back to hidden_dropout_prob, 0 in MobileBERT; Google's fine-tuning always used
    0.1."""
    assert (
        configs.from_huggingface(
            {**PUBLISHED, "classifier_dropout": None}, "here"
        ).classifier_dropout
        == 0.1
    )
    assert (
        configs.from_huggingface(
            {**PUBLISHED, "classifier_dropout": 0.3}, "here"
        ).classifier_dropout
        == 0.3
    )


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"model_type": "roberta"},
            "model_type='roberta', which is not read: encoders are of model_type 'bert' or 'mobilebert'",
        ),
        ({"hidden_act": "silu"}, "hidden_act='silu'; .*valid: gelu"),
        ({"hidden_act": ["gelu"]}, "hidden_act"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ({"is_decoder": True}, "is_decoder"),
        ({"key_query_shared_bottleneck": False}, "transformers itself cannot run"),
        ({"normalization_type": "manual"}, "norm='manual'"),
        ({"hidden_size": [512]}, "hidden_size"),
        ({"num_hidden_layers": 0}, "num_layers=0"),
        ({"hidden_size": "512"}, "hidden_size"),
        ({"num_attention_heads": 5}, "not divisible"),
    ],
)
def test_what_cannot_be_read(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        configs.from_huggingface({**PUBLISHED, **changes}, "here")


@pytest.mark.parametrize(
    "config, reason",
    [
        (
            preset("ib_bert_large"),
            "BERT has no bottlenecks, .* queries and keys are projected from the 512-wide block",
        ),
        (
            preset("mobilebert_without_opt").replace(ffn_norm_eps=None),
            "ffn_norm_eps is 1e-12 here and fixed at 1e-05",
        ),
        (preset("mobilebert").replace(norm="layer_norm"), "embedding_norm_eps is 1e-12"),
        (
            ModelConfig(num_ffn=2),
            r"BERT has no stacked feed-forward networks .*embedding_norm_eps=1e-05",
        ),
        (ModelConfig(trigram_input=True), "BERT has no trigram input"),
        (ModelConfig(embedding_size=128), "BERT has no word table narrower"),
        (ModelConfig(ffn_norm_eps=1e-5), "second LayerNorm epsilon"),
        (ModelConfig(pooler="first_token"), "raw first token"),
        (
            ModelConfig(heads=("mlm", "sequence_classification")),
            "no one class of transformers holds these heads",
        ),
    ],
)
def test_why_not(config: ModelConfig, reason: str) -> None:
    told = why_not_huggingface(config)
    assert told is not None and re.search(reason, told)
    with pytest.raises(BadInput, match="has no Hugging Face form"):
        configs.to_huggingface(config)


def test_only_the_teacher_of_the_presets_is_inexpressible() -> None:
    assert [name for name, config in PRESETS.items() if why_not_huggingface(config)] == [
        "ib_bert_large"
    ]


def test_advice_of_the_message_works() -> None:
    assert (
        why_not_huggingface(ModelConfig(num_ffn=2, embedding_norm_eps=1e-5, ffn_norm_eps=1e-5))
        is None
    )


def test_labels() -> None:
    config = ModelConfig(heads=("sequence_classification",), num_labels=2)
    assert configs.to_huggingface(config, ["no", "yes"])["label2id"] == {"no": 0, "yes": 1}
    with pytest.raises(BadInput, match="labels has 3 names"):
        configs.to_huggingface(config, ["a", "b", "c"])
    with pytest.raises(BadInput, match="leave labels away"):
        configs.to_huggingface(ModelConfig(), ["a", "b"])
    regression = configs.to_huggingface(config.replace(regression=True))
    assert regression["problem_type"] == "regression" and len(regression["id2label"]) == 1
    # A question-answering class is built from the number of labels, whatever else they are.
    assert (
        len(
            configs.to_huggingface(ModelConfig(heads=("question_answering",), num_labels=7))[
                "id2label"
            ]
        )
        == 2
    )
