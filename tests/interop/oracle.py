"""The oracle of the parity tests: transformers in PyTorch, on tiny networks whose every number is
random.

Imported by all the tests that need PyTorch, so that it is loaded once.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np
import torch
from transformers.models.bert import modeling_bert
from transformers.models.bert.configuration_bert import BertConfig
from transformers.models.mobilebert import modeling_mobilebert
from transformers.models.mobilebert.configuration_mobilebert import MobileBertConfig

from jaxdistill.models import Model, Params
from jaxdistill.models.block import BLOCK_TAPS

torch.set_num_threads(1)

LENGTH = 7
_SMALL = {
    "vocab_size": 37,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 10,
    "max_position_embeddings": 9,
    "type_vocab_size": 3,
    "attn_implementation": "eager",
}
_BERT = {**_SMALL, "num_attention_heads": 3}
_MOBILE = {
    **_SMALL,
    "embedding_size": 4,
    "intra_bottleneck_size": 8,
    "num_feedforward_networks": 2,
    "classifier_activation": False,
}
_LAYER_NORM = {
    "normalization_type": "layer_norm",
    "layer_norm_eps": 1e-2,
}  # a large eps, so that a wrong one shows

# {variant: (class, keys of its config)}: what the published models are, and every switch turned at
# least once.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertForPreTraining", {**_BERT, "layer_norm_eps": 1e-2}),
    "bert_gelu_tanh": ("BertForMaskedLM", {**_BERT, "hidden_act": "gelu_new"}),
    "bert_relu_base": ("BertModel", {**_BERT, "hidden_act": "relu"}),
    "bert_nsp": ("BertForNextSentencePrediction", _BERT),
    "bert_rows": ("BertForSequenceClassification", {**_BERT, "num_labels": 3}),
    "bert_tokens": ("BertForTokenClassification", {**_BERT, "num_labels": 5}),
    "bert_spans": ("BertForQuestionAnswering", _BERT),
    "bert_choices": ("BertForMultipleChoice", _BERT),
    "mobilebert": ("MobileBertForPreTraining", {**_MOBILE, "num_feedforward_networks": 4}),
    "without_opt": ("MobileBertForPreTraining", {**_MOBILE, **_LAYER_NORM, "hidden_act": "gelu"}),
    "without_opt_gelu_tanh": (
        "MobileBertForMaskedLM",
        {
            **_MOBILE,
            **_LAYER_NORM,
            "hidden_act": "gelu_pytorch_tanh",
            "num_feedforward_networks": 3,
        },
    ),
    "tiny": (
        "MobileBertForPreTraining",
        {**_MOBILE, "use_bottleneck_attention": True, "key_query_shared_bottleneck": False},
    ),
    "tiny_with_unused_shared_bottleneck": (
        "MobileBertModel",
        {**_MOBILE, "use_bottleneck_attention": True},
    ),
    "tanh_pooler_one_ffn": (
        "MobileBertForPreTraining",
        {**_MOBILE, "classifier_activation": True, "num_feedforward_networks": 1},
    ),
    "no_trigram_same_width": (
        "MobileBertForPreTraining",
        {**_MOBILE, "trigram_input": False, "embedding_size": 12},
    ),
    "no_trigram_narrow": (
        "MobileBertForNextSentencePrediction",
        {**_MOBILE, "trigram_input": False},
    ),
    "trigram_same_width": ("MobileBertForMaskedLM", {**_MOBILE, "embedding_size": 12}),
    "no_bottleneck": (
        "MobileBertForPreTraining",
        {**_MOBILE, **_LAYER_NORM, "use_bottleneck": False},
    ),
    "bottleneck_as_wide_as_hidden": (
        "MobileBertModel",
        {**_MOBILE, "intra_bottleneck_size": 12, "key_query_shared_bottleneck": False},
    ),
    "mobile_rows": ("MobileBertForSequenceClassification", {**_MOBILE, "num_labels": 3}),
    "mobile_tokens": ("MobileBertForTokenClassification", {**_MOBILE, "num_labels": 5}),
    "mobile_spans": ("MobileBertForQuestionAnswering", _MOBILE),
    "mobile_choices": ("MobileBertForMultipleChoice", {**_MOBILE, "classifier_activation": True}),
}


def torch_class(name: str) -> Any:
    return getattr(modeling_mobilebert if name.startswith("Mobile") else modeling_bert, name)


def random_torch(variant: str, seed: int = 0, **changes: Any) -> torch.nn.Module:
    """A network of transformers whose every parameter, norms, biases and the [PAD] row too, is
    random; `changes` are of its config."""
    name, keys = VARIANTS[variant]
    kind = MobileBertConfig if name.startswith("Mobile") else BertConfig
    config = kind(**{**keys, **changes})
    network = torch_class(name)(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, value in network.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            value.copy_(1 + 0.3 * noise if "LayerNorm.weight" in key else 0.3 * noise)
    return network


def batch(vocab_size: int = 37, types: int = 3, padded: bool = True) -> dict[str, np.ndarray]:
    """Three rows; if `padded`, two of them with pads, and pads are id 0."""
    rng = np.random.default_rng(1)
    lengths = np.array([LENGTH, LENGTH - 2, 1]) if padded else np.full(3, LENGTH)
    mask = (np.arange(LENGTH) < lengths[:, None]).astype(np.int32)
    ids = rng.integers(1, vocab_size, (3, LENGTH)).astype(np.int32)
    return {
        "input_ids": ids * mask,
        "attention_mask": mask,
        "token_type_ids": rng.integers(0, types, (3, LENGTH)).astype(np.int32),
    }


def shaped(kind: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """As the class takes them: for multiple choice each row is the one choice of its question."""
    return (
        {key: value[:, None] for key, value in inputs.items()}
        if kind.endswith("MultipleChoice")
        else inputs
    )


def torch_outputs(network: torch.nn.Module, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the network gives, by our names, with `hidden_states` [N + 1, B, L, D], `attentions` [N,
    B, A, L, L] and `query`, `key`, `value` [N, B, L, A K] (a bias of the keys shows nowhere else:
    softmax cancels it)."""
    projections: dict[str, list[torch.Tensor]] = {"query": [], "key": [], "value": []}
    hooks = [
        module.register_forward_hook(
            lambda _, __, out, name=name: projections[name.rsplit(".", 1)[1]].append(out)
        )
        for name, module in network.named_modules()
        if ".self." in name and name.endswith(tuple(projections))
    ]
    with torch.no_grad():
        out = network(
            **{
                key: torch.tensor(value).long()
                for key, value in shaped(type(network).__name__, inputs).items()
            },
            output_hidden_states=True,
            output_attentions=True,
        )
    for hook in hooks:
        hook.remove()
    names = {
        "pooler_output": "pooler_output",
        "prediction_logits": "mlm_logits",
        "start_logits": "start_logits",
        "seq_relationship_logits": "nsp_logits",
        "end_logits": "end_logits",
    }
    kind = type(network).__name__
    names["logits"] = (
        "mlm_logits"
        if kind.endswith("MaskedLM")
        else "nsp_logits"
        if kind.endswith("NextSentencePrediction")
        else "logits"
    )
    found = {ours: out[theirs].numpy() for theirs, ours in names.items() if theirs in out}
    found["hidden_states"] = torch.stack(out.hidden_states).numpy()
    found["attentions"] = torch.stack(out.attentions).numpy()
    found |= {name: torch.stack(layers).numpy() for name, layers in projections.items()}
    return found


def our_outputs(
    model: Model, params: Params, inputs: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The same of ours."""
    outputs, taps = _run(model, params, inputs)
    found = {key: np.asarray(value) for key, value in outputs.items()}
    found["hidden_states"] = np.concatenate(
        [np.asarray(taps["embeddings"])[None], np.asarray(taps["hidden"])]
    )
    found["attentions"] = np.asarray(jax.nn.softmax(taps["attention_scores"], -1))
    found |= {
        name: np.asarray(taps[name]).reshape(*taps[name].shape[:3], -1)
        for name in ("query", "key", "value")
    }
    return found


@functools.partial(jax.jit, static_argnums=0)
def _run(model: Model, params: Params, inputs: dict[str, np.ndarray]) -> Any:
    return model.apply(params, inputs, taps=("embeddings", *BLOCK_TAPS))


def assert_same(
    ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray], rtol: float = 1e-4
) -> float:
    """Every output of theirs is in ours and equal within `rtol` of its largest number; returns the
    worst."""
    worst = 0.0
    for name, expected in theirs.items():
        assert ours[name].shape == expected.shape, name
        assert np.isfinite(expected).all() and np.abs(expected).max() > 0, name
        difference = np.abs(ours[name] - expected).max() / np.abs(expected).max()
        assert difference < rtol, f"{name}: {difference}"
        worst = max(worst, float(difference))
    return worst
