"""The ledger against the slow oracle `Space.cost_of`, change by change."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import every_genotype, genotypes, random_tree

from evopress.api import DENSE, Budget, Cost, InfeasibleBudget, Level, Site, Space, UsageError
from evopress.search.ledger import Draft, Ledger, ledger_of
from evopress.search.moves import fill, within
from evopress.testing.searchers import budget_between, conformance_problems, planted_problem, planted_space

SPACE = planted_space(2, ("gptq", "sparsegpt", "drop"), ("attention", "mlp", "block"), links=True)
BUDGETS = (budget_between(SPACE, "bytes", 0.4), budget_between(SPACE, "params", 0.7))
PROBLEM = planted_problem(SPACE, BUDGETS)
LEDGER = ledger_of(PROBLEM)


@settings(max_examples=40, deadline=None)
@given(genotypes(SPACE))
def test_spent_equals_the_oracle(genotype: tuple[int, ...]) -> None:
    cost = SPACE.cost_of(genotype)
    assert LEDGER.spent(genotype) == (cost.bytes, cost.params)
    assert LEDGER.fits(genotype) == all(budget.allows(cost) for budget in BUDGETS)


@settings(max_examples=25, deadline=None)
@given(genotypes(SPACE), st.integers(0, 10**6))
def test_a_draft_stays_right_through_any_changes(genotype: tuple[int, ...], seed: int) -> None:
    rng = random.Random(seed)
    draft = Draft(LEDGER, genotype)
    for _ in range(25):
        gene = rng.randrange(len(SPACE.genes))
        level = rng.randrange(len(SPACE.choices(gene)))
        before, change = list(draft.totals), draft.delta(gene, level)
        assert draft.totals == before, "asking for a change must change nothing"
        draft.set(gene, level)
        cost = SPACE.cost_of(draft.genotype)
        assert (draft.totals[0], draft.totals[1]) == (cost.bytes, cost.params)
        assert draft.totals[:2] == [a + b for a, b in zip(before[:2], change[:2], strict=True)]
        fresh = Draft(LEDGER, draft.genotype)
        assert fresh.dark == draft.dark
        assert draft.totals[2] == pytest.approx(fresh.totals[2])
        assert draft.totals[2] == pytest.approx(before[2] + change[2])


@settings(max_examples=40, deadline=None)
@given(genotypes(SPACE), genotypes(SPACE))
def test_equal_keys_are_equal_profiles(one: tuple[int, ...], other: tuple[int, ...]) -> None:
    mixed = tuple(a if number % 3 else b for number, (a, b) in enumerate(zip(one, other, strict=True)))
    for a, b in ((one, other), (one, mixed)):
        assert (LEDGER.key(a) == LEDGER.key(b)) == (SPACE.profile(a) == SPACE.profile(b))


@pytest.mark.parametrize("seed", range(30))
def test_the_floor_is_the_cheapest_profile(seed: int) -> None:
    problem = random_tree(random.Random(seed), blocks=1)
    space = problem.space
    least = min(space.cost_of(genotype).bytes for genotype in every_genotype(space))
    ledger = Ledger(space, (Budget("size", "bytes", least),))
    assert space.cost_of(ledger.floor).bytes == least
    with pytest.raises(InfeasibleBudget, match="No profile was found that meets size"):
        Ledger(space, (Budget("size", "bytes", least - 1),))


def test_two_budgets_that_only_a_mixture_meets_are_feasible() -> None:
    space = planted_space(4, ("gptq", "sparsegpt"))
    middle = [space.choices(gene)[0].method for gene in range(len(space.genes))]
    assert middle
    half = [
        next((at for at, level in enumerate(space.choices(gene)) if level.method == ("gptq" if gene % 2 else "sparsegpt")), 0)
        for gene in range(len(space.genes))
    ]
    cost = space.cost_of(half)
    budgets = (Budget("size", "bytes", cost.bytes * 11 // 10), Budget("params", "params", cost.params * 11 // 10))
    ledger = Ledger(space, budgets)
    assert ledger.fits(ledger.floor)


def _slow_and_worse() -> tuple[Ledger, tuple[tuple[float, ...], ...]]:
    """Two matrices of three levels under a latency budget: int3 is fastest, int8 slower, sparse slowest and worst of all but int3."""
    levels = (Level.of("gptq", bits=3), Level.of("gptq", bits=8), Level.of("sparsegpt", sparsity=0.5), DENSE)
    costs = (Cost(3, 8, 10), Cost(8, 8, 20), Cost(9, 4, 30), Cost(16, 8, 40))
    sites = tuple(Site(f"l{place}", "linear", (1, 8), place, None) for place in range(2))
    space = Space(sites, (levels,) * 2, (costs,) * 2)
    errors = ((0.5, 0.01, 0.2, 0.0),) * 2
    return Ledger(space, (Budget("latency=60ns", "nanoseconds", 60),), errors), errors


def test_a_slower_level_that_loses_more_is_no_way_up() -> None:
    ledger, errors = _slow_and_worse()
    assert ledger.ups[0] == ((1, 2, 3), (3,), (3,), ())
    assert ledger.downs[0] == ((), (0,), (1, 0), (2, 1, 0)), "it stays a way down: it frees time"
    assert Ledger(ledger.space, ledger.budgets).ups[0] == ((1, 2, 3), (2, 3), (3,), ()), "nothing is known of the errors"
    # Both at int8 leave time for one sparse level, which nobody takes.
    assert fill(ledger, (1, 1), (0, 1)) == (3, 1)
    small = Ledger(ledger.space, (Budget("latency=50ns", "nanoseconds", 50),), errors)
    assert fill(small, (1, 1), (0, 1)) == (1, 1)
    assert all(within(small, (0, 0), random.Random(seed)) != (2, 1) for seed in range(20))


def test_a_table_that_is_told_leaves_the_ways_up_as_the_layer_errors_say() -> None:
    ledger, errors = _slow_and_worse()
    told = ledger.telling([tuple(-value for value in row) for row in errors])
    assert told.ups is ledger.ups
    assert told.gene_cost(0, 0, -1) == -0.5
    assert ledger.gene_cost(0, 0, -1) == 0.5
    plain = Ledger(ledger.space, ledger.budgets).telling(errors)
    assert plain.ups[0] == ((1, 2, 3), (2, 3), (3,), ())


def test_linked_sites_go_up_where_they_lose_less_together() -> None:
    ledger, _ = _slow_and_worse()
    space = replace(ledger.space, links=((0, 1),))
    opposed = ((0.5, 0.01, 0.2, 0.0), (0.5, 0.3, 0.05, 0.0))  # together: 1.0, 0.31, 0.25, 0
    assert Ledger(space, ledger.budgets, opposed).ups[0] == ((1, 2, 3), (2, 3), (3,), ())
    assert Ledger(space, ledger.budgets, (opposed[0], opposed[0])).ups[0] == ((1, 2, 3), (3,), (3,), ())


@pytest.mark.parametrize("name", sorted(conformance_problems()))
def test_where_errors_fall_as_cost_rises_nothing_changes(name: str) -> None:
    problem = conformance_problems()[name]
    known, unknown = ledger_of(problem), ledger_of(problem, errors=False)
    if not any(budget.field == "nanoseconds" for budget in problem.budgets):
        assert known.ups == unknown.ups
    assert known.downs == unknown.downs
    for gene, ways in enumerate(known.ups):
        for here, there in enumerate(ways):
            assert set(there) <= set(unknown.ups[gene][here])


def test_bad_errors_are_usage_errors() -> None:
    with pytest.raises(UsageError, match="at least one budget"):
        Ledger(SPACE, ())
    with pytest.raises(UsageError, match="do not match the space"):
        Ledger(SPACE, BUDGETS, ((0.0,),))
    broken = [list(row) for row in PROBLEM.errors]
    broken[3][0] = float("nan")
    with pytest.raises(UsageError, match="NaN or infinite"):
        Ledger(SPACE, BUDGETS, broken)
