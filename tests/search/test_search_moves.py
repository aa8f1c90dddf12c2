"""Random profiles and global moves: within every budget, close to it, and different from the parent."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import genotypes, ladder, masks, random_tree

from evopress.api import DROP
from evopress.search.ledger import Draft, ledger_of
from evopress.search.moves import climb, fill, mutate, random_profile, repair, switch_count
from evopress.testing.searchers import conformance_problems

PROBLEMS = conformance_problems()


def nothing_more_fits(ledger, genotype) -> bool:  # type: ignore[no-untyped-def]
    draft = Draft(ledger, genotype)
    return not any(climb(draft, gene) for gene in ledger.movable)


@pytest.mark.parametrize("name", sorted(PROBLEMS))
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**9))
def test_random_profiles_and_mutants_never_leave_a_budget_and_fill_it(name: str, seed: int) -> None:
    problem, rng = PROBLEMS[name], random.Random(seed)
    ledger = ledger_of(problem)
    parent = random_profile(ledger, rng)
    for genotype in (parent, mutate(ledger, parent, rng, rng.randint(1, 6)), mutate(ledger, parent, rng, 2, guided=True)):
        cost = problem.space.cost_of(genotype)
        assert all(budget.allows(cost) for budget in problem.budgets)
        assert nothing_more_fits(ledger, genotype)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**9))
def test_any_tree_with_odd_costs_keeps_its_budget(seed: int) -> None:
    rng = random.Random(seed)
    problem = random_tree(rng)
    ledger = ledger_of(problem)
    genotype = random_profile(ledger, rng)
    for _ in range(5):
        genotype = mutate(ledger, genotype, rng, rng.randint(1, 3), guided=True)
        assert problem.budgets[0].allows(problem.space.cost_of(genotype))


@settings(max_examples=20, deadline=None)
@given(genotypes(PROBLEMS["mixed kinds"].space), st.integers(0, 10**9))
def test_repair_brings_any_genotype_within_the_budget(genotype: tuple[int, ...], seed: int) -> None:
    ledger = ledger_of(PROBLEMS["mixed kinds"])
    draft = Draft(ledger, genotype)
    assert repair(draft, random.Random(seed))
    assert ledger.fits(draft.genotype)


def test_fill_follows_its_order() -> None:
    problem = ladder((4, 4, 4), target=0)
    ledger = ledger_of(problem)
    spare = ledger_of(ladder((4, 4, 4), target=0))
    spare.limits = (problem.budgets[0].limit + 8,)
    assert fill(ledger, (0, 0, 0), (0, 1, 2)) == (0, 0, 0)
    assert fill(spare, (0, 0, 0), (2, 0, 1)) == (1, 0, 1)
    assert fill(spare, (0, 0, 0), (1,)) == (0, 2, 0)


def test_global_moves_cross_sizes_methods_and_kinds() -> None:
    problem = PROBLEMS["mixed kinds"]
    ledger, rng = ledger_of(problem), random.Random(0)
    space = problem.space
    parent = random_profile(ledger, rng)
    methods: Counter[str] = Counter()
    drops: Counter[int] = Counter()
    for _ in range(300):
        profile = space.profile(mutate(ledger, parent, rng, 2))
        methods.update(level.method for _, level in profile)
        drops[sum(level == DROP for _, level in profile)] += 1
    assert {"gptq", "sparsegpt", "dense", "drop"} <= set(methods)
    assert len(drops) > 1, "a drop must be tradable against upgrades"


def test_drops_alone_move_by_swaps() -> None:
    problem = masks(10, 4)
    ledger, rng = ledger_of(problem), random.Random(0)
    parent = random_profile(ledger, rng)
    reached = set()
    for _ in range(600):
        child = mutate(ledger, parent, rng, 1)
        assert ledger.spent(child) == (16 * 6,)
        reached.add(frozenset(gene for gene, (a, b) in enumerate(zip(parent, child, strict=True)) if a != b))
    assert reached == {frozenset((a, b)) for a in ledger.containers for b in ledger.containers if parent[a] < parent[b]} | (
        reached & {frozenset()}
    )


def test_random_profiles_reach_everything_in_a_small_space() -> None:
    ledger, rng = ledger_of(masks(5, 2)), random.Random(1)
    assert len({ledger.key(random_profile(ledger, rng)) for _ in range(400)}) == 10


def test_switch_count_is_the_smaller_of_two_draws() -> None:
    rng, draws = random.Random(7), 30_000
    counts = Counter(switch_count(rng, 3) for _ in range(draws))
    expected = {1: 5 / 9, 2: 3 / 9, 3: 1 / 9}
    chi_square = sum((counts[k] - draws * p) ** 2 / (draws * p) for k, p in expected.items())
    assert chi_square < 13.8, f"p < 0.001 with two degrees of freedom: {counts}"
