"""Google's TF1 checkpoints (`bert_model.ckpt`, `mobilebert_variables.ckpt`) -> (Model, params).
Called by conversion.

Names come from the table in `names`, the architecture from the `bert_config.json` beside the
checkpoint, heads and pooler from the variables themselves. TensorFlow (the extra `tf1`) opens the
files, since no other maintained reader of them exists; all the rest works on a mapping from names
to arrays and needs none."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from etils import epath

from jaxdistill import remote
from jaxdistill.errors import BadInput, nearest
from jaxdistill.interop import configs, convert, names
from jaxdistill.interop.hf_torch import read_json
from jaxdistill.models import Model, ModelConfig, Params

Variables = Mapping[str, np.ndarray]

# {key of bert_config.json: default of Google's class}; our fields are those of the same keys in
# Hugging Face's files.
DEFAULTS: dict[str, Any] = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "max_position_embeddings": 512,
    "type_vocab_size": 16,
    "initializer_range": 0.02,
}
ACTIVATIONS = {"gelu": "gelu_tanh", "relu": "relu"}  # Google's gelu is the tanh form
NORMS = ("layer_norm", "no_norm")
# Of a training run, and no part of the model: the teacher, the norms inside its losses, counters,
# optimizer slots.
TRAINING = re.compile(
    r"(teacher|hidden_distill_\d+)/|(.*/)?(\w*global_step|beta[12]_power|\w*loss_scale|good_steps)$|(.*/)?\w*Optimizer\w*(/|$)"
    r"|.*/(adam_[mv]|lamb_[mv]|Adam|Adam_1|Momentum|ExponentialMovingAverage)$"
)


@dataclasses.dataclass(frozen=True)
class Imported:
    """What a checkpoint holds: the model, and names left aside, of training (`skipped`) or of
    nothing we know."""

    model: Model
    params: Params
    skipped: tuple[str, ...]
    unknown: tuple[str, ...]


def load(checkpoint: str | os.PathLike[str], config_file: str | os.PathLike[str]) -> Imported:
    """Imports a checkpoint, all heads it holds; parameters are float32.

    Args:
        checkpoint: its prefix (`…/bert_model.ckpt`), any of its files, or a folder that holds one checkpoint.
        config_file: the `bert_config.json` that came with it.

    Raises:
        BadInput: TensorFlow is not installed, files are missing or damaged, or config and checkpoint do not fit.
    """
    config = read_config(config_file)
    prefix = find(checkpoint)
    with open_variables(prefix) as variables:
        return from_variables(config, variables, str(prefix))


def read_config(path: str | os.PathLike[str]) -> ModelConfig:
    """The encoder that a `bert_config.json` of Google's BERT or MobileBERT describes, without
    heads."""
    file = epath.Path(path).expanduser()
    if not file.is_file():
        raise BadInput(
            f"there is no file {file}; give the bert_config.json that came with the checkpoint"
        )
    values, where = read_json(file), str(file)
    if "model_type" in values or "vocab_size" not in values:
        why = (
            "it has a model_type, as Hugging Face's have"
            if "model_type" in values
            else "it has no vocab_size"
        )
        raise BadInput(
            f"{where} is not Google's bert_config.json: {why}; give the one that came with the checkpoint"
        )
    fields = {
        configs.SHARED_KEYS[key][0]: values.get(key, usual) for key, usual in DEFAULTS.items()
    }
    fields |= {
        "vocab_size": values["vocab_size"],
        "embedding_size": values.get("embedding_size"),
        "trigram_input": values.get("trigram_input", False),
        "num_ffn": values.get("num_feedforward_networks", 1),
        "activation": _one_of(values, "hidden_act", "gelu", ACTIVATIONS, where),
        "norm": _one_of(
            values, "normalization_type", "layer_norm", {norm: norm for norm in NORMS}, where
        ),
        "pooler": "tanh" if values.get("classifier_activation", True) else "first_token",
    }
    if values.get("use_bottleneck", False):
        fields["bottleneck_size"] = values.get("intra_bottleneck_size") or fields["hidden_size"]
        if values.get("use_bottleneck_attention", False):  # takes precedence in their code
            fields["attention_input"] = "bottleneck"
        elif values.get("key_query_shared_bottleneck", False):
            fields["attention_input"] = "shared_bottleneck"
    configs.check_kinds(fields, where)
    return ModelConfig(**fields, heads=())


def _one_of(values: dict[str, Any], key: str, usual: str, valid: dict[str, str], where: str) -> str:
    given = values.get(key, usual)
    if not isinstance(given, str) or given not in valid:
        raise BadInput(
            f"{where} has {key}={given!r}; {nearest(str(given), valid)}. Other variants cannot be imported"
        )
    return valid[given]


def from_variables(config: ModelConfig, variables: Variables, where: str) -> Imported:
    """The model of `config` from the variables of a checkpoint; only those that belong to it are
    read.

    Raises `BadInput` for variables that are missing, misshapen, or inside `bert/` and of no use to
    the config: those are the encoder's, so the config must be wrong. Unknown ones outside are
    reported."""
    skipped = {name for name in variables if TRAINING.match(name)}
    config = with_heads(config, variables, where)
    shapes, state = convert.our_shapes(config), {}
    layers = [str(i) for i in range(config.num_layers)]
    pairs = [(row, i) for row in names.rows(config) for i in (layers if row.stacked else [""])]
    convert.complain(
        "lacks",
        [name for row, i in pairs if (name := row.tf1.replace("{i}", i)) not in variables],
        where,
        "bert_config.json is of another model, or the checkpoint is none of BERT or MobileBERT in TF1's names",
    )
    used = {row.tf1.replace("{i}", i) for row, i in pairs}
    unknown = sorted(set(variables) - used - skipped)
    convert.complain(
        "holds unknown",
        [name for name in unknown if name.startswith("bert/")],
        where,
        "bert_config.json does not describe this checkpoint: give the one that came with it",
    )
    for row, i in pairs:
        name, ours = (
            row.tf1.replace("{i}", i),
            shapes[row.ours][1:] if row.stacked else shapes[row.ours],
        )
        shape, array = names.LAYOUTS[row.layout].shape(ours), variables[name]
        convert.check_tensor(name, array, shape[::-1] if row.tf1_transposed else shape, where)
        state[row.theirs.replace("{i}", i)] = array.T if row.tf1_transposed else array
    params = convert.from_state(config, state, where)
    return Imported(Model(config), params, tuple(sorted(skipped)), tuple(unknown))


def with_heads(config: ModelConfig, variables: Variables, where: str) -> ModelConfig:
    """`config` with the heads that the checkpoint has the first variable of, and without a pooler
    it does not have."""
    heads = tuple(head for head, rows in names.HEADS.items() if rows and rows[0].tf1 in variables)
    changes: dict[str, Any] = {"heads": heads}
    if "sequence_classification" in heads:
        changes["num_labels"] = variables[names.HEADS["sequence_classification"][0].tf1].shape[0]
        changes["regression"] = changes["num_labels"] == 1
    if config.pooler == "tanh" and names.POOLER[0].tf1 not in variables:
        if {"nsp", "sequence_classification"} & set(heads):
            raise BadInput(
                f"{where} lacks {names.POOLER[0].tf1}, which its heads need; if the model pools by the raw first "
                "token, classifier_activation in bert_config.json must be false"
            )
        changes["pooler"] = "none"
    return config.replace(**changes)


def find(checkpoint: str | os.PathLike[str]) -> epath.Path:
    """The prefix of a checkpoint from the prefix, one of its files or its folder. Raises `BadInput`
    if there is none."""
    path = epath.Path(checkpoint).expanduser()
    if path.is_dir():
        found = sorted(
            file.name.removesuffix(".index")
            for file in path.iterdir()
            if file.name.endswith(".index")
        )
        if len(found) != 1:
            what = (
                f"several checkpoints: {', '.join(found[:4])}"
                if found
                else "no checkpoint (no *.index)"
            )
            raise BadInput(
                f"{path} holds {what}; give the prefix of one, such as DIR/bert_model.ckpt"
            )
        path = path / found[0]
    prefix = path.parent / re.sub(r"\.(index|meta|data-\d+-of-\d+)$", "", path.name)
    beside = sorted(
        file.name for file in remote.entries(prefix.parent) if file.name.startswith(prefix.name)
    )
    if f"{prefix.name}.index" not in beside:
        raise BadInput(
            f"there is no {prefix}.index; give the prefix of a checkpoint of which .index and .data-… lie in one "
            f"folder{' (there: ' + ', '.join(beside[:4]) + ')' if beside else ''}"
        )
    parts = [match for name in beside if (match := re.fullmatch(r".*\.data-(\d+)-of-(\d+)", name))]
    if not parts or len(parts) != int(parts[0][2]):
        raise BadInput(
            f"{prefix}.index is there, but {len(parts)} of its {parts[0][2] if parts else 'one or more'} .data-… files "
            "are; fetch the checkpoint again, whole"
        )
    return prefix


@contextlib.contextmanager
def open_variables(prefix: epath.Path) -> Iterator[Variables]:
    """The variables of a checkpoint by name; each is read when it is looked up. A remote one is
    copied here first."""
    os.environ.update(
        {"TF_CPP_MIN_LOG_LEVEL": "2", "TF_ENABLE_ONEDNN_OPTS": "0", **os.environ}
    )  # its start-up talk is not ours
    try:
        import tensorflow as tf
    except ImportError as error:
        raise BadInput(
            f"TF1 checkpoints are read by TensorFlow, which cannot be imported here ({error}): "
            "pip install tensorflow"
        ) from error
    with tempfile.TemporaryDirectory(prefix="jaxdistill-") as folder:
        local = prefix
        if remote.is_remote(prefix):
            local = epath.Path(folder) / prefix.name
            for file in prefix.parent.iterdir():
                if file.name == f"{prefix.name}.index" or file.name.startswith(
                    f"{prefix.name}.data-"
                ):
                    (epath.Path(folder) / file.name).write_bytes(file.read_bytes())
        with _damage_in_a_line(prefix):
            reader = tf.train.load_checkpoint(os.fspath(local))
        yield _Lazy(reader, prefix)


class _Lazy(Mapping[str, np.ndarray]):
    """TensorFlow's reader as a mapping."""

    def __init__(self, reader: Any, prefix: epath.Path) -> None:
        self._reader, self._prefix = reader, prefix
        self._names = list(reader.get_variable_to_shape_map())

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._names:
            raise KeyError(name)
        with _damage_in_a_line(self._prefix):
            return self._reader.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


@contextlib.contextmanager
def _damage_in_a_line(prefix: epath.Path) -> Iterator[None]:
    try:
        yield
    except (
        Exception
    ) as error:  # TensorFlow raises a dozen kinds on damaged bytes; all mean the same
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise BadInput(
            f"{prefix} cannot be read ({first[:200]}); it is damaged or cut short: fetch it again"
        ) from error
