"""The terms on what heads give: over the vocabulary some masked words at a time, all others whole.

Called by the forwards, with the last hidden states."""

from __future__ import annotations

from collections.abc import Mapping

import jax

from jaxdistill.forward.scene import Result, Scene, joined, weighted
from jaxdistill.models import Arrays
from jaxdistill.objectives import fused
from jaxdistill.objectives.terms import Term, heads_of


def head_terms(
    scene: Scene, hidden: jax.Array, theirs: Arrays, dropout_key: jax.Array | None = None
) -> Result:
    """The terms on outputs of heads, from the last hidden state of the network that learns and
    those of the others by name."""
    terms = {term.name: term for term in scene.terms if term.head}
    words = {name: t for name, t in terms.items() if t.head == "mlm"} if scene.fused else {}
    others = {name: term for name, term in terms.items() if name not in words}
    results = [_words(scene, some, hidden, theirs) for some in _by_teacher(words)]
    if others:
        results.append(_outputs(scene, others, (hidden, theirs), dropout_key))
    return joined(*results)


def _by_teacher(terms: Mapping[str, Term]) -> list[dict[str, Term]]:
    """The terms apart by the network they read; those that read none are with the first."""
    read = sorted({term.teacher for term in terms.values() if term.row.teacher is not None})
    groups: dict[str, dict[str, Term]] = {name: {} for name in read or ("",)[: len(terms)]}
    for name, term in terms.items():
        groups[next(iter(groups)) if term.row.teacher is None else term.teacher][name] = term
    return list(groups.values())


def _words(scene: Scene, terms: dict[str, Term], hidden: jax.Array, theirs: Arrays) -> Result:
    """Terms over the vocabulary, of one teacher."""
    network = next((t.teacher for t in terms.values() if t.row.teacher is not None), None)
    pair = None
    if network is not None:
        other = scene.others[network]
        pair = other.model.mlm_features(other.params, theirs[network], scene.masks)
    ours = scene.model.mlm_features(scene.params, hidden, scene.masks)
    return Result(*fused.word_terms(scene.asked(terms), ours, pair, scene.masks, scene.model.whole))


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
