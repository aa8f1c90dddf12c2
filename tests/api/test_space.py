"""Spaces: shadowing, links, exact costs against a slow oracle, and the cheapest and dearest profile against enumeration."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evopress.api import ABSENT, DENSE, DROP, ZERO, Cost, Level, Profile, Site, Space, UsageError, dense_cost, order_levels
from evopress.testing.searchers import planted_space

MIXED = planted_space(2, ("gptq", "drop"), ("attention", "mlp", "block"))


def genotypes(space: Space) -> st.SearchStrategy[tuple[int, ...]]:
    return st.tuples(*[st.integers(0, len(space.choices(gene)) - 1) for gene in range(len(space.genes))])


def tiny_space(links: tuple[tuple[int, ...], ...] = ()) -> Space:
    sites = (
        Site("b", "block", (0, 0), 0, None, own_params=3),
        Site("b.a", "attention", (0, 0), 0, "b"),
        Site("b.a.q", "linear", (4, 8), 0, "b.a"),
        Site("b.a.k", "linear", (4, 8), 0, "b.a"),
        Site("b.m", "mlp", (0, 0), 0, "b"),
        Site("b.m.up", "linear", (8, 8), 0, "b.m"),
    )
    options: list[dict[Level, Cost]] = [
        {DENSE: dense_cost(3), DROP: ZERO},
        {DENSE: ZERO, DROP: ZERO},
        {DENSE: dense_cost(32), Level("rtn"): Cost(16, 32)},
        {DENSE: dense_cost(32), Level("rtn"): Cost(16, 32)},
        {DENSE: ZERO, DROP: ZERO},
        {DENSE: dense_cost(64), Level("prune"): Cost(100, 40), Level("rtn"): Cost(32, 64)},
    ]
    ordered = [order_levels(option) for option in options]
    return Space(sites, tuple(levels for levels, _ in ordered), tuple(costs for _, costs in ordered), dense_cost(10), links)


@settings(max_examples=60, deadline=None)
@given(genotypes(MIXED))
def test_the_cost_of_a_genotype_is_the_cost_of_its_profile(genotype: tuple[int, ...]) -> None:
    profile = MIXED.profile(genotype)
    assert MIXED.cost_of(genotype) == MIXED.cost(profile)
    expected = MIXED.fixed
    for position, (name, level) in enumerate(profile):
        above = MIXED.sites[position].parent
        hidden = False
        while above is not None:
            hidden |= profile[above] == DROP
            above = MIXED.sites[MIXED.index[above]].parent
        assert (level == ABSENT) == hidden, name
        if not hidden:
            expected += MIXED.costs[position][MIXED.levels[position].index(level)]
    assert MIXED.cost(profile) == expected


@settings(max_examples=60, deadline=None)
@given(genotypes(MIXED))
def test_a_profile_gives_back_a_genotype_of_the_same_profile(genotype: tuple[int, ...]) -> None:
    profile = MIXED.profile(genotype)
    assert MIXED.profile(MIXED.genotype(profile)) == profile


def test_a_shadowed_container_stands_in_as_kept_not_dropped() -> None:
    space = tiny_space()
    genotype = list(space.genotype(space.profile((0, 0, 0, 0, 0, 0))))
    assert space.levels[1][genotype[1]] == DENSE, "restoring the block must not leave its attention dropped"


@pytest.mark.parametrize("links", [(), ((2, 3),), ((1, 4),), ((1, 4), (2, 3))])
def test_the_cheapest_and_dearest_costs_equal_enumeration(links: tuple[tuple[int, ...], ...]) -> None:
    space = tiny_space(links)
    everything = [space.cost_of(genotype) for genotype in product(*[range(len(space.choices(gene))) for gene in range(len(space.genes))])]
    assert space.cheapest == Cost(min(cost.bytes for cost in everything), min(cost.params for cost in everything))
    assert space.dearest == Cost(max(cost.bytes for cost in everything), max(cost.params for cost in everything))
    assert space.dense == space.dearest


def test_links_make_one_gene() -> None:
    space = tiny_space(((2, 3),))
    assert space.genes == ((0,), (1,), (2, 3), (4,), (5,))
    profile = space.profile((1, 1, 0, 1, 0))
    assert profile["b.a.q"] == profile["b.a.k"] == Level("rtn")


def test_linked_sites_need_the_same_levels() -> None:
    with pytest.raises(UsageError, match=r"b.a.k, b.m.up do not take the same levels"):
        tiny_space(((3, 5),))
    with pytest.raises(ValueError, match="two link groups"):
        tiny_space(((2, 3), (3, 2)))


def test_a_foreign_profile_is_a_usage_error() -> None:
    space = tiny_space()
    levels = dict(space.profile((1, 1, 1, 1, 1, 1)))
    with pytest.raises(UsageError, match="not in the space"):
        space.genotype(Profile.of({**levels, "b.a.q": Level("gptq")}))
    linked = tiny_space(((2, 3),))
    with pytest.raises(UsageError, match="different levels"):
        linked.genotype(Profile.of({**levels, "b.a.q": Level("rtn")}))


def test_broken_spaces_are_refused() -> None:
    site, child = Site("p", "mlp", (0, 0), 0, None), Site("p.c", "linear", (1, 1), 0, "p")
    with pytest.raises(ValueError, match="before its parent"):
        Space((child, site), ((DENSE,), (DENSE,)), ((ZERO,), (ZERO,)))
    with pytest.raises(ValueError, match="repeated"):
        Space((site, site), ((DENSE,), (DENSE,)), ((ZERO,), (ZERO,)))
    with pytest.raises(ValueError, match="no levels"):
        Space((site,), ((),), ((),))


def test_levels_are_ordered_by_cost_and_a_drop_comes_first_at_equal_cost() -> None:
    levels, costs = order_levels({DENSE: ZERO, DROP: ZERO, Level("big"): Cost(5, 1), Level("small"): Cost(4, 9)})
    assert levels == (DROP, DENSE, Level("small"), Level("big"))
    assert costs == (ZERO, ZERO, Cost(4, 9), Cost(5, 1))


def test_bits_and_sparsity_of_the_dense_model() -> None:
    space = tiny_space()
    assert space.bits(space.dense) == 16
    assert space.sparsity(space.dense) == 0
    assert space.weights == 128
    assert space.base == dense_cost(13)
