"""Which heads and which pooler a Hugging Face folder really holds, told from its tensors. Called by `pretrained`.

config.json cannot be trusted for that: `bert-base-uncased` says BertForMaskedLM and holds NSP and the pooler too.
Its `architectures` decides only what tensors cannot, whether `classifier` classifies rows, tokens or choices.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from jaxdistill.errors import BadInput, nearest
from jaxdistill.interop import convert
from jaxdistill.interop.convert import State
from jaxdistill.interop.hf_torch import read_json
from jaxdistill.models import ModelConfig
from jaxdistill.models.config import HEADS

# A tensor that only this head owns.
MARKS = {"mlm": "cls.predictions.transform.dense.weight", "nsp": "cls.seq_relationship.weight",
         "question_answering": "qa_outputs.weight"}
CLASSIFIER = "classifier.weight"
CLASSIFIERS = {"ForSequenceClassification": "sequence_classification",
               "ForTokenClassification": "token_classification",
               "ForMultipleChoice": "multiple_choice"}


def modernise(raw: Mapping[str, np.ndarray], values: dict[str, Any], where: str, tied: bool = True) -> State:
    """Base-model names, without the tied copies of the word table; with `tied`, `BadInput` if they are not copies.

    With tied embeddings (the default) transformers overwrites the output table by the word table when it loads.
    """
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
        raise BadInput(f"{where} has an output table of its own (tie_word_embeddings=false); here the output table is "
                       "the word table. Pass heads=() to load the encoder alone, or tie the embeddings")
    return state


def describe(config: ModelConfig, state: State, values: dict[str, Any], directory: epath.Path,
             heads: Sequence[str] | None) -> ModelConfig:
    """`config` with the heads and the pooler found in `state`, or with the `heads` asked for."""
    where = str(directory)
    if heads is not None:
        for head in heads:
            if head not in HEADS:
                raise BadInput(f"heads={tuple(heads)!r}: {head!r} is unknown; {nearest(head, HEADS)}")
    words = state.get(convert.WORDS)
    if words is not None and words.ndim == 2 and words.shape == (words.shape[0], config.word_size) and (
            len(words) != config.vocab_size):
        raise BadInput(f"{where}: the word table has {len(words)} rows, but config.json says vocab_size={config.vocab_size}; "
                       f"set vocab_size to {len(words)} in config.json (rows that no token of the tokenizer has are never read), "
                       "or take both files from one export")
    pooling = sentence_pooling(directory)
    found = held_heads(state, values, where, wanted=heads)
    if pooling is not None:
        found += ("embedding",)
    if heads is not None:
        absent = [head for head in heads if head not in (*found, "embedding")]
        if absent:
            raise BadInput(f"{where} has no head {absent[0]!r}; it holds {', '.join(found) or 'the encoder alone'}. "
                           "Pass heads=() and take a fresh head from Model.init")
        found = tuple(heads)
    changes: dict[str, Any] = {"heads": found, **(pooling or {})}
    if CLASSIFIER in state and set(CLASSIFIERS.values()) & set(found):
        if "multiple_choice" not in found:  # which has one output, whatever the number of labels
            changes["num_labels"] = state[CLASSIFIER].shape[0]
        if values.get("classifier_dropout") is None:  # a classifier's own; what we add to an encoder has Google's 0.1
            changes["classifier_dropout"] = config.hidden_dropout
        # One output and no other word about it is a regression in transformers too.
        changes["regression"] = ("sequence_classification" in found and changes["num_labels"] == 1
                                 and values.get("problem_type") in (None, "regression"))
    if config.pooler == "tanh" and "pooler.dense.weight" not in state:
        if {"nsp", "sequence_classification", "multiple_choice"} & set(found):
            raise BadInput(f"{where} lacks pooler.dense.weight, which its heads {list(found)} need; if a MobileBERT "
                           "pools by the raw first token, set classifier_activation to false in config.json")
        changes["pooler"] = "none"
    return config.replace(**changes)


def held_heads(state: State, values: dict[str, Any], where: str, wanted: Sequence[str] | None) -> tuple[str, ...]:
    """The heads whose tensors are there, in our order of heads."""
    found = {head for head, mark in MARKS.items() if mark in state}
    if CLASSIFIER in state:
        architectures = values.get("architectures") or [""]
        told = [kind for name, kind in CLASSIFIERS.items() if str(architectures[0]).endswith(name)]
        asked = [head for head in wanted or () if head in CLASSIFIERS.values()]
        if told or asked:
            found.add((told or asked)[0])
        elif wanted is None:
            raise BadInput(f"{where} holds a classifier, but architectures={architectures} in config.json does not say "
                           f"of what; pass heads=(NAME,), one of {', '.join(CLASSIFIERS.values())}")
    return tuple(head for head in HEADS if head in found)


def sentence_pooling(directory: epath.Path) -> dict[str, Any] | None:
    """Our pooling fields, if the folder is a sentence-transformers one that ends in mean or first-token pooling."""
    path = directory / "modules.json"
    if not path.exists():
        return None
    modules = [module for module in read_json_list(path) if isinstance(module, dict)]
    kinds = [str(module.get("type", "")).rsplit(".", 1)[-1] for module in modules]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        return None
    folder = str(modules[1].get("path", ""))
    if epath.Path(folder).name != folder or not (directory / folder / "config.json").exists():
        return None
    modes = {key for key, value in read_json(directory / folder / "config.json").items()
             if key.startswith("pooling_mode_") and value is True}
    names = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "first_token"}
    if len(modes) != 1 or not modes <= set(names):
        return None
    return {"embedding_pooling": names[modes.pop()], "normalize_embedding": len(kinds) == 3}


def read_json_list(path: epath.Path) -> list[Any]:
    """A JSON list; anything else is taken as an empty one, for the file is optional."""
    try:
        values = json.loads(path.read_text())
    except (ValueError, RecursionError):
        return []
    return values if isinstance(values, list) else []


def sentence_files(config: ModelConfig) -> dict[str, Any]:
    """{relative path: JSON value} that make a folder load in sentence-transformers with our pooling."""
    package = "sentence_transformers.models"
    modules = [{"idx": 0, "name": "0", "path": "", "type": f"{package}.Transformer"},
               {"idx": 1, "name": "1", "path": "1_Pooling", "type": f"{package}.Pooling"}]
    if config.normalize_embedding:
        modules.append({"idx": 2, "name": "2", "path": "2_Normalize", "type": f"{package}.Normalize"})
    pooling = {"word_embedding_dimension": config.hidden_size,
               "pooling_mode_cls_token": config.embedding_pooling == "first_token",
               "pooling_mode_mean_tokens": config.embedding_pooling == "mean",
               "pooling_mode_max_tokens": False, "pooling_mode_mean_sqrt_len_tokens": False}
    return {"modules.json": modules, "1_Pooling/config.json": pooling}
