"""One micro-batch through teacher and student side by side: the scaled sum of all losses, and each
raw sum.

Three ways, one result. `_plain_sums` asks both models for their taps, stacked over layers, and
evaluates the losses on them: the definition. `_fused_sums` walks both stacks together (`_walk` in
one scan, `_visit` where only some layers are followed) and evaluates the losses of a layer while
its taps are there, so that nothing piles up over depth. `_sums_at_layer` is the progressive stages'
one layer. Called by step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdistill.methods.base import Stage
from jaxdistill.models import Arrays, Batch, Model, Params
from jaxdistill.models.encoder import attention_bias, split_key, take_layer
from jaxdistill.models.parameters import unflatten
from jaxdistill.objectives import fused, projections
from jaxdistill.objectives.terms import Term, count_everything
from jaxdistill.training import sharding

Result = tuple[jax.Array, Arrays]


def weighted_sums(
    stage: Stage,
    model: Model,
    teacher: Model | None,
    moving: Arrays,
    frozen: Arrays,
    teacher_params: Params,
    batch: Batch,
    layer: jax.Array,
    dropout_key: jax.Array | None,
    scales: Arrays,
) -> Result:
    """(the sum over terms of raw sum x scale: what is differentiated; every raw sum by the name of
    its term).

    `moving`, `frozen`: the student's parameters by name. `layer`: the active one of a progressive
    stage. `scales`: by the name of a term, weight / count."""
    masks = count_everything(batch) if stage.tf1_unmasked else batch
    if stage.progressive:
        return _sums_at_layer(
            stage, model, teacher, moving, frozen, teacher_params, batch, masks, layer, scales
        )
    params = unflatten({**frozen, **moving})
    if not stage.fused:
        return _plain_sums(
            stage, model, teacher, params, teacher_params, batch, masks, dropout_key, scales
        )
    return _fused_sums(
        stage, model, teacher, params, teacher_params, batch, masks, dropout_key, scales
    )


def walks(stage: Stage) -> bool:
    """Whether both stacks can be walked in lock-step: one layer map for all losses, which never
    goes back, and no loss that reads layers of the teacher that come later."""
    maps = {term.layer_map for term in stage.terms if term.per_layer}
    followed = [at for layer_map in maps for at in layer_map or () if at >= 0]
    return len(maps) == 1 and not _reads_moments(stage) and followed == sorted(followed)


def _plain_sums(
    stage: Stage,
    model: Model,
    teacher: Model | None,
    params: Params,
    teacher_params: Params,
    batch: Batch,
    masks: Batch,
    dropout_key: jax.Array | None,
    scales: Arrays,
) -> Result:
    ours, student_taps = model.apply(
        params,
        batch,
        taps=stage.taps("student"),
        heads=stage.heads("student"),
        dropout_key=dropout_key,
    )
    theirs: Mapping[str, Any] = {}
    teacher_taps: Mapping[str, Any] = {}
    if stage.needs_teacher:
        assert teacher is not None
        theirs, teacher_taps = teacher.apply(
            teacher_params,
            batch,
            taps=stage.taps("teacher"),
            heads=stage.heads("teacher"),
            num_layers=stage.teacher_depth(model.config.num_layers),
        )
    student_taps = projections.projected(_maps(params, model), _terms(stage), student_taps)
    sums = {
        term.name: _full_sum(term, ours, student_taps, theirs, teacher_taps, masks)
        for term in stage.terms
    }
    return fused.weighted(sums, scales), sums


def _full_sum(
    term: Term,
    student_out: Arrays,
    student_taps: Arrays,
    teacher_out: Mapping[str, Any],
    teacher_taps: Mapping[str, Any],
    masks: Batch,
) -> jax.Array:
    if term.of_embeddings:
        return term.sum(
            student_taps[term.reads], jax.lax.stop_gradient(teacher_taps["embeddings"]), masks
        )
    if not term.per_layer:
        target = None if term.teacher is None else jax.lax.stop_gradient(teacher_out[term.teacher])
        return term.sum(student_out[term.student], target, masks)
    ours_NxB = student_taps[term.reads]
    theirs = jax.lax.stop_gradient(teacher_taps[term.teacher or ""])
    if term.teacher == "hidden_moments":
        return jnp.sum(jax.vmap(lambda ours: term.sum(ours, theirs, masks))(ours_NxB))
    if term.layer_map is not None:
        followers = [i for i, at in enumerate(term.layer_map) if at >= 0]
        ours_NxB = jnp.take(ours_NxB, jnp.asarray(followers), axis=0)
        theirs = jnp.take(theirs, jnp.asarray([term.layer_map[i] for i in followers]), axis=0)
    return jnp.sum(jax.vmap(lambda ours, their: term.sum(ours, their, masks))(ours_NxB, theirs))


def _fused_sums(
    stage: Stage,
    model: Model,
    teacher: Model | None,
    params: Params,
    teacher_params: Params,
    batch: Batch,
    masks: Batch,
    dropout_key: jax.Array | None,
    scales: Arrays,
) -> Result:
    layered = _of_layers(stage)
    if layered and not walks(stage):
        return _plain_sums(
            stage, model, teacher, params, teacher_params, batch, masks, dropout_key, scales
        )
    maps = _maps(params, model)
    embed_key, layers_key, heads_key = split_key(dropout_key)
    hidden, bias = model.embed(params, batch, embed_key), attention_bias(batch)
    theirs: Any = (
        teacher.embed(teacher_params, batch)
        if stage.needs_teacher and teacher is not None
        else None
    )
    embedded = projections.projected(maps, _terms(stage), {"embeddings": hidden})
    sums = {
        name: term.sum(embedded[term.reads], theirs, masks)
        for name, term in _terms(stage).items()
        if term.of_embeddings
    }
    value, done = fused.weighted(sums, scales), 0
    if layered:
        assert teacher is not None
        walk = _visit if -1 in (_layer_map(stage) or ()) else _walk
        hidden, theirs, more, found = walk(
            stage,
            model,
            teacher,
            params["layers"],
            teacher_params["layers"],
            hidden,
            theirs,
            masks,
            maps,
            bias,
            layers_key,
            scales,
        )
        value, sums = value + more, {**sums, **found}
        done = max(_layer_map(stage) or (model.config.num_layers - 1,)) + 1
    else:
        hidden, _ = model.encode(params["layers"], hidden, bias, dropout_key=layers_key)
    if teacher is not None and stage.heads("teacher"):
        if done < teacher.config.num_layers:
            theirs, _ = teacher.encode(
                jax.tree.map(lambda x: x[done:], teacher_params["layers"]), theirs, bias
            )
        theirs = jax.lax.stop_gradient(theirs)
    more, found = head_sums(
        stage, model, teacher, params, teacher_params, hidden, theirs, masks, scales, heads_key
    )
    return value + more, {**sums, **found}


def head_sums(
    stage: Stage,
    model: Model,
    teacher: Model | None,
    params: Params,
    teacher_params: Params,
    hidden: jax.Array,
    theirs: Any,
    masks: Batch,
    scales: Arrays,
    dropout_key: jax.Array | None = None,
) -> Result:
    """(value, raw sums) of the losses on head outputs, from both last hidden states; plain too, for
    the benchmark."""
    words, others = _of_heads(stage)
    if not stage.fused:
        words, others = {}, {**words, **others}
    value, sums = jnp.float32(0), Arrays()
    if words:
        pair = (
            teacher.mlm_features(teacher_params, theirs, masks)
            if teacher and "mlm" in stage.heads("teacher")
            else None
        )
        value, sums = fused.word_terms(
            words,
            _only(scales, words),
            model.mlm_features(params, hidden, masks),
            pair,
            masks,
            rows_on_a_device(model, masks),
            model.whole,
        )
    if others:
        outputs = model.run_heads(params, hidden, masks, _heads(others, "student"), dropout_key)
        read = _heads(others, "teacher")
        targets = teacher.run_heads(teacher_params, theirs, masks, read) if read and teacher else {}
        found = {
            name: term.sum(outputs[term.student], targets.get(term.teacher or ""), masks)
            for name, term in others.items()
        }
        value, sums = value + fused.weighted(found, scales), {**sums, **found}
    return value, sums


def _walk(
    stage: Stage,
    model: Model,
    teacher: Model,
    layers: Params,
    teacher_layers: Params,
    hidden: jax.Array,
    theirs: jax.Array,
    masks: Batch,
    maps: Params,
    bias: jax.Array,
    dropout_key: jax.Array | None,
    scales: Arrays,
) -> tuple[jax.Array, jax.Array, jax.Array, Arrays]:
    """Both stacks in one scan over the student's layers: (last hidden states of student and
    teacher, value, raw sums)."""
    depth = model.config.num_layers
    layer_map = np.asarray(_layer_map(stage) or range(depth), np.int32)
    before = np.concatenate([[-1], layer_map[:-1]]).astype(
        np.int32
    )  # the layer that the teacher stands behind
    repeats, skips = bool(np.any(layer_map == before)), bool(np.any(layer_map > before + 1))

    def run_teacher(index: jax.Array, state: jax.Array) -> jax.Array:
        return teacher.block(take_layer(teacher_layers, index), state, bias)[0]

    def body(carry: Any, xs: Any) -> Any:
        hidden, theirs, entered = carry
        layer_params, key, at, last = xs
        hidden, student_taps = model.block(layer_params, hidden, bias, key)
        student_taps = projections.projected(maps, _of_layers(stage), student_taps)
        if repeats:  # two student layers follow one teacher layer: it is run again from its input
            theirs = jnp.where(at == last, entered, theirs)
        if skips:
            theirs = jax.lax.fori_loop(last + 1, at, run_teacher, theirs)
        entered = theirs if repeats else None
        value, sums, theirs = layer_value(
            stage,
            model,
            teacher,
            student_taps,
            take_layer(teacher_layers, at),
            theirs,
            masks,
            bias,
            scales,
        )
        return (hidden, theirs, entered), (value, sums)

    keys = None if dropout_key is None else jax.random.split(dropout_key, depth)
    first = hidden, theirs, theirs if repeats else None
    (hidden, theirs, _), (values, sums) = jax.lax.scan(
        body, first, (layers, keys, jnp.asarray(layer_map), jnp.asarray(before))
    )
    return hidden, theirs, jnp.sum(values), {name: jnp.sum(x) for name, x in sums.items()}


def _visit(
    stage: Stage,
    model: Model,
    teacher: Model,
    layers: Params,
    teacher_layers: Params,
    hidden: jax.Array,
    theirs: jax.Array,
    masks: Batch,
    maps: Params,
    bias: jax.Array,
    dropout_key: jax.Array | None,
    scales: Arrays,
) -> tuple[jax.Array, jax.Array, jax.Array, Arrays]:
    """As `_walk`, for a map by which only some layers follow one of the teacher's: those one by
    one, others in scans."""
    terms = _of_layers(stage)
    depth = model.config.num_layers
    keys = None if dropout_key is None else jax.random.split(dropout_key, depth)
    value, sums = jnp.float32(0), {name: jnp.float32(0) for name in terms}
    done = teacher_done = 0
    entered = theirs

    def stretch(tree: Any, begin: int, end: int) -> Any:
        return jax.tree.map(lambda x: x[begin:end], tree)

    for i, at in enumerate(_layer_map(stage) or ()):
        if at < 0:
            continue
        hidden, _ = model.encode(
            stretch(layers, done, i), hidden, bias, dropout_keys=stretch(keys, done, i)
        )
        hidden, student_taps = model.block(
            take_layer(layers, i), hidden, bias, None if keys is None else keys[i], looped=False
        )
        student_taps = projections.projected(maps, terms, student_taps)
        if at >= teacher_done:
            entered, _ = teacher.encode(stretch(teacher_layers, teacher_done, at), theirs, bias)
        more, found, theirs = layer_value(
            stage,
            model,
            teacher,
            student_taps,
            take_layer(teacher_layers, at),
            entered,
            masks,
            bias,
            scales,
        )
        value, sums = value + more, {name: sums[name] + found[name] for name in terms}
        done, teacher_done = i + 1, at + 1
    hidden, _ = model.encode(
        stretch(layers, done, depth), hidden, bias, dropout_keys=stretch(keys, done, depth)
    )
    return hidden, theirs, value, sums


def _sums_at_layer(
    stage: Stage,
    model: Model,
    teacher: Model | None,
    moving: Arrays,
    frozen: Arrays,
    teacher_params: Params,
    batch: Batch,
    masks: Batch,
    layer: jax.Array,
    scales: Arrays,
) -> Result:
    assert teacher is not None
    strict = stage.depth == "progressive_strict"
    params = unflatten(frozen if strict else {**frozen, **moving})
    active = unflatten(moving)["layers"] if strict else None
    terms = _of_layers(stage)
    in_parts = stage.fused and not _reads_moments(stage)
    wanted = fused.student_taps_of(terms) if in_parts else stage.taps("student")
    ours = model.apply_at(
        params, batch, layer, taps=wanted, active=active, differentiable=not strict
    )
    layer_map = _layer_map(stage)
    at = layer if layer_map is None else jnp.asarray(layer_map)[layer]
    if not in_parts:
        theirs = jax.lax.stop_gradient(
            teacher.apply_at(teacher_params, batch, at, taps=stage.taps("teacher"))
        )
        sums = fused.layer_sums(terms, ours, theirs, masks)
        return fused.weighted(sums, scales), sums
    bias = attention_bias(batch)
    entered = teacher.run_below(teacher_params, teacher.embed(teacher_params, batch), bias, at)
    return layer_value(
        stage,
        model,
        teacher,
        ours,
        take_layer(teacher_params["layers"], at),
        entered,
        masks,
        bias,
        scales,
    )[:2]


def layer_value(
    stage: Stage,
    model: Model,
    teacher: Model,
    student_taps: Arrays,
    teacher_layer: Params,
    theirs: jax.Array,
    masks: Batch,
    bias: jax.Array,
    scales: Arrays,
) -> tuple[jax.Array, Arrays, jax.Array]:
    """One layer of the teacher, from what enters it, and the losses there: (value, raw sums, what
    leaves it)."""
    terms = _of_layers(stage)
    return fused.layer_terms(
        terms,
        _only(scales, terms),
        student_taps,
        teacher,
        sharding.gathered_layer(model, teacher_layer),
        theirs,
        masks,
        bias,
        model.config.dtype,
        rows_on_a_device(model, masks),
    )


def _reads_moments(stage: Stage) -> bool:
    """Whether a loss reads every layer of the teacher at once."""
    return any(term.teacher == "hidden_moments" for term in stage.terms)


def _terms(stage: Stage) -> dict[str, Term]:
    """The terms, by name."""
    return {term.name: term for term in stage.terms}


def _of_layers(stage: Stage) -> dict[str, Term]:
    """The terms of a layer, by name."""
    return {term.name: term for term in stage.terms if term.per_layer}


def _of_heads(stage: Stage) -> tuple[dict[str, Term], dict[str, Term]]:
    """Terms over the vocabulary, terms of other heads; by name."""
    terms = {term.name: term for term in stage.terms if term.head}
    words = {name: term for name, term in terms.items() if term.head == "mlm"}
    return words, {name: term for name, term in terms.items() if name not in words}


def _maps(params: Params, model: Model) -> Params:
    """The stage's learned projections, by name."""
    return projections.in_dtype(params, model.config.dtype)


def _layer_map(stage: Stage) -> tuple[int, ...] | None:
    return next(term.layer_map for term in stage.terms if term.per_layer)


def _heads(terms: Mapping[str, Term], whose: str) -> tuple[str, ...]:
    return tuple(sorted({t.head for t in terms.values() if getattr(t, whose) is not None}))


def _only(scales: Arrays, terms: Mapping[str, Term]) -> Arrays:
    return {name: scales[name] for name in terms}


def rows_on_a_device(model: Model, batch: Batch) -> int:
    """How many rows of a batch one device holds."""
    rows, where = batch["input_ids"].shape[0], model.batch_sharding
    return rows if where is None else where.shard_shape((rows,))[0]
