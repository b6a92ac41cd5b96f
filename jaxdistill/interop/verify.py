"""Is an exported folder really the model it was made from? Loads it back and compares outputs and
tensors.

Called by run and conversion.
"""

from __future__ import annotations

import functools
import os
from typing import Any

import jax
import numpy as np
from etils import epath

from jaxdistill import remote
from jaxdistill.errors import BadInput
from jaxdistill.interop import hf_torch, own_format
from jaxdistill.interop.pretrained import from_pretrained
from jaxdistill.models import Model, ModelConfig, Params, parameters

TOLERANCE = 1e-5
TORCH_TOLERANCE = 1e-4
# Attributes of transformers outputs -> our names. `logits` means something else in the classes of
# one head.
TORCH_OUTPUTS = {
    "pooler_output": "pooler_output",
    "prediction_logits": "mlm_logits",
    "start_logits": "start_logits",
    "seq_relationship_logits": "nsp_logits",
    "end_logits": "end_logits",
    "logits": "logits",
}
TORCH_LOGITS = {"ForMaskedLM": "mlm_logits", "ForNextSentencePrediction": "nsp_logits"}


def verify_export(
    directory: str | os.PathLike[str],
    model: Model,
    params: Params,
    *,
    with_torch: bool = False,
    seed: int = 0,
) -> dict[str, Any]:
    """Compares the model with what its exported folder loads as: outputs on a random padded batch,
    in float32, and every tensor, which must be equal to the bit.

    Returns {"format", "max_relative_difference", "outputs": {name: difference}}, and with
    `with_torch` also "torch_max_relative_difference" (None where PyTorch is not installed or the
    format is our own). A relative difference is max |a - b| / max |b|. Raises `BadInput` if any
    exceeds 1e-5, or 1e-4 in PyTorch, or a tensor differs."""
    folder = epath.Path(directory)
    broken = [
        name
        for name, x in parameters.flatten(params).items()
        if not np.isfinite(np.asarray(x)).all()
    ]
    if broken:
        raise BadInput(
            f"the model has numbers that are not finite in {', '.join(broken[:4])}; nothing can be compared with it: "
            "take other weights"
        )
    batch = random_batch(model.config, seed)
    expected = _outputs(
        Model(model.config.replace(dtype="float32", residual_dtype="float32")), params, batch
    )
    model_read, params_read = from_pretrained(folder)
    loaded = _outputs(model_read, params_read, batch)
    missing = sorted(
        set(expected)
        - set(loaded)
        - ({"pooler_output"} if model.config.pooler == "none" else set())
    )
    if missing:
        raise BadInput(
            f"{folder} lost the outputs {', '.join(missing)} of the model it was made from; "
            "export it again"
        )
    differences = {
        name: relative_difference(loaded[name], value) for name, value in expected.items()
    }
    _check(folder, differences, TOLERANCE, "jaxdistill")
    _check_tensors(folder, parameters.flatten(params_read), parameters.flatten(params))
    values = hf_torch.read_json(folder / "config.json")
    own = values.get("model_type") == own_format.MODEL_TYPE
    report: dict[str, Any] = {
        "format": own_format.MODEL_TYPE if own else "huggingface",
        "outputs": differences,
        "max_relative_difference": max(differences.values()),
    }
    if with_torch:
        theirs = None if own else torch_outputs(folder, values["architectures"][0], batch)
        report["torch_max_relative_difference"] = None
        if theirs is not None:
            in_torch = {
                name: relative_difference(theirs[name], expected[name])
                for name in theirs
                if name in expected
            }
            _check(folder, in_torch, TORCH_TOLERANCE, "PyTorch")
            report["torch_max_relative_difference"] = max(in_torch.values())
    return report


def random_batch(config: ModelConfig, seed: int = 0) -> dict[str, np.ndarray]:
    """Three rows, two of them padded: input_ids, attention_mask and token_type_ids int32[3, L], L
    at most 16."""
    rng = np.random.default_rng(seed)
    length = min(16, config.max_positions)
    lengths = np.array([length, max(1, length - 3), max(1, length // 2)])
    mask = (np.arange(length) < lengths[:, None]).astype(np.int32)
    ids = rng.integers(0, config.vocab_size, mask.shape).astype(np.int32)
    return {
        "input_ids": np.where(mask > 0, ids, config.pad_token_id).astype(np.int32),
        "attention_mask": mask,
        "token_type_ids": rng.integers(0, config.type_vocab_size, mask.shape).astype(np.int32),
    }


def relative_difference(given: np.ndarray, expected: np.ndarray) -> float:
    """max |given - expected| / max |expected|; infinite if the shapes differ or anything is not
    finite."""
    if given.shape != expected.shape or not (
        np.isfinite(given).all() and np.isfinite(expected).all()
    ):
        return float("inf")
    return float(np.max(np.abs(given - expected)) / max(float(np.max(np.abs(expected))), 1e-30))


def torch_outputs(
    directory: epath.Path, architecture: str, batch: dict[str, np.ndarray]
) -> dict[str, np.ndarray] | None:
    """The outputs of the folder's own transformers class in PyTorch, under our names; None without
    PyTorch."""
    try:
        import torch
        import transformers
    except ImportError:
        return None
    with remote.local(directory) as folder:
        network, info = getattr(transformers, architecture).from_pretrained(
            str(folder), output_loading_info=True
        )
    # A class without the folder's pooler makes one up, which nothing of ours reads.
    missing = [name for name in info["missing_keys"] if "pooler" not in name]
    if missing or info["mismatched_keys"]:
        wrong = [str(name) for name in missing or info["mismatched_keys"]]
        raise BadInput(
            f"{directory}: transformers finds no fitting {', '.join(wrong[:4])}; export it again"
        )
    network.eval()
    with torch.no_grad():
        tensors = {name: torch.tensor(array).long() for name, array in batch.items()}
        if architecture.endswith(
            "ForMultipleChoice"
        ):  # [batch, choices, length] there; here each row is the one choice
            tensors = {name: tensor[:, None] for name, tensor in tensors.items()}
        out = network(**tensors, output_hidden_states=True)
    result = {"last_hidden_state": out.hidden_states[-1].numpy()}
    pooler_made_up = any("pooler" in name for name in info["missing_keys"])
    logits = next(
        (ours for kind, ours in TORCH_LOGITS.items() if architecture.endswith(kind)), "logits"
    )
    for theirs, ours in {**TORCH_OUTPUTS, "logits": logits}.items():
        value = getattr(out, theirs, None)
        if value is not None and not (ours == "pooler_output" and pooler_made_up):
            result[ours] = value.numpy()
    return result


def _outputs(model: Model, params: Params, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: np.asarray(value) for name, value in _apply(model, params, batch).items()}


@functools.partial(jax.jit, static_argnums=0)  # one compilation for both when the configs are equal
def _apply(model: Model, params: Params, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    return model.apply(params, batch)[0]


def _check_tensors(directory: epath.Path, loaded: dict[str, Any], expected: dict[str, Any]) -> None:
    """Raises `BadInput` unless both hold the same tensors: outputs on one batch do not show every
    number."""
    other = sorted(set(loaded) ^ set(expected)) or [
        name
        for name, value in expected.items()
        if not np.array_equal(np.asarray(loaded[name]), np.asarray(value))
    ]
    if other:
        raise BadInput(
            f"{directory}: {len(other)} tensors are not those of the model it was made from, such as {other[0]}; "
            "export it again"
        )


def _check(
    directory: epath.Path, differences: dict[str, float], tolerance: float, where: str
) -> None:
    worst = max(differences, key=lambda name: differences[name])
    if not differences[worst] <= tolerance:
        raise BadInput(
            f"{directory}: {worst} computed by {where} from the exported folder differs by "
            f"{differences[worst]:.2e} (relative) from the model it was made from; expected at most "
            f"{tolerance:g}. The export does not belong to these parameters"
        )
