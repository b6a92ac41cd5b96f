"""`predict`: what a model answers to texts that nobody labelled. Called by cli and by users."""

from __future__ import annotations

import dataclasses
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from jaxdistill import conversion, interop
from jaxdistill.data import glue
from jaxdistill.errors import BadInput, listed, nearest
from jaxdistill.evaluation.answering import KINDS, Network
from jaxdistill.interop.hf_torch import read_json
from jaxdistill.models import Model
from jaxdistill.models.heads import HEADS
from jaxdistill.task_commands import devices_for
from jaxdistill.training import sharding


def predict(
    model_dir: conversion.PathLike,
    texts: conversion.PathLike,
    out: conversion.PathLike,
    *,
    head: str | None = None,
    task: str | None = None,
    network: str | None = None,
    batch_size: int = 32,
    sequence_length: int | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Writes what a model answers to each row of a file, in its order; returns what was done.

    | head | `out`, by its ending | `settings` |
    |---|---|---|
    | sequence_classification | .tsv, .jsonl: label and probabilities, or a number; .npy: logits | `TextColumns` |
    | embedding | .npy: float32 [N, E]; .tsv, .jsonl | `TextColumns` without pairs |
    | token_classification | .tsv: a token and its tag in each line; .jsonl | `WordColumns` |
    | question_answering | .json: SQuAD's predictions; n-best and null odds beside it | `Spans` |

    Args:
        model_dir: a folder, a Hub name, or the workdir of a run, of which `network` is taken (default as in
            `conversion.locate`).
        texts: a file with a text in each line; .tsv, .csv or .jsonl; for questions SQuAD's JSON. Also packed.
        out: a file that does not exist yet. It is written whole or not at all.
        head: of a model that has several; "embedding" of any.
        task: of GLUE's, as "mrpc": `texts` is its folder, whose test file is read, or that file, and `out`, a
            .tsv file, is in the form that the leader board takes.
        batch_size: rows that are run together, on all devices if it divides by their number.
        sequence_length: tokens of a row at most; default 128, for questions 384, or what the model can take.

    Raises:
        BadInput: a file, column or setting cannot be used, or the model has no such head.
    """
    target = _new_file(out)
    if head is not None and head not in KINDS:
        raise BadInput(f"head={head!r}: {nearest(head, KINDS)}")
    if not isinstance(batch_size, int) or batch_size < 1:
        raise BadInput(f"batch_size={batch_size!r}: expected 1 or more")
    model, params, tokenizer = conversion.load(model_dir, network, head and (head,))
    shown = os.fspath(model_dir)
    head = _only_head(model.config.heads, shown)
    kind, values = KINDS[head], read_json(conversion.locate(model_dir, network) / "config.json")
    _check_ending(target, head, values)
    positions = model.config.max_positions
    if (length := sequence_length or min(kind.length, positions)) > positions:
        raise BadInput(
            f"sequence_length={length} exceeds the max_positions={positions} of {shown!r}"
        )
    mesh = sharding.make_mesh(devices_for(batch_size))
    names = _names(values, model, shown) if HEADS[head].by_label else ()
    placed = sharding.place(mesh, params)
    net = Network(model, placed, tokenizer, head, names, length, batch_size, mesh)
    if task is not None:
        if head != "sequence_classification":
            raise BadInput(
                f"task={task!r} does not go with the head {head!r}; leave one of the two out"
            )
        texts, settings = _of_glue(task, os.fspath(texts), names, target, settings)
    chosen = _settings(kind.settings, settings, head)
    began = time.perf_counter()
    written = kind.run(net, texts, target, chosen)
    seconds = time.perf_counter() - began
    return {
        "model": shown,
        "head": head,
        "input": os.fspath(texts),
        "rows": written.rows,
        **({"labels": list(names)} if names else {}),
        "out": [os.fspath(path) for path in written.files],
        "seconds": round(seconds, 1),
        "rows_per_second": round(written.rows / seconds, 1),
        "notices": list(written.notices),
    }


def _of_glue(
    task: str, texts: str, names: Sequence[str], target: epath.Path, given: Mapping[str, Any]
) -> tuple[str, dict[str, Any]]:
    """(the file of a task's test rows, how it is read and written)."""
    for name, value in given.items():
        if value is not None:
            raise BadInput(f"{name} does not go with task={task!r}, whose files are known")
    if target.suffix.lower() != ".tsv":
        raise BadInput(f"out={target.name!r}: the leader board takes a .tsv file; name it so")
    file, columns = glue.unlabelled(task, texts, names)
    return file, {**columns, "only_answers": True}


def _new_file(out: conversion.PathLike) -> epath.Path:
    """Raises `BadInput` unless answers can be written there."""
    endings = sorted({ending for kind in KINDS.values() for ending in kind.endings})
    target = epath.Path(out).expanduser()
    if target.suffix.lower() not in endings:
        raise BadInput(f"out={os.fspath(out)!r}: expected a file with the ending {listed(endings)}")
    if target.exists() and (target.is_dir() or target.stat().length):
        raise BadInput(f"{os.fspath(target)!r} is there already; choose another name, or remove it")
    return target


def _only_head(heads: Sequence[str], shown: str) -> str:
    found = [head for head in heads if head in KINDS]
    if len(found) > 1:
        raise BadInput(f"{shown!r} can answer with several heads: give head= {' or '.join(found)}")
    if not found:
        raise BadInput(
            f"{shown!r} has no head that answers to texts (heads: {listed(heads)}): fine-tune it on a task first, or "
            "give head=embedding for the mean of its hidden states, at unit length"
        )
    return found[0]


def _check_ending(target: epath.Path, head: str, values: Mapping[str, Any]) -> None:
    endings = KINDS[head].endings
    ending = target.suffix.lower()
    if ending not in endings:
        raise BadInput(
            f"out={target.name!r}: answers of the head {head!r} are written as {listed(endings)}; give a name that "
            "ends so"
        )
    several = values.get("problem_type") == "multi_label_classification"
    if several and head == "sequence_classification" and ending != ".npy":
        raise BadInput(
            f"out={target.name!r}: this model gives a text any number of labels (problem_type); only its logits can "
            "be written, as .npy"
        )


def _names(values: dict[str, Any], model: Model, shown: str) -> tuple[str, ...]:
    """Those of config.json, or those that transformers gives to classes without names."""
    if model.config.regression:
        return ()
    count = model.config.num_labels
    names = interop.labels(values, model.config) or [f"LABEL_{number}" for number in range(count)]
    if twice := [name for name, times in Counter(names).items() if times > 1]:
        raise BadInput(
            f"{shown!r} has several classes called {twice[0]!r}; give each its own name in config.json"
        )
    return tuple(names)


def _settings(declared: type, given: Mapping[str, Any], head: str) -> Any:
    """Raises `BadInput` for settings that only another head has."""
    given = {name: value for name, value in given.items() if value is not None}
    valid = [field.name for field in dataclasses.fields(declared)]
    for name in given:
        if name not in valid:
            raise BadInput(f"{name} does not go with the head {head!r}: {nearest(name, valid)}")
    return declared(**given)
