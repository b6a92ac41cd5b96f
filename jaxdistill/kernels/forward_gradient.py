"""Losses whose gradient is taken in the forward pass, while what it needs is there anyway.

A distillation loss of one layer reads tensors of [batch, heads, length, length], of student and
teacher, and gives one number. Reverse mode would keep those tensors for every layer until the
backward pass. The gradient with respect to the student's small tensors (hidden state, queries,
keys) is all that is needed then, so it is computed beside the loss, kept in their place, and
multiplied by the incoming cotangent: same operations, a fraction of the memory. Called by
objectives.fused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

# (moving, slices, shared) -> (value float32[], (numbers to report, tensors to go on with))
Function = Callable[[Any, Any, Any], tuple[jax.Array, tuple[Any, Any]]]


def gradient_in_chunks(function: Function, dtype: Any) -> Function:
    """The sum of `function(moving, slices, shared)` over chunks, one after the other, so that only
    one chunk's intermediate tensors exist at a time; its gradient with respect to `moving` is
    computed with the value and kept in `dtype`.

    Arrays of `moving` and `slices` have a leading axis of chunks. Value and numbers are summed,
    tensors stacked. Only the value can be differentiated, once, and only with respect to `moving`:
    what reaches the function through `slices` and `shared` (the teacher, masks, scales) gets no
    gradient."""

    @jax.custom_vjp
    def run(moving: Any, slices: Any, shared: Any) -> tuple[jax.Array, tuple[Any, Any]]:
        def step(xs: Any) -> Any:
            value, (numbers, tensors) = function(xs[0], xs[1], shared)
            return (value, numbers), tensors

        (value, numbers), tensors = _sum_over(step, (moving, slices))
        return value, (numbers, tensors)

    def forward(moving: Any, slices: Any, shared: Any) -> Any:
        def step(xs: Any) -> Any:
            (value, (numbers, tensors)), gradient = jax.value_and_grad(function, has_aux=True)(
                *xs, shared
            )
            return (value, numbers), (tensors, jax.tree.map(lambda g: g.astype(dtype), gradient))

        (value, numbers), (tensors, gradient) = _sum_over(step, (moving, slices))
        return (value, (numbers, tensors)), (gradient, _dtypes(moving))

    def backward(kept: Any, cotangent: Any) -> tuple[Any, None, None]:
        gradient, dtypes = kept
        scaled = jax.tree.map(
            lambda g, like: (g.astype(jnp.float32) * cotangent[0]).astype(like.dtype),
            gradient,
            dtypes,
        )
        return scaled, None, None

    run.defvjp(forward, backward)
    return run


def projected_loss(
    project: Callable[[Any, jax.Array], jax.Array],
    function: Callable[..., tuple[jax.Array, Any]],
    dtype: Any,
    whole: Callable[[Any], Any] = lambda weights: weights,
) -> Callable[..., tuple[jax.Array, Any]]:
    """A loss of logits = project(weights, x), chunk by chunk: (moving=(weights, x), slices, shared)
    -> (value, numbers).

    `x` [C, ..., D] and `slices` have a leading axis of chunks; `function(logits, slices of one
    chunk, shared)` is the loss of one. Only the gradient with respect to the logits is kept, in
    `dtype`; the two large products with it are done in one piece in the backward pass, so that
    weights, which all chunks share, are summed over devices once. `whole` is applied to them ahead
    of the chunks, not to their gradient."""

    def over_chunks(moving: Any, slices: Any, shared: Any) -> Any:
        weights, x = whole(moving[0]), moving[1]

        def one(xs: Any) -> tuple[tuple[jax.Array, Any], jax.Array]:
            result, gradient = jax.value_and_grad(function, has_aux=True)(
                project(weights, xs[0]), xs[1], shared
            )
            return result, gradient.astype(dtype)

        return _sum_over(one, (x, slices))

    @jax.custom_vjp
    def run(moving: Any, slices: Any, shared: Any) -> tuple[jax.Array, Any]:
        return over_chunks(moving, slices, shared)[0]

    def forward(moving: Any, slices: Any, shared: Any) -> tuple[tuple[jax.Array, Any], Any]:
        result, gradient = over_chunks(moving, slices, shared)
        return result, (gradient, moving)

    def backward(kept: Any, cotangent: Any) -> tuple[Any, None, None]:
        gradient, moving = kept
        _, pull = jax.vjp(project, *moving)
        # Scaled after the products: before them it would be a second tensor as large as the logits.
        scaled = jax.tree.map(
            lambda g: (g * cotangent[0]).astype(g.dtype), pull(gradient.astype(jnp.float32))
        )
        # Together: else what waits for `x` alone (a stack's backward pass) would begin first,
        # beside a gradient of the logits.
        return jax.lax.optimization_barrier(scaled), None, None

    run.defvjp(forward, backward)
    return run


def _sum_over(step: Callable[[Any], tuple[Any, Any]], xs: Any) -> tuple[Any, Any]:
    """(the sum of what `step` gives first, what it gives second stacked) over the leading axis of
    `xs`."""
    if jax.tree.leaves(xs)[0].shape[0] == 1:  # no loop around a single chunk
        result, kept = step(jax.tree.map(lambda x: x[0], xs))
        return result, jax.tree.map(lambda x: x[None], kept)

    def body(total: Any, part: Any) -> tuple[Any, Any]:
        result, kept = step(part)
        return jax.tree.map(jnp.add, total, result), kept

    like = jax.eval_shape(lambda part: step(part)[0], jax.tree.map(lambda x: x[0], xs))
    return jax.lax.scan(body, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like), xs)


def _dtypes(tree: Any) -> Any:
    """Empty arrays of the leaves' dtypes: residuals are arrays, and a cotangent must have its
    primal's dtype."""
    return jax.tree.map(lambda x: jnp.zeros((0,), x.dtype), tree)
