"""A resolved recipe as plain data: networks, feeds and stages. Made by resolve, which finds every
mistake first; read by all that runs it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxdistill.data.feeds import Feed
from jaxdistill.evaluation.derived import Derived
from jaxdistill.methods.base import Cast, Stage
from jaxdistill.models import Model

TEACHER = "teacher"
# What results say of a network beside its feeds' numbers, which stand under the feeds' names.
NO_FEED = ("heads", "parameters", "rows", "seconds", "sha256", "steps")


@dataclasses.dataclass(frozen=True)
class Begin:
    """How a network begins: "random", a "copy" of what it can take over of the network `of`, with its
    word table in fewer dimensions ("factorise"), as some "layers" of that, cut out of it ("extract":
    `layers`, () for ones at equal distances, by `importance` for the loss on `rows` rows of that feed,
    or with "" by chance), or from the "folder" given for `of`, which may be itself."""

    how: str
    of: str = ""
    layers: tuple[int, ...] = ()
    importance: str = ""
    rows: int = 0

    @property
    def needs(self) -> str:
        """The network that must be there before; "" if none."""
        return self.of if self.how in ("copy", "layers", "extract", "factorise") else ""

    def page(self) -> list[Any]:
        """As the result of a stage holds it."""
        chosen = [self.importance, self.rows] if self.how == "extract" else []
        return [self.how, self.of, *self.layers, *chosen]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What a run will do. `networks`: those of its stages, those that they read, and all that are
    given by a folder. `labels`: the classes that a network's classifier tells apart, of those that
    have to do with a task. `derived`: the feeds that a network makes. `first_example`: where each
    stage's data begins. `maps`: by stage, the layer maps that are data."""

    networks: dict[str, Model]
    begins: dict[str, Begin]
    stages: tuple[Stage, ...]
    feeds: Mapping[str, Feed]
    labels: dict[str, tuple[str, ...]]
    derived: dict[str, Derived]
    first_example: dict[str, int]
    maps: dict[str, dict[str, tuple[int, ...]]]

    @property
    def extracted(self) -> dict[str, Begin]:
        """How the networks of its stages begin that are cut out of another."""
        return {
            name: begin
            for name in dict.fromkeys(stage.network for stage in self.stages)
            if (begin := self.begins[name]).how == "extract"
        }

    def feed(self, stage: Stage) -> Feed:
        """What the stage reads."""
        return self.feeds[stage.feed]

    def base(self, feed: str) -> str:
        """The feed of data that `feed` is, or is made of."""
        return self.derived[feed].of if feed in self.derived else feed

    def teachers(self, stage: Stage) -> tuple[str, ...]:
        """The networks that the stage's result depends on beside its own: those that its terms read,
        and those that made its feeds."""
        makers = [self.derived[feed].by for feed in stage.feeds if feed in self.derived]
        return tuple(dict.fromkeys((*stage.teachers, *filter(None, makers))))

    def cast(self, stage: Stage) -> Cast:
        """The stage and its networks."""
        others = tuple((name, self.networks[name]) for name in stage.teachers)
        return Cast(stage, self.networks[stage.network], others)

    def sources(self, stage: Stage) -> set[str]:
        """The networks that must be there before `stage`, beside its own: those it reads, and what
        its own begins with a copy or layers of."""
        return {*self.teachers(stage), self.begins[stage.network].needs} - {""}
