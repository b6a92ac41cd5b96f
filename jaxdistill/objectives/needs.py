"""What a loss needs of the two networks that it compares, beside the taps themselves.

A need is a function of a `Pair` that returns what is wrong and what to change, "" if nothing is. It
stands on the loss's row in `terms`, so that start-up asks and never has to know the losses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jaxdistill.models import ModelConfig
from jaxdistill.models.heads import PROJECTION


class Pair(NamedTuple):
    """A term of a stage, `loss`, and the networks it compares, `network` the one that learns.
    `options`, `projection`: the term's. `accumulation`: in how many parts a batch of the stage goes."""

    stage: str
    network: str
    loss: str
    student: ModelConfig
    teacher: ModelConfig
    options: Mapping[str, Any]
    projection: str = ""
    accumulation: int = 1


Need = Callable[[Pair], str]


def equal_widths(pair: Pair) -> str:
    """Hidden states of one width, unless a learned projection lies between them."""
    ours, theirs = pair.student.hidden_size, pair.teacher.hidden_size
    if pair.projection == PROJECTION:
        return _own_projection(pair)
    if ours == theirs or pair.projection:
        return ""
    return (
        f"stage {pair.stage!r}: the loss {pair.loss!r} compares hidden states of width {theirs} "
        f"(teacher) and {ours} (student); make them equal with config.networks.{pair.network}.model.hidden_size={theirs}"
    )


def _own_projection(pair: Pair) -> str:
    """The network's own projection, to the teacher's width."""
    ours, theirs = pair.student.projected_size, pair.teacher.hidden_size
    if ours == theirs:
        return ""
    return (
        f"stage {pair.stage!r}: the loss {pair.loss!r} compares the teacher's states of width {theirs} with those of "
        f"{pair.network!r} behind its own projection, whose width is {ours}; set config.networks.{pair.network}."
        f"model.projected_size={theirs}"
    )


def equal_widths_or_projection(pair: Pair) -> str:
    """As `equal_widths`, for a loss whose stage can be told to learn the projection."""
    said = equal_widths(pair)
    if pair.projection:
        return said
    return said and f"{said}, or config.stages.{pair.stage}.projection=True"


def equal_heads(pair: Pair) -> str:
    """Attention maps of as many heads."""
    ours, theirs = pair.student.num_heads, pair.teacher.num_heads
    if ours == theirs:
        return ""
    return (
        f"stage {pair.stage!r}: the loss {pair.loss!r} compares {theirs} attention heads (teacher) with "
        f"{ours} (student); set config.networks.{pair.network}.model.num_heads={theirs}, or "
        f"config.stages.{pair.stage}.{pair.loss}=0"
    )


def equal_vocabularies(pair: Pair) -> str:
    """Word tables of as many rows."""
    ours, theirs = pair.student.vocab_size, pair.teacher.vocab_size
    if ours == theirs:
        return ""
    return (
        f"the word tables of teacher and student have {theirs} and {ours} rows, but the loss "
        f"{pair.loss!r} of stage {pair.stage!r} compares them word by word: leave vocab_size of the "
        "network that is not given at 0, or give two models that have as many"
    )


def equal_labels(pair: Pair) -> str:
    """As many classes."""
    ours, theirs = pair.student.num_labels, pair.teacher.num_labels
    if ours == theirs:
        return ""
    return (
        f"the classifiers of teacher and student have {theirs} and {ours} classes, but the loss "
        f"{pair.loss!r} of stage {pair.stage!r} compares them class by class; take networks of one task"
    )


def heads_divide(pair: Pair) -> str:
    """Relation heads that cut the queries, keys and values of both networks into equal parts."""
    heads = pair.options["heads"]
    for whose, config in (("student", pair.student), ("teacher", pair.teacher)):
        width = config.num_heads * config.head_size
        if heads < 1 or width % heads:
            return (
                f"config.stages.{pair.stage}.relation_heads={heads} does not divide the width {width} of "
                f"the {whose}'s queries, keys and values; use a divisor of both networks' widths"
            )
    return ""


def whole_batch(pair: Pair) -> str:
    """The whole batch at once: the loss compares rows with each other. Devices that share a batch are
    no parts of it."""
    if pair.accumulation == 1:
        return ""
    return (
        f"stage {pair.stage!r}: the loss {pair.loss!r} compares the rows of a batch with each other, and "
        f"accumulation={pair.accumulation} shows it only a part of them; set config.stages.{pair.stage}."
        "accumulation=1"
    )
