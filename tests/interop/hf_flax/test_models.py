"""What a user of FlaxBert… expects of a class, for every class: the behaviours that transformers
tests of its own."""

from __future__ import annotations

import inspect
import json
import logging
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax.core import FrozenDict
from transformers import modeling_flax_utils
from transformers.models.bert.modeling_flax_bert import FlaxBertModel
from transformers.models.mobilebert import modeling_mobilebert
from transformers.utils import logging as hf_logging

import jaxdistill
from jaxdistill import interop
from jaxdistill.errors import BadInput
from jaxdistill.interop.hf_flax import models
from tests.interop.hf_flax import classes
from tests.interop.hf_flax.classes import (
    EVERY,
    LENGTH,
    MOBILE,
    MOST,
    class_of,
    config_of,
    inputs_of,
    model_of,
    run,
)

HEADS = tuple(name for name in EVERY if class_of(name).kind != "Model")
BASES = ("FlaxMobileBertModel", "FlaxIBBertModel")


def base_of(name: str) -> str:
    return BASES[name.startswith("FlaxIB")]


@pytest.fixture
def reported(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """What transformers reports: its logger does not pass it on by itself."""
    hf_logging.enable_propagation()
    with caplog.at_level(logging.WARNING):
        yield caplog
    hf_logging.disable_propagation()


@pytest.mark.parametrize("name", MOST)
def test_save_and_load(name: str, tmp_path: Path, reported: pytest.LogCaptureFixture) -> None:
    """msgpack, shards of it, safetensors, and loading without initialisation give the same
    parameters to the bit."""
    model = model_of(name)
    model.save_pretrained(tmp_path / "msgpack")
    model.save_pretrained(tmp_path / "shards", max_shard_size="4kB")
    model.save_pretrained(tmp_path / "safetensors", safe_serialization=True)
    shards = json.loads((tmp_path / "shards" / "flax_model.msgpack.index.json").read_text())[
        "weight_map"
    ]
    assert (
        len(set(shards.values())) > 1 and not (tmp_path / "shards" / "flax_model.msgpack").exists()
    )
    assert {path.name for path in (tmp_path / "safetensors").iterdir()} == {
        "config.json",
        "model.safetensors",
    }
    for kind in ("msgpack", "shards", "safetensors"):
        again, params = class_of(name).from_pretrained(tmp_path / kind, _do_init=False)
        classes.assert_equal(params, model.params)
    with pytest.raises(ValueError, match="_do_init=False"):
        _ = again.params
    given = run(again, name, params=params)
    for key, value in run(model, name).items():
        np.testing.assert_array_equal(given[key], value)
    assert again.config.architectures == [name.removeprefix("Flax")]
    assert not [
        record
        for record in reported.records
        if "newly initialized" in record.getMessage() or "were not used" in record.getMessage()
    ]


@pytest.mark.parametrize("name", HEADS)
def test_heads_are_added_and_dropped(
    name: str, tmp_path: Path, reported: pytest.LogCaptureFixture
) -> None:
    """A base model's folder loads in a class with a head, and the other way round; what is new or
    left over is named."""
    base, model = model_of(base_of(name)), model_of(name)
    prefix = model.base_model_prefix
    base.save_pretrained(tmp_path / "base")
    own = next(key for key in model.params if key != prefix)
    initialised = name in (
        "FlaxMobileBertForTokenClassification",
        "FlaxIBBertForPreTraining",
    )  # it takes a second
    loaded = class_of(name).from_pretrained(
        tmp_path / "base", config=model.config, _do_init=initialised
    )
    params = loaded.params if initialised else loaded[1]
    assert (own in params) == initialised
    shared = classes.flat(params[prefix])
    classes.assert_equal(
        {key: value for key, value in classes.flat(base.params).items() if key in shared}, shared
    )
    messages = " ".join(record.getMessage() for record in reported.records)
    assert f"('{own}'," in messages
    assert (
        f"{name} were not initialized" if initialised else "is missing required keys"
    ) in messages
    assert (f"initializing {name}: " in messages) == ("pooler" not in model.params[prefix])

    reported.clear()
    model.save_pretrained(tmp_path / "head")
    _, kept = class_of(base_of(name)).from_pretrained(tmp_path / "head", _do_init=False)
    classes.assert_equal(kept, model.params[prefix])
    # One message says which of the encoder's there were not: the pooler, where the class has none.
    missing = [
        record.getMessage()
        for record in reported.records
        if "missing required keys" in record.getMessage()
    ]
    assert bool(missing) == ("pooler" not in model.params[prefix])


@pytest.mark.parametrize("name", ["FlaxMobileBertForPreTraining", "FlaxIBBertForMultipleChoice"])
def test_what_flax_saved_loads_in_our_model(name: str, tmp_path: Path) -> None:
    """Whole, in shards and as safetensors under Flax names: the same parameters, and a damaged
    index is named."""
    model = model_of(name)
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "shards", max_shard_size="4kB")
    model.save_pretrained(tmp_path / "safetensors", safe_serialization=True)
    ours, params = interop.from_pretrained(tmp_path / "whole")
    for kind in ("shards", "safetensors"):
        again, same = interop.from_pretrained(tmp_path / kind)
        assert again == ours
        classes.assert_equal(same, params)
    outputs, _ = ours.apply(
        params, {key: value.reshape(-1, LENGTH) for key, value in inputs_of(name).items()}
    )
    wanted = run(model, name)
    logits = wanted["logits"] if "logits" in wanted else wanted["prediction_logits"]
    np.testing.assert_allclose(
        outputs["logits" if "logits" in wanted else "mlm_logits"].reshape(logits.shape),
        logits,
        atol=1e-5,
    )
    index = tmp_path / "shards" / "flax_model.msgpack.index.json"
    values = json.loads(index.read_text())
    values["weight_map"]["more"] = next(iter(values["weight_map"].values()))
    index.write_text(json.dumps(values))
    with pytest.raises(BadInput, match="promises 1 tensors that no shard holds, such as more"):
        interop.from_pretrained(tmp_path / "shards")
    values["weight_map"]["more"] = "../flax_model.msgpack"
    index.write_text(json.dumps(values))
    with pytest.raises(BadInput, match="expected a .msgpack file beside it"):
        interop.from_pretrained(tmp_path / "shards")


@pytest.mark.parametrize(
    "name", ["FlaxMobileBertForSequenceClassification", "FlaxIBBertForTokenClassification"]
)
def test_a_head_of_another_size(name: str, tmp_path: Path) -> None:
    """Refused unless asked for; then it is fresh and all else is kept."""
    model = model_of(name)
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="ignore_mismatched_sizes"):
        class_of(name).from_pretrained(tmp_path, num_labels=7)
    other = class_of(name).from_pretrained(tmp_path, num_labels=7, ignore_mismatched_sizes=True)
    assert other.params["classifier"]["kernel"].shape == (12, 7)
    assert jax.eval_shape(lambda: other(**inputs_of(name))).logits.shape[-1] == 7
    classes.assert_equal(
        other.params[model.base_model_prefix], model.params[model.base_model_prefix]
    )


@pytest.mark.parametrize("name", BASES)
def test_missing_weights_without_initialisation(name: str, tmp_path: Path) -> None:
    """`_do_init=False` and `init_weights(…, params)`: what the folder lacks is made, what it has is
    kept."""
    model_of(name).save_pretrained(tmp_path)
    kind = class_of(name.removesuffix("Model") + "ForQuestionAnswering")
    model, params = kind.from_pretrained(tmp_path, _do_init=False)
    assert "qa_outputs" not in params
    whole = model.init_weights(jax.random.PRNGKey(1), (1, 1), params)
    assert isinstance(whole, FrozenDict) and whole["qa_outputs"]["kernel"].shape == (12, 2)
    left = dict(model_of(name).params)
    classes.assert_equal(whole[model.base_model_prefix]["encoder"], left["encoder"])
    assert jax.eval_shape(lambda: model(**inputs_of(name), params=whole)).start_logits.shape == (
        3,
        LENGTH,
    )


@pytest.mark.parametrize("name", MOST)
def test_shapes_and_forms_of_outputs(name: str) -> None:
    """N + 1 hidden states, N attention maps that are probabilities over real tokens, tuples,
    defaults of the config."""
    model, inputs = model_of(name), inputs_of(name)
    out = model(**inputs, output_hidden_states=True, output_attentions=True)
    rows = inputs["input_ids"].size // LENGTH
    width = model.config.hidden_size
    assert [state.shape for state in out.hidden_states] == 3 * [(rows, LENGTH, width)]
    assert [attention.shape for attention in out.attentions] == 2 * [(rows, 2, LENGTH, LENGTH)]
    np.testing.assert_allclose(np.stack(out.attentions).sum(-1), 1.0, rtol=1e-5)
    pads = inputs["attention_mask"].reshape(rows, LENGTH) == 0
    assert pads.any() and np.abs(np.stack(out.attentions).transpose(1, 4, 0, 2, 3)[pads]).max() == 0
    fields = {
        "Model": ["last_hidden_state", "pooler_output"],
        "ForQuestionAnswering": ["start_logits", "end_logits"],
        "ForPreTraining": ["prediction_logits", "seq_relationship_logits"],
    }.get(model.kind, ["logits"])
    assert list(out) == [*fields, "hidden_states", "attentions"]
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(out))
    shapes = {
        "Model": (3, LENGTH, 12),
        "ForPreTraining": (3, LENGTH, 37),
        "ForMaskedLM": (3, LENGTH, 37),
        "ForNextSentencePrediction": (3, 2),
        "ForSequenceClassification": (3, 3),
        "ForMultipleChoice": (3, 2),
        "ForTokenClassification": (3, LENGTH, 5),
        "ForQuestionAnswering": (3, LENGTH),
    }
    assert out[fields[0]].shape == shapes[model.kind]
    as_tuple = model(**inputs, output_hidden_states=True, output_attentions=True, return_dict=False)
    assert jax.tree.all(jax.tree.map(np.array_equal, as_tuple, out.to_tuple()))
    plain = model(**inputs)
    assert list(plain) == fields and plain.hidden_states is None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model.config, "output_attentions", True)
        patch.setattr(model.config, "output_hidden_states", True)
        assert list(model(**inputs)) == list(out)


@pytest.mark.parametrize("name", classes.every(*MOBILE, "FlaxIBBertModel"))
def test_under_jit_and_without(name: str) -> None:
    """The same under the user's own `jit`; in one class also with `jit` turned off, and with masks
    and types left away."""
    model, inputs = model_of(name), inputs_of(name)
    call = jax.jit(lambda inputs: model(**inputs).to_tuple())
    wanted = model(**inputs).to_tuple()
    for given, value in zip(call(inputs), wanted, strict=True):
        np.testing.assert_allclose(given, value, atol=1e-5)
    if name == "FlaxIBBertModel":
        with jax.disable_jit():
            np.testing.assert_allclose(model(**inputs).last_hidden_state, wanted[0], atol=1e-5)
        ids = inputs["input_ids"]
        whole = model(ids, np.ones_like(ids), np.zeros_like(ids), np.arange(LENGTH)[None])
        np.testing.assert_allclose(model(ids).last_hidden_state, whole.last_hidden_state, atol=1e-5)


@pytest.mark.parametrize("name", MOBILE)
def test_parameters_are_named_as_in_pytorch(name: str) -> None:
    """Every parameter of PyTorch's class but the tied output table, under the same path,
    projections transposed."""
    network = getattr(modeling_mobilebert, name.removeprefix("Flax"))(config_of(name))
    theirs = {}
    for key, value in network.state_dict().items():
        path, leaf = key.rsplit(".", 1)
        kind = type(network.get_submodule(path)).__name__
        leaf = (
            {"Embedding": "embedding", "LayerNorm": "scale", "NoNorm": "scale"}.get(kind, "kernel")
            if leaf == "weight"
            else leaf
        )
        if ".decoder." not in key:
            theirs[f"{path}.{leaf}".replace(".", "/")] = tuple(
                value.shape[::-1] if leaf == "kernel" else value.shape
            )
    model = model_of(name)
    assert {key: value.shape for key, value in classes.flat(model.params).items()} == theirs
    assert {"/".join(path) for path in model.required_params} == set(theirs)
    assert jax.tree.map(lambda leaf: leaf.shape, model.params_shape_tree) == jax.tree.map(
        jnp.shape, model.params
    )


@pytest.mark.parametrize("name", EVERY)
def test_module_is_named_and_works_by_itself(name: str) -> None:
    """FlaxXForY is beside FlaxXForYModule, as in transformers, and that one makes the class's tree
    from a config alone."""
    kind = class_of(name)
    module = getattr(models, (name[:-5] if name.endswith("Model") else name) + "Module")
    assert kind.module_class is module and module.__name__ in str(module(config=config_of(name)))
    ids = inputs_of(name)["input_ids"]
    shapes = jax.eval_shape(
        lambda: module(config=config_of(name)).init(jax.random.key(0), ids, return_dict=False)
    )
    assert jax.tree.map(jnp.shape, shapes["params"]) == jax.tree.map(
        jnp.shape, model_of(name).params
    )


def test_a_users_own_class_keeps_its_module() -> None:
    inherits = type("FlaxMobileBertModel", (models.FlaxMobileBertModel,), {"__module__": "theirs"})
    brings = type(
        "Other",
        (models.FlaxMobileBertModel,),
        {"__module__": "theirs", "module_class": models.FlaxIBBertModule},
    )
    assert (
        inherits.module_class
        is models.FlaxMobileBertModel.module_class
        is models.FlaxMobileBertModule
    )
    assert brings.module_class is models.FlaxIBBertModule


def test_inside_another_module() -> None:
    """As a part of somebody's own Linen network, which owns its parameters."""

    class Rating(nn.Module):
        config: Any

        def setup(self) -> None:
            self.encoder = models.FlaxMobileBertModule(config=self.config)
            self.score = nn.Dense(1)

        def __call__(self, ids: jax.Array) -> jax.Array:
            return self.score(self.encoder(ids).pooler_output)

    name, ids = "FlaxMobileBertModel", inputs_of("FlaxMobileBertModel")["input_ids"]
    shapes = jax.eval_shape(Rating(config_of(name)).init, jax.random.key(0), ids)["params"]
    assert jax.tree.map(jnp.shape, shapes["encoder"]) == jax.tree.map(
        jnp.shape, model_of(name).params
    )
    params = {
        "encoder": model_of(name).params,
        "score": {"kernel": jnp.ones((12, 1)), "bias": jnp.zeros(1)},
    }
    given = Rating(config_of(name)).apply({"params": params}, ids)
    np.testing.assert_allclose(
        given[:, 0], model_of(name)(ids).pooler_output.sum(-1), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("name", EVERY)
def test_signature(name: str) -> None:
    """Names and order of FlaxBert…, without the cross-attention that no encoder here has."""
    theirs = [
        key
        for key in inspect.signature(FlaxBertModel.__call__).parameters
        if key not in ("encoder_hidden_states", "encoder_attention_mask", "past_key_values")
    ]
    assert list(inspect.signature(class_of(name).__call__).parameters) == theirs
    assert class_of(name).base_model_prefix == class_of(name).config_class.model_type
    assert class_of(name).main_input_name == "input_ids" and not class_of(name).can_generate()


def test_from_pt_of_a_folder_with_both_kinds_of_weights(tmp_path: Path) -> None:
    """What we export by default; transformers alone would hand Flax's file to PyTorch."""
    model = interop.from_pretrained(saved(tmp_path / "a", "FlaxMobileBertForPreTraining"))
    interop.save_pretrained(tmp_path / "both", *model)
    loaded = class_of("FlaxMobileBertForPreTraining").from_pretrained(
        tmp_path / "both", from_pt=True
    )
    plain = class_of("FlaxMobileBertForPreTraining").from_pretrained(tmp_path / "both")
    classes.assert_equal(loaded.params, plain.params)


def test_a_folder_of_another_kind_is_refused(tmp_path: Path) -> None:
    for name, other in (
        ("FlaxMobileBertModel", "FlaxIBBertModel"),
        ("FlaxIBBertModel", "FlaxMobileBertModel"),
    ):
        with pytest.raises(BadInput, match="holds a model of type"):
            class_of(other).from_pretrained(saved(tmp_path / name, name))
    folder = tmp_path / "FlaxMobileBertModel"
    (folder / "config.json").unlink()
    # transformers itself would make a network of the class's defaults.
    with pytest.raises(BadInput, match="has no config.json; it holds flax_model.msgpack"):
        class_of("FlaxMobileBertModel").from_pretrained(folder)


def saved(folder: Path, name: str) -> Path:
    model_of(name).save_pretrained(folder)
    return folder


class Payload:
    """Unpickled, it makes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


@pytest.mark.parametrize("name", ["FlaxMobileBertForQuestionAnswering", "FlaxIBBertModel"])
def test_pickles_are_never_opened(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole, in shards, given as a file or by a name of the Hub; with from_pt and without. Not even
    by torch.load."""
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("torch.load"))
    folder = saved(tmp_path / "model", name)
    content = pickle.dumps({"weights": Payload(tmp_path / "executed")})
    (folder / "flax_model.msgpack").unlink()
    message = "a pickle .pytorch_model.bin., which is never opened .* convert it to safetensors"
    for files in (
        ["pytorch_model.bin"],
        ["pytorch_model-00001-of-00001.bin", "pytorch_model.bin.index.json"],
    ):
        for file in files:
            (folder / file).write_bytes(
                content
                if file.endswith(".bin")
                else json.dumps({"metadata": {}, "weight_map": {"a": files[0]}}).encode()
            )
        for keys in ({}, {"from_pt": True}, {"from_pt": True, "config": model_of(name).config}):
            with pytest.raises(BadInput, match=message):
                class_of(name).from_pretrained(folder, **keys)
        with pytest.raises(BadInput, match=message):
            class_of(name).from_pretrained(folder.parent, subfolder="model", from_pt=True)
        with pytest.raises(BadInput, match=message):
            class_of(name).from_pretrained(
                folder / files[0], from_pt=True, config=model_of(name).config
            )
        for file in files:
            (folder / file).unlink()

    asked: list[str] = []
    monkeypatch.setattr(
        modeling_flax_utils, "cached_file", lambda _, file, **__: asked.append(file)
    )
    monkeypatch.setattr(
        modeling_flax_utils, "has_file", lambda _, file, **__: file.endswith(".bin")
    )
    with pytest.raises(BadInput, match=f"someone/model.safetensors: .*{message}"):
        class_of(name).from_pretrained(
            "someone/model.safetensors", from_pt=True, config=model_of(name).config
        )
    assert asked == ["flax_model.msgpack", "flax_model.msgpack.index.json", "model.safetensors"]
    assert not (tmp_path / "executed").exists()
    pickle.loads(content)  # and it would have been
    assert (tmp_path / "executed").exists()


def test_safetensors_of_pytorch(tmp_path: Path) -> None:
    """from_pt or not, a folder or the file itself; what transformers' Flax cannot read is said, and
    how to get it."""
    name = "FlaxMobileBertForMaskedLM"
    model, params = interop.from_pretrained(saved(tmp_path / "flax", name))
    interop.save_pretrained(tmp_path / "pt", model, params, format="safetensors")
    wanted = {
        key: value
        for key, value in classes.flat(model_of(name).params).items()
        if "pooler" not in key
    }
    config = model_of(name).config
    for given, keys in (
        (tmp_path / "pt", {}),
        (tmp_path / "pt", {"from_pt": True}),
        (tmp_path / "pt" / "model.safetensors", {"from_pt": True, "config": config}),
    ):
        classes.assert_equal(
            class_of(name).from_pretrained(given, **keys).params, unflattened(wanted)
        )
    network = modeling_mobilebert.MobileBertForMaskedLM(config)
    network.save_pretrained(tmp_path / "shards", max_shard_size="10kB")
    with pytest.raises(
        BadInput, match="in shards, .* `jaxdistill export --model=DIR --out=NEW` writes them whole"
    ):
        class_of(name).from_pretrained(tmp_path / "shards", from_pt=True)
    jaxdistill.export(tmp_path / "shards", tmp_path / "whole")
    class_of(name).from_pretrained(tmp_path / "whole", _do_init=False)


def unflattened(flat: dict[str, np.ndarray]) -> Any:
    return flax.traverse_util.unflatten_dict(flat, sep="/")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not msgpack",
        b"\x81\xa1a" * 100_000 + b"\xc0",
        b"\xdd\xff\xff\xff\xff",
        b"\x81\xa1a\x01",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    ],
)
def test_damaged_and_hostile_weights(content: bytes, tmp_path: Path) -> None:
    """One line, as from our own reader: msgpack, a shard of it, safetensors."""
    name = "FlaxMobileBertModel"
    model_of(name).save_pretrained(tmp_path / "shards", max_shard_size="4kB")
    files = [
        saved(tmp_path / "msgpack", name) / "flax_model.msgpack",
        next((tmp_path / "shards").glob("*.msgpack")),
        tmp_path / "safetensors" / "model.safetensors",
    ]
    interop.save_pretrained(
        tmp_path / "safetensors",
        *interop.from_pretrained(tmp_path / "msgpack"),
        format="safetensors",
    )
    for file in files:
        file.write_bytes(content)
        with pytest.raises(
            BadInput, match=rf"{file.parent.name}.* (cannot be read as|does not hold arrays)"
        ) as caught:
            class_of(name).from_pretrained(file.parent, _do_init=False)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("family", ["FlaxMobileBert", "FlaxIBBert"])
def test_without_a_pooling_layer(family: str) -> None:
    """As FlaxBertModel has it, for a base model."""
    name = f"{family}Model"
    with_one, without = (
        class_of(name)(
            config_of(name, classifier_activation=True), _do_init=False, add_pooling_layer=pools
        )
        for pools in (True, False)
    )
    assert "pooler" not in without.params_shape_tree and "pooler" in with_one.params_shape_tree
    params = {key: value for key, value in model_of(name).params.items() if key != "pooler"}
    given = without(**inputs_of(name), params=params)
    assert given.pooler_output is None
    np.testing.assert_allclose(
        given.last_hidden_state, run(model_of(name), name)["last_hidden_state"], atol=1e-5
    )


def test_a_fresh_start_is_ours() -> None:
    """Truncated normal projections, zero biases, unit norms; another seed is another network, the
    same seed the same."""
    kind = class_of("FlaxMobileBertForMaskedLM")
    first, same, other = (
        kind(config_of("FlaxMobileBertForMaskedLM"), seed=seed) for seed in (0, 0, 1)
    )
    classes.assert_equal(first.params, same.params)
    flat = classes.flat(first.params)
    kernel = "mobilebert/encoder/layer/0/attention/self/query/kernel"
    assert not np.array_equal(flat[kernel], classes.flat(other.params)[kernel])
    for key, value in flat.items():
        if key.endswith(("kernel", "embedding")):
            assert 0.005 < value.std() < 0.03 and np.abs(value).max() <= 0.04 + 1e-6, key
        else:
            assert np.all(value == (1.0 if key.endswith("scale") else 0.0)), key


@pytest.mark.parametrize("name", classes.every("FlaxMobileBertForPreTraining"))
def test_dtypes(name: str, tmp_path: Path) -> None:
    """`dtype` is that of products alone; `to_bf16`, `to_fp16`, `to_fp32` are those of parameters,
    masked or not."""
    model = model_of(name)
    model.save_pretrained(tmp_path / "float32")
    half = class_of(name).from_pretrained(tmp_path / "float32", dtype=jnp.bfloat16)
    assert half.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(half.params)} == {jnp.dtype(jnp.float32)}
    exact, rough = run(model, name), run(half, name)
    differences = {
        key: np.abs(rough[key] - exact[key]).max() / np.abs(exact[key]).max() for key in exact
    }
    assert 0 < max(differences.values()) < 0.2, differences

    for cast, dtype in (
        (model.to_bf16, jnp.bfloat16),
        (model.to_fp16, jnp.float16),
        (model.to_fp32, jnp.float32),
    ):
        assert {leaf.dtype for leaf in jax.tree.leaves(cast(model.params))} == {jnp.dtype(dtype)}
    mask = flax.traverse_util.path_aware_map(lambda path, _: path[-1] == "kernel", model.params)
    for key, value in flax.traverse_util.flatten_dict(model.to_bf16(model.params, mask)).items():
        assert value.dtype == (jnp.bfloat16 if key[-1] == "kernel" else jnp.float32)

    stored = model.to_bf16(model.params)
    model.save_pretrained(tmp_path / "bfloat16", params=stored)
    again = class_of(name).from_pretrained(tmp_path / "bfloat16")
    classes.assert_equal(again.params, stored)
    rounded = run(model, name, params=model.to_fp32(stored))
    classes.assert_close(run(again, name), rounded, 1e-5)


def test_what_cannot_be_is_said() -> None:
    name = "FlaxMobileBertForMaskedLM"
    model, inputs = model_of(name), inputs_of(name)
    for keys, message in (
        ({"tie_word_embeddings": False}, "tie_word_embeddings=False"),
        ({"hidden_act": "silu"}, "hidden_act='silu'"),
        ({"key_query_shared_bottleneck": False}, "transformers itself cannot run"),
    ):
        with pytest.raises(BadInput, match=message):
            class_of(name)(config_of(name, **keys))
    with pytest.raises(BadInput, match="use jnp.bfloat16"):
        class_of(name)(config_of(name), dtype=jnp.float16)
    with pytest.raises(BadInput, match="num_labels=2"):
        class_of("FlaxMobileBertForQuestionAnswering")(config_of(name, num_labels=3))
    with pytest.raises(BadInput, match="rows of 10 tokens"):
        model(np.ones((1, 10), np.int32))
    with pytest.raises(BadInput, match=r"head_mask has shape \[3\]; expected \[2, 2\], or \[2\]"):
        model(**inputs, head_mask=np.ones(3))
    tree = {key: value for key, value in model.params.items() if key != "cls"}
    with pytest.raises(BadInput, match="params lacks 6 tensors: cls/predictions/bias"):
        model(**inputs, params=tree)
    flat = flax.traverse_util.flatten_dict(model.params)
    flat["cls", "predictions", "bias"] = jnp.zeros(3)
    with pytest.raises(
        BadInput, match=r"cls/predictions/bias has shape \[3\] but the config says \[37\]"
    ):
        model(**inputs, params=flax.traverse_util.unflatten_dict(flat))


@pytest.mark.parametrize("name", classes.every("FlaxMobileBertForSequenceClassification"))
def test_dropout(name: str) -> None:
    """On in training with a key: the same key the same outputs; off otherwise. Without a key one
    line says so."""
    model, inputs = model_of(name), inputs_of(name)
    first, same, other = (
        model(**inputs, train=True, dropout_rng=jax.random.PRNGKey(seed))[0] for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, same)
    assert np.abs(first - other).max() > 1e-3
    np.testing.assert_array_equal(
        model(**inputs)[0], model(**inputs, dropout_rng=jax.random.PRNGKey(1))[0]
    )
    with pytest.raises(BadInput, match="pass dropout_rng=KEY"):
        model(**inputs, train=True)
    rates = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    # Where the config has no rate for the classifier, it is that of hidden states, as in
    # transformers.
    silent = class_of(name)(config_of(name, **rates, classifier_dropout=None), _do_init=False)
    np.testing.assert_array_equal(
        silent(**inputs, params=model.params, train=True)[0], model(**inputs)[0]
    )
    if "classifier" not in model.params:
        return
    loud = class_of(name)(config_of(name, **rates, classifier_dropout=0.5), _do_init=False)
    dropped = loud(
        **inputs,
        params=model.params,
        train=True,
        dropout_rng=jax.random.PRNGKey(0),
        output_hidden_states=True,
    )
    clean = model(**inputs, output_hidden_states=True)
    np.testing.assert_allclose(dropped.hidden_states[-1], clean.hidden_states[-1], atol=1e-5)
    assert np.abs(dropped.logits - clean.logits).max() > 1e-3


def test_labels_come_from_the_folder(tmp_path: Path) -> None:
    name = "FlaxMobileBertForTokenClassification"
    labels = dict(enumerate(("O", "B-PER", "I-PER", "B-LOC", "I-LOC")))
    config = config_of(
        name, id2label=labels, label2id={value: key for key, value in labels.items()}
    )
    class_of(name)(config, _do_init=False).save_pretrained(tmp_path, params=model_of(name).params)
    again, params = class_of(name).from_pretrained(tmp_path, _do_init=False)
    assert again.config.id2label == labels and again.config.label2id["B-LOC"] == 3
    classes.assert_equal(params, model_of(name).params)


def test_push_to_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers' own, which uploads what `save_pretrained` writes."""
    sent = {}
    kind = class_of("FlaxMobileBertModel")
    monkeypatch.setattr(kind, "_create_repo", lambda self, repo, **_: repo)
    monkeypatch.setattr(
        kind,
        "_upload_modified_files",
        lambda self, folder, repo, stamps, **_: sent.update(
            {repo: {path.name for path in Path(folder).iterdir()}}
        ),
    )
    model_of("FlaxMobileBertModel").save_pretrained(
        str(tmp_path), push_to_hub=True, repo_id="someone/student"
    )
    assert sent == {"someone/student": {"config.json", "flax_model.msgpack"}}
    assert kind.push_to_hub is FlaxBertModel.push_to_hub
