"""How much a network's loss needs each place of its axes: what a smaller student is cut out by
(Extract-Then-Distill, Chen et al. 2021, arXiv 2104.11928; `students.extract`).

On every place stands a gate of 1, and the score is how fast the loss changes with it: mean over examples of
|dL/dgate|, the first order of what is lost when the place goes (Molchanov et al. 2017, arXiv 1611.06440; of
heads, Michel et al. 2019, arXiv 1905.10650). The absolute value is that of one example: signs would cancel in
a batch. A gate on a neuron scales its row of the kernel behind it, and a gate on what a norm gives scales
the norm's scale and bias; so no network needs to know of gates, and |dL/dgate| = |sum of w dL/dw|.

The paper's own formula is not public. Hidden dimensions are scored at every norm that gives one; there each
norm counts alike (its scores have length 1)."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxdistill.data.feeds import Feed
from jaxdistill.methods.base import Cast, Optimizer, Schedule, Stage
from jaxdistill.models import Arrays, Batch, Model, ModelConfig, Params
from jaxdistill.models.axes import Axes, axes_of
from jaxdistill.models.parameters import flatten, unflatten
from jaxdistill.models.sizes import parameter_shapes
from jaxdistill.objectives.terms import Term
from jaxdistill.training import hosts, sharding
from jaxdistill.training.progress import Progress
from jaxdistill.training.step import Given, make_losses


class Site(NamedTuple):
    """Gates for the places of `axis`: one for each place of the axes `over` of the parameters `names`."""

    axis: str
    over: tuple[str, ...]
    names: tuple[str, ...]


def losses_of(feed: Feed) -> tuple[str, ...]:
    """Those of a task; of plain text that of its masked words."""
    return feed.losses or ("mlm",)


def importance(
    model: Model,
    params: Params,
    losses: Sequence[str],
    batches: Iterable[Mapping[str, np.ndarray]],
    *,
    mesh: Mesh,
    rows: int | None = None,
) -> dict[str, np.ndarray]:
    """A score for each place by axis, as `students.extract.choose` reads them: of hidden dimensions [D], of what
    is chosen in each layer [N, size], of head widths [N, A, K]; float32.

    `losses`: rows of `objectives.terms.LOSSES`, whose mean is the loss; dropout is off. `batches` are this host's
    part of global batches, of `rows` rows in all, and divide by the mesh's devices. Rows without a label count
    for nothing."""
    config = model.config.replace(dtype="float32", residual_dtype="float32")
    compiled = _compile(Model(config), tuple(losses), sharding.batch_parts(mesh))
    placed = sharding.place(mesh, params)
    totals: dict[str, np.ndarray] = {}
    with Progress(rows, "importance", unit="rows", quiet=None if hosts.first() else True) as bar:
        for batch in batches:
            found = hosts.to_host(compiled(placed, sharding.put_batch(mesh, dict(batch))))
            totals = {key: totals.get(key, 0.0) + value for key, value in found.items()}
            bar.update(len(next(iter(batch.values()))) * jax.process_count())
    return combined(config, totals)


@functools.lru_cache(8)
def _compile(model: Model, losses: tuple[str, ...], parts: int) -> jax.stages.Wrapped:
    terms = tuple(Term(loss, 1.0 / len(losses)) for loss in losses)
    stage = Stage("importance", "", 1, terms, Optimizer(), Schedule(0.0), 1, fused=False)
    loss_sums, gates = make_losses(Cast(stage, model)), _closed(model)
    weights = {term.name: 1.0 / len(losses) for term in terms}

    def of_row(params: Params, row: Batch) -> Arrays:
        def loss(opened: Arrays) -> jax.Array:
            one = {name: x[None] for name, x in row.items()}
            given = Given({}, jnp.int32(0))
            sums, counts = loss_sums(_gated(model, params, opened), given, one, jnp.int32(0))
            return sum(
                (w * sums[name] / counts[name] for name, w in weights.items()), jnp.float32(0)
            )

        slopes = jax.grad(loss)(gates)
        return {key: jnp.abs(x) for key, x in {**slopes, **_of_heads(slopes)}.items()}

    def sums(params: Params, batch: Batch) -> Arrays:
        def of_part(rows: Batch) -> Arrays:
            def add(total: Arrays, row: Batch) -> tuple[Arrays, None]:
                return jax.tree.map(jnp.add, total, of_row(params, row)), None

            zeros = jax.tree.map(jnp.zeros_like, {**gates, **_of_heads(gates)})
            return jax.lax.scan(add, zeros, rows)[0]

        # Row by row, since each has a gradient of its own; every device its own rows.
        split = {name: x.reshape(parts, -1, *x.shape[1:]) for name, x in batch.items()}
        return jax.tree.map(lambda x: jnp.sum(x, axis=0), jax.vmap(of_part)(split))

    return jax.jit(sums)


def _of_heads(gates: Arrays) -> Arrays:
    """A head's gate opens all its values at once: [N, A] of [N, A, K]."""
    return {"heads": jnp.sum(gates["value"], axis=-1)}


def _closed(model: Model) -> Arrays:
    """What is added to gates of 1, by site: zeros."""
    sizes, axes = {}, Axes(model.config)
    for key, site in sites(model).items():
        sizes[key] = tuple(axes.sizes[axes.parts(axis)[0]] for axis in site.over)
    return {key: jnp.zeros(shape, jnp.float32) for key, shape in sizes.items()}


def _gated(model: Model, params: Params, opened: Arrays) -> Params:
    """The parameters behind gates of 1 + `opened`."""
    flat = flatten(params)
    for key, site in sites(model).items():
        for name in site.names:
            axes, shape = axes_of(name), [1] * flat[name].ndim
            for axis, size in zip(site.over, opened[key].shape):
                shape[axes.index(axis)] = size
            flat[name] = flat[name] * (1.0 + opened[key].reshape(shape))
    return unflatten(flat)


def sites(model: Model) -> dict[str, Site]:
    """Where gates stand in a network, by a name for each."""
    names, axes = flatten(parameter_shapes(model.config)), Axes(model.config)
    keys = "layers/attention/query"
    found = {
        "query": Site("query", ("layer", "heads", "query"), (f"{keys}/kernel", f"{keys}/bias")),
        "value": Site("value", ("layer", "heads", "value"), ("layers/attention/out/kernel",)),
    }
    for name in names:
        if ffn := re.fullmatch(r"layers/(ffn_\d+)/down/kernel", name):
            found[ffn[1]] = Site(ffn[1], ("layer", ffn[1]), (name,))
        if name.endswith("/scale") and not name.startswith("mlm/"):
            over = axes_of(name)
            pair = (name, name.removesuffix("scale") + "bias")
            found[name.removesuffix("/scale")] = Site(axes.parts(over[-1])[0], over, pair)
    for axis, name in (("word", "embeddings/word"), ("extra", "mlm/extra_embedding")):
        if axis in axes.sizes and name in names:
            found[axis] = Site(axis, (axis,), (name,))
    return found


def combined(config: ModelConfig, totals: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Scores by axis from those by site: norms of one axis count alike, each layer's norm for itself."""
    model = Model(config)
    axes, found = Axes(config), {"heads": totals["heads"]}
    for key, site in sites(model).items():
        scores = totals[key]
        if key.endswith("norm"):
            scores = scores / np.maximum(np.linalg.norm(scores, axis=-1, keepdims=True), 1e-30)
            if site.axis == "hidden" and scores.ndim == 2:
                scores = scores.sum(axis=0)
            found[site.axis] = found.get(site.axis, 0.0) + scores
        else:
            found[site.axis] = scores
    if "pooled" in axes.sizes:  # as wide as hidden vectors; in BERT it is read as one
        found["pooled"] = found["hidden"]
    return {axis: np.asarray(x, np.float32) for axis, x in found.items()}
