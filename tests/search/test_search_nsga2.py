"""nsga2: fronts and crowding against brute force, sizes below the budget, a front that spreads, and the simple answers beaten."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from evopress.api import Cost, Trial, UsageError
from evopress.search.fronts import crowding, dominates, sort_fronts, standings
from evopress.search.ledger import ledger_of
from evopress.search.moves import random_profile, within
from evopress.search.nsga2 import Nsga2, crossed, lowered, sizes
from evopress.testing.searchers import (
    budget_between,
    conformance_problems,
    follow,
    measure_with,
    planted_function,
    planted_problem,
    planted_space,
    timed_space,
)

SMALL: dict[str, Any] = {"tokens": 1400, "looks": ((2, 700), (1, 4200))}


def peeled(points: list[tuple[float, ...]]) -> list[list[int]]:
    """Fronts by definition: take away who is dominated by nobody, again and again."""
    left, fronts = set(range(len(points))), []
    while left:
        front = [
            at
            for at in sorted(left)
            if not any(all(x <= y for x, y in zip(points[o], points[at], strict=True)) and points[o] != points[at] for o in left if o != at)
        ]
        fronts.append(front)
        left -= set(front)
    return fronts


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("seed", range(8))
def test_fronts_are_those_of_peeling(axes: int, seed: int) -> None:
    rng = random.Random(seed)
    points = [tuple(float(rng.randrange(6)) for _ in range(axes)) for _ in range(rng.randint(0, 30))]
    assert [sorted(front) for front in sort_fronts(points)] == peeled(points)


def test_nobody_dominates_an_equal() -> None:
    assert dominates((1, 2), (1, 3))
    assert not dominates((1, 2), (1, 2))
    assert not dominates((1, 3), (2, 2))


def test_crowding_is_the_gap_between_neighbours_in_shares_of_the_range() -> None:
    points = [(0.0, 8.0), (1.0, 4.0), (3.0, 2.0), (10.0, 0.0)]
    infinite = float("inf")
    assert crowding(points) == [infinite, pytest.approx(3 / 10 + 6 / 8), pytest.approx(9 / 10 + 4 / 8), infinite]
    assert crowding([(1.0, 5.0), (1.0, 5.0)]) == [0.0, 0.0]  # a range of nothing tells nothing
    assert crowding([]) == []


def test_standings_put_fronts_first_and_then_the_lonely() -> None:
    points = [(0.0, 8.0), (1.0, 4.0), (3.0, 2.0), (10.0, 0.0), (10.0, 10.0)]
    order = sorted(range(5), key=lambda at: standings(points)[at])
    assert order[-1] == 4
    assert set(order[:2]) == {0, 3}
    assert order[2] == 2  # 1.4 against 1.05


@pytest.mark.parametrize("name", sorted(conformance_problems()))
def test_children_meet_the_size_they_were_given(name: str) -> None:
    problem, rng = conformance_problems()[name], random.Random(0)
    ledger = ledger_of(problem)
    for share in (0.0, 0.3, 1.0):
        smaller = lowered(ledger, share)
        for _ in range(5):
            child = within(smaller, crossed(random_profile(ledger, rng), random_profile(ledger, rng), rng), rng)
            assert smaller.fits(child)
            assert ledger.fits(child)
    assert ledger.limits == tuple(budget.limit for budget in problem.budgets)
    assert lowered(ledger, 1.0).limits == ledger.limits
    assert lowered(ledger, 0.0).limits == ledger.spent(ledger.floor)


def test_the_front_spreads_from_small_to_the_budget_and_nobody_on_it_is_dominated() -> None:
    problem = planted_problem(planted_space(4, ("gptq",)), share=0.5)
    function = planted_function(problem.space, 1)
    searcher = Nsga2(problem, random.Random(0), generations=25, population=16, **SMALL)
    assert searcher.front == (), "nothing is known yet"
    follow(searcher, measure_with(function, problem.space))
    front = searcher.front
    points = [(function(profile), problem.space.cost(profile).bytes) for profile in front]
    assert sort_fronts(points) == [list(range(len(front)))]
    sizes = [size for _, size in points]
    assert sizes == sorted(sizes)
    low, high = problem.space.cheapest.bytes, problem.budgets[0].limit
    assert len(front) >= 8
    assert sizes[0] < low + 0.25 * (high - low)
    assert sizes[-1] > low + 0.9 * (high - low)
    assert points[-1][0] < points[0][0]


@pytest.mark.parametrize("seed", range(3))
def test_with_a_latency_budget_the_front_trades_bytes_for_time(seed: int) -> None:
    """Seconds that are no function of bytes: someone on the front is slower and smaller than someone who is faster and larger."""
    space = timed_space(planted_space(4, ("gptq", "sparsegpt")), seed)
    problem = planted_problem(space, (budget_between(space, "nanoseconds", 0.6),), seed=seed)
    function = planted_function(space, seed)
    measure = measure_with(function, space)

    def from_the_store(ask: Any) -> list[Trial]:
        """Stored trials know no nanoseconds: those are of a machine."""
        return [replace(trial, cost=Cost(trial.cost.bytes, trial.cost.params)) for trial in measure(ask)]

    searcher = Nsga2(problem, random.Random(seed), generations=25, population=24, **SMALL)
    follow(searcher, from_the_store)
    costs = [space.cost(profile) for profile in searcher.front]
    points = [(function(p), float(c.bytes), float(c.nanoseconds)) for p, c in zip(searcher.front, costs, strict=True)]
    assert sort_fronts(points) == [list(range(len(points)))]
    assert [point[1:] for point in points] == sorted(point[1:] for point in points), "smallest first"
    assert all(budget.allows(cost) for cost in costs for budget in problem.budgets)
    assert any(a.bytes < b.bytes and a.nanoseconds > b.nanoseconds for a in costs for b in costs)
    low, high, limit = space.cheapest, space.dearest, problem.budgets[0].limit
    assert min(cost.bytes for cost in costs) < low.bytes + 0.25 * (high.bytes - low.bytes)
    assert min(cost.nanoseconds for cost in costs) < low.nanoseconds + 0.25 * (limit - low.nanoseconds)
    assert max(cost.nanoseconds for cost in costs) > low.nanoseconds + 0.9 * (limit - low.nanoseconds)


def test_time_is_an_objective_only_where_the_space_tells_it() -> None:
    space = planted_space(2, ("gptq",))
    assert sizes(space) == ("bytes",)
    assert sizes(timed_space(space)) == ("bytes", "nanoseconds")


def test_an_axis_that_no_budget_limits_is_lowered_by_itself() -> None:
    space = timed_space(planted_space(3, ("gptq", "sparsegpt")))
    problem = planted_problem(space, (budget_between(space, "nanoseconds", 0.6),))
    axes = Nsga2(problem, random.Random(0), **SMALL)._axes
    assert [[budget.field for budget in ledger.budgets] for ledger in axes] == [["bytes", "nanoseconds"], ["nanoseconds"]]
    smaller = lowered(axes[0], 0.5, 1)
    assert smaller.limits[0] < axes[0].limits[0] == space.dearest.bytes
    assert smaller.limits[1] == problem.budgets[0].limit
    child = within(smaller, random_profile(ledger_of(problem), random.Random(1)), random.Random(1))
    assert space.cost_of(child).bytes <= smaller.limits[0]


@pytest.mark.parametrize("methods", [("gptq",), ("gptq", "drop")])
def test_it_beats_the_simple_answers(methods: tuple[str, ...]) -> None:
    gains = []
    for seed in range(3):
        space = planted_space(4, methods)
        problem = planted_problem(space, share=0.35, seed=seed)
        function = planted_function(space, seed, interaction=1.0)
        searcher = Nsga2(problem, random.Random(seed), generations=30, below=0.2, **SMALL)
        simple = min(function(space.profile(start)) for start in searcher._champion.starts)
        follow(searcher, measure_with(function, space))
        gains.append(simple - function(searcher.incumbent))
    assert min(gains) >= 0
    assert sum(gains) > 0


def test_it_says_what_is_wrong_with_its_options() -> None:
    problem = planted_problem()
    for options, message in (
        ({"population": 1}, "Option population=1 is not an integer of at least 2"),
        ({"below": 1.5}, "Option below=1.5 is not a share"),
        ({"crossover": -1}, "Option crossover=-1 is not a share"),
        ({"tokens": 10**9}, "nsga2 asks for 1,000,000,000 tokens"),
    ):
        with pytest.raises(UsageError, match=message):
            Nsga2(problem, random.Random(0), **options)  # type: ignore[arg-type]
