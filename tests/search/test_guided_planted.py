"""guided on planted traps: pairs that are bad alone and good together, and losses of which interactions are the larger part."""

from __future__ import annotations

import random
from itertools import combinations

import pytest

from evopress.api import DROP, Budget, Problem, Profile
from evopress.search.guided import Guided
from evopress.testing.searchers import follow, measure_with, planted_problem, planted_space

SMALL = {"slope_tokens": 700, "looks": ((4, 700), (1, 4200)), "start_tokens": 700, "probe_tokens": 700}


def masks(blocks: int, gone: int, seed: int) -> Problem:
    """MLPs of which just so many must go."""
    space = planted_space(blocks, ("drop",), ("mlp",), linears=False)
    limit = space.dearest.params - gone * (space.dearest.params - space.cheapest.params) // blocks
    return planted_problem(space, (Budget("params", "params", limit),), seed=seed)


def dropped(profile: Profile) -> frozenset[int]:
    """Depths of what is dropped."""
    return frozenset(int(name.split(".")[1]) for name, level in profile if level == DROP)


@pytest.mark.parametrize("seed", range(3))
def test_it_finds_two_drops_that_are_ruinous_alone_and_cheap_together(seed: int) -> None:
    """A non-monotone pair: with one of the two gone, dropping more is better."""
    rng = random.Random(seed)
    pair = frozenset(rng.sample(range(12), 2))
    single = {depth: 1.0 if depth in pair else rng.uniform(0.2, 0.4) for depth in range(12)}

    def loss(gone: frozenset[int]) -> float:
        return sum(single[depth] for depth in gone) - (1.95 if pair <= gone else 0.0)

    problem = masks(12, 4, seed)
    guided = Guided(problem, random.Random(seed), **SMALL)
    follow(guided, measure_with(lambda profile: loss(dropped(profile)), problem.space))
    best = min(map(frozenset, combinations(range(12), 4)), key=loss)
    assert pair <= best
    assert dropped(guided.incumbent) == best


@pytest.mark.parametrize("seed", range(3))
def test_it_finds_the_best_of_924_masks_whose_interactions_are_the_larger_part(seed: int) -> None:
    rng = random.Random(seed)
    single = [rng.gauss(0, 1) for _ in range(12)]
    double = {pair: rng.gauss(0, 1) for pair in combinations(range(12), 2)}

    def loss(gone: frozenset[int]) -> float:
        return 30 + sum(single[depth] for depth in gone) + sum(double[pair] for pair in combinations(sorted(gone), 2))

    problem = masks(12, 6, seed)
    guided = Guided(problem, random.Random(seed), **SMALL)
    follow(guided, measure_with(lambda profile: loss(dropped(profile)), problem.space))
    assert loss(dropped(guided.incumbent)) == min(map(loss, map(frozenset, combinations(range(12), 6))))
