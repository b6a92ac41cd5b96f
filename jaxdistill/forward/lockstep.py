"""Two stacks walked together: the losses of a layer are evaluated while its taps are there.

`walk` is one scan over the student's layers, for a layer map that never goes back; `visit` goes from
one followed layer to the next, for a map that leaves some out. Called by side_by_side."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdistill.forward.scene import Network, Result, Scene
from jaxdistill.models import Arrays
from jaxdistill.models.encoder import take_layer
from jaxdistill.models.placement import gathered_layer
from jaxdistill.objectives import fused

Pair = tuple[jax.Array, jax.Array]  # hidden states of the student and of the teacher


class Walked(NamedTuple):
    """The last hidden state of the student, that of the teacher's last followed layer, and the
    terms on the way."""

    hidden: jax.Array
    theirs: jax.Array
    result: Result


def layer_value(
    scene: Scene, block: fused.TeacherBlock, student_taps: Arrays
) -> tuple[Result, jax.Array]:
    """The terms of one layer, and what leaves the teacher's block."""
    block = block._replace(params=gathered_layer(scene.model, block.params))
    value, sums, theirs = fused.layer_terms(
        scene.asked(scene.of_layers), student_taps, block, scene.masks
    )
    return Result(value, sums), theirs


def walk(scene: Scene, teacher: Network, start: Pair, dropout_key: jax.Array | None) -> Walked:
    """Both stacks in one scan over the student's layers."""
    terms, depth, bias = scene.of_layers, scene.model.config.num_layers, scene.bias
    layers, teacher_layers = scene.params["layers"], teacher.params["layers"]
    layer_map = np.asarray(scene.layer_map(terms) or range(depth), np.int32)
    # The layer that the teacher stands behind.
    before = np.concatenate([[-1], layer_map[:-1]]).astype(np.int32)
    repeats, skips = bool(np.any(layer_map == before)), bool(np.any(layer_map > before + 1))

    def run_teacher(index: jax.Array, state: jax.Array) -> jax.Array:
        return teacher.model.block(take_layer(teacher_layers, index), state, bias)[0]

    def body(carry: Any, xs: Any) -> Any:
        hidden, theirs, entered = carry
        layer_params, key, at, last = xs
        hidden, student_taps = scene.model.block(layer_params, hidden, bias, key)
        student_taps = scene.projected(terms, student_taps)
        if repeats:  # two student layers follow one teacher layer: it is run again from its input
            theirs = jnp.where(at == last, entered, theirs)
        if skips:
            theirs = jax.lax.fori_loop(last + 1, at, run_teacher, theirs)
        entered = theirs if repeats else None
        block = fused.TeacherBlock(teacher.model, take_layer(teacher_layers, at), theirs, bias)
        result, theirs = layer_value(scene, block, student_taps)
        return (hidden, theirs, entered), result

    keys = None if dropout_key is None else jax.random.split(dropout_key, depth)
    hidden, theirs = start
    first = hidden, theirs, theirs if repeats else None
    (hidden, theirs, _), (values, sums) = jax.lax.scan(
        body, first, (layers, keys, jnp.asarray(layer_map), jnp.asarray(before))
    )
    result = Result(jnp.sum(values), {name: jnp.sum(x) for name, x in sums.items()})
    return Walked(hidden, theirs, result)


def visit(scene: Scene, teacher: Network, start: Pair, dropout_key: jax.Array | None) -> Walked:
    """As `walk`, for a map by which only some layers follow one of the teacher's: those one by one,
    others in scans."""
    terms, depth, bias = scene.of_layers, scene.model.config.num_layers, scene.bias
    model, layers, teacher_layers = scene.model, scene.params["layers"], teacher.params["layers"]
    keys = None if dropout_key is None else jax.random.split(dropout_key, depth)
    value, sums = jnp.float32(0), {name: jnp.float32(0) for name in terms}
    done = teacher_done = 0
    hidden, theirs = start
    entered = theirs

    def stretch(tree: Any, begin: int, end: int) -> Any:
        return jax.tree.map(lambda x: x[begin:end], tree)

    for i, at in enumerate(scene.layer_map(terms) or ()):
        if at < 0:
            continue
        hidden, _ = model.encode(
            stretch(layers, done, i), hidden, bias, dropout_keys=stretch(keys, done, i)
        )
        key = None if keys is None else keys[i]
        hidden, student_taps = model.block(take_layer(layers, i), hidden, bias, key, looped=False)
        student_taps = scene.projected(terms, student_taps)
        if at >= teacher_done:
            between = stretch(teacher_layers, teacher_done, at)
            entered, _ = teacher.model.encode(between, theirs, bias)
        block = fused.TeacherBlock(teacher.model, take_layer(teacher_layers, at), entered, bias)
        more, theirs = layer_value(scene, block, student_taps)
        value, sums = value + more.value, {name: sums[name] + more.sums[name] for name in terms}
        done, teacher_done = i + 1, at + 1
    hidden, _ = model.encode(
        stretch(layers, done, depth), hidden, bias, dropout_keys=stretch(keys, done, depth)
    )
    return Walked(hidden, theirs, Result(value, sums))
