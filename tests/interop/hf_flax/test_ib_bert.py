"""The inverted-bottleneck teacher in Flax: from our own folder, in a folder of its own model_type,
and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from transformers import AutoConfig, FlaxAutoModel, FlaxAutoModelForSequenceClassification

from jaxdistill import interop
from jaxdistill.errors import BadInput
from jaxdistill.interop import hf_flax
from jaxdistill.models import Model, ModelConfig, preset
from tests.conftest import rarely
from tests.interop import oracle
from tests.interop.hf_flax import classes
from tests.interop.tiny import SHRUNK, random_params

TEACHER = preset("ib_bert_large").replace(**SHRUNK, embedding_size=4, bottleneck_size=16)
VARIANTS: dict[str, ModelConfig] = {
    "ForPreTraining": TEACHER,
    "ForMaskedLM": TEACHER.replace(
        heads=("mlm",), pooler="none", norm_eps=1e-2, ffn_norm_eps=1e-1, embedding_norm_eps=1e-3
    ),
    "ForNextSentencePrediction": TEACHER.replace(
        heads=("nsp",), pooler="first_token", trigram_input=False
    ),
    "ForSequenceClassification": TEACHER.replace(
        heads=("sequence_classification",), num_labels=3, num_ffn=2
    ),
    "ForTokenClassification": TEACHER.replace(
        heads=("token_classification",),
        num_labels=5,
        pooler="none",
        embedding_size=None,
        trigram_input=False,
    ),
    "ForQuestionAnswering": TEACHER.replace(
        heads=("question_answering",), pooler="none", norm="no_norm"
    ),
    "ForMultipleChoice": TEACHER.replace(heads=("multiple_choice",)),
    "Model": TEACHER.replace(heads=(), activation="relu"),
}
OUTPUTS = {
    "last_hidden_state": "last_hidden_state",
    "pooler_output": "pooler_output",
    "prediction_logits": "mlm_logits",
    "seq_relationship_logits": "nsp_logits",
    "start_logits": "start_logits",
    "end_logits": "end_logits",
}


@pytest.mark.parametrize(
    "kind",
    rarely(
        VARIANTS,
        "ForMaskedLM",
        "ForNextSentencePrediction",
        "ForTokenClassification",
        "ForQuestionAnswering",
    ),
)
def test_teacher_in_flax_and_back(kind: str, tmp_path: Path) -> None:
    """Our own folder -> Flax: equal outputs, nothing missing. Its folder -> our model: the same to
    the bit."""
    config = VARIANTS[kind]
    params = random_params(config)
    assert (
        interop.save_pretrained(tmp_path / "teacher", Model(config), params).format == "jaxdistill"
    )
    model, tree = getattr(hf_flax, f"FlaxIBBert{kind}").from_pretrained(
        tmp_path / "teacher", _do_init=False
    )
    assert {"/".join(path) for path in model.required_params} == set(classes.flat(tree))
    assert model.config.model_type == "ib_bert" and model.config._name_or_path == str(
        tmp_path / "teacher"
    )
    for padded in (True, False):
        inputs = oracle.batch(padded=padded)
        expected = oracle.our_outputs(Model(config), params, inputs)
        found = model(
            **oracle.shaped(kind, inputs),
            params=tree,
            output_hidden_states=True,
            output_attentions=True,
        )
        logits = {"ForMaskedLM": "mlm_logits", "ForNextSentencePrediction": "nsp_logits"}.get(
            kind, "logits"
        )
        names = {
            **OUTPUTS,
            "logits": logits,
            "hidden_states": "hidden_states",
            "attentions": "attentions",
        }
        given = {
            names[key]: np.stack(value) if isinstance(value, tuple) else np.asarray(value)
            for key, value in found.items()
        }
        oracle.assert_same(expected, given, 1e-5)

    model.save_pretrained(tmp_path / "flax", params=tree)
    values = json.loads((tmp_path / "flax" / "config.json").read_text())
    assert values["model_type"] == "ib_bert" and values["architectures"] == [f"IBBert{kind}"]
    again, same = interop.from_pretrained(tmp_path / "flax")
    # config.json has no word for "no pooler": then it is the raw first token, which takes no
    # parameters.
    pooler = "first_token" if config.pooler == "none" else config.pooler
    assert again.config == config.replace(embedding_size=config.word_size, pooler=pooler)
    assert jax.tree.all(jax.tree.map(np.array_equal, same, params))
    assert interop.read_config(tmp_path / "flax").heads == config.heads


def test_epsilons_matter(tmp_path: Path) -> None:
    """The three of "ForMaskedLM" above are told apart."""
    config = VARIANTS["ForMaskedLM"]
    params, inputs = random_params(config), oracle.batch()
    expected = oracle.our_outputs(Model(config), params, inputs)
    for field in ("norm_eps", "ffn_norm_eps", "embedding_norm_eps"):
        interop.save_pretrained(tmp_path / field, Model(config.replace(**{field: 1.0})), params)
        model, tree = hf_flax.FlaxIBBertForMaskedLM.from_pretrained(
            tmp_path / field, _do_init=False
        )
        with pytest.raises(AssertionError):
            oracle.assert_same(
                expected, {"mlm_logits": np.asarray(model(**inputs, params=tree).logits)}
            )


def test_its_heads_are_added_and_dropped_from_our_folder(tmp_path: Path) -> None:
    interop.save_pretrained(tmp_path / "teacher", Model(TEACHER), random_params(TEACHER))
    model, tree = hf_flax.FlaxIBBertForSequenceClassification.from_pretrained(
        tmp_path / "teacher", _do_init=False, num_labels=4
    )
    assert set(tree) == {"ib_bert"} and model.config.num_labels == 4
    whole = model.init_weights(jax.random.PRNGKey(0), (1, 1), tree)
    assert model(**oracle.batch(), params=whole).logits.shape == (3, 4)


@pytest.mark.parametrize("load", [hf_flax.FlaxIBBertModel, FlaxAutoModel], ids=["class", "auto"])
def test_other_networks_are_refused(load: Any, tmp_path: Path) -> None:
    """A folder of our own format that holds no IB-BERT: one line says how to get it into
    transformers, or why not."""
    hf_flax.register_with_transformers()
    student = preset("mobilebert_without_opt").replace(
        **SHRUNK, embedding_size=4, bottleneck_size=8
    )
    for name, config, advice in (
        (
            "student",
            student,
            "`jaxdistill export --model=DIR --out=NEW` writes a folder for MobileBertForPreTraining",
        ),
        (
            "odd",
            student.replace(ffn_norm_eps=1e-3),
            "jaxdistill.from_pretrained; transformers has no class .* ffn_norm_eps",
        ),
    ):
        written = interop.save_pretrained(
            tmp_path / name, Model(config), random_params(config), format="jaxdistill"
        )
        assert written.format == "jaxdistill"
        with pytest.raises(BadInput, match=f"an IB-BERT has a bottleneck and .*{advice}"):
            load.from_pretrained(tmp_path / name)
        with pytest.raises(
            BadInput, match=f"model of type 'jaxdistill', but FlaxMobileBertModel .*{advice}"
        ):
            hf_flax.FlaxMobileBertModel.from_pretrained(tmp_path / name)


def test_auto_classes_find_our_own_folder(tmp_path: Path) -> None:
    """The teacher as we save it; names of labels come along, and settings can be changed as in any
    folder."""
    hf_flax.register_with_transformers()
    config = VARIANTS["ForSequenceClassification"]
    params = random_params(config)
    interop.save_pretrained(tmp_path, Model(config), params, labels=["no", "maybe", "yes"])
    model, tree = FlaxAutoModelForSequenceClassification.from_pretrained(
        tmp_path, _do_init=False, hidden_dropout_prob=0.3
    )
    assert type(model) is hf_flax.FlaxIBBertForSequenceClassification
    assert (
        model.config.id2label == {0: "no", 1: "maybe", 2: "yes"}
        and model.config.hidden_dropout_prob == 0.3
    )
    assert AutoConfig.from_pretrained(tmp_path).label2id == {"no": 0, "maybe": 1, "yes": 2}
    _, same = hf_flax.FlaxIBBertForSequenceClassification.from_pretrained(tmp_path, _do_init=False)
    classes.assert_equal(tree, same)
    np.testing.assert_array_equal(
        tree["classifier"]["kernel"], params["sequence_classification"]["dense"]["kernel"]
    )


def test_the_message_names_the_class() -> None:
    """Why PyTorch cannot hold it, and what can."""
    reason = interop.why_not_huggingface(TEACHER)
    assert reason is not None and "MobileBertSelfAttention can only project 16-wide ones" in reason
    assert "FlaxIBBert… of jaxdistill.interop.hf_flax" in reason


def test_published_size_is_the_default() -> None:
    config = hf_flax.IBBertConfig()
    assert (config.num_hidden_layers, config.hidden_size, config.intra_bottleneck_size) == (
        24,
        512,
        1024,
    )
    assert config.classifier_activation and config.hidden_act == "gelu_new"
