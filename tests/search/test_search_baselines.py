"""Uniform, greedy and random: even interleaving, evenly spaced drops, the right method, and equal cost with evolution."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import POOL, ladder, masks, random_tree

from evopress.api import DROP, Budget, Level, Problem, UsageError
from evopress.search.baselines import Greedy, even_order, evenly, greedy_genotype, uniform_genotype
from evopress.search.knapsack import error_of, solve
from evopress.search.ledger import ledger_of
from evopress.search.loop import Stops, drive
from evopress.search.sampling import Random
from evopress.testing.searchers import (
    budget_between,
    follow,
    measure_with,
    planted_function,
    planted_problem,
    planted_space,
)


def with_limit(problem: Problem, extra: int) -> Problem:
    limit = problem.budgets[0].limit + extra
    return Problem(problem.space, (Budget("size", problem.budgets[0].field, limit),), "planted", POOL, problem.errors)


def test_evenly_spreads_marks() -> None:
    assert evenly(2, 6) == [False, False, True, False, False, True]
    assert all(sum(evenly(count, 13)) == count for count in range(14))
    assert sorted(even_order(13)) == list(range(13))
    assert even_order(1) == [0]
    assert even_order(8) == [0, 4, 2, 6, 1, 5, 3, 7]


@pytest.mark.parametrize("rung", range(5))
def test_uniform_at_an_exact_target_is_that_level_everywhere(rung: int) -> None:
    problem = ladder((4, 8, 4, 8), target=rung)
    assert uniform_genotype(problem) == (rung,) * 4


@pytest.mark.parametrize("raised", range(9))
def test_uniform_between_two_levels_interleaves_them_over_depth(raised: int) -> None:
    genotype = uniform_genotype(with_limit(ladder((4,) * 8, target=1), 4 * raised))
    assert [level == 2 for level in genotype] == evenly(raised, 8)
    assert set(genotype) <= {1, 2}


def test_uniform_spends_what_unequal_sizes_leave() -> None:
    problem = with_limit(ladder((16, 2, 16, 2), target=1), 4)
    assert uniform_genotype(problem) == (1, 2, 1, 2)


@pytest.mark.parametrize("dropped", range(1, 8))
def test_uniform_drops_are_evenly_spaced(dropped: int) -> None:
    problem = masks(8, dropped)
    profile = problem.space.profile(uniform_genotype(problem))
    assert [profile[f"mlp{place}"] == DROP for place in range(8)] == evenly(dropped, 8)


def test_uniform_drops_sublayers_only_where_the_cheapest_level_is_too_dear() -> None:
    space = planted_space(4, ("gptq", "drop"))
    cheapest_kept = space.cost_of([0 if site.kind == "linear" else len(space.levels[place]) - 1 for place, site in enumerate(space.sites)])
    kept = space.profile(uniform_genotype(planted_problem(space, (Budget("size", "bytes", cheapest_kept.bytes),))))
    assert DROP not in [level for _, level in kept]
    below = space.profile(uniform_genotype(planted_problem(space, (Budget("size", "bytes", cheapest_kept.bytes - 1),))))
    assert [level for _, level in below].count(DROP) == 1


def test_uniform_takes_the_method_with_the_least_error() -> None:
    space = planted_space(3, ("gptq", "sparsegpt"))
    budget = budget_between(space, "bytes", 0.9)
    for favourite, other in (("gptq", "sparsegpt"), ("sparsegpt", "gptq")):
        errors = tuple(tuple(9.0 if level.method == other else 0.01 for level in levels) for levels in space.levels)
        problem = Problem(space, (budget,), "planted", POOL, errors)
        methods = {level.method for _, level in space.profile(uniform_genotype(problem))}
        assert favourite in methods
        assert other not in methods
    unknown = Problem(space, (budget,), "planted", POOL)
    assert uniform_genotype(unknown) == uniform_genotype(unknown)


def test_uniform_with_steps_of_weights_keeps_the_share_alike() -> None:
    space = planted_space(3, ("sparsegpt",))
    problem = planted_problem(space, (budget_between(space, "params", 0.5),))
    profile = space.profile(uniform_genotype(problem))
    chosen = {(site.role, profile[site.name]) for site in space.sites if site.kind == "linear"}
    per_role: dict[str, set[Level]] = {}
    for role, level in chosen:
        per_role.setdefault(role, set()).add(level)
    assert all(len(levels) <= 2 for levels in per_role.values())


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**9))
def test_uniform_and_greedy_fit_any_tree_and_greedy_is_no_better_than_the_knapsack(seed: int) -> None:
    problem = random_tree(random.Random(seed))
    ledger = ledger_of(problem)
    greedy = greedy_genotype(problem)
    assert ledger.fits(uniform_genotype(problem))
    assert ledger.fits(greedy)
    assert error_of(ledger, greedy) >= solve(ledger).error - 1e-9


def test_greedy_is_optimal_on_convex_equal_steps() -> None:
    problem = ladder((4,) * 6, target=1)
    rng = random.Random(2)
    scales = [rng.uniform(0.1, 5) for _ in range(6)]
    errors = tuple((*(scale * 4.0**-rung for rung in range(5)), 0.0) for scale in scales)
    convex = Problem(problem.space, problem.budgets, "planted", POOL, errors)
    ledger = ledger_of(convex)
    assert error_of(ledger, greedy_genotype(convex)) == pytest.approx(solve(ledger).error)
    with pytest.raises(UsageError, match="needs layer errors"):
        Greedy(problem, random.Random(0))


def test_random_asks_what_a_generation_of_as_many_offspring_asks() -> None:
    problem = planted_problem(planted_space(4, ("gptq",)), share=0.3)
    searcher = Random(problem, random.Random(0), candidates=12, rungs=((3, 500), (1, 2000)), rounds=3)
    history = follow(searcher, measure_with(planted_function(problem.space), problem.space))
    assert [len(ask.profiles) for ask, _ in history] == [12, 3, 12, 4, 12, 4]
    assert [ask.slice.tokens for ask, _ in history] == [500, 2000] * 3
    function = planted_function(problem.space)
    assert function(searcher.incumbent) == min(function(profile) for ask, _ in history for profile in ask.profiles)


def test_random_ends_where_the_space_has_no_more_profiles() -> None:
    problem = masks(5, 2)
    searcher = Random(problem, random.Random(0), candidates=64, rungs=((1, 100),), rounds=50)
    history = follow(searcher, measure_with(lambda profile: 1.0, problem.space))
    assert sum(len(ask.profiles) for ask, _ in history) <= 10 + len(history)


@st.composite
def stages(draw: st.DrawFn) -> tuple[tuple[int, int], ...]:
    survivors = sorted(draw(st.lists(st.integers(1, 9), max_size=3)), reverse=True)
    return tuple((keep, 100 + 10 * place) for place, keep in enumerate([*survivors, 1]))


WIDE = planted_problem(planted_space(4, ("gptq",)), share=0.3)


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 14), stages(), st.integers(1, 120), st.integers(0, 9))
def test_random_asks_for_exactly_so_many_evaluations(
    candidates: int, rungs: tuple[tuple[int, int], ...], evaluations: int, seed: int
) -> None:
    searcher = Random(WIDE, random.Random(seed), candidates=candidates, rungs=rungs, evaluations=evaluations)
    outcome = drive(searcher, measure_with(lambda profile: 1.0, WIDE.space), Stops(), lambda: 0.0)
    assert outcome.totals.evaluations == evaluations
    follower = Random(WIDE, random.Random(seed), candidates=candidates, rungs=rungs, evaluations=evaluations)
    for ask, _ in follow(follower, measure_with(lambda profile: 1.0, WIDE.space)):
        assert 0 < len(ask.profiles) <= candidates + len(rungs) + 1
        assert ask.slice.tokens == rungs[ask.stage][1]


def test_the_last_round_is_shrunk_and_the_rest_joins_in_its_last_stage() -> None:
    def asked(evaluations: int) -> list[tuple[int, int]]:
        searcher = Random(WIDE, random.Random(0), candidates=6, rungs=((3, 500), (1, 2000)), evaluations=evaluations)
        history = follow(searcher, measure_with(planted_function(WIDE.space), WIDE.space))
        return [(ask.slice.tokens, len(ask.profiles)) for ask, _ in history]

    assert asked(9) == [(500, 6), (2000, 3)]
    assert asked(11) == [(500, 6), (2000, 5)], "too few for a round of their own"
    assert asked(12) == [(500, 6), (2000, 3), (500, 1), (2000, 2)]
    assert asked(13) == [(500, 6), (2000, 3), (500, 1), (2000, 3)]
    assert asked(29) == [(500, 6), (2000, 3)] + [(500, 6), (2000, 4)] * 2
    assert asked(1) == [(2000, 1)], "too few for one candidate to pass both stages"
    with pytest.raises(UsageError, match="evaluations=-1"):
        asked(-1)


def test_a_space_without_enough_profiles_ends_the_search_before_its_evaluations() -> None:
    problem = masks(5, 2)
    searcher = Random(problem, random.Random(0), candidates=4, rungs=((1, 100),), evaluations=1000)
    history = follow(searcher, measure_with(lambda profile: 1.0, problem.space))
    assert 10 <= sum(len(ask.profiles) for ask, _ in history) < 20
