"""What a class is called with: every sensible form of a batch, and one line for what is none."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxdistill.errors import BadInput
from jaxdistill.interop.hf_flax import inputs
from jaxdistill.models import ModelConfig
from tests.interop.hf_flax.classes import inputs_of, model_of
from tests.interop.tiny import SHRUNK

CONFIG = ModelConfig(**SHRUNK)
IDS = np.array([[2, 5, 36], [1, 0, 0]])


def checked(**given: Any) -> dict[str, jax.Array]:
    return inputs.check(CONFIG, {"input_ids": IDS, **given}, ("batch", "length"))


@pytest.mark.parametrize(
    "form", [np.asarray, jnp.asarray, torch.tensor, np.ndarray.tolist, np.uint8, np.int64]
)
def test_forms_of_ids(form: Any) -> None:
    np.testing.assert_array_equal(checked(input_ids=form(IDS))["input_ids"], IDS)


def test_masks_and_what_is_the_same_in_all_rows() -> None:
    given = checked(attention_mask=IDS > 0, position_ids=np.arange(3)[None], token_type_ids=None)
    assert set(given) == {"input_ids", "attention_mask", "position_ids"}
    assert {(value.shape, str(value.dtype)) for value in given.values()} == {((2, 3), "int32")}
    np.testing.assert_array_equal(given["attention_mask"], [[1, 1, 1], [1, 0, 0]])
    for dtype in ("float32", "bfloat16", "uint8", "bool"):
        mask = checked(attention_mask=jnp.asarray(IDS > 0, dtype))["attention_mask"]
        assert mask.dtype == jnp.int32 and (mask == (IDS > 0)).all()
    in_another_order = inputs.check(
        CONFIG, {"attention_mask": np.ones(3), "input_ids": IDS}, ("batch", "length")
    )
    assert in_another_order["attention_mask"].shape == (2, 3)
    assert jax.jit(lambda mask: checked(attention_mask=mask)["attention_mask"])(
        np.ones(3)
    ).shape == (2, 3)


@pytest.mark.parametrize(
    "given, message",
    [
        (
            {"input_ids": IDS - 1},
            "input_ids holds -1; expected 0 to 36, below the model's vocab_size; take the tokenizer",
        ),
        ({"input_ids": jnp.asarray(IDS) + 1}, "input_ids holds 37; expected 0 to 36"),
        ({"input_ids": IDS + 2**40}, "holds 1099511627778"),
        (
            {"token_type_ids": IDS},
            "token_type_ids holds 5; expected 0 to 2, below the model's type_vocab_size; leave them away",
        ),
        (
            {"position_ids": np.array([9, 1, 2])},
            "position_ids holds 9; expected 0 to 8, below the model's max_positions",
        ),
        ({"input_ids": IDS.astype(float)}, r"input_ids is float64\[2, 3\]; expected whole numbers"),
        ({"input_ids": IDS > 0}, "input_ids is bool"),
        (
            {"input_ids": ["a fox", "two"]},
            "input_ids holds str_; expected whole numbers: give what a tokenizer makes of text",
        ),
        ({"attention_mask": [["a", "b", "c"]] * 2}, "attention_mask holds str_"),
        ({"input_ids": [[1, 2], [3]]}, r"rows of unlike length; pad them \(padding=True"),
        ({"input_ids": None}, "input_ids is None"),
        ({"input_ids": IDS[0]}, r"input_ids has shape \[3\]; expected \[batch, length\]"),
        ({"input_ids": IDS[:, :0]}, r"input_ids has shape \[2, 0\]"),
        (
            {"attention_mask": IDS / 2 % 1},
            "attention_mask holds 0.5; expected 1 for a token and 0 for padding",
        ),
        (
            {"attention_mask": jnp.where(IDS > 0, 0, jnp.finfo(jnp.bfloat16).min)},
            "attention_mask holds -3.*e[+]38; expected 1",
        ),
        (
            {"attention_mask": np.where(IDS > 0, 0, -10_000)},
            "attention_mask holds -10000; expected 1",
        ),
        ({"attention_mask": np.full((2, 3), np.nan)}, "attention_mask holds nan"),
        (
            {"attention_mask": IDS[:, :2]},
            r"attention_mask has shape \[2, 2\], but input_ids \[2, 3\]; give one for each token",
        ),
    ],
)
def test_what_is_no_batch(given: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        checked(**given)


def test_choices() -> None:
    with pytest.raises(BadInput, match=r"expected \[batch, choices, length\]"):
        inputs.check(CONFIG, {"input_ids": IDS}, ("batch", "choices", "length"))
    given = inputs.check(
        CONFIG,
        {"input_ids": IDS[:, None], "attention_mask": np.ones(3)},
        ("batch", "choices", "length"),
    )
    assert given["attention_mask"].shape == (2, 1, 3)


def test_a_class_refuses_and_under_jit_gives_nan() -> None:
    """Ids are not known under `jit`; what lies outside the table must not give numbers that look
    right."""
    name = "FlaxMobileBertModel"
    model, ids = model_of(name), inputs_of(name)["input_ids"]
    call = jax.jit(lambda ids: model(ids).last_hidden_state)
    assert np.isfinite(call(ids)).all()
    for row, wrong in ((0, -1), (1, 37)):
        changed = ids.copy()
        changed[row, 2] = wrong
        with pytest.raises(BadInput, match=f"input_ids holds {wrong}; expected 0 to 36"):
            model(changed)
        lost = np.isnan(call(changed)).any((1, 2))
        assert lost[row] and not np.delete(lost, row).any()
