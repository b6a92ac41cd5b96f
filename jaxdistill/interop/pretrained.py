"""`from_pretrained` and `save_pretrained`: a folder, of Hugging Face's or our own format, <->
(Model, params).

Called by run, evaluation and users. Neither direction imports PyTorch or unpickles anything.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from etils import epath

from jaxdistill import remote
from jaxdistill.errors import BadInput, listed, nearest
from jaxdistill.interop import (
    configs,
    contents,
    convert,
    hf_msgpack,
    hf_torch,
    names,
    own_format,
    weight_files,
)
from jaxdistill.interop.model_card import model_card
from jaxdistill.models import Model, ModelConfig, Params

TOKENIZER_FILES = (
    "vocab.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
SENTENCE_FILES = (
    "modules.json",
    "1_Pooling",
    names.EMBEDDING_FOLDER,
    "2_Normalize",
    "3_Normalize",
    *contents.SENTENCE_SETTINGS,
)
CARD = "README.md"
# What `save_pretrained` can write: Hugging Face's folder with model.safetensors, which every reader
# takes ("huggingface" and "safetensors" are the same), or with flax_model.msgpack, or our own
# folder. Never both files: one of them would become stale.
FORMATS = ("huggingface", "safetensors", "msgpack", own_format.MODEL_TYPE)
SAFETENSORS = (hf_torch.WEIGHTS, hf_torch.INDEX, "model-*.safetensors")
# What a model folder may hold; `overwrite` replaces folders of these alone.
MODEL_FILES = (
    "config.json",
    CARD,
    hf_torch.INDEX,
    hf_msgpack.WEIGHTS,
    hf_msgpack.INDEX,
    *TOKENIZER_FILES,
    *SENTENCE_FILES,
)


@dataclasses.dataclass(frozen=True)
class Said:
    """What a model folder says that is no part of the network: keys of its config.json beside ours
    (and its model_type), and settings of sentence-transformers by file. `left_out`: keys that are
    not written again."""

    keys: dict[str, Any]
    sentence: dict[str, Any]
    left_out: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Exported:
    """What `save_pretrained` wrote: where, as "huggingface" or "jaxdistill", and if the latter,
    why."""

    path: epath.Path
    format: str
    reason: str | None


def from_pretrained(
    name_or_dir: str | os.PathLike[str], heads: Sequence[str] | None = None, dtype: str = "float32"
) -> tuple[Model, Params]:
    """Loads BERT or MobileBERT from a Hugging Face folder (safetensors, sharded or not, or
    flax_model.msgpack), or any model of ours from a folder of our own format.

    Args:
        name_or_dir: a folder, or the name of a model on the Hub ("google/mobilebert-uncased"), which is then fetched.
        heads: which heads to load; default all that the folder holds; () for the encoder alone.
        dtype: of matrix products; parameters and the residual stream are float32 in any case.

    Returns:
        The model and its parameters. Half-precision weights are widened to float32.

    Raises:
        BadInput: no such folder or name, nothing loadable in it, weights and config that do not belong together.
    """
    directory = locate(name_or_dir)
    values, where = read_values(directory), str(directory / "config.json")
    if values.get("model_type") == own_format.MODEL_TYPE:
        config = own_format.read_config(values, where)
        params = own_format.read_params(directory, config)
        config, params = _pick_heads(config, params, heads, str(directory))
        return Model(config.replace(dtype=dtype, residual_dtype="float32")), params
    config = configs.from_huggingface(values, where)
    raw = weight_files.read(directory, convert.largest_bytes(config))
    if raw is None:
        raise BadInput(_nothing_to_load(directory))
    state = contents.modernise(raw, values, str(directory), tied=heads is None or "mlm" in heads)
    config = contents.describe(config, state, values, directory, heads)
    state |= contents.dense_state(directory, config)
    params = convert.from_state(config, state, str(directory), strict_heads=heads is None)
    return Model(config.replace(dtype=dtype, residual_dtype="float32")), params


def read_config(name_or_dir: str | os.PathLike[str]) -> ModelConfig:
    """The config of a model folder (or Hub name) from its config.json alone: heads are those that
    the class named in it has, not those that the weights hold. Raises `BadInput` where there is
    none, or of another kind."""
    directory = locate(name_or_dir)
    values, where = read_values(directory), str(directory / "config.json")
    if values.get("model_type") == own_format.MODEL_TYPE:
        return own_format.read_config(values, where)
    config = configs.from_huggingface(values, where)
    classes = [
        re.sub("^(Mobile|IB)?Bert", "", str(name)) for name in values.get("architectures") or ()
    ]
    heads = next(
        (configs.ARCHITECTURES[name] for name in classes if name in configs.ARCHITECTURES), ()
    )
    pooling = contents.sentence_head(directory, config.hidden_size)
    return config.replace(
        heads=heads + (("embedding",) if pooling is not None else ()), **(pooling or {})
    )


def read_values(directory: epath.Path) -> dict[str, Any]:
    """The config.json of a folder as it stands there; `BadInput` if there is none, or none that can
    be read."""
    if not (directory / "config.json").exists():
        inside = _models_inside(directory)
        advice = f"Give {directory / inside[0]}" if inside else "Give the folder of a saved model"
        raise BadInput(f"{directory} has no config.json; it holds {listing(directory)}. {advice}")
    return hf_torch.read_json(directory / "config.json")


def check_weights(directory: epath.Path) -> None:
    """Raises `BadInput` if a Hugging Face folder holds two files of different weights, as
    `from_pretrained` does."""
    if weight_files.several(directory):
        weight_files.read(directory, largest_weights(directory))


def largest_weights(directory: epath.Path) -> int:
    """How many bytes the weights of a Hugging Face folder can have at most, by its config.json."""
    return convert.largest_bytes(
        configs.from_huggingface(read_values(directory), str(directory / "config.json"))
    )


def save_pretrained(
    directory: str | os.PathLike[str],
    model: Model,
    params: Params,
    tokenizer: Any = None,
    *,
    card: str | None = None,
    labels: Sequence[str] | None = None,
    overwrite: bool = False,
    format: str | None = None,
    problem_type: str | None = None,
    source: Said | None = None,
) -> Exported:
    """Writes a complete folder that transformers loads, or, if it has no class for the model, one
    of our own format.

    The folder is written beside its final place and moved there whole: it is never half there.

    Args:
        directory: the folder to make. An existing model folder is replaced only if `overwrite`; a folder that holds
            anything else never.
        model, params: what to save.
        tokenizer: a transformers tokenizer, or a folder whose tokenizer files are copied; None: none.
        card: the text of README.md; default a minimal one.
        labels: names of the classes of a classification head, in order.
        format: one of `FORMATS`, if it must be that: "huggingface" and "safetensors" are Hugging Face's folder with
            model.safetensors, which PyTorch and Flax classes read, "msgpack" with flax_model.msgpack.
        problem_type: what transformers makes of a classifier's outputs, "" for no word about it; None: "regression" where
            the config says so.
        source: what the folder that the same model was loaded from said besides: it is written again. From `said_by`.

    Raises:
        BadInput: the folder is not free, `params` are not the model's, tokenizer or labels do not fit the model, or the
            format asked for cannot hold it.
    """
    reason = why_own_format(model.config, format)
    _check_tokenizer(tokenizer, model.config.vocab_size)
    with _new_folder(directory, overwrite) as (partial, target):
        if reason is None:
            _write_huggingface(partial, model.config, params, labels, format or "huggingface")
        else:
            own_format.write(partial, model.config, params, labels)
        if source is not None:
            _write_said(partial, model.config, source)
        if problem_type is not None:
            values = {**hf_torch.read_json(partial / "config.json"), "problem_type": problem_type}
            _write_json(
                partial / "config.json",
                {name: x for name, x in values.items() if (name, x) != ("problem_type", "")},
            )
        if tokenizer is not None:
            _write_tokenizer(partial, tokenizer)
        text = model_card({}, config=model.config, reason=reason) if card is None else card
        (partial / CARD).write_text(text)
    return Exported(target, "huggingface" if reason is None else own_format.MODEL_TYPE, reason)


def why_own_format(config: ModelConfig, format: str | None = None) -> str | None:
    """Why the model would be written in our own format, or None if in Hugging Face's; `format` is
    one of `FORMATS` or None.

    Raises `BadInput` for another format and for one of Hugging Face's that cannot hold the model.
    """
    if format is not None and format not in FORMATS:
        raise BadInput(f"format {format!r} is unknown; {nearest(format, FORMATS)}")
    reason = configs.why_not_huggingface(config)
    if reason is not None and format not in (None, own_format.MODEL_TYPE):
        raise BadInput(
            f"this model has no Hugging Face form: {reason}; ask for the format {own_format.MODEL_TYPE!r}, or for none"
        )
    return reason or ("that format was asked for" if format == own_format.MODEL_TYPE else None)


def locate(name_or_dir: str | os.PathLike[str]) -> epath.Path:
    """The folder itself, or the local copy of the Hub model of that name."""
    if not isinstance(name_or_dir, str | os.PathLike) or not os.fspath(name_or_dir):
        raise BadInput(
            f"the model is {str(name_or_dir)[:60]!r}; expected a folder or a name of the Hugging Face Hub"
        )
    text = os.fspath(name_or_dir)
    directory = epath.Path(text).expanduser()
    if directory.is_dir():
        return directory
    if directory.exists():
        raise BadInput(f"{text} is a file; give the folder that holds config.json and the weights")
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", text):
        raise BadInput(
            f"there is no folder {text}; give an existing one, or a name of the Hugging Face Hub such as "
            "google/mobilebert-uncased"
        )
    return _fetch(text)


def _fetch(name: str) -> epath.Path:
    """Downloads (or finds in the cache) the files we can read; msgpack only if the Hub has no
    safetensors."""
    import huggingface_hub

    try:
        modules = [
            "modules.json",
            "*_Pooling/config.json",
            "*_Dense/config.json",
            f"*_Dense/{hf_torch.WEIGHTS}",
        ]
        patterns = ["config.json", *modules, *contents.SENTENCE_SETTINGS, *TOKENIZER_FILES]
        directory = epath.Path(
            huggingface_hub.snapshot_download(name, allow_patterns=[*patterns, *SAFETENSORS])
        )
        if not any((directory / file).exists() for file in (hf_torch.WEIGHTS, hf_torch.INDEX)):
            directory = epath.Path(
                huggingface_hub.snapshot_download(
                    name, allow_patterns=[*patterns, hf_msgpack.WEIGHTS]
                )
            )
    except (
        Exception
    ) as error:  # a dozen kinds: no network, no such name, no permission, offline mode
        first_line = next(iter(str(error).strip().splitlines()), "")
        raise BadInput(
            f"there is no folder {name}, and fetching the model {name} from the Hugging Face Hub failed "
            f"({type(error).__name__}: {first_line[:200]}); check the name and the network, or give a "
            "folder"
        ) from error
    return directory


def _write_huggingface(
    directory: epath.Path,
    config: ModelConfig,
    params: Params,
    labels: Sequence[str] | None,
    format: str,
) -> None:
    family, _ = configs.family_of(config)
    state = convert.to_state(config, params, family)
    dense = {
        name.removeprefix(f"{names.EMBEDDING_FOLDER}."): state.pop(name)
        for name in list(state)
        if name.startswith(names.EMBEDDING_FOLDER)
    }
    if configs.held_heads(config):
        state = convert.add_prefix(state, family)
    _write_json(directory / "config.json", configs.to_huggingface(config, labels))
    (hf_msgpack if format == "msgpack" else hf_torch).write_state(directory, state)
    if "embedding" in config.heads:
        for name, values in contents.sentence_files(config).items():
            _write_json(directory / name, values)
    if dense:
        hf_torch.write_file(
            directory / names.EMBEDDING_FOLDER / hf_torch.WEIGHTS, dense, {"format": "pt"}
        )


def said_by(directory: epath.Path, config: ModelConfig) -> Said:
    """What a model folder says beside its network. Raises `BadInput` for a file that cannot be
    read."""
    values = read_values(directory)
    own = values.get("model_type") == own_format.MODEL_TYPE
    keys = values.get(own_format.SAID, {}) if own else configs.other_keys(values, config)
    left_out = [key for key in configs.LEFT_OUT if key in values]
    if configs.names_misfit(values, config):
        left_out.append("the names of classes, which are not one for each output,")
    return Said(
        keys if isinstance(keys, dict) else {},
        contents.sentence_settings(directory),
        tuple(left_out),
    )


def _write_said(directory: epath.Path, config: ModelConfig, source: Said) -> None:
    """Adds to a new folder what the model's former one said; keys of another family's config.json
    mean nothing there."""
    values = hf_torch.read_json(directory / "config.json")
    own = values["model_type"] == own_format.MODEL_TYPE
    if own and source.keys.keys() - {"model_type"}:
        _write_json(directory / "config.json", {**values, own_format.SAID: source.keys})
    elif not own and source.keys.get("model_type") == values["model_type"]:
        _write_json(directory / "config.json", dict(sorted((values | source.keys).items())))
    files = (
        contents.sentence_files(config, source.sentence)
        if "embedding" in config.heads and not own
        else source.sentence
    )
    for name, content in files.items():
        _write_json(directory / name, content)


def _write_json(path: epath.Path, values: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=2) + "\n")


def _check_tokenizer(tokenizer: Any, vocab_size: int) -> None:
    """Raises `BadInput` for a tokenizer that makes ids the model has no rows for, and for what is
    no tokenizer."""
    if tokenizer is None:
        return
    if isinstance(tokenizer, (str, os.PathLike)):
        size, where = _entries(epath.Path(tokenizer)), f" in {os.fspath(tokenizer)}"
    elif hasattr(tokenizer, "save_pretrained"):
        size, where = len(tokenizer), ""
    else:
        raise BadInput(
            f"tokenizer is a {type(tokenizer).__name__}; expected a transformers tokenizer or a folder"
        )
    if size > vocab_size:
        raise BadInput(
            f"the tokenizer{where} has {size} entries but the model's vocab_size is {vocab_size}; "
            "take the tokenizer that the model was trained with, or leave its files out"
        )


def _entries(folder: epath.Path) -> int:
    """How many ids the tokenizer in a folder has, as its files say: the highest and 1; 0 where
    there are no such files."""
    if (folder / "tokenizer.json").exists():
        values = hf_torch.read_json(folder / "tokenizer.json")
        vocabulary = (values.get("model") or {}).get("vocab") or {}
        ids = list(vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary)))
        ids += [
            token.get("id") for token in values.get("added_tokens") or [] if isinstance(token, dict)
        ]
    elif (folder / "vocab.txt").exists():
        ids = list(range(len((folder / "vocab.txt").read_text().rstrip("\n").split("\n"))))
        added = folder / "added_tokens.json"
        ids += list(hf_torch.read_json(added).values()) if added.exists() else []
    else:
        ids = []
    return 1 + max((number for number in ids if isinstance(number, int)), default=-1)


def _write_tokenizer(directory: epath.Path, tokenizer: Any) -> None:
    if isinstance(tokenizer, (str, os.PathLike)):
        source = epath.Path(tokenizer)
        found = [
            name
            for name in TOKENIZER_FILES
            if (source / name).exists() and not (source / name).is_dir()
        ]
        if not {"vocab.txt", "tokenizer.json"} & set(found):
            raise BadInput(
                f"{source} has neither vocab.txt nor tokenizer.json; give the folder of a saved tokenizer"
            )
        for name in found:
            (source / name).copy(directory / name)
        return
    with tempfile.TemporaryDirectory() as local:  # transformers writes to local folders only
        tokenizer.save_pretrained(local)
        for path in epath.Path(local).iterdir():
            path.copy(directory / path.name)


def check_replaceable(target: epath.Path) -> None:
    """Raises `BadInput` unless a folder is free, or holds nothing but a saved model."""
    if target.exists() and not target.is_dir():
        raise BadInput(f"{target} is a file; give the name of a folder to write")
    present = [path.name for path in target.iterdir()] if target.exists() else []
    foreign = sorted(
        name
        for name in present
        if name not in MODEL_FILES and not name.endswith((".safetensors", ".msgpack"))
    )
    if foreign:
        raise BadInput(
            f"{target} holds {listed(foreign, 4)}, which is no part of a saved model, so it is not replaced; move that "
            "away, or choose another folder"
        )


def damage(directory: epath.Path) -> str:
    """What is wrong with an exported folder, one line; "" if it can be loaded."""
    try:
        from_pretrained(directory)
    except BadInput as error:
        return f"the exported model cannot be used any more ({error}); delete {directory}, and the same command writes it again"
    return ""


def has_weights(directory: epath.Path) -> bool:
    """Whether a folder holds weights in any form that we read."""
    return any((directory / name).exists() for name in weight_files.FORMS)


@contextlib.contextmanager
def _new_folder(
    directory: str | os.PathLike[str], overwrite: bool
) -> Iterator[tuple[epath.Path, epath.Path]]:
    """Yields an empty folder beside `directory`, and at the end moves it there; on an error nothing
    has changed."""
    target = epath.Path(directory).expanduser()
    if not remote.is_remote(target):
        target = target.resolve()
    if not overwrite and target.is_dir() and any(target.iterdir()):
        raise BadInput(f"{target} is not empty; choose another folder, or remove what is in it")
    check_replaceable(target)
    mark = uuid.uuid4().hex[:8]
    partial, old = (target.parent / f".{target.name}.{mark}.{kind}" for kind in ("partial", "old"))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir()
    except OSError as error:
        raise BadInput(
            f"{target} cannot be written ({error.strerror or error}); choose another folder"
        ) from error
    try:
        yield partial, target
        if target.exists():
            target.rename(old)
        try:
            partial.rename(target)
        except BaseException:
            if old.exists():
                old.rename(target)
            raise
    except BaseException:
        partial.rmtree(missing_ok=True)
        raise
    if old.exists():
        old.rmtree()


def _pick_heads(
    config: ModelConfig, params: Params, heads: Sequence[str] | None, where: str
) -> tuple[ModelConfig, Params]:
    """The model with only the asked-for of its heads."""
    if heads is None:
        return config, params
    picked = config.replace(heads=tuple(heads))
    absent = [head for head in heads if head not in (*config.heads, "embedding")]
    if absent:
        raise BadInput(
            f"{where} has no head {absent[0]!r}; it holds {', '.join(config.heads) or 'the encoder alone'}. "
            "Pass heads=() and take a fresh head from Model.init"
        )
    return picked, {
        name: tree for name, tree in params.items() if name not in config.heads or name in heads
    }


def _nothing_to_load(directory: epath.Path) -> str:
    if has_only_pickles(directory):
        return only_pickles(str(directory))
    advice = "Save the model in one of these formats"
    others = sorted(
        path.name
        for path in directory.iterdir()
        if path.name.endswith((".safetensors", ".msgpack"))
    )
    if any(name.startswith("adapter_model") for name in others):
        advice = "An adapter alone is no model: merge it into its model in PEFT (merge_and_unload) and save that"
    elif others:
        kind = epath.Path(others[0]).suffix
        advice = f"To load {others[0]}, rename it to {hf_msgpack.WEIGHTS if kind == '.msgpack' else f'model{kind}'}"
    elif inside := _models_inside(directory):
        advice = f"Give {directory / inside[0]}"
    return (
        f"{directory} has no {hf_torch.WEIGHTS}, {hf_torch.INDEX} or {hf_msgpack.WEIGHTS}; it holds "
        f"{listing(directory)}. {advice}"
    )


def _models_inside(directory: epath.Path) -> list[str]:
    """Folders of models right inside a folder, as a Trainer's checkpoints or sentence-transformers'
    parts lie there, the last checkpoint first."""
    found = [
        path.name
        for path in directory.iterdir()
        if path.is_dir()
        and (path / "config.json").exists()
        and (path / "config.json").stat().length > 2
        and not path.name.endswith(("_Pooling", "_Dense"))
    ]
    return sorted(found, key=lambda name: [-int(number) for number in re.findall("[0-9]+", name)])


def has_only_pickles(directory: epath.Path) -> bool:
    """Whether all weights of a folder are PyTorch's pickles, whole or in shards."""
    names = {path.name for path in directory.iterdir()}
    readable = {hf_torch.WEIGHTS, hf_torch.INDEX, hf_msgpack.WEIGHTS, hf_msgpack.INDEX}
    return not names & readable and any(
        name.startswith("pytorch_model") and name.endswith(".bin") for name in names
    )


def only_pickles(where: str) -> str:
    """What to say of such a folder."""
    return (
        f"{where}: its only weights are a pickle (pytorch_model.bin), which is never opened because reading it runs "
        "whatever code it holds; convert it to safetensors where you trust it: load it in PyTorch by transformers, then "
        "save_pretrained(…, safe_serialization=True)"
    )


def listing(directory: epath.Path) -> str:
    """The first few names in a folder, for messages."""
    present = sorted(path.name for path in directory.iterdir())
    return ", ".join(present[:8]) + (" …" if len(present) > 8 else "") or "nothing"
