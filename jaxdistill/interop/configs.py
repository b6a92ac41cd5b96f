"""ModelConfig <-> Hugging Face's config.json, for BERT, MobileBERT and our `ib_bert`; what their
classes cannot express.

Every key is written, because the defaults of the classes differ from the published models:
MobileBertConfig() has `classifier_activation=True` where google/mobilebert-uncased has false, and
`key_query_shared_bottleneck=True` where MobileBERT_TINY has none. When reading, a missing key means
the class's default, listed here. Two epsilons are fixed in Hugging Face's MobileBERT: the norms of
the embeddings and of the last feed-forward network are built without one, so PyTorch's 1e-5 holds
there whatever `layer_norm_eps` says."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Sequence
from typing import Any

from jaxdistill.errors import BadInput, nearest
from jaxdistill.models import ModelConfig, preset

# Theirs "gelu" is the exact one.
ACTIVATIONS_IN = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
}
ACTIVATIONS_OUT = {"gelu": "gelu", "gelu_tanh": "gelu_new", "relu": "relu"}
FIXED_EPS = 1e-5
# Annotations of ModelConfig -> types of JSON values.
KINDS: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "str": (str,),
    "bool": (bool,),
    "None": (type(None),),
}
CLASS_NAMES = {"bert": "Bert", "mobilebert": "MobileBert"}
# The inverted-bottleneck teacher: a model_type of our own, whose only classes are the Flax ones of
# `hf_flax`.
IB_BERT = "ib_bert"
# Which of our heads a class of transformers holds, by what follows "Bert" or "MobileBert" in its
# name.
ARCHITECTURES = {
    "Model": (),
    "ForPreTraining": ("mlm", "nsp"),
    "ForMaskedLM": ("mlm",),
    "ForNextSentencePrediction": ("nsp",),
    "ForSequenceClassification": ("sequence_classification",),
    "ForTokenClassification": ("token_classification",),
    "ForQuestionAnswering": ("question_answering",),
    "ForMultipleChoice": ("multiple_choice",),
}

# Keys of a config.json that point at what a written folder does not hold: code of its own,
# quantised weights.
LEFT_OUT = ("auto_map", "quantization_config")

# {their key: (our field, default of BertConfig, default of MobileBertConfig)}
SHARED_KEYS: dict[str, tuple[str, Any, Any]] = {
    "vocab_size": ("vocab_size", 30522, 30522),
    "hidden_size": ("hidden_size", 768, 512),
    "num_hidden_layers": ("num_layers", 12, 24),
    "num_attention_heads": ("num_heads", 12, 4),
    "intermediate_size": ("intermediate_size", 3072, 512),
    "hidden_dropout_prob": ("hidden_dropout", 0.1, 0.0),
    "attention_probs_dropout_prob": ("attention_dropout", 0.1, 0.1),
    "max_position_embeddings": ("max_positions", 512, 512),
    "type_vocab_size": ("type_vocab_size", 2, 2),
    "initializer_range": ("initializer_range", 0.02, 0.02),
    "layer_norm_eps": ("norm_eps", 1e-12, 1e-12),
    "pad_token_id": ("pad_token_id", 0, 0),
}
# Beside these, a config.json of `ib_bert` has hidden_act, classifier_dropout, classifier_activation
# and, by our fields:
IB_BERT_KEYS: dict[str, str] = {
    "embedding_size": "embedding_size",
    "trigram_input": "trigram_input",
    "intra_bottleneck_size": "bottleneck_size",
    "num_feedforward_networks": "num_ffn",
    "normalization_type": "norm",
    "embedding_norm_eps": "embedding_norm_eps",
    "ffn_norm_eps": "ffn_norm_eps",
}


def why_not_huggingface(config: ModelConfig) -> str | None:
    """Why no class of transformers can hold this model, in one sentence; None if one can."""
    return family_of(config)[1]


def family_of(config: ModelConfig) -> tuple[str, str | None]:
    """("bert" or "mobilebert", None), or ("", the reason why neither can express `config`)."""
    if held_heads(config) not in ARCHITECTURES.values():
        return "", (
            f"heads={list(config.heads)}: no one class of transformers holds these heads together; "
            "save with the heads of one task, or with mlm and nsp"
        )
    if config.num_heads * config.head_size != config.inner_size:
        return "", (
            f"its {config.num_heads} attention heads of width {config.head_size} do not add up to the width "
            f"{config.inner_size} of their block, and transformers' do"
        )
    if config.projected_size is not None:
        return "", (
            f"its heads may read the last hidden state in {config.projected_size} dimensions, which no class of "
            "transformers has"
        )
    not_bert = _why_not_bert(config)
    if not_bert is None:
        return "bert", None
    not_mobile = _why_not_mobilebert(config)
    if not_mobile is None:
        return "mobilebert", None
    return (
        "",
        f"transformers' BERT has no {not_bert}, and its MobileBERT cannot take over: {not_mobile}",
    )


def held_heads(config: ModelConfig) -> tuple[str, ...]:
    """The heads that own parameters, in the order of `ARCHITECTURES`; pooling into an embedding
    owns none."""
    return tuple(sorted(head for head in config.heads if head != "embedding"))


def _why_not_bert(config: ModelConfig) -> str | None:
    eps = {config.norm_eps, config.embedding_norm_eps, config.ffn_norm_eps} - {None}
    reasons = {
        "bottlenecks": config.bottleneck_size is not None,
        "stacked feed-forward networks (num_ffn > 1)": config.num_ffn > 1,
        "trigram input": config.trigram_input,
        "word table narrower than the hidden state": config.word_size != config.hidden_size,
        "NoNorm": config.norm != "layer_norm",
        "second LayerNorm epsilon": len(eps) > 1,
        "pooler that returns the raw first token": config.pooler == "first_token",
        "classifier without a pooler": (
            config.pooler == "none"
            and not {"sequence_classification", "multiple_choice"}.isdisjoint(config.heads)
        ),
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def _why_not_mobilebert(config: ModelConfig) -> str | None:
    if config.attention_input == "hidden" and config.bottleneck_size not in (
        None,
        config.hidden_size,
    ):
        return (
            f"attention_input='hidden' with bottleneck_size={config.bottleneck_size} is the inverted-bottleneck "
            f"teacher, whose queries and keys are projected from the {config.hidden_size}-wide block input, while "
            f"MobileBertSelfAttention can only project {config.bottleneck_size}-wide ones (in Flax the classes "
            "FlaxIBBert… of jaxdistill.interop.hf_flax hold it)"
        )
    if config.norm == "layer_norm":
        for field in ("embedding_norm_eps", "ffn_norm_eps"):
            given = getattr(config, field)
            given = config.norm_eps if given is None else given
            if given != FIXED_EPS:
                return (
                    f"{field} is {given:g} here and fixed at {FIXED_EPS:g} there; build the model with "
                    f"embedding_norm_eps={FIXED_EPS:g} and ffn_norm_eps={FIXED_EPS:g} to export it"
                )
    return None


def architecture(config: ModelConfig, family: str) -> str:
    """The class of transformers that holds `config`, e.g. "MobileBertForPreTraining"."""
    return CLASS_NAMES[family] + next(
        name for name, heads in ARCHITECTURES.items() if heads == held_heads(config)
    )


def to_huggingface(config: ModelConfig, labels: Sequence[str] | None = None) -> dict[str, Any]:
    """The config.json of `config`, every key explicit. `labels`: names of the classes, in order.

    Raises `BadInput` for a config that Hugging Face cannot express and for a wrong number of
    labels."""
    family, reason = family_of(config)
    if reason is not None:
        raise BadInput(f"this model has no Hugging Face form: {reason}")
    values: dict[str, Any] = {key: getattr(config, ours) for key, (ours, *_) in SHARED_KEYS.items()}
    values |= {
        "architectures": [architecture(config, family)],
        "model_type": family,
        "hidden_act": ACTIVATIONS_OUT[config.activation],
        "classifier_dropout": config.classifier_dropout,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
    }
    if family == "bert":
        values["position_embedding_type"] = "absolute"
    else:
        values |= {
            "embedding_size": config.word_size,
            "trigram_input": config.trigram_input,
            "use_bottleneck": config.bottleneck_size is not None,
            "intra_bottleneck_size": config.inner_size,
            "true_hidden_size": config.inner_size,
            "use_bottleneck_attention": config.attention_input == "bottleneck",
            "key_query_shared_bottleneck": config.attention_input == "shared_bottleneck",
            "num_feedforward_networks": config.num_ffn,
            "normalization_type": config.norm,
            "classifier_activation": config.pooler == "tanh",
        }
    return dict(sorted((values | label_keys(config, labels)).items()))


def to_ib_bert(config: ModelConfig) -> dict[str, Any]:
    """The keys of an IBBertConfig, without labels. Raises `BadInput` for a network that is no
    inverted-bottleneck BERT."""
    if config.bottleneck_size is None or config.attention_input != "hidden":
        raise BadInput(
            f"this model has bottleneck_size={config.bottleneck_size} and attention_input="
            f"{config.attention_input!r}; an IB-BERT has a bottleneck and attention_input='hidden'. "
            f"{what_to_do(config)}"
        )
    values = {key: getattr(config, ours) for key, (ours, *_) in SHARED_KEYS.items()}
    values |= {key: getattr(config, ours) for key, ours in IB_BERT_KEYS.items()}
    return values | {
        "embedding_size": config.word_size,
        "hidden_act": ACTIVATIONS_OUT[config.activation],
        "classifier_dropout": config.classifier_dropout,
        "classifier_activation": config.pooler == "tanh",
    }


def what_to_do(config: ModelConfig) -> str:
    """How a model that lies in our own format gets into transformers, if it does: for the end of a
    message."""
    family, reason = family_of(config)
    if reason is not None:
        return (
            f"Load it with jaxdistill.from_pretrained; transformers has no class for it: {reason}"
        )
    return (
        f"`jaxdistill export --model=DIR --out=NEW` writes a folder for {architecture(config, family)} and its Flax class; "
        "jaxdistill.from_pretrained loads this one"
    )


def check_labels(config: ModelConfig, labels: Sequence[str] | None) -> list[str]:
    """The names of the classes, LABEL_0 and so on by default. Raises `BadInput` if they do not fit
    the model's heads."""
    classifies = {"sequence_classification", "token_classification"} & set(config.heads)
    if labels is not None and not classifies:
        raise BadInput(
            f"labels={list(labels)} were given for a model with heads={list(config.heads)}; "
            "leave labels away, or save a model with a classification head"
        )
    # The question-answering class too is built from the number of labels: start and end.
    count = config.num_labels if classifies else 2
    count = 1 if config.regression and "sequence_classification" in config.heads else count
    names = list(labels) if labels is not None else [f"LABEL_{i}" for i in range(count)]
    if len(names) != count:
        raise BadInput(
            f"labels has {len(names)} names ({', '.join(names[:4])}…) but the model has {count} outputs; "
            "give one name for each, in order"
        )
    return names


def labels(values: dict[str, Any], config: ModelConfig) -> list[str] | None:
    """The names of the classes in a config.json, in order: Hugging Face's `id2label` or `label2id`,
    or `labels` in our own format; names that are numbers as text.

    None where the model classifies nothing, and where the file has no name for each class.
    """
    if not {"sequence_classification", "token_classification"} & set(config.heads):
        return None
    count = (
        1 if config.regression and "sequence_classification" in config.heads else config.num_labels
    )
    return next((names for names in _class_names(values) if len(names) == count), None)


def names_misfit(values: dict[str, Any], config: ModelConfig) -> bool:
    """Whether a config.json names classes of a classifier, but not one for each."""
    return (
        not {"sequence_classification", "token_classification"}.isdisjoint(config.heads)
        and any(values.get(key) for key in ("id2label", "label2id", "labels"))
        and labels(values, config) is None
    )


def _class_names(values: dict[str, Any]) -> list[list[str]]:
    """The lists of names that a config.json gives, one for each key that names classes 0, 1, …
    without a gap."""
    id2label, label2id, ours = (values.get(key) for key in ("id2label", "label2id", "labels"))
    given = [
        dict(enumerate(pairs)) if isinstance(pairs, list) else pairs for pairs in (id2label, ours)
    ]
    # Of several names for one class (aliases), the first.
    given.append(
        {str(index): name for name, index in reversed(label2id.items())}
        if isinstance(label2id, dict)
        else None
    )
    found = []
    for pairs in given:
        if not isinstance(pairs, dict) or not pairs:
            continue
        named = {
            str(index): name if isinstance(name, str) else json.dumps(name)
            for index, name in pairs.items()
            if isinstance(name, (str, int, float))
        }
        if all(str(i) in named for i in range(len(pairs))):
            found.append([named[str(i)] for i in range(len(pairs))])
    return found


def other_keys(values: dict[str, Any], config: ModelConfig) -> dict[str, Any]:
    """What a Hugging Face config.json says beside the architecture and what is written anew for
    every folder, and its model_type. Names of classes are among it where `config` has no head that
    has classes."""
    kept = {
        key: value
        for key, value in values.items()
        if key not in _written_anew() and not key.startswith("_")
    }
    if not {"sequence_classification", "token_classification"} & set(config.heads):
        names = next(iter(_class_names(values)), None)
        count = values.get("num_labels")
        if names is None and type(count) is int and 0 < count < 10_000:
            names = [f"LABEL_{i}" for i in range(count)]
        # The question-answering class too is built from the number of labels: start and end.
        if names is not None and (len(names) == 2 or "question_answering" not in config.heads):
            kept |= _names_both_ways(names)
    return kept | {"model_type": values.get("model_type") or family_of(config)[0]}


@functools.cache
def _written_anew() -> frozenset[str]:
    """Keys of a config.json that follow from our config, and those that say how the old folder was
    made or stored."""
    ours = (
        to_huggingface(preset("bert_base")),
        to_huggingface(preset("mobilebert")),
        to_ib_bert(preset("ib_bert_large")),
    )
    return frozenset().union(
        *ours,
        {
            "dtype",
            "num_labels",
            "problem_type",
            "transformers_version",
            "pruned_heads",
            "is_decoder",
            "add_cross_attention",
            *LEFT_OUT,
        },
    )


def _names_both_ways(names: Sequence[str]) -> dict[str, Any]:
    return {
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
    }


def label_keys(config: ModelConfig, labels: Sequence[str] | None) -> dict[str, Any]:
    """What a config.json says about classes: their names, LABEL_0 and so on by default, and whether
    it is a regression."""
    classifies = {"sequence_classification", "token_classification"} & set(config.heads)
    names = check_labels(config, labels)
    keys = _names_both_ways(names)
    return {**keys, "problem_type": "regression"} if config.regression and classifies else keys


def from_huggingface(values: dict[str, Any], where: str) -> ModelConfig:
    """The encoder described by a config.json, with no heads (only the tensors say which there are).

    `pooler` is what the config announces. Raises `BadInput` for other kinds of model and for what
    we do not have."""
    family = model_type(values, where)
    mobile = family == "mobilebert"
    default = {key: defaults[mobile] for key, (_, *defaults) in SHARED_KEYS.items()}
    if family == IB_BERT:
        values = {**to_ib_bert(preset("ib_bert_large")), **values}
    fields: dict[str, Any] = {
        ours: values.get(key, default[key]) for key, (ours, *_) in SHARED_KEYS.items()
    }
    fields["pad_token_id"] = fields["pad_token_id"] or 0
    fields["activation"] = _activation(
        values.get("hidden_act", "relu" if mobile else "gelu"), where
    )
    # When it is null, theirs falls back to hidden_dropout (0 in MobileBERT), ours to Google's 0.1.
    if values.get("classifier_dropout") is not None:
        fields["classifier_dropout"] = values["classifier_dropout"]
    for key, usual in (
        ("position_embedding_type", "absolute"),
        ("is_decoder", False),
        ("add_cross_attention", False),
    ):
        if values.get(key, usual) != usual:
            raise BadInput(
                f"{where} has {key}={values[key]!r}; only {key}={usual!r} is supported. Give another model"
            )
    fields |= _mobilebert_fields(values, fields, where) if mobile else {}
    if family == IB_BERT:
        fields |= {ours: values[key] for key, ours in IB_BERT_KEYS.items()}
        fields["pooler"] = "tanh" if values["classifier_activation"] else "first_token"
    check_kinds(fields, where)
    return ModelConfig(**fields, heads=())


def model_type(values: dict[str, Any], where: str) -> str:
    """ "bert", "mobilebert" or "ib_bert", from the `model_type` of a config.json or, in an old one without, from the class it
    names. Raises `BadInput` for any other."""
    family = values.get("model_type")
    classes = values.get("architectures") or ()
    if family is None:
        named = [
            re.match(r"(?:TF|Flax)?(Bert|MobileBert|IBBert)(?:Model|For|LMHead)", str(name))
            for name in classes
        ]
        family = next(
            (
                {"Bert": "bert", "MobileBert": "mobilebert", "IBBert": IB_BERT}[match[1]]
                for match in named
                if match
            ),
            None,
        )
    if family in (*CLASS_NAMES, IB_BERT):
        return str(family)
    if family is None and not classes:
        raise BadInput(
            f'{where} has no model_type; if the model is a BERT, add the line "model_type": "bert", to it '
            '(or "mobilebert")'
        )
    kind = f"architectures={[str(name)[:60] for name in list(classes)[:2]]}"
    kind = kind if family is None else f"model_type={str(family)[:60]!r}"
    raise BadInput(
        f"{where} has {kind}, which is not read: encoders are of model_type 'bert' or 'mobilebert' (or 'ib_bert', our "
        "own). Take a model of these types; what was trained as another type cannot be loaded as one of them"
    )


def check_kinds(fields: dict[str, Any], where: str) -> None:
    """Raises `BadInput` for a field of ModelConfig whose JSON value is of another type than its
    annotation says."""
    for field in dataclasses.fields(ModelConfig):
        kinds = str(field.type).split(" | ")  # annotations are kept as text there
        allowed = [kind for name in kinds for kind in KINDS.get(name, ())]
        if allowed and field.name in fields and type(fields[field.name]) not in allowed:
            raise BadInput(
                f"{where}: {field.name} is {fields[field.name]!r}; expected {' or '.join(kinds)}. "
                "Mend config.json"
            )


def _mobilebert_fields(
    values: dict[str, Any], fields: dict[str, Any], where: str
) -> dict[str, Any]:
    found = {
        "embedding_size": values.get("embedding_size", 128),
        "trigram_input": values.get("trigram_input", True),
        "num_ffn": values.get("num_feedforward_networks", 4),
        "norm": values.get("normalization_type", "no_norm"),
        "pooler": "tanh" if values.get("classifier_activation", True) else "first_token",
    }
    if values.get("use_bottleneck", True):
        found["bottleneck_size"] = values.get("intra_bottleneck_size", 128)
        if values.get("use_bottleneck_attention", False):  # takes precedence in their code
            found["attention_input"] = "bottleneck"
        elif values.get("key_query_shared_bottleneck", True):
            found["attention_input"] = "shared_bottleneck"
        elif found["bottleneck_size"] != fields["hidden_size"]:
            raise BadInput(
                f"{where} has neither use_bottleneck_attention nor key_query_shared_bottleneck, which "
                "transformers itself cannot run unless intra_bottleneck_size equals hidden_size; set one"
            )
    if found["norm"] == "layer_norm":
        found |= {"embedding_norm_eps": FIXED_EPS, "ffn_norm_eps": FIXED_EPS}
    return found


def _activation(name: Any, where: str) -> str:
    if not isinstance(name, str) or name not in ACTIVATIONS_IN:
        raise BadInput(f"{where} has hidden_act={name!r}; {nearest(name, ACTIVATIONS_IN)}")
    return ACTIVATIONS_IN[name]
