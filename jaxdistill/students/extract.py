"""A student cut out of its teacher: some places of each axis, everywhere at once (Extract-Then-Distill,
Chen et al. 2021, arXiv 2104.11928; ETD below).

`extract` is plain arithmetic: parameters, and which places to keep of which axes. `choose` says which, from
a score for each place: random ones are the paper's ETD-Rand, those of `evaluation.importance` its ETD-Impt.
No code of the paper was published. As far as its text is known, whole layers are taken at equal distances,
and every head is kept and made narrower, since losses on attention want as many heads as the teacher has.

The order of places is the teacher's. Hidden dimensions are the same in all layers, since blocks add to what
they are given; neurons, head widths and what flows inside a bottleneck are chosen in each layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from jaxdistill.errors import BadInput, listed
from jaxdistill.models import Model, ModelConfig, Params
from jaxdistill.models.axes import Axes, axes_of
from jaxdistill.models.parameters import flatten, unflatten
from jaxdistill.models.sizes import parameter_shapes

Keep = Mapping[str, np.ndarray]
Scores = Mapping[str, np.ndarray]

# Fields that an extracted student may have smaller than its teacher, or otherwise; all others are equal.
SIZES = (
    "num_layers",
    "hidden_size",
    "num_heads",
    "attention_head_size",
    "intermediate_size",
    "embedding_size",
    "bottleneck_size",
    "embedding_features",
)
FREE = (
    "heads",
    "num_labels",
    "regression",
    "hidden_dropout",
    "attention_dropout",
    "classifier_dropout",
    "initializer_range",
    "dtype",
    "residual_dtype",
)
IN_HEADS = ("query", "value")


def extract(config: ModelConfig, params: Params, keep: Keep) -> Params:
    """The parameters of the network that has the kept places alone of each axis; axes without an entry
    are whole, and so are parameters of heads and projections of one's own.

    `keep`: places by axis (`models.axes`), int[k]. Of an axis inside blocks also int[N, k], by layer of
    the teacher, and of "query" and "value" int[N, A, k], by its head. "layer" and "heads" choose
    among those."""
    axes = Axes(config)
    axes, found = Axes(config), flatten(params)
    return unflatten({name: _cut(axes, name, np.asarray(x), keep) for name, x in found.items()})  # type: ignore[misc]


def _cut(axes: Axes, name: str, x: np.ndarray, keep: Keep) -> np.ndarray:
    try:
        names = axes_of(name)
    except BadInput:
        return x
    # From the last axis on, so that layers and heads are still the teacher's where others are by them.
    for at in reversed(range(len(names))):
        places = axes.indices(names[at], keep)
        if places is None:
            continue
        if places.ndim == 1:
            x = np.take(x, places, axis=at)
            continue
        by = ("layer", "heads")[: places.ndim - 1]
        shape = [1] * x.ndim
        shape[at] = places.shape[-1]
        for axis, size in zip(by, places.shape):
            shape[names.index(axis)] = size
        x = np.take_along_axis(x, places.reshape(shape), axis=at)
    return x


def choose(
    teacher: ModelConfig, student: ModelConfig, scores: Scores, layers: Sequence[int]
) -> Keep:
    """The places with the highest scores, in their order, as many as the student has.

    `scores`: by axis float[size], or as `keep` of `extract` with layers, or layers and heads, before; an axis
    without scores keeps its first places. `layers`: of the teacher, counted from 0."""
    ours, theirs = Axes(student).sizes, Axes(teacher).sizes
    keep: dict[str, np.ndarray] = {"layer": np.array(layers)}
    for axis, size in theirs.items():
        if axis == "layer" or ours.get(axis, size) == size:
            continue
        held = np.asarray(scores.get(axis, -np.arange(size)))
        best = np.argsort(-held, axis=-1, kind="stable")[..., : ours[axis]]
        keep[axis] = np.sort(best, axis=-1)
    return keep


def smaller(teacher: ModelConfig, **sizes: int) -> ModelConfig:
    """The teacher's architecture in other sizes. Heads are as many as its own and narrower, or, if
    `num_heads` says fewer, as wide as its own."""
    fewer = sizes.get("num_heads", teacher.num_heads) < teacher.num_heads
    if fewer and "attention_head_size" not in sizes:
        inner = (
            sizes.get("bottleneck_size")
            or teacher.bottleneck_size
            or sizes.get("hidden_size")
            or teacher.hidden_size
        )
        if inner != sizes["num_heads"] * teacher.head_size:
            sizes["attention_head_size"] = teacher.head_size
    return teacher.replace(**sizes)


def random_scores(teacher: ModelConfig, seed: int) -> Scores:
    """A number between 0 and 1 for each place, the same for every student of the teacher: ETD-Rand."""
    draw, sizes = np.random.default_rng(seed), Axes(teacher).sizes
    found = {}
    for axis, size in sorted(sizes.items()):
        lead: tuple[int, ...] = ()
        if axis in ("heads", "inner", "shared") or axis.startswith("ffn_"):
            lead = (sizes["layer"],)
        if axis in IN_HEADS:
            lead = (sizes["layer"], sizes["heads"])
        found[axis] = draw.random((*lead, size))
    if "pooled" in found:  # as wide as hidden vectors; in BERT it is read as one
        found["pooled"] = found["hidden"]
    return found


def uniform_layers(teacher: int, student: int) -> tuple[int, ...]:
    """The layers of a teacher at equal distances, the last one among them: 12 to 4 takes 2, 5, 8, 11."""
    return tuple((number + 1) * teacher // student - 1 for number in range(student))


def taken_names(student: Model, teacher: Model) -> set[str]:
    """Names of the student's parameters that are cut out of the teacher's: not heads that it lacks, or has
    for other labels."""
    ours, theirs = (flatten(parameter_shapes(model.config)) for model in (student, teacher))
    sizes = Axes(teacher.config).sizes

    def fits(name: str) -> bool:
        try:
            axes = axes_of(name)
        except BadInput:
            axes = ("label",) * ours[name].ndim
        known = Axes(teacher.config)
        return all(
            mine == there or all(part in sizes for part in known.parts(axis))
            for axis, mine, there in zip(axes, ours[name].shape, theirs[name].shape)
        )

    return {name for name in ours.keys() & theirs.keys() if fits(name)}


def check(teacher: ModelConfig, student: ModelConfig, shown: str) -> None:
    """Raises `BadInput` unless the student is a network of the teacher's kind, in no size larger. `shown`: whose
    it is, for the message."""
    wrong = [
        field.name
        for field in dataclasses.fields(ModelConfig)
        if field.name not in (*SIZES, *FREE)
        and getattr(teacher, field.name) != getattr(student, field.name)
    ]
    for field in ("bottleneck_size", "embedding_features"):  # there or not
        if (getattr(teacher, field) is None) != (getattr(student, field) is None):
            wrong.append(field)
    if teacher.has_embedding_projection != student.has_embedding_projection:
        wrong.append("embedding_size")
    if wrong:
        pairs = listed(
            f"{name}={getattr(student, name)!r} (its own is {getattr(teacher, name)!r})"
            for name in wrong
        )
        raise BadInput(
            f"{shown} cannot be cut out of a model of another kind: {pairs}; leave the kind as it is"
        )
    fields = [(field, getattr(student, field), getattr(teacher, field)) for field in SIZES]
    # What follows from several fields: the width of a head, what the MLM head adds to words.
    ours, theirs = Axes(student).sizes, Axes(teacher).sizes
    fields += [(f"(axis) {axis}", size, theirs.get(axis, 0)) for axis, size in ours.items()]
    for field, size, there in fields:
        if size is not None and there is not None and size > there:
            raise BadInput(
                f"{shown} cannot be cut out of a smaller model: {field}={size} exceeds its {there}; ask for no more"
            )
