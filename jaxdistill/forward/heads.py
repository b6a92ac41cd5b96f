"""The terms on what heads give: over the vocabulary some words at a time, all others whole.

Called by the forwards, with the last hidden states."""

from __future__ import annotations

from collections.abc import Mapping

import jax

from jaxdistill.forward.scene import Result, Scene, joined, weighted
from jaxdistill.models import Arrays, Batch
from jaxdistill.objectives import fused
from jaxdistill.objectives.terms import Term, heads_of


def head_terms(
    scene: Scene, hidden: jax.Array, theirs: Arrays, dropout_key: jax.Array | None = None
) -> Result:
    """The terms on outputs of heads, from the last hidden state of the network that learns and
    those of the others by name."""
    terms = {term.name: term for term in scene.terms if term.head}
    words = {
        n: t for n, t in terms.items() if t.head == "mlm" and (scene.fused or t.row.everywhere)
    }
    others = {name: term for name, term in terms.items() if name not in words}
    results = [_words(scene, some, hidden, theirs) for some in _by_teacher(words)]
    if others:
        results.append(_outputs(scene, others, (hidden, theirs), dropout_key))
    return joined(*results)


def _by_teacher(terms: Mapping[str, Term]) -> list[dict[str, Term]]:
    """The terms apart by where they are evaluated and by the network they read; those that read none
    are with the first of their place."""
    groups: dict[tuple[bool, str], dict[str, Term]] = {}
    for everywhere in (False, True):
        of_place = {n: term for n, term in terms.items() if term.row.everywhere == everywhere}
        read = sorted({t.teacher for t in of_place.values() if t.row.teacher is not None})
        for name, term in of_place.items():
            network = term.teacher if term.row.teacher is not None else (read or [""])[0]
            groups.setdefault((everywhere, network), {})[name] = term
    return [groups[key] for key in sorted(groups)]


def _words(scene: Scene, terms: dict[str, Term], hidden: jax.Array, theirs: Arrays) -> Result:
    """Terms over the vocabulary, of one teacher and one place."""
    network = next((t.teacher for t in terms.values() if t.row.teacher is not None), None)
    places = every_token(scene.masks) if next(iter(terms.values())).row.everywhere else scene.masks
    pair = None
    if network is not None:
        other = scene.others[network]
        pair = other.model.mlm_features(other.params, theirs[network], places)
    ours = scene.model.mlm_features(scene.params, hidden, places)
    return Result(*fused.word_terms(scene.asked(terms), ours, pair, scene.masks, scene.model.whole))


def every_token(batch: Batch) -> Batch:
    """The batch without the places of masked words: the MLM head then reads all tokens."""
    return {name: x for name, x in batch.items() if name != "mlm_positions"}


def _outputs(
    scene: Scene,
    terms: dict[str, Term],
    hidden: tuple[jax.Array, Arrays],
    dropout_key: jax.Array | None,
) -> Result:
    """Terms on whole outputs of heads."""
    ours, theirs = hidden
    every = tuple(terms.values())
    outputs = scene.model.run_heads(
        scene.params, ours, scene.masks, heads_of(every, None), dropout_key
    )
    targets = {
        name: other.model.run_heads(other.params, theirs[name], scene.masks, heads_of(every, name))
        for name, other in scene.others.items()
        if heads_of(every, name)
    }
    sums = {}
    for name, term in terms.items():
        read = term.row.teacher
        target = scene.batch.get(term.stored)
        if read is not None and not term.stored:
            target = targets[term.teacher][read]
        sums[name] = term.sum(outputs[term.row.student], target, scene.masks)
    return weighted(sums, scene.scales)
