"""All networks of a stage read the same micro-batch, and every term compares what it names of them.

`plain` asks each network for its taps, stacked over layers, and evaluates the losses on them: the
definition. `side_by_side` does the same in less memory where it can: `lockstep` walks two stacks
together and evaluates the losses of a layer while its taps are there, so that nothing piles up over
depth. Called by step, through `Stage.forward`."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxdistill.forward import lockstep
from jaxdistill.forward.heads import every_token, head_terms
from jaxdistill.forward.scene import Network, Result, Scene, joined, weighted
from jaxdistill.models import Arrays, Batch, Model, Params
from jaxdistill.models.encoder import split_key
from jaxdistill.models.heads import vocabulary_logits
from jaxdistill.objectives.terms import Term


def side_by_side(scene: Scene) -> Result:
    """The terms of `scene`, fused if it says so and their layer maps allow it."""
    layered = scene.of_layers
    taps_stored = any(term.stored and not term.head for term in scene.terms)
    if not scene.fused or taps_stored or not (walks(scene.terms) or no_layers(scene.terms)):
        return plain(scene)
    embed_key, layers_key, heads_key = split_key(scene.at.key)
    hidden, bias = scene.model.embed(scene.params, scene.batch, embed_key), scene.bias
    theirs = {
        name: other.model.embed(other.params, scene.batch) for name, other in scene.others.items()
    }
    results = [embedding_terms(scene, hidden, theirs)]
    done = dict.fromkeys(theirs, 0)  # how many layers of each have run
    if layered:
        name = next(iter(layered.values())).teacher
        walk = lockstep.visit if -1 in (scene.layer_map(layered) or ()) else lockstep.walk
        walked = walk(scene, scene.others[name], (hidden, theirs[name]), layers_key)
        hidden, theirs[name] = walked.hidden, walked.theirs
        results.append(walked.result)
        followed = scene.layer_map(layered) or (scene.model.config.num_layers - 1,)
        done[name] = max(followed) + 1
    else:
        hidden, _ = scene.model.encode(scene.params["layers"], hidden, bias, dropout_key=layers_key)
    for name, other in scene.others.items():
        if scene.heads(name):
            theirs[name] = _rest(other, theirs[name], bias, done[name])
    return joined(*results, head_terms(scene, hidden, theirs, heads_key))


def walks(terms: Sequence[Term]) -> bool:
    """Whether two stacks can be walked in lock-step: all terms of layers read one network by one
    layer map, which is static and never goes back, and none reads layers of the teacher that come later."""
    layered = [term for term in terms if term.per_layer]
    maps = {(term.teacher, term.layer_map) for term in layered}
    anywhere = any(
        term.traced_map or term.row.teacher == "hidden_moments" or term.follows_layer is not None
        for term in terms
    )
    followed = [at for _, layer_map in maps for at in layer_map or () if at >= 0]
    return len(maps) == 1 and not anywhere and followed == sorted(followed)


def no_layers(terms: Sequence[Term]) -> bool:
    """Whether no term reads a layer of either network."""
    return not any(term.per_layer or term.follows_layer is not None for term in terms)


def embedding_terms(scene: Scene, hidden: jax.Array, theirs: Arrays) -> Result:
    """The terms on hidden states 0, the student's `hidden` and `theirs` by network."""
    terms = {term.name: term for term in scene.terms if term.of_embeddings}
    ours = scene.projected(terms, {"embeddings": hidden})
    sums = {
        name: term.sum(ours[term.reads], theirs[term.teacher], scene.masks)
        for name, term in terms.items()
    }
    return weighted(sums, scene.scales)


def _rest(other: Network, hidden: jax.Array, bias: jax.Array, done: int) -> jax.Array:
    """The last hidden state of a network of which `done` layers have run."""
    if done < other.model.config.num_layers:
        layers = jax.tree.map(lambda x: x[done:], other.params["layers"])
        hidden, _ = other.model.encode(layers, hidden, bias)
    return jax.lax.stop_gradient(hidden)


def plain(scene: Scene) -> Result:
    """The terms of `scene` on taps and outputs of whole networks."""
    outputs, taps = scene.model.apply(
        scene.params, scene.batch, taps=scene.taps(), heads=scene.heads(), dropout_key=scene.at.key
    )
    ours = {**outputs, **scene.projected({term.name: term for term in scene.terms}, taps)}
    everywhere = [term for term in scene.terms if term.row.everywhere]
    if everywhere:
        ours |= _at_every_token(scene.model, scene.params, outputs, scene.batch)
    theirs = {}
    for name, other in scene.others.items():
        outputs, taps = other.model.apply(
            other.params,
            scene.batch,
            taps=scene.taps(name),
            heads=scene.heads(name),
            num_layers=scene.depth(name),
        )
        if any(term.teacher == name for term in everywhere):
            outputs |= _at_every_token(other.model, other.params, outputs, scene.batch)
        theirs[name] = jax.lax.stop_gradient({**outputs, **taps})
    sums = {
        term.name: _whole_sum(term, ours, theirs.get(term.teacher, {}), scene)
        for term in scene.terms
    }
    return weighted(sums, scene.scales)


def _at_every_token(model: Model, params: Params, outputs: Arrays, batch: Batch) -> Arrays:
    """What the MLM head says of all tokens, "token_logits" [B, L, V]."""
    weights, features = model.mlm_features(params, outputs["last_hidden_state"], every_token(batch))
    return {"token_logits": vocabulary_logits(weights, features)}


def _whole_sum(term: Term, ours: Arrays, theirs: Arrays, scene: Scene) -> jax.Array:
    """The raw sum of a term, over all its layers, from taps and outputs of both networks."""
    target = None if term.row.teacher is None else theirs.get(term.row.teacher)
    if term.stored:
        target = scene.batch[term.stored]
        if term.per_layer or term.follows_layer is not None:  # [B, L, N, ...]
            target = jnp.moveaxis(target, 2, 0)
    if term.follows_layer is not None:
        assert target is not None
        target = target[term.follows_layer]
    if not term.per_layer:
        return term.sum(ours[term.reads], target, scene.masks)
    assert target is not None
    ours_NxB = ours[term.reads]
    if term.row.teacher == "hidden_moments":
        return jnp.sum(jax.vmap(lambda ours: term.sum(ours, target, scene.masks))(ours_NxB))
    if term.traced_map:
        map_N = scene.at.maps[term.traced_map]
        target = jnp.take(target, jnp.maximum(map_N, 0), axis=0)
        of_layers = jax.vmap(lambda ours, their: term.sum(ours, their, scene.masks))
        return jnp.sum(jnp.where(map_N >= 0, of_layers(ours_NxB, target), 0.0))
    if term.layer_map is not None:
        followers = [i for i, at in enumerate(term.layer_map) if at >= 0]
        ours_NxB = jnp.take(ours_NxB, jnp.asarray(followers), axis=0)
        target = jnp.take(target, jnp.asarray([term.layer_map[i] for i in followers]), axis=0)
    return jnp.sum(
        jax.vmap(lambda ours, their: term.sum(ours, their, scene.masks))(ours_NxB, target)
    )
