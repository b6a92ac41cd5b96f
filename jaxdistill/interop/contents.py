"""Which heads and which pooler a Hugging Face folder really holds, told from its tensors. Called by
`pretrained`.

config.json cannot be trusted for that: `bert-base-uncased` says BertForMaskedLM and holds NSP and
the pooler too. Its `architectures` decides only what tensors cannot, whether `classifier`
classifies rows, tokens or choices."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from etils import epath

from jaxdistill.errors import BadInput, nearest
from jaxdistill.interop import convert
from jaxdistill.interop.convert import State
from jaxdistill.interop.hf_torch import WEIGHTS, check_size, read_file, read_json
from jaxdistill.interop.names import EMBEDDING_FOLDER
from jaxdistill.models import ModelConfig
from jaxdistill.models.heads import HEADS

# A tensor that only this head owns.
MARKS = {
    "mlm": "cls.predictions.transform.dense.weight",
    "nsp": "cls.seq_relationship.weight",
    "question_answering": "qa_outputs.weight",
}
CLASSIFIER = "classifier.weight"
CLASSIFIERS = {
    "ForSequenceClassification": "sequence_classification",
    "ForTokenClassification": "token_classification",
    "ForMultipleChoice": "multiple_choice",
}
# Poolings and activations of sentence-transformers -> ours; poolings in the order in which it
# concatenates those of flags.
POOLINGS = {
    "cls": "first_token",
    "max": "max",
    "mean": "mean",
    "mean_sqrt_len_tokens": "mean_sqrt_length",
    "weightedmean": "weighted_mean",
    "lasttoken": "last_token",
}
POOLING_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
EMBEDDING_ACTIVATIONS = {
    "torch.nn.modules.activation.Tanh": "tanh",
    "torch.nn.modules.linear.Identity": "identity",
    "torch.nn.modules.activation.ReLU": "relu",
    "torch.nn.modules.activation.GELU": "gelu",
}
# Of the transformer and of the whole model.
SENTENCE_SETTINGS = ("sentence_bert_config.json", "config_sentence_transformers.json")


def modernise(
    raw: Mapping[str, np.ndarray], values: dict[str, Any], where: str, tied: bool = True
) -> State:
    """Base-model names, without the tied copies of the word table; with `tied`, `BadInput` if they
    are not copies.

    With tied embeddings (the default) transformers overwrites the output table by the word table
    when it loads."""
    if before := convert.wrapper(raw, where):
        convert.say(f"{where}: the tensors' names begin with {before!r}, which is left out")
    state = convert.strip_prefix(raw)
    bias = state.pop("cls.predictions.decoder.bias", None)
    if bias is not None:
        state.setdefault("cls.predictions.bias", bias)
    decoder = state.pop("cls.predictions.decoder.weight", None)
    untied = tied and values.get("tie_word_embeddings", True) is False
    words = state.get("embeddings.word_embeddings.weight")
    if untied and decoder is not None and words is not None and not np.array_equal(decoder, words):
        raise BadInput(
            f"{where} has an output table of its own (tie_word_embeddings=false); here the output table is "
            "the word table. Pass heads=() to load the encoder alone, or tie the embeddings"
        )
    return state


def describe(
    config: ModelConfig,
    state: State,
    values: dict[str, Any],
    directory: epath.Path,
    heads: Sequence[str] | None,
) -> ModelConfig:
    """`config` with the heads and the pooler found in `state`, or with the `heads` asked for."""
    where = str(directory)
    if heads is not None:
        for head in heads:
            if head not in HEADS:
                raise BadInput(
                    f"heads={tuple(heads)!r}: {head!r} is unknown; {nearest(head, HEADS)}"
                )
    words = state.get(convert.WORDS)
    if (
        words is not None
        and words.ndim == 2
        and words.shape == (words.shape[0], config.word_size)
        and (len(words) != config.vocab_size)
    ):
        raise BadInput(
            f"{where}: the word table has {len(words)} rows, but config.json says vocab_size={config.vocab_size}; "
            f"set vocab_size to {len(words)} in config.json (rows that no token of the tokenizer has are never read), "
            "or take both files from one export"
        )
    pooling = (
        sentence_head(directory, config.hidden_size)
        if heads is None or "embedding" in heads
        else None
    )
    found = held_heads(state, values, where, wanted=heads)
    if pooling is not None:
        found += ("embedding",)
    if heads is not None:
        absent = [head for head in heads if head not in (*found, "embedding")]
        if absent:
            raise BadInput(
                f"{where} has no head {absent[0]!r}; it holds {', '.join(found) or 'the encoder alone'}. "
                "Pass heads=() and take a fresh head from Model.init"
            )
        found = tuple(heads)
    changes: dict[str, Any] = {"heads": found, **(pooling or {})}
    if CLASSIFIER in state and set(CLASSIFIERS.values()) & set(found):
        if "multiple_choice" not in found:  # which has one output, whatever the number of labels
            changes["num_labels"] = state[CLASSIFIER].shape[0]
        if (
            values.get("classifier_dropout") is None
        ):  # a classifier's own; what we add to an encoder has Google's 0.1
            changes["classifier_dropout"] = config.hidden_dropout
        # One output and no other word about it is a regression in transformers too.
        changes["regression"] = (
            "sequence_classification" in found
            and changes["num_labels"] == 1
            and values.get("problem_type") in (None, "regression")
        )
    if config.pooler == "tanh" and "pooler.dense.weight" not in state:
        if {"nsp", "sequence_classification", "multiple_choice"} & set(found):
            raise BadInput(
                f"{where} lacks pooler.dense.weight, which its heads {list(found)} need; if a MobileBERT "
                "pools by the raw first token, set classifier_activation to false in config.json"
            )
        changes["pooler"] = "none"
    return config.replace(**changes)


def held_heads(
    state: State, values: dict[str, Any], where: str, wanted: Sequence[str] | None
) -> tuple[str, ...]:
    """The heads whose tensors are there, in our order of heads."""
    found = {head for head, mark in MARKS.items() if mark in state}
    if CLASSIFIER in state:
        architectures = values.get("architectures") or [""]
        told = [kind for name, kind in CLASSIFIERS.items() if str(architectures[0]).endswith(name)]
        asked = [head for head in wanted or () if head in CLASSIFIERS.values()]
        if told or asked:
            found.add((told or asked)[0])
        elif wanted is None:
            raise BadInput(
                f"{where} holds a classifier, but architectures={architectures} in config.json does not say "
                f"of what; pass heads=(NAME,), one of {', '.join(CLASSIFIERS.values())}"
            )
    return tuple(head for head in HEADS if head in found)


def sentence_head(directory: epath.Path, hidden_size: int) -> dict[str, Any] | None:
    """Our fields of the embedding head of a sentence-transformers folder; None where there is no
    such head.

    Raises `BadInput` naming what it has and we do not: nothing of such a folder is left out without
    a word."""
    modules = sentence_modules(directory)
    if modules is None:
        return None
    root, kinds, paths = modules
    where = str(root / "modules.json")
    expected = [
        "Transformer",
        "Pooling",
        *(kind for kind in ("Dense", "Normalize") if kind in kinds),
    ]
    if kinds != expected:
        raise _refused(
            where,
            f"its modules are {', '.join(kinds)[:150] or 'none'}",
            "Transformer, Pooling, and behind them perhaps Dense and Normalize",
        )
    settings = read_optional(root / paths[0] / SENTENCE_SETTINGS[0])
    for key, usual in (
        ("transformer_task", "feature-extraction"),
        ("module_output_name", "token_embeddings"),
    ):
        if settings.get(key, usual) != usual:
            raise _refused(
                where, f"{SENTENCE_SETTINGS[0]} has {key}={settings[key]!r}", repr(usual)
            )
    values = read_json(_within(root, paths[1], "config.json", where))
    width = values.get("embedding_dimension", values.get("word_embedding_dimension", hidden_size))
    if width != hidden_size:
        raise _refused(
            where, f"{paths[1]} pools vectors of {width} numbers", f"the model's {hidden_size}"
        )
    head: dict[str, Any] = {
        "embedding_pooling": _pooling(values, where),
        "normalize_embedding": "Normalize" in kinds,
    }
    return (
        head
        if "Dense" not in kinds
        else head | _dense(read_json(_within(root, paths[2], "config.json", where)), where)
    )


def sentence_modules(directory: epath.Path) -> tuple[epath.Path, list[str], list[str]] | None:
    """(the folder of modules.json, the kinds of its modules, their paths in it); None if
    `directory` is no transformer of a sentence-transformers model. In old ones it is a folder of
    its own, `0_Transformer`, below that of modules.json.

    Raises `BadInput` for a modules.json that cannot be read.
    """
    for root in (directory, directory.parent):
        path = root / "modules.json"
        if not path.exists():
            continue
        try:
            modules = json.loads(path.read_text())
            kinds = [
                re.sub(r"^sentence_transformers\..*\.", "", module["type"]) for module in modules
            ]  # others are people's own
            paths = [module.get("path", "").rstrip("/") for module in modules]
        except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
            if root != directory:
                return None
            raise _refused(
                str(path),
                f"it cannot be read ({type(error).__name__})",
                "a list of modules, each with a type and a path",
            ) from error
        if root / (paths or [""])[0] == directory:
            return (root, kinds, paths) if kinds != ["Transformer"] else None
        if root == directory:
            raise _refused(
                str(path),
                f"its transformer lies in {paths[0] if paths else 'no folder'}",
                f"{root / paths[0]}: give that folder" if paths and paths[0] else "one",
            )
    return None


def dense_state(directory: epath.Path, config: ModelConfig) -> State:
    """The tensors of the dense layer behind the pooling, under the names of our table; none if the
    model has no such layer."""
    if (
        "embedding" not in config.heads
        or config.embedding_features is None
        or (modules := sentence_modules(directory)) is None
    ):
        return {}
    root, kinds, paths = modules
    where = str(root / "modules.json")
    folder = paths[kinds.index("Dense")]
    file = _within(
        root,
        folder,
        WEIGHTS,
        where,
        "; a pickle (pytorch_model.bin) is never opened: save the model as safetensors",
    )
    features = config.embedding_features * (len(config.poolings) * config.hidden_size + 1)
    check_size(file.parent, [WEIGHTS], 8 * features + 2**20)
    state = {f"{EMBEDDING_FOLDER}.{name}": array for name, array in read_file(file).items()}
    # Without a bias it is a layer with a bias of zeros.
    state.setdefault(
        f"{EMBEDDING_FOLDER}.linear.bias", np.zeros(config.embedding_features, np.float32)
    )
    return state


def sentence_files(
    config: ModelConfig, settings: Mapping[str, Any] = MappingProxyType({})
) -> dict[str, Any]:
    """{relative path: JSON value} that make a folder load in sentence-transformers, of every
    version, with our head.

    `settings`: from `sentence_settings`, what the folder that the model was loaded from said
    besides."""
    package = "sentence_transformers.models"
    modes = [
        next(theirs for theirs, ours in POOLINGS.items() if ours == part)
        for part in config.poolings
    ]
    pooling: dict[str, Any] = {"word_embedding_dimension": config.hidden_size}
    if modes == [
        mode for mode in POOLINGS if mode in modes
    ]:  # as the flags say it, which every version reads
        pooling |= {flag: mode in modes for flag, mode in POOLING_FLAGS.items()}
    else:
        pooling = {"embedding_dimension": config.hidden_size, "pooling_mode": modes}
    paths = {"Transformer": "", "Pooling": "1_Pooling"}
    files: dict[str, Any] = {
        name: values for name, values in settings.items() if name in SENTENCE_SETTINGS
    }
    files[f"{paths['Pooling']}/config.json"] = {
        **pooling,
        **settings.get("1_Pooling/config.json", {}),
    }
    if config.embedding_features is not None:
        paths["Dense"] = EMBEDDING_FOLDER
        files[f"{EMBEDDING_FOLDER}/config.json"] = {
            "in_features": len(modes) * config.hidden_size,
            "out_features": config.embedding_features,
            "bias": True,
            "activation_function": next(
                theirs
                for theirs, ours in EMBEDDING_ACTIVATIONS.items()
                if ours == config.embedding_activation
            ),
        }
    if config.normalize_embedding:
        paths["Normalize"] = f"{len(paths)}_Normalize"
    files["modules.json"] = [
        {"idx": i, "name": str(i), "path": path, "type": f"{package}.{kind}"}
        for i, (kind, path) in enumerate(paths.items())
    ]
    return files


def sentence_settings(directory: epath.Path) -> dict[str, Any]:
    """{relative path: JSON value}: what a sentence-transformers folder says beyond the network,
    such as its maximal length, prompts and similarity, to be written again beside the same network.
    A cross-encoder's modules.json is among it."""
    modules = sentence_modules(directory)
    root, paths = (modules[0], modules[2]) if modules else (directory, ["", "1_Pooling"])
    found = {
        SENTENCE_SETTINGS[0]: read_optional(directory / SENTENCE_SETTINGS[0]),
        SENTENCE_SETTINGS[1]: read_optional(root / SENTENCE_SETTINGS[1]),
        "1_Pooling/config.json": {
            key: value
            for key, value in read_optional(root / paths[1] / "config.json").items()
            if key == "include_prompt" and value is not True
        },
    }
    settings: dict[str, Any] = {name: values for name, values in found.items() if values}
    if (
        modules is None and (directory / "modules.json").exists()
    ):  # a transformer alone, or it would have been refused
        settings["modules.json"] = json.loads((directory / "modules.json").read_text())
    return settings


def read_optional(path: epath.Path) -> dict[str, Any]:
    """A JSON object, empty if there is no such file."""
    return read_json(path) if path.exists() else {}


def _pooling(values: dict[str, Any], where: str) -> str:
    """`embedding_pooling` of a Pooling's config.json: of flags in old versions, of a name or a list
    of them in new ones."""
    given = values.get("pooling_mode")
    if given is None:
        given = [mode for flag, mode in POOLING_FLAGS.items() if values.get(flag) is True]
        foreign = sorted(
            key
            for key, value in values.items()
            if key.startswith("pooling_mode_") and value is True and key not in POOLING_FLAGS
        )
        if foreign:
            raise _refused(
                where, f"its pooling has {foreign[0]}", "one of " + ", ".join(POOLING_FLAGS)
            )
    modes = [given] if isinstance(given, str) else given
    if (
        not isinstance(modes, list)
        or not modes
        or any(not isinstance(mode, str) or mode not in POOLINGS for mode in modes)
    ):
        raise _refused(where, f"its pooling is {given!r}", "one of " + ", ".join(POOLINGS))
    return "+".join(POOLINGS[mode] for mode in modes)


def _dense(values: dict[str, Any], where: str) -> dict[str, Any]:
    """Our fields of a Dense's config.json."""
    activation = values.get("activation_function", "torch.nn.modules.activation.Tanh")
    if not isinstance(activation, str) or activation not in EMBEDDING_ACTIVATIONS:
        raise _refused(
            where,
            f"its Dense has activation_function={activation!r}",
            "one of " + ", ".join(EMBEDDING_ACTIVATIONS),
        )
    for key in ("module_input_name", "module_output_name"):
        if values.get(key) not in (None, "sentence_embedding"):
            raise _refused(where, f"its Dense has {key}={values[key]!r}", "'sentence_embedding'")
    if type(values.get("out_features")) is not int:
        raise _refused(
            where, f"its Dense has out_features={values.get('out_features')!r}", "a whole number"
        )
    return {
        "embedding_features": values["out_features"],
        "embedding_activation": EMBEDDING_ACTIVATIONS[activation],
    }


def _within(root: epath.Path, folder: str, name: str, where: str, more: str = "") -> epath.Path:
    """The file of a module, which must lie in a folder beside modules.json."""
    if epath.Path(folder).name != folder or not folder:
        raise _refused(where, f"it names the folder {folder!r}", "the name of a folder beside it")
    if not (root / folder / name).exists():
        raise _refused(where, f"there is no {folder}/{name}{more}", "one")
    return root / folder / name


def _refused(where: str, found: str, expected: str) -> BadInput:
    return BadInput(
        f"{where}: {found}; expected {expected}. A copy of the folder without modules.json loads as an encoder without "
        "its embedding, as does heads=()"
    )
