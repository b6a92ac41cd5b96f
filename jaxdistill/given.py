"""Networks that a recipe gives by folder or name: which heads they bring, which are drawn anew.
Called by startup."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxdistill import interop
from jaxdistill.errors import BadInput, listed
from jaxdistill.interop.hf_torch import read_json
from jaxdistill.models import Model, Params
from jaxdistill.models.heads import HEADS, modules
from jaxdistill.recipe import Recipe


class Loaded(NamedTuple):
    """A network as its folder has it, as far as the recipe wants it. `labels`: those that its
    classifier names, None if it names none."""

    model: Model
    params: Params
    labels: Sequence[str] | None = None


class Fitted(NamedTuple):
    """The parameters that a network of the recipe takes over from a folder, and what is `said` of its
    heads that are new, or a task's, by name."""

    params: Params
    said: dict[str, str]

    @property
    def new(self) -> tuple[str, ...]:
        """The heads to be drawn."""
        return tuple(head for head in self.said if head not in self.params)


def load_networks(config: ConfigDict) -> dict[str, Loaded]:
    """The networks that the recipe gives by folder or name."""
    return {
        name: _load(section.init, tuple(section.heads))
        for name, section in config.networks.items()
        if section.init
    }


def _load(init: str, heads: tuple[str, ...]) -> Loaded:
    """With `heads` alone of the folder's, if it has them."""
    if heads:
        folder = interop.locate(init)
        kept = tuple(head for head in interop.read_config(folder).heads if head in heads)
        try:
            model, params = interop.from_pretrained(init, heads=kept)
        except BadInput:  # the encoder alone may be whole; if not, that is said next
            model, params = interop.from_pretrained(init, heads=())
    else:
        model, params = interop.from_pretrained(init)
    labels = None
    if any(HEADS[head].by_label for head in model.config.heads):
        labels = interop.labels(read_json(interop.locate(init) / "config.json"), model.config)
    return Loaded(model, params, labels)


def fit(recipe: Recipe, loaded: dict[str, Loaded]) -> dict[str, Fitted]:
    """What each network of the recipe that begins from a folder takes over. Raises `BadInput` where a
    stage reads a head that the folder lacks and no earlier stage trains."""
    fitted = {
        name: _fit(recipe, name, loaded[begin.of])
        for name, begin in recipe.begins.items()
        if begin.how == "folder" and name in recipe.networks
    }
    _check_new_heads(recipe, fitted)
    return fitted


def _fit(recipe: Recipe, name: str, loaded: Loaded) -> Fitted:
    config, labels = recipe.networks[name].config, recipe.labels.get(name)
    params, said = dict(loaded.params), {}
    for head in config.heads:
        if head not in modules(config):  # it has no parameters
            continue
        if head not in params:
            said[head] = "new: the model has none"
        elif labels is not None and HEADS[head].by_label:
            if not labels and loaded.model.config.regression:
                said[head] = "the model's own, which gives a number too"
            elif labels and sorted(loaded.labels or ()) == sorted(labels):
                params[head] = _in_order(params[head], list(loaded.labels or ()), labels)
                said[head] = "the model's own, which has the same labels"
            else:
                del params[head]
                said[head] = "new: that of the model " + (
                    "names no labels"
                    if loaded.labels is None
                    else f"is for other labels ({listed(loaded.labels)}) than the task ({listed(labels) if labels else 'a number'})"
                )
    return Fitted(params, said)


def _in_order(head: Params, theirs: Sequence[str], ours: Sequence[str]) -> Params:
    """A classifier of the labels `theirs`, kernel [D, C] and bias [C], with its classes in our order."""
    order = np.array([theirs.index(label) for label in ours])
    return jax.tree.map(lambda x: x[..., order], head)


def _check_new_heads(recipe: Recipe, fitted: dict[str, Fitted]) -> None:
    new = {name: set(found.new) for name, found in fitted.items()}
    for stage in recipe.stages:
        for name in stage.teachers:
            if wanted := new.get(name, set()) & set(stage.heads(name)):
                head = min(wanted)
                raise BadInput(
                    f"stage {stage.name!r} reads the head {head!r} of the teacher {name!r}, which would be "
                    f"{fitted[name].said[head]}; train it in an earlier stage, or give a teacher that has it"
                )
        new[stage.network] = new.get(stage.network, set()) - set(stage.heads())
