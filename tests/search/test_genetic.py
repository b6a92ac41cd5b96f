"""The genetic search over layer maps: a pure function, of maps that are what they should be."""

import collections
import dataclasses
import itertools

import numpy as np
import pytest

from jaxdistill.search.genetic import (
    NONE,
    Settings,
    Space,
    generation,
    known_maps,
    over,
    pending,
    population,
    ranked,
)

SMALL = Settings(population=8, elites=2, generations=6)


def hidden_goal(found):
    """A fitness with one best map, (0, 3, 5), and better maps nearer to it."""
    return -sum(abs(a - b) for a, b in zip(found, (0, 3, 5)))


def played(space, settings, seed, fitness=hidden_goal):
    """The generations of a whole search."""
    tried = []
    while not over(settings, tried):
        found = generation(space, settings, seed, len(tried), tried)
        tried.append({each: fitness(each) for each in found})
    return tried


@pytest.mark.parametrize("space, size", [((6, 12), 18563), ((4, 12), 1819), ((3, 6), 83)])
def test_as_many_as_the_formula_says(space, size):
    assert Space(*space).size == size
    if size < 100:
        found = list(Space(*space).all())
        assert len(found) == len(set(found)) == size
    assert Space(4, 12, monotone=False).size == 28560
    assert not Space(3, 6, monotone=False).holds((NONE, NONE, NONE))  # nothing to learn


def test_all_are_drawn_alike():
    space, draw = Space(2, 3), np.random.default_rng(0)
    counts = collections.Counter(space.at_random(draw) for _ in range(4000))
    assert set(counts) == set(space.all())
    assert max(counts.values()) < 1.3 * 4000 / space.size  # four standard deviations
    anything = Space(2, 3, monotone=False)
    assert {anything.at_random(draw) for _ in range(500)} == set(anything.all())


def test_repair_keeps_what_can_stay():
    space = Space(4, 6)
    assert space.repaired((0, 2, NONE, 5)) == (0, 2, NONE, 5)
    assert space.repaired((5, 2, NONE, 0)) == (0, 2, NONE, 5)
    assert space.repaired((3, 3, 1, NONE)) == (1, 3, NONE, NONE)
    assert space.repaired((NONE,) * 4) == (NONE, NONE, NONE, 5)
    for found in itertools.product(range(NONE, 3), repeat=4):
        assert Space(4, 3).holds(Space(4, 3).repaired(found))
    assert Space(4, 6, monotone=False).repaired((5, 2, 2, 0)) == (5, 2, 2, 0)


def test_what_a_search_begins_with():
    """At 12 to 6 layers the maps of the literature, ours being theirs minus 1."""
    found = known_maps(Space(6, 12))
    assert found == [
        (1, 3, 5, 7, 9, 11),
        (NONE,) * 5 + (11,),
        (6, 7, 8, 9, 10, 11),
        (0, 1, 2, 3, 4, 5),
        (NONE, NONE, 4, NONE, NONE, 9),
    ]
    first = generation(Space(6, 12), Settings(), 0, 0, [])
    assert first[:5] == found and len(set(first)) == 20


@pytest.mark.parametrize("monotone", [True, False])
def test_nothing_is_tried_twice_and_all_is_in_the_space(monotone):
    space = Space(3, 6, monotone)
    tried = played(space, SMALL, 3)
    every = [each for found in tried for each in found]
    assert len(every) == len(set(every)) and all(space.holds(each) for each in every)
    assert [len(found) for found in tried[:3]] == [8, 6, 6]


def test_the_seed_and_what_was_found_decide_alone():
    space = Space(3, 6)
    first, again = (played(space, SMALL, 1) for _ in range(2))
    assert first == again
    # Evaluated in another order, as several workers would.
    shuffled = [dict(reversed(found.items())) for found in first]
    for number in range(1, len(first)):
        assert generation(space, SMALL, 1, number, shuffled) == list(first[number])
    assert played(space, SMALL, 2) != first
    # What comes later changes nothing of what was before.
    assert generation(space, SMALL, 1, 1, first) == generation(space, SMALL, 1, 1, first[:1])


def test_the_best_go_on():
    tried = played(Space(3, 6), SMALL, 0)
    held = population(SMALL, 2, tried)
    elites = [each for each, _ in ranked(tried[0])[: SMALL.elites]]
    assert set(held) == {*elites, *tried[1]}
    best = [max(population(SMALL, n, tried).values()) for n in range(1, len(tried) + 1)]
    assert best == sorted(best)


def test_it_finds_more_than_chance_does():
    """Of the 560 maps of 3 layers onto 13, at equal numbers of tries, over 20 seeds."""
    space, genetic, chance = Space(3, 13), [], []

    def goal(found):
        return -sum(abs(a - b) for a, b in zip(found, (2, 7, 9)))

    for seed in range(20):
        tried = played(space, dataclasses.replace(SMALL, patience=6), seed, goal)
        every = [score for found in tried for score in found.values()]
        draw = np.random.default_rng(seed)
        genetic.append(max(every))
        chance.append(max(goal(space.at_random(draw)) for _ in every))
    assert np.mean(genetic) > np.mean(chance) + 0.3, (np.mean(genetic), np.mean(chance))


def test_when_it_ends():
    settings = Settings(generations=5, patience=2)
    assert not over(settings, [])
    rising = [{(i,): float(i)} for i in range(5)]
    assert not over(settings, rising[:4]) and over(settings, rising)
    assert not over(settings, [{(0,): 1.0}, {(1,): 0.5}])
    assert over(settings, [{(0,): 1.0}, {(1,): 0.5}, {(2,): 1.0}])  # two without a better one
    assert over(settings, [{(0,): 1.0}, {}])  # there are no more


def test_a_space_that_is_used_up():
    tried = played(Space(1, 3), Settings(population=10, patience=5), 0, lambda found: found[0])
    assert sorted(each for found in tried for each in found) == [(0,), (1,), (2,)]


def test_a_search_goes_on_from_its_lines_alone():
    """Whatever was done when it stopped: the same maps in the end."""
    space = Space(3, 6)
    whole = [
        (n, each, f) for n, found in enumerate(played(space, SMALL, 4)) for each, f in found.items()
    ]
    for stopped in (0, 3, 8, 11, len(whole)):
        lines = list(reversed(whole[:stopped]))
        while (step := pending(space, SMALL, 4, lines))[1]:
            number, maps = step
            lines.append(
                (number, maps[-1], hidden_goal(maps[-1]))
            )  # the last one happens to be first
        assert sorted(lines) == sorted(whole)
