"""Google's TF1 checkpoints: the same tensors and outputs as transformers' own TF1 loader gives
PyTorch.

TensorFlow is not installed where the suite runs, so both loaders read arrays through a stand-in for
it; the slow test at the end, where TensorFlow is installed, writes genuine checkpoints with its
Saver."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers.models.bert import modeling_bert
from transformers.models.bert.configuration_bert import BertConfig
from transformers.models.mobilebert import modeling_mobilebert
from transformers.models.mobilebert.configuration_mobilebert import MobileBertConfig

from jaxdistill import interop
from jaxdistill.errors import BadInput
from jaxdistill.interop import tf1
from jaxdistill.models import PRESETS
from tests.interop import oracle
from tests.interop.tf1_layout import (
    CONFIGS,
    MOBILE,
    SMALL,
    fake_tensorflow,
    variables,
    with_training,
)

PRETRAINING = ("mlm", "nsp")


def write_config(folder: Path, config: dict[str, Any]) -> Path:
    (folder / "bert_config.json").write_text(json.dumps(config))
    return folder / "bert_config.json"


def imported(folder: Path, config: dict[str, Any], values: dict[str, np.ndarray]) -> tf1.Imported:
    return tf1.from_variables(tf1.read_config(write_config(folder, config)), values, "ckpt")


def torch_network(
    config: dict[str, Any],
    values: dict[str, np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
    path: str = "x",
) -> Any:
    """transformers' pre-training class with the checkpoint's numbers, read by transformers' own
    loader."""
    if values:
        monkeypatch.setitem(sys.modules, "tensorflow", fake_tensorflow(values))
    keys = {**config, "layer_norm_eps": 1e-12, "attn_implementation": "eager"}
    if not config.get("use_bottleneck"):
        return modeling_bert.load_tf_weights_in_bert(
            network := modeling_bert.BertForPreTraining(BertConfig(**keys)), network.config, path
        ).eval()
    for key in (
        "key_query_shared_bottleneck",
        "use_bottleneck_attention",
    ):  # the defaults of the two classes differ
        keys.setdefault(key, False)
    keys["true_hidden_size"] = keys["intra_bottleneck_size"]
    network = modeling_mobilebert.MobileBertForPreTraining(MobileBertConfig(**keys))
    return modeling_mobilebert.load_tf_weights_in_mobilebert(network, network.config, path).eval()


@pytest.mark.parametrize("kind", ["bert", "mobilebert", "mobilebert_tiny"])
def test_the_same_as_transformers_own_loader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Outputs, hidden states, attentions, queries, keys and values, from a checkpoint of a training
    run."""
    config = CONFIGS[kind]
    values = variables(config)
    found = imported(tmp_path, config, with_training(values, variables(CONFIGS["ib_bert"], seed=5)))
    network = torch_network(config, values, monkeypatch)
    assert found.model.config.heads == PRETRAINING
    for padded in (True, False):
        batch = oracle.batch(padded=padded)
        oracle.assert_same(
            oracle.our_outputs(found.model, found.params, batch),
            oracle.torch_outputs(network, batch),
            rtol=1e-5,
        )
    # What is no part of the model is told apart by its name alone, and all of it.
    assert (
        set(found.skipped)
        == with_training(values, variables(CONFIGS["ib_bert"])).keys() - values.keys()
    )
    assert found.unknown == ()


@pytest.mark.parametrize("kind", ["bert", "mobilebert", "mobilebert_tiny"])
def test_to_hugging_face_to_the_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The exported folder holds, tensor for tensor, what transformers' own loader makes of the
    checkpoint."""
    config = CONFIGS[kind]
    values = variables(config)
    found = imported(tmp_path, config, values)
    interop.save_pretrained(tmp_path / "out", found.model, found.params)
    network = torch_network(config, values, monkeypatch)
    back, info = type(network).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values())
    expected = network.state_dict()
    for name, tensor in back.state_dict().items():
        assert bool((tensor == expected[name]).all()), name


def test_the_teacher(tmp_path: Path) -> None:
    """PyTorch has no IB-BERT to compare with; here every variable is where its name says, by
    hand."""
    values = variables(CONFIGS["ib_bert"])
    found = imported(tmp_path, CONFIGS["ib_bert"], values)
    assert interop.why_not_huggingface(found.model.config) is not None
    assert (found.model.config.pooler, found.model.config.activation) == ("tanh", "gelu_tanh")
    attention, layer = found.params["layers"]["attention"], "bert/encoder/layer_1/"
    query = values[layer + "attention/self/query/kernel"]  # [in, A K], head-major
    np.testing.assert_array_equal(attention["query"]["kernel"][1][:, 1, :], query[:, 8:])
    np.testing.assert_array_equal(
        attention["out"]["kernel"][1].reshape(16, 16),
        values[layer + "attention/output/dense/kernel"],
    )
    np.testing.assert_array_equal(
        found.params["layers"]["ffn_0"]["up"]["kernel"][1],
        values[layer + "intermediate/dense/kernel"],
    )
    np.testing.assert_array_equal(
        found.params["layers"]["bottleneck_out"]["kernel"][1],
        values[layer + "output/bottleneck/dense/kernel"],
    )
    np.testing.assert_array_equal(
        found.params["mlm"]["extra_embedding"], values["cls/predictions/extra_output_weights"]
    )
    np.testing.assert_array_equal(
        found.params["nsp"]["dense"]["kernel"], values["cls/seq_relationship/output_weights"].T
    )
    assert len(values) == sum(
        row.tf1 != ""
        for row in tf1.names.rows(found.model.config)
        for _ in range(2 if row.stacked else 1)
    )


@pytest.mark.parametrize(
    "heads", [(), ("question_answering",), ("sequence_classification",), ("mlm",)]
)
def test_heads_are_those_that_are_there(tmp_path: Path, heads: tuple[str, ...]) -> None:
    values = variables(SMALL, heads)
    found = imported(tmp_path, SMALL, values)
    assert found.model.config.heads == heads and found.model.config.pooler == "tanh"
    if heads == ("sequence_classification",):
        assert found.model.config.num_labels == 3
        np.testing.assert_array_equal(
            found.params[heads[0]]["dense"]["kernel"], values["output_weights"].T
        )
    if heads == ("question_answering",):
        np.testing.assert_array_equal(
            found.params[heads[0]]["dense"]["kernel"], values["cls/squad/output_weights"].T
        )
        without = {name: array for name, array in values.items() if "pooler" not in name}
        assert imported(tmp_path, SMALL, without).model.config.pooler == "none"


PUBLISHED = {
    "mobilebert": {
        "attention_probs_dropout_prob": 0.1,
        "hidden_act": "relu",
        "hidden_dropout_prob": 0.0,
        "hidden_size": 512,
        "initializer_range": 0.02,
        "intermediate_size": 512,
        "max_position_embeddings": 512,
        "num_attention_heads": 4,
        "num_hidden_layers": 24,
        "type_vocab_size": 2,
        "vocab_size": 30522,
        "embedding_size": 128,
        "trigram_input": True,
        "use_bottleneck": True,
        "intra_bottleneck_size": 128,
        "key_query_shared_bottleneck": True,
        "num_feedforward_networks": 4,
        "normalization_type": "no_norm",
        "classifier_activation": False,
    },
    "bert_base": {"hidden_act": "gelu", "type_vocab_size": 2, "vocab_size": 30522},
}
PUBLISHED["mobilebert_tiny"] = {
    **PUBLISHED["mobilebert"],
    "num_feedforward_networks": 2,
    "use_bottleneck_attention": True,
    "key_query_shared_bottleneck": False,
}
PUBLISHED["ib_bert_large"] = {
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 512,
    "intermediate_size": 4096,
    "num_attention_heads": 4,
    "num_hidden_layers": 24,
    "type_vocab_size": 2,
    "vocab_size": 30522,
    "embedding_size": 128,
    "trigram_input": True,
    "use_bottleneck": True,
    "intra_bottleneck_size": 1024,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_configs(tmp_path: Path, name: str) -> None:
    expected = PRESETS[name].replace(heads=())
    if name == "bert_base":
        expected = expected.replace(
            activation="gelu_tanh"
        )  # the preset is Hugging Face's reading of it
    assert tf1.read_config(write_config(tmp_path, PUBLISHED[name])) == expected


def test_what_a_config_leaves_out(tmp_path: Path) -> None:
    """Google's class has defaults of its own: 16 token types where Hugging Face's has 2, no
    MobileBERT feature on."""
    given = tf1.read_config(write_config(tmp_path, {"vocab_size": 99}))
    assert given == PRESETS["bert_base"].replace(
        vocab_size=99, type_vocab_size=16, activation="gelu_tanh", heads=()
    )


@pytest.mark.parametrize(
    "change, words",
    [
        (
            lambda v: v.pop("bert/encoder/layer_1/attention/self/key/bias"),
            "lacks 1 tensor: bert/encoder/layer_1/attention/self/key",
        ),
        (
            lambda v: v.pop("cls/predictions/extra_output_weights"),
            "lacks 1 tensor: cls/predictions/extra_output_weights",
        ),
        (
            lambda v: v.update({"bert/encoder/layer_2/output/dense/bias": np.ones(8, np.float32)}),
            "holds unknown 1 tensor: bert/encoder/layer_2/output/dense/bias; bert_config.json does not describe",
        ),
        (
            lambda v: v.update(
                {"bert/encoder/layer_0/attention/self/value/kernel": np.ones((8, 12), np.float32)}
            ),
            r"value/kernel has shape \[8, 12\] but the config says \[12, 8\]",
        ),
        (
            lambda v: v.update({"bert/embeddings/word_embeddings": np.ones((37, 4), np.int32)}),
            "is stored as int32",
        ),
        (
            lambda v: (
                v.clear() or v.update({"model/layer-0/.ATTRIBUTES/VARIABLE_VALUE": np.ones(2)})
            ),
            "none of BERT or MobileBERT",
        ),
    ],
)
def test_config_and_checkpoint_that_do_not_fit(tmp_path: Path, change: Any, words: str) -> None:
    values = variables(MOBILE)
    change(values)
    with pytest.raises(BadInput, match=words):
        imported(tmp_path, MOBILE, values)


def test_unknown_names_outside_the_encoder_are_told(tmp_path: Path) -> None:
    found = imported(
        tmp_path, MOBILE, {**variables(MOBILE), "cls/other/output_weights": np.ones(3, np.float32)}
    )
    assert (
        found.unknown == ("cls/other/output_weights",) and found.model.config.heads == PRETRAINING
    )


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"hidden_act": "relu6"}, "hidden_act='relu6'; .*valid: gelu, relu"),
        ({"normalization_type": "manual_layer_norm"}, "did you mean 'layer_norm'"),
        ({"model_type": "bert"}, "is not Google's bert_config.json: it has a model_type"),
        ({"hidden_size": "wide"}, "hidden_size is 'wide'; expected int"),
        ({"num_hidden_layers": 3}, "lacks 40 tensors: bert/encoder/layer_2/attention"),
        ({"classifier_activation": True}, "lacks bert/pooler/dense/kernel"),
    ],
)
def test_a_wrong_config(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        imported(tmp_path, {**MOBILE, **changes}, variables(MOBILE))


def test_a_config_that_is_none(tmp_path: Path) -> None:
    for text, words in (
        ("{", "cannot be read as JSON"),
        ("[]", "expected a JSON object"),
        ("{}", "it has no vocab_size"),
    ):
        (tmp_path / "c.json").write_text(text)
        with pytest.raises(BadInput, match=words):
            tf1.read_config(tmp_path / "c.json")
    with pytest.raises(BadInput, match="there is no file .*give the bert_config.json"):
        tf1.read_config(tmp_path / "missing.json")


def test_finding_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no checkpoint"):
        tf1.find(tmp_path)
    (tmp_path / "m.ckpt.data-00000-of-00001").write_bytes(b"")
    with pytest.raises(
        BadInput, match=r"there is no .*m.ckpt.index; .*\(there: m.ckpt.data-00000-of-00001\)"
    ):
        tf1.find(tmp_path / "m.ckpt")
    (tmp_path / "m.ckpt.index").write_bytes(b"")
    for given in ("", "m.ckpt", "m.ckpt.index", "m.ckpt.data-00000-of-00001"):
        assert tf1.find(tmp_path / given) == tmp_path / "m.ckpt"
    (tmp_path / "other.ckpt.index").write_bytes(b"")
    with pytest.raises(BadInput, match="several checkpoints: m.ckpt, other.ckpt"):
        tf1.find(tmp_path)
    with pytest.raises(BadInput, match="0 of its one or more"):
        tf1.find(tmp_path / "other.ckpt")
    (tmp_path / "other.ckpt.data-00001-of-00002").write_bytes(b"")
    with pytest.raises(BadInput, match="1 of its 00002 .data"):
        tf1.find(tmp_path / "other.ckpt")


def test_only_what_belongs_to_the_model_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint of training is three times the model, and has a teacher: their bytes are left
    where they are."""
    values = with_training(variables(MOBILE))
    module, read = fake_tensorflow(values), []
    reader = module.train.load_checkpoint("")
    monkeypatch.setattr(reader, "get_tensor", lambda name: read.append(name) or values[name])
    monkeypatch.setitem(sys.modules, "tensorflow", module)
    for name in ("m.ckpt.index", "m.ckpt.data-00000-of-00001"):
        (tmp_path / name).write_bytes(b"")
    monkeypatch.setattr(module.train, "load_checkpoint", lambda path: reader)
    tf1.load(tmp_path / "m.ckpt", write_config(tmp_path, MOBILE))
    assert sorted(set(read)) == sorted(variables(MOBILE))


def test_without_tensorflow_and_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("m.ckpt.index", "m.ckpt.data-00000-of-00001"):
        (tmp_path / name).write_bytes(b"")
    config = write_config(tmp_path, MOBILE)
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(BadInput, match="pip install tensorflow"):
        tf1.load(tmp_path / "m.ckpt", config)
    values = variables(MOBILE)
    module = fake_tensorflow(values)

    def damaged(name: str) -> np.ndarray:
        raise RuntimeError("Checksum does not match\nstack")

    reader = module.train.load_checkpoint("")
    monkeypatch.setattr(reader, "get_tensor", damaged)
    monkeypatch.setattr(module.train, "load_checkpoint", lambda path: reader)
    monkeypatch.setitem(sys.modules, "tensorflow", module)
    with pytest.raises(
        BadInput, match=r"m.ckpt cannot be read \(Checksum does not match\); it is damaged"
    ):
        tf1.load(tmp_path / "m.ckpt", config)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bert", "mobilebert", "mobilebert_tiny", "ib_bert"])
def test_a_genuine_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Written by TensorFlow's Saver; read by us, and by transformers' own loader; outputs and
    tensors are equal."""
    tf = pytest.importorskip("tensorflow")
    config = CONFIGS[kind]
    values = variables(config)
    prefix = str(tmp_path / "mobilebert_variables.ckpt")
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        for name, array in with_training(values).items():
            tf.compat.v1.get_variable(name, initializer=array)
        session.run(tf.compat.v1.global_variables_initializer())
        tf.compat.v1.train.Saver().save(session, prefix)
    found = tf1.load(prefix, write_config(tmp_path, config))
    by_hand = imported(tmp_path, config, values)
    assert found.model == by_hand.model and found.unknown == ()
    for ours, expected in zip(
        *(tf1.convert.parameters.flatten(tree.params).items() for tree in (found, by_hand))
    ):
        assert ours[0] == expected[0]
        np.testing.assert_array_equal(ours[1], expected[1])
    if kind != "ib_bert":
        clean = str(tmp_path / "clean.ckpt")  # the loaders of transformers do not know of teachers
        with tf.Graph().as_default(), tf.compat.v1.Session() as session:
            for name, array in values.items():
                tf.compat.v1.get_variable(name, initializer=array)
            session.run(tf.compat.v1.global_variables_initializer())
            tf.compat.v1.train.Saver().save(session, clean)
        batch = oracle.batch()
        theirs = oracle.torch_outputs(torch_network(config, {}, monkeypatch, clean), batch)
        oracle.assert_same(oracle.our_outputs(found.model, found.params, batch), theirs, rtol=1e-5)
    data = tmp_path / "mobilebert_variables.ckpt.data-00000-of-00001"
    data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])
    with pytest.raises(BadInput, match="damaged or cut short"):
        tf1.load(prefix, tmp_path / "bert_config.json")
    (tmp_path / "mobilebert_variables.ckpt.index").write_bytes(b"no table of TensorFlow's")
    with pytest.raises(BadInput, match="damaged or cut short"):
        tf1.load(prefix, tmp_path / "bert_config.json")
