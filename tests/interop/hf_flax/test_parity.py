"""A student of any config, exported, gives in Hugging Face Flax what it gives in our own model and
in PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import numpy as np
import pytest
import torch
from transformers.models.bert import modeling_flax_bert
from transformers.models.mobilebert import modeling_mobilebert

from jaxdistill import interop
from jaxdistill.interop import hf_flax
from tests.interop import oracle
from tests.interop.hf_flax import classes
from tests.interop.hf_flax.classes import MOBILE, class_of, config_of

# Fields of the output classes -> our names. What `logits` are follows from the class.
NAMES = {
    "pooler_output": "pooler_output",
    "prediction_logits": "mlm_logits",
    "seq_relationship_logits": "nsp_logits",
    "start_logits": "start_logits",
    "end_logits": "end_logits",
}


def flax_class(name: str) -> Any:
    """transformers' own FlaxBert…, our FlaxMobileBert…."""
    return getattr(hf_flax if name.startswith("Mobile") else modeling_flax_bert, "Flax" + name)


def flax_outputs(model: Any, params: Any, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The output by our names, as `oracle.torch_outputs` has it."""
    kind = type(model).__name__
    logits = (
        "mlm_logits"
        if kind.endswith("MaskedLM")
        else "nsp_logits"
        if kind.endswith("NextSentencePrediction")
        else "logits"
    )
    out = jax.jit(
        lambda params, inputs: model(
            **inputs, params=params, output_hidden_states=True, output_attentions=True
        )
    )(params, oracle.shaped(kind, inputs))
    names = {
        **NAMES,
        "logits": logits,
        "hidden_states": "hidden_states",
        "attentions": "attentions",
    }
    return {
        ours: np.stack(out[theirs]) if isinstance(out[theirs], tuple) else np.asarray(out[theirs])
        for theirs, ours in names.items()
        if theirs in out
    }


def load(variant: str, folder: Path) -> tuple[torch.nn.Module, Any, Any]:
    """A random PyTorch network; its exported student in Flax and that one's parameters."""
    network = oracle.random_torch(variant)
    network.save_pretrained(folder / "theirs")
    name = type(network).__name__
    # transformers' own classes take no PyTorch file with `_do_init=False`.
    to = None if name.startswith("Mobile") else "msgpack"
    interop.save_pretrained(
        folder / "student", *interop.from_pretrained(folder / "theirs"), format=to
    )
    return network, *flax_class(name).from_pretrained(folder / "student", _do_init=False)


SOME = (
    "mobilebert",
    "tiny",
    "no_bottleneck",
    "tanh_pooler_one_ffn",
)  # tests/interop/test_parity.py has all, in our model


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize(
    "variant",
    [
        variant if variant in SOME else pytest.param(variant, marks=pytest.mark.slow)
        for variant in oracle.VARIANTS
    ],
)
def test_student_in_flax(variant: str, tmp_path: Path) -> None:
    """Hidden states, attentions, logits: Flax = ours = PyTorch, padded and not; and no key is
    missing or left over."""
    network, model, params = load(variant, tmp_path)
    given = set(classes.flat(params))
    assert given == {"/".join(path) for path in model.required_params}
    ours, tree = interop.from_pretrained(tmp_path / "student")
    for padded in (True, False):
        inputs = oracle.batch(padded=padded)
        found = flax_outputs(model, params, inputs)
        theirs = oracle.torch_outputs(network, inputs)
        unseen = ("query", "key", "value")  # no output of a class of transformers
        oracle.assert_same(
            found, {name: value for name, value in theirs.items() if name not in unseen}
        )
        mine = oracle.our_outputs(ours, tree, inputs)
        oracle.assert_same(mine, {name: value for name, value in found.items() if name in mine})
        assert {"hidden_states", "attentions"} <= set(mine) & set(found)


@pytest.mark.parametrize("variant", ["mobilebert", "tanh_pooler_one_ffn"])
def test_every_leaf_is_seen(variant: str, tmp_path: Path) -> None:
    """The comparison has no blind spot: with any one leaf of the tree wrong, or two layers swapped,
    parity is lost."""
    network, model, params = load(variant, tmp_path)
    inputs = oracle.batch()
    theirs = {
        key: value
        for key, value in oracle.torch_outputs(network, inputs).items()
        if key not in ("query", "key", "value")
    }
    run = jax.jit(
        lambda params: model(
            **inputs, params=params, output_hidden_states=True, output_attentions=True
        )
    )

    def found(tree: Any) -> dict[str, np.ndarray]:
        out = run(flax.traverse_util.unflatten_dict(tree, sep="/"))
        return {
            "mlm_logits": np.asarray(out.prediction_logits),
            "nsp_logits": np.asarray(out.seq_relationship_logits),
            "hidden_states": np.stack(out.hidden_states),
            "attentions": np.stack(out.attentions),
        }

    flat = classes.flat(params)
    oracle.assert_same(found(flat), theirs)
    wrong = classes.flat(classes.randomised(params, seed=5))
    for name in flat:
        if not name.endswith("key/bias"):  # softmax cancels it
            with pytest.raises(AssertionError):
                oracle.assert_same(found({**flat, name: wrong[name]}), theirs)
    first, second = ("mobilebert/encoder/layer/0/", "mobilebert/encoder/layer/1/")
    for name in flat:
        if name.startswith(first) and not name.endswith("key/bias"):
            other = name.replace(first, second)
            with pytest.raises(AssertionError):
                oracle.assert_same(found({**flat, name: flat[other], other: flat[name]}), theirs)
        if name.endswith("kernel") and flat[name].shape[0] == flat[name].shape[-1]:
            with pytest.raises(AssertionError):
                oracle.assert_same(found({**flat, name: flat[name].T}), theirs)


def random_network(name: str, **keys: Any) -> torch.nn.Module:
    """PyTorch's network of the class, as random as the oracle's."""
    network = getattr(modeling_mobilebert, name.removeprefix("Flax"))(
        config_of(name, attn_implementation="eager", **keys)
    ).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for key, value in network.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            value.copy_(1 + 0.3 * noise if "LayerNorm.weight" in key else 0.3 * noise)
    return network


def torch_run(
    network: torch.nn.Module, inputs: dict[str, np.ndarray], **keys: Any
) -> dict[str, np.ndarray]:
    tensors = {key: torch.tensor(value) for key, value in (inputs | keys).items()}
    tensors = {key: value if key == "head_mask" else value.long() for key, value in tensors.items()}
    with torch.no_grad():
        out = network(**tensors, output_hidden_states=True, output_attentions=True)
    return {
        key: torch.stack(value).numpy() if isinstance(value, tuple) else value.numpy()
        for key, value in out.items()
    }


@pytest.mark.parametrize(
    "name",
    [
        name
        if name.endswith(("Model", "PreTraining", "QuestionAnswering"))
        else pytest.param(name, marks=pytest.mark.slow)
        for name in MOBILE
    ],
)
def test_from_pytorch_and_back_by_their_own_code(name: str, tmp_path: Path) -> None:
    """from_pt=True, and PyTorch's from_flax=True: nothing missing either way, equal outputs, equal
    to the bit at the end."""
    hf_flax.register_with_transformers()
    network = random_network(name)
    network.save_pretrained(tmp_path / "torch")
    model = class_of(name).from_pretrained(tmp_path / "torch", from_pt=True)
    inputs = classes.inputs_of(name)
    classes.assert_close(classes.run(model, name), torch_run(network, inputs))
    model.save_pretrained(tmp_path / "flax")
    back = type(network).from_pretrained(
        tmp_path / "flax", from_flax=True, attn_implementation="eager"
    )
    before, after = network.state_dict(), back.state_dict()
    assert before.keys() == after.keys()
    for key in before:
        assert torch.equal(before[key], after[key]), key
    classes.assert_close(torch_run(back, inputs), torch_run(network, inputs), 1e-6)


@pytest.mark.parametrize(
    "name",
    [
        name if name.endswith("TokenClassification") else pytest.param(name, marks=pytest.mark.slow)
        for name in MOBILE
        if not name.endswith("Model")
    ],
)
def test_heads_are_added_to_pytorch_folders_and_dropped(name: str, tmp_path: Path) -> None:
    """from_pt=True of a base model in a class with a head and the other way round; bfloat16 stays
    bfloat16."""
    base, head = random_network("FlaxMobileBertModel"), random_network(name)
    base.save_pretrained(tmp_path / "base")
    head.to(torch.bfloat16).save_pretrained(tmp_path / "head")
    config = config_of(name)
    added = class_of(name).from_pretrained(tmp_path / "base", from_pt=True, config=config).params
    dropped = (
        class_of("FlaxMobileBertModel").from_pretrained(tmp_path / "head", from_pt=True).params
    )
    for params, network in ((added["mobilebert"], base), (dropped, head.mobilebert)):
        table = network.state_dict()["embeddings.word_embeddings.weight"]
        kernel = network.state_dict()["encoder.layer.1.ffn.0.output.dense.weight"].T
        for ours, theirs in (
            (params["embeddings"]["word_embeddings"]["embedding"], table),
            (params["encoder"]["layer"]["1"]["ffn"]["0"]["output"]["dense"]["kernel"], kernel),
        ):
            assert str(ours.dtype) == str(theirs.dtype).removeprefix("torch.")
            np.testing.assert_array_equal(np.asarray(ours, np.float32), theirs.float().numpy())
    assert {
        "/".join(path) for path in class_of(name)(config, _do_init=False).required_params
    } == set(classes.flat(added))


def test_positions_and_masked_heads(tmp_path: Path) -> None:
    """`position_ids` and `head_mask`, of all layers or of each, as in PyTorch."""
    name = "FlaxMobileBertModel"
    network, inputs = random_network(name), classes.inputs_of(name)
    network.save_pretrained(tmp_path)
    model = class_of(name).from_pretrained(tmp_path)
    positions = np.tile(np.arange(classes.LENGTH)[::-1], (3, 1)) + 1
    of_each = np.array([[1.0, 0.0], [0.0, 1.0]], np.float32)
    for keys in ({"position_ids": positions}, {"head_mask": of_each}, {"head_mask": of_each[0]}):
        found = classes.run(model, name, **keys)
        classes.assert_close(found, torch_run(network, inputs, **keys))
        with pytest.raises(AssertionError):
            classes.assert_close(found, torch_run(network, inputs))


def test_the_shared_bottleneck_that_nothing_reads(tmp_path: Path) -> None:
    """PyTorch owns one beside bottlenecked attention if the config says both; so do we, through
    both conversions."""
    name = "FlaxMobileBertForMaskedLM"
    network = random_network(
        name, use_bottleneck_attention=True, embedding_size=12, trigram_input=False
    )
    network.save_pretrained(tmp_path / "torch")
    model = class_of(name).from_pretrained(tmp_path / "torch")
    assert set(classes.flat(model.params)) == {"/".join(path) for path in model.required_params}
    assert "mobilebert/encoder/layer/1/bottleneck/attention/dense/kernel" in classes.flat(
        model.params
    )
    assert "mobilebert/embeddings/embedding_transformation/kernel" in classes.flat(model.params)
    classes.assert_close(classes.run(model, name), torch_run(network, classes.inputs_of(name)))
