"""The knapsack against enumeration, at any target, and its speed on the shapes of a 135M model."""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import every_genotype, ladder, random_tree

from evopress.api import DENSE, DROP, ZERO, Budget, Cost, Level, Problem, Site, Space, UsageError, dense_cost, order_levels
from evopress.search import knapsack
from evopress.search.knapsack import Knapsack, error_of, solve
from evopress.search.ledger import Ledger, ledger_of
from evopress.testing.searchers import budget_between, planted_problem, planted_space, quant_levels


def best_by_enumeration(problem: Problem) -> float:
    ledger = ledger_of(problem)
    return min(error_of(ledger, genotype) for genotype in every_genotype(problem.space) if ledger.fits(genotype))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**9))
def test_exact_on_random_trees_with_drops_and_links(seed: int) -> None:
    rng = random.Random(seed)
    problem = random_tree(rng, blocks=rng.randint(1, 2))
    if len(list(zip(range(20_000), every_genotype(problem.space), strict=False))) == 20_000:
        problem = random_tree(rng, blocks=1)
    ledger = ledger_of(problem)
    solution = solve(ledger)
    assert solution.exact
    assert ledger.fits(solution.genotype)
    assert solution.error == pytest.approx(error_of(ledger, solution.genotype))
    assert solution.error == pytest.approx(best_by_enumeration(problem))


@pytest.mark.parametrize("links", [((1, 3),), ((0, 2),), ((0, 2), (1, 3)), ((1, 4),), ((1, 3, 4),)])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.7])
def test_exact_with_links_inside_and_across_dropped_sublayers(links: tuple[tuple[int, ...], ...], share: float) -> None:
    container = {DENSE: ZERO, DROP: ZERO}
    linear = {DENSE: dense_cost(10), Level("a"): Cost(9, 10), Level("b"): Cost(4, 6)}
    sites = (
        Site("m0", "mlp", (0, 0), 0, None),
        Site("m0.w", "linear", (1, 10), 0, "m0"),
        Site("m1", "mlp", (0, 0), 1, None),
        Site("m1.w", "linear", (1, 10), 1, "m1"),
        Site("m1.v", "linear", (1, 10), 1, "m1"),
    )
    ordered = [order_levels(option) for option in (container, linear, container, linear, linear)]
    space = Space(sites, tuple(levels for levels, _ in ordered), tuple(costs for _, costs in ordered), ZERO, links)
    rng = random.Random(3)
    for _ in range(10):
        errors = tuple(tuple(rng.random() for _ in levels) for levels in space.levels)
        problem = Problem(space, (budget_between(space, "bytes", share),), "planted", (100,), errors)
        solution = solve(ledger_of(problem))
        assert solution.exact
        assert solution.error == pytest.approx(best_by_enumeration(problem))


def test_too_many_joint_settings_are_a_usage_error(monkeypatch: pytest.MonkeyPatch) -> None:
    space = planted_space(3, ("gptq", "drop"), ("attention",), links=True)
    monkeypatch.setattr(knapsack, "MAX_COMBINATIONS", 3)
    with pytest.raises(UsageError, match="joint settings"):
        solve(ledger_of(planted_problem(space)))


def test_b9_fractional_targets_are_met() -> None:
    """The published dynamic programme takes integer averages only."""
    problem = ladder((4,) * 10, target=1)
    rng = random.Random(0)
    errors = tuple(tuple(sorted((rng.random() for _ in levels), reverse=True)) for levels in problem.space.levels)
    for quarter in range(1, 12):
        limit = 13 + 10 * 4 * 2 + 10 * quarter
        fractional = Problem(problem.space, (Budget("size", "bytes", limit),), "planted", (100,), errors)
        ledger = ledger_of(fractional)
        solution = solve(ledger)
        best = [0.0] + [float("inf")] * (limit - 13)
        for row in errors:  # a plain table over bytes, written independently
            options = [(4 * (bits + 2), error) for bits, error in enumerate(row[:-1])] + [(160, row[-1])]
            best = [min((best[c - cost] + error for cost, error in options if cost <= c), default=float("inf")) for c in range(len(best))]
        assert solution.error == pytest.approx(min(best))


def test_b9_costs_are_bytes_not_level_indices() -> None:
    """One rung of a large layer pays for many rungs of small ones; counting levels would trade them one for one."""
    problem = ladder((2, 2, 2, 2, 8), rungs=3, target=1)
    gains = (1.0, 1.0, 1.0, 1.0, 2.0)
    errors = tuple((2 * gain, gain, 0.0, 0.0) for gain in gains)
    ledger = Ledger(problem.space, problem.budgets, errors)
    assert solve(ledger).genotype == (2, 2, 2, 2, 0)
    assert ledger.spent((2, 2, 2, 2, 0)) == ledger.spent((1, 1, 1, 1, 1))


@pytest.mark.parametrize("seed", range(6))
def test_two_budgets_are_kept_and_nearly_optimal(seed: int) -> None:
    space = planted_space(1, ("gptq", "sparsegpt", "drop"), ("attention",))
    rng = random.Random(seed)
    shares = rng.uniform(0.2, 0.7), rng.uniform(0.4, 0.9)
    budgets = (budget_between(space, "bytes", shares[0]), budget_between(space, "params", shares[1]))
    problem = planted_problem(space, budgets, seed=seed)
    ledger = ledger_of(problem)
    solution = solve(ledger)
    assert ledger.fits(solution.genotype)
    best = best_by_enumeration(problem)
    assert solution.error >= best - 1e-9
    assert solution.error <= 1.5 * best + 0.1
    if solution.exact:
        assert solution.error == pytest.approx(best)


def test_an_answer_that_is_not_proven_optimal_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    space = planted_space(2, ("gptq", "sparsegpt"))
    tight, slack = budget_between(space, "bytes", 0.3), budget_between(space, "params", 1.0)
    assert Knapsack(planted_problem(space, (tight,)), random.Random(0)).remark == ""
    assert Knapsack(planted_problem(space, (tight, slack)), random.Random(0)).remark == "", "a budget that does not bind raises no doubt"
    both = planted_problem(space, (tight, budget_between(space, "params", 0.5)))
    assert Knapsack(both, random.Random(0)).remark == "not proven optimal: several budgets bind, and all but one are only priced"


def test_a_search_that_was_cut_short_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors in proportion to the bytes saved: no partial solution beats another, so their number doubles with every site."""
    rng = random.Random(0)
    weights = [rng.randrange(10**6, 10**7) for _ in range(30)]
    sites = tuple(Site(f"w{place}", "linear", (1, weight), place, None) for place, weight in enumerate(weights))
    ordered = [order_levels({DENSE: dense_cost(weight), Level("x"): ZERO}) for weight in weights]
    space = Space(sites, tuple(levels for levels, _ in ordered), tuple(costs for _, costs in ordered))
    errors = tuple((float(weight), 0.0) for weight in weights)
    assert space.levels[0] == (Level("x"), DENSE)
    monkeypatch.setattr(knapsack, "MAX_LABELS", 300)
    searcher = Knapsack(Problem(space, (budget_between(space, "bytes", 0.5),), "planted", (100,), errors), random.Random(0))
    assert searcher.remark == "not proven optimal: the limit of 100,000 partial solutions was reached"
    assert ledger_of(searcher.problem).fits(searcher.solution.genotype)


def test_missing_errors_are_a_usage_error() -> None:
    with pytest.raises(UsageError, match="needs layer errors"):
        Knapsack(planted_problem(errors=False), random.Random(0))


def small_llama(drop: bool) -> Space:
    shapes = {"attention": ((576, 576), (192, 576), (192, 576), (576, 576)), "mlp": ((1536, 576), (1536, 576), (576, 1536))}
    sites: list[Site] = []
    options: list[dict[Level, Cost]] = []
    for depth in range(30):
        sites.append(Site(f"b{depth}", "block", (0, 0), depth, None, own_params=1152))
        options.append({DENSE: dense_cost(1152), **({DROP: ZERO} if drop else {})})
        for kind, rows in shapes.items():
            sites.append(Site(f"b{depth}.{kind}", kind, (0, 0), depth, f"b{depth}"))  # type: ignore[arg-type]
            options.append({DENSE: ZERO, **({DROP: ZERO} if drop else {})})
            for number, (out, columns) in enumerate(rows):
                sites.append(Site(f"b{depth}.{kind}.{number}", "linear", (out, columns), depth, f"b{depth}.{kind}"))
                options.append(quant_levels(out, columns, (2, 3, 4, 5)))
    ordered = [order_levels(option) for option in options]
    return Space(tuple(sites), tuple(levels for levels, _ in ordered), tuple(costs for _, costs in ordered), dense_cost(28_311_552))


@pytest.mark.parametrize("drop", [False, True])
def test_fast_and_exact_on_210_sites(drop: bool) -> None:
    space, rng = small_llama(drop), random.Random(5)
    errors = []
    for site, levels, costs in zip(space.sites, space.levels, space.costs, strict=True):
        scale = rng.lognormvariate(0, 1)
        bits = [8 * cost.bytes / max(site.weights, 1) for cost in costs]
        errors.append(
            tuple(0.0 if level == DENSE else 7.0 if level == DROP else scale * 4**-width for level, width in zip(levels, bits, strict=True))
        )
    for wanted in (2.6, 3.5, 5.1):
        ledger = Ledger(space, (Budget.parse(f"bits={wanted}", space),), errors)
        began = time.process_time()
        solution = solve(ledger)
        assert time.process_time() - began < 3
        assert solution.exact
        assert ledger.fits(solution.genotype)
