"""Which layer maps to try next: a genetic algorithm, as a pure function of a seed and of what was tried.

A map gives each student layer the teacher's layer that it follows, counted from 0, or -1 for none. The
published search (Jiao et al. 2020, arXiv 2012.06153) numbers the teacher's layers from 1 and has 0 for none,
and its settings are not public; those here are ours, but selection by roulette and never trying a map twice,
which its group's AutoTinyBERT does too. Called by mapping; knows nothing of networks."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, NamedTuple

import numpy as np

from jaxdistill.settings import Count, Within

Map = tuple[int, ...]
Share = Annotated[float, Within(0, 1)]
NONE = -1
TRIES = 200  # for a child that was not tried before; then one at random


class Space(NamedTuple):
    """The maps of `student` layers onto `teacher` layers. `monotone`: those alone in which a later layer follows
    a later one. That by which no layer follows any is not among them: it has nothing to learn."""

    student: int
    teacher: int
    monotone: bool = True

    @property
    def size(self) -> int:
        """How many there are."""
        if self.monotone:
            return math.comb(self.teacher + self.student, self.student) - 1
        return (self.teacher + 1) ** self.student - 1

    def all(self) -> Iterator[Map]:
        """Every one of them, in order."""
        for found in itertools.product(range(NONE, self.teacher), repeat=self.student):
            if self.holds(found):
                yield found

    def holds(self, found: Sequence[int]) -> bool:
        """Whether that is one of them."""
        followed = [layer for layer in found if layer != NONE]
        return (
            len(found) == self.student
            and bool(followed)
            and all(NONE <= layer < self.teacher for layer in found)
            and not (self.monotone and any(a >= b for a, b in itertools.pairwise(followed)))
        )

    def repaired(self, found: Sequence[int]) -> Map:
        """That map if it is one of them; else its layers in their order, and none for those named twice; the last
        layer alone, if none is named."""
        if self.holds(found):
            return tuple(found)
        if all(layer == NONE for layer in found):
            return (*found[:-1], self.teacher - 1)
        followed = iter(sorted(layer for layer in found if layer != NONE))
        taken, last = [], NONE
        for layer in found:
            layer = next(followed) if layer != NONE else NONE
            taken.append(NONE if layer == last else layer)
            last = max(last, layer)
        return tuple(taken)

    def at_random(self, draw: np.random.Generator) -> Map:
        """One of them, each with the same chance."""
        if not self.monotone:
            while True:
                found = [int(x) for x in draw.integers(NONE, self.teacher, self.student)]
                if self.holds(found):
                    return tuple(found)
        # Choose which of the C(N + M, M) - 1 it is: how many follow a layer, which do, and whom.
        counts = [
            math.comb(self.student, k) * math.comb(self.teacher, k)
            for k in range(1, self.student + 1)
        ]
        k = 1 + int(draw.choice(len(counts), p=np.array(counts) / self.size))
        places = np.sort(draw.choice(self.student, k, replace=False))
        layers = np.sort(draw.choice(self.teacher, k, replace=False))
        found = [NONE] * self.student
        for place, layer in zip(places, layers):
            found[int(place)] = int(layer)
        return tuple(found)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Of the search: maps of a generation, how many of the best go on as they are, generations at most, how many
    of them without a better map end it, and the chances of crossing two maps and of changing a layer."""

    population: Count = 20
    elites: Count = 2
    generations: Count = 8
    patience: Count = 3
    crossover: Share = 0.8
    mutation: Share = 0.15


def known_maps(space: Space) -> list[Map]:
    """Those that a search begins with: uniform, the last layer alone, the upper ones, the lower ones, and the
    best one of the paper (layers 5 and 10 of 12, for the middle and the last layer), at this size."""
    m, n = space.student, space.teacher
    uniform = tuple((i + 1) * n // m - 1 for i in range(m))
    last = (NONE,) * (m - 1) + (n - 1,)
    upper = tuple(n - m + i for i in range(m)) if n >= m else uniform
    lower = tuple(range(m)) if n >= m else uniform
    middle = [NONE] * m
    middle[(m - 1) // 2], middle[m - 1] = round(5 / 12 * n) - 1, round(10 / 12 * n) - 1
    found = (uniform, last, upper, lower, tuple(middle))
    return list(dict.fromkeys(space.repaired(each) for each in found))


def generation(
    space: Space, settings: Settings, seed: int, number: int, fitness: Sequence[Mapping[Map, float]]
) -> list[Map]:
    """The maps of generation `number`, from 0 on, that were not tried before; fewer than `population` if there
    are no more. `fitness`: of the maps that were new in each earlier generation. The order in which those were
    evaluated changes nothing."""
    draw = np.random.default_rng([seed, number])
    known: dict[Map, float] = {}
    for earlier in fitness[:number]:
        known |= earlier
    wanted = min(settings.population - (settings.elites if number else 0), space.size - len(known))
    found: dict[Map, None] = {}
    if number == 0:
        found |= dict.fromkeys(known_maps(space)[:wanted])
    else:
        parents = population(settings, number, fitness)
        for _ in range(TRIES):
            if len(found) == wanted:
                break
            child = _child(space, settings, parents, draw)
            if child not in known:
                found[child] = None
    while len(found) < wanted:
        child = space.at_random(draw)
        if child not in known:
            found[child] = None
    return list(found)


def population(
    settings: Settings, number: int, fitness: Sequence[Mapping[Map, float]]
) -> dict[Map, float]:
    """Whom generation `number` descends from: the one before, and its elites from before that."""
    held: dict[Map, float] = {}
    for earlier in fitness[:number]:
        held = {**dict(ranked(held)[: settings.elites]), **earlier}
    return dict(ranked(held))


def ranked(fitness: Mapping[Map, float]) -> list[tuple[Map, float]]:
    """The best first; of equals the one that comes first as a tuple."""
    return sorted(fitness.items(), key=lambda item: (-item[1], item[0]))


def over(settings: Settings, fitness: Sequence[Mapping[Map, float]]) -> bool:
    """Whether the search has ended after these generations."""
    best = [max(found.values(), default=-math.inf) for found in fitness]
    if len(best) >= settings.generations or (best and not fitness[-1]):
        return True
    at = max(range(len(best)), key=lambda i: (best[i], -i), default=0)
    return len(best) - 1 - at >= settings.patience if best else False


def pending(
    space: Space, settings: Settings, seed: int, found: Sequence[tuple[int, Map, float]]
) -> tuple[int, list[Map]]:
    """(number of the generation that is under way, its maps that have no fitness yet), given what was found so
    far: (generation, map, fitness), in any order; no maps: the search has ended."""
    tried: list[dict[Map, float]] = []
    while not over(settings, tried):
        number = len(tried)
        maps = generation(space, settings, seed, number, tried)
        known = {each: fitness for at, each, fitness in found if at == number}
        if missing := [each for each in maps if each not in known]:
            return number, missing
        tried.append({each: known[each] for each in maps})
    return len(tried), []


def _child(
    space: Space, settings: Settings, parents: Mapping[Map, float], draw: np.random.Generator
) -> Map:
    first, second = (_drawn(parents, draw) for _ in range(2))
    child = list(first)
    if space.student > 1 and draw.random() < settings.crossover:
        cut = int(draw.integers(1, space.student))
        child = [*first[:cut], *second[cut:]]
    for place, layer in enumerate(child):
        if draw.random() < settings.mutation:
            ways = [layer + step for step in (-2, -1, 1, 2)] if layer != NONE else []
            ways += [NONE, int(draw.integers(NONE, space.teacher))]
            ways = [way for way in ways if NONE <= way < space.teacher]
            child[place] = ways[int(draw.integers(len(ways)))]
    return space.repaired(child)


def _drawn(parents: Mapping[Map, float], draw: np.random.Generator) -> Map:
    """By roulette: a map's chance is what it is better than the worst."""
    maps, scores = list(parents), np.array(list(parents.values()))
    above = scores - scores.min()
    chances = above / above.sum() if above.sum() > 0 else np.full(len(maps), 1 / len(maps))
    return maps[int(draw.choice(len(maps), p=chances))]
