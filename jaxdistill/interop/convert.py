"""Applies the name table: our parameter tree <-> a flat Hugging Face state of NumPy arrays. Called
by `pretrained`.

A *state* is {PyTorch name: float32 array}, as `state_dict()` would give it, but with the names in
base-model form: no `bert.`/`mobilebert.` prefix (`strip_prefix`, `add_prefix`)."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdistill.errors import BadInput
from jaxdistill.interop import names
from jaxdistill.models import Model, ModelConfig, Params, parameters

State = dict[str, np.ndarray]
PREFIXES = ("bert.", "mobilebert.", "ib_bert.")
WORDS = "embeddings.word_embeddings.weight"
# What other programs put before all names: DataParallel, torch.compile, FSDP, PEFT, and modules
# that hold a BERT.
WRAPPERS = frozenset(
    {
        "module",
        "_orig_mod",
        "_fsdp_wrapped_module",
        "base_model",
        "model",
        "backbone",
        "encoder",
        "network",
        "auto_model",
        "0",
        "transformer",
        "student",
        "bert",
        "mobilebert",
        "ib_bert",
    }
)


def to_state(config: ModelConfig, params: Params, family: str) -> State:
    """Our parameters as a Hugging Face state of the family "bert" or "mobilebert", unstacked and
    flattened."""
    flat = parameters.flatten(params)
    check_tree(config, flat)
    state: State = {}
    for row in names.rows(config):
        ours, layout = np.asarray(flat[row.ours], np.float32), names.LAYOUTS[row.layout]
        if row.stacked:
            for i in range(config.num_layers):
                state[row.theirs.format(i=i)] = layout.to_theirs(ours[i])
        else:
            state[row.theirs] = layout.to_theirs(ours)
    if family == "mobilebert":
        state |= {name: np.zeros(shape, np.float32) for name, shape in names.unused(config).items()}
    return state


def from_state(
    config: ModelConfig, state: Mapping[str, np.ndarray], where: str, strict_heads: bool = True
) -> Params:
    """A Hugging Face state as our parameters, float32, layers stacked.

    `where` names the file in messages. `strict_heads`: whether tensors outside the encoder that the
    config has no use for are refused too. Raises `BadInput` for missing, unexpected, misshapen or
    non-float tensors."""
    if config.num_layers > len(state):  # before anything is made for each of them
        raise BadInput(
            f"{where} holds {len(state)} tensors, but the config says {config.num_layers} layers; weights and "
            "config.json are of different models"
        )
    flat: dict[str, jax.Array] = {}
    shapes, used = our_shapes(config), set()
    layers = range(config.num_layers)
    wanted = [
        name
        for row in names.rows(config)
        for name in ([row.theirs.format(i=i) for i in layers] if row.stacked else [row.theirs])
    ]
    complain(
        "lacks",
        [name for name in wanted if name not in state],
        where,
        "the file is of another architecture, of another depth, or incomplete: check config.json and the download",
    )
    for row in names.rows(config):
        layout, shape = names.LAYOUTS[row.layout], shapes[row.ours]
        one = shape[1:] if row.stacked else shape
        theirs = [row.theirs.format(i=i) for i in layers] if row.stacked else [row.theirs]
        for name in theirs:
            check_tensor(name, state[name], layout.shape(one), where)
        used.update(theirs)
        arrays = [layout.to_ours(np.asarray(state[name], np.float32), one) for name in theirs]
        flat[row.ours] = jnp.asarray(np.stack(arrays) if row.stacked else arrays[0])
    check_finite(flat, where)
    extra = [name for name in state if name not in used and not names.is_ignorable(name)]
    left = [name for name in extra if names.is_leftover(name)]
    if left:
        say(f"{where} holds {_several(left)} left from training, which are not used")
    extra = [
        name for name in extra if name not in left and (strict_heads or name.startswith(names.BASE))
    ]
    if any(name.startswith(names.BASE) for name in extra):
        complain(
            "holds unknown",
            extra,
            where,
            "config.json does not describe this file: take both from the same export",
        )
    complain(
        "holds unknown",
        extra,
        where,
        "they are no part of a BERT, but of another head; jaxdistill.from_pretrained(DIR, "
        "heads=()) loads the encoder alone, and save_pretrained writes it as a folder that every command takes",
    )
    return parameters.unflatten(flat)


@functools.lru_cache(maxsize=16)
def our_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """{path: shape} of every parameter of the model, without making any."""
    tree = jax.eval_shape(Model(config).init, jax.random.key(0))
    return {name: leaf.shape for name, leaf in parameters.flatten(tree).items()}


def largest_bytes(config: ModelConfig) -> int:
    """What weights of this architecture can need at most: float64, all heads, an output table of
    its own."""
    shapes = our_shapes(config.replace(heads=("mlm",))) | our_shapes(config)
    numbers = (
        sum(math.prod(shape) for shape in shapes.values()) + config.vocab_size * config.hidden_size
    )
    return 8 * numbers + 2**24


def check_tree(config: ModelConfig, flat: Mapping[str, Any], where: str = "params") -> None:
    """Raises `BadInput` unless the flat parameters `flat` are exactly those of the model described
    by `config`."""
    shapes = our_shapes(config)
    complain(
        "lacks",
        [name for name in shapes if name not in flat],
        where,
        "they belong to another model, or to a part of one: give the whole tree of this model's config",
    )
    complain(
        "holds unknown",
        [name for name in flat if name not in shapes],
        where,
        "they belong to another model: drop what the config does not have (a loss's own projections, for one)",
    )
    for name, shape in shapes.items():
        check_tensor(name, flat[name], shape, where)


def check_tensor(name: str, array: Any, shape: tuple[int, ...], where: str) -> None:
    """Raises `BadInput` unless `array` is floating-point and of the given shape."""
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise BadInput(
            f"{where}: {name} is stored as {array.dtype}; expected floating-point numbers, "
            "so take the unquantised weights"
        )
    if tuple(array.shape) != shape:
        raise BadInput(
            f"{where}: {name} has shape {list(array.shape)} but the config says {list(shape)}; "
            "weights and config.json are of different models: take both from the same export"
        )


def complain(what: str, tensors: Iterable[str], where: str, advice: str) -> None:
    """Raises `BadInput` naming the first few of `tensors`, if there are any."""
    tensors = sorted(tensors)
    if tensors:
        raise BadInput(f"{where} {what} {_several(tensors)}; {advice}")


def _several(tensors: list[str]) -> str:
    """ "5 tensors: a, b, c, d and 1 more"."""
    more = f" and {len(tensors) - 4} more" if len(tensors) > 4 else ""
    return f"{len(tensors)} tensor{'s' if len(tensors) > 1 else ''}: {', '.join(tensors[:4])}{more}"


def check_finite(flat: Mapping[str, Any], where: str) -> None:
    """Raises `BadInput` naming the parameters that hold NaN or infinite numbers."""
    complain(
        "holds numbers that are not finite in",
        [name for name, x in flat.items() if not np.isfinite(np.asarray(x)).all()],
        where,
        "training diverged, or the numbers were too large for float16: take other weights",
    )


def say(line: str) -> None:
    """One line on stderr about what was loaded in another way than it lies there."""
    print(f"jaxdistill: {line}", file=sys.stderr, flush=True)


def wrapper(tensors: Iterable[str], where: str = "the file") -> str:
    """What stands before all names of a state, such as "module.", and belongs to no model of ours;
    "" for nothing.

    It is told by the word table. Raises `BadInput` for a name that no known program puts there,
    since it may be that of another kind of model, and for two word tables, neither of which stands
    where it belongs."""
    found = []
    for path in (name.removesuffix(WORDS) for name in tensors if f".{name}".endswith(f".{WORDS}")):
        base = next((base for base in PREFIXES if f".{path}".endswith(f".{base}")), "")
        found.append(path.removesuffix(base))
    if not found or "" in found:
        return ""
    if len(found) > 1:
        raise BadInput(
            f"{where} holds {len(found)} word tables, under {found[0]!r} and {found[1]!r}; save the encoder that is "
            "wanted alone"
        )
    if not WRAPPERS.issuperset(found[0].split(".")[:-1]):
        raise BadInput(
            f"{where}: the tensors' names begin with {found[0]!r}; expected '{PREFIXES[0]}' or nothing, as in a BERT. "
            "Take the weights of a BERT, or rename them"
        )
    return found[0]


def strip_prefix(state: Mapping[str, np.ndarray]) -> State:
    """Names in base-model form, with TF1's `gamma`/`beta` of old checkpoints modernised, and
    without a `wrapper`."""
    before = wrapper(state)
    return {modern_name(name.removeprefix(before)): array for name, array in state.items()}


def modern_name(name: str) -> str:
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    for old, new in ((".gamma", ".weight"), (".beta", ".bias")):
        name = name.removesuffix(old) + new if name.endswith(old) else name
    return name


def add_prefix(state: Mapping[str, np.ndarray], family: str) -> State:
    """Names as a model with heads has them."""
    return {
        f"{family}.{name}" if name.startswith(names.BASE) else name: array
        for name, array in state.items()
    }
