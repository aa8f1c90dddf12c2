"""The bisection helper on random trees: it fits, it is as tight as levels allow, it is monotone, and wishes are met from below."""

from __future__ import annotations

import random

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from planted import POOL, ladder, random_tree

from evopress.api import DENSE, DROP, Budget, Problem
from evopress.search.ledger import Draft, Ledger, ledger_of
from evopress.search.ratios import Shares, allot, cost_shares, gene_means
from evopress.testing.searchers import budget_between, check_profile, planted_problem, planted_space

SEEDS = st.integers(0, 10_000)


def limited(problem: Problem, *limits: Budget) -> Problem:
    return Problem(problem.space, limits, "planted", POOL, problem.errors)


def slopes(problem: Problem, seed: int) -> list[float]:
    rng = random.Random(seed)
    return [rng.uniform(0.05, 1.0) for _ in problem.space.genes]


def shared(problem: Problem, ledger: Ledger, seed: int) -> tuple[tuple[int, ...], float, Shares]:
    """The answer to a wish of min(1, slope · number), a slope a gene."""
    own = slopes(problem, seed)
    demand = Shares(ledger, lambda number: [min(1.0, one * number) for one in own])
    return *allot(problem, ledger, demand, 0.0, 1 / min(own)), demand


@settings(max_examples=150, deadline=None)
@given(SEEDS, st.booleans())
def test_it_fits_and_nothing_more_does(seed: int, links: bool) -> None:
    problem = random_tree(random.Random(seed), links=links)
    ledger = ledger_of(problem)
    genotype, number, demand = shared(problem, ledger, seed)
    check_profile(problem, problem.space.profile(genotype), "shares")
    draft = Draft(ledger, genotype)
    for gene in ledger.movable:
        for level in ledger.ups[gene][genotype[gene]]:
            assert not draft.active(gene) or not draft.allows(draft.delta(gene, level)), (gene, level)
    dropped = any(ledger.is_drop[sites[0]][genotype[gene]] for gene, sites in enumerate(problem.space.genes) if gene in ledger.containers)
    if not dropped and number > 0:
        for gene in ledger.plain:  # never below what was wished for
            assert ledger.weight[gene][genotype[gene]] >= ledger.weight[gene][demand.level(number, gene)]


@settings(max_examples=100, deadline=None)
@given(SEEDS, st.integers(0, 40))
def test_a_larger_budget_gives_a_larger_number_and_no_gene_wishes_for_less(seed: int, extra: int) -> None:
    problem = random_tree(random.Random(seed))
    first_ledger = ledger_of(problem)
    kept = [0 if gene in first_ledger.plain else first_ledger.top(gene) for gene in range(len(problem.space.genes))]
    assume(first_ledger.fits(kept))  # what is bisected under drops starts from another model
    low, high = problem, limited(problem, Budget("size", "bytes", problem.budgets[0].limit + extra))
    first, second = shared(low, ledger_of(low), seed), shared(high, ledger_of(high), seed)
    larger = second[1] * (1 + 1e-9)  # shares are of the limits, whose rounding differs in the last bits
    assert first[1] <= larger
    for gene in ledger_of(low).plain:
        costs = low.space.costs[low.space.genes[gene][0]]
        assert costs[first[2].level(first[1], gene)].bytes <= costs[first[2].level(larger, gene)].bytes


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.floats(0.1, 0.9), st.floats(0.1, 0.9))
def test_two_budgets_hold_together(seed: int, of_bytes: float, of_params: float) -> None:
    space = planted_space(2, ("gptq", "sparsegpt", "drop"), links=True)
    budgets = budget_between(space, "bytes", of_bytes), budget_between(space, "params", of_params)
    problem = planted_problem(space, budgets, seed=seed)
    ledger = ledger_of(problem)
    genotype, _, _ = shared(problem, ledger, seed)
    check_profile(problem, space.profile(genotype), "two budgets")
    draft = Draft(ledger, genotype)
    for gene in ledger.plain:
        assert not draft.active(gene) or not any(draft.allows(draft.delta(gene, up)) for up in ledger.ups[gene][genotype[gene]])


def test_sublayers_go_only_where_nothing_else_fits() -> None:
    space = planted_space(3, ("gptq", "drop"))
    problem = planted_problem(space, share=0.05)
    ledger = ledger_of(problem)
    kept = Draft(ledger, [0 if gene in ledger.plain else ledger.top(gene) for gene in range(len(space.genes))]).totals[0]
    for limit, any_dropped in ((int(kept), False), (int(kept) - 1, True)):
        tight = limited(problem, Budget("size", "bytes", limit))
        genotype, _, _ = shared(tight, ledger_of(tight), 0)
        profile = space.profile(genotype)
        check_profile(tight, profile, "tight")
        assert (DROP in dict(profile).values()) == any_dropped


def test_the_dearest_level_not_above_the_wish_and_the_cheapest_if_none() -> None:
    """Rungs of 2, 3, 4, 5, 6 bytes a weight, and dense of 40."""
    ledger = ledger_of(ladder((4,) * 5))
    demand = Shares(ledger, lambda number: [number] * 5)
    assert cost_shares(ledger)[0] == pytest.approx([2 / 40, 3 / 40, 4 / 40, 5 / 40, 6 / 40, 1])
    assert [demand.level(share, 0) for share in (0, 2 / 40, 2.9 / 40, 3 / 40, 6.1 / 40, 0.99, 1)] == [0, 0, 0, 1, 4, 4, 5]
    assert demand.unmet(0.5, 0, 1) == pytest.approx(0.5 - 3 / 40)


def test_what_is_left_goes_to_the_largest_unmet_wish() -> None:
    """Wishes 2.9, 2.5 and 2.7 of 40 give 2 each; one byte a weight is left and goes to the first, two to the first and the last."""
    plain = ladder((4, 4, 4), target=0)
    for extra, expected in ((4, (1, 0, 0)), (8, (1, 0, 1)), (3, (0, 0, 0))):
        problem = limited(plain, Budget("size", "bytes", plain.budgets[0].limit + extra))
        ledger = ledger_of(problem)
        demand = Shares(ledger, lambda number: [number * one / 40 for one in (2.9, 2.5, 2.7)])
        assert allot(problem, ledger, demand, 0.0, 1.0)[0] == expected
    roomy = limited(plain, Budget("size", "bytes", 10**6))
    assert roomy.space.profile(allot(roomy, ledger_of(roomy), demand, 0.0, 1.0)[0]) == roomy.space.profile((5,) * 3)
    assert roomy.space.levels[0][5] == DENSE


def test_means_of_linked_sites_are_weighted() -> None:
    problem = planted_problem(planted_space(2, ("gptq",), links=True))
    space, ledger = problem.space, ledger_of(problem)
    values = [float(position) for position in range(len(space.sites))]
    for gene, mean in enumerate(gene_means(ledger, values)):
        weights = {site: space.sites[site].weights for site in space.genes[gene]}
        total = sum(weights.values())
        assert mean == pytest.approx(sum(site * weight for site, weight in weights.items()) / total if total else 0.0)
