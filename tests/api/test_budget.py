"""Budgets: every way to write one, the exact limit it means, and the errors with the feasible interval."""

from __future__ import annotations

import pytest

from evopress.api import Budget, Cost, InfeasibleBudget, Level, UsageError, check_feasible, uniform_cost
from evopress.testing.searchers import planted_space

SPACE = planted_space(2, ("gptq", "drop"))
DENSE_BYTES = SPACE.dense.bytes


@pytest.mark.parametrize(
    ("text", "field", "limit"),
    [
        ("bits=3.0", "bytes", SPACE.base.bytes + 3 * SPACE.weights // 8),
        ("bits=2.25", "bytes", SPACE.base.bytes + 9 * SPACE.weights // 32),
        ("BITS = 3", "bytes", SPACE.base.bytes + 3 * SPACE.weights // 8),
        ("size=60MiB", "bytes", 60 * 2**20),
        ("size=1.5kb", "bytes", 1500),
        ("size=1000", "bytes", 1000),
        ("size=0.5x", "bytes", DENSE_BYTES // 2),
        ("size=0.1x", "bytes", DENSE_BYTES // 10),
        ("sparsity=0.6", "params", SPACE.base.params + (2 * SPACE.weights) // 5),
        ("params=0.8x", "params", (4 * SPACE.dense.params) // 5),
        ("params=1.5m", "params", 1_500_000),
        ("size=gptq(bits=3,group=64)", "bytes", uniform_cost(SPACE, Level.of("gptq", bits=3, group=64)).bytes),
    ],
)
def test_limits_are_exact_integers(text: str, field: str, limit: int) -> None:
    budget = Budget.parse(text, SPACE)
    assert (budget.field, budget.limit) == (field, limit)
    assert isinstance(budget.limit, int)


def test_a_budget_by_level_is_what_that_level_costs_everywhere() -> None:
    level = Level.of("gptq", bits=3, group=64)
    genotype = [
        SPACE.choices(gene).index(level) if level in SPACE.choices(gene) else len(SPACE.choices(gene)) - 1
        for gene in range(len(SPACE.genes))
    ]
    assert uniform_cost(SPACE, level) == SPACE.cost_of(genotype)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bits", "Cannot read budget"),
        ("bits=", "Cannot read budget"),
        ("bit=3", "Did you mean 'bits'"),
        ("bits=three", "Cannot read the number"),
        ("bits=0", "not a positive number"),
        ("bits=3x", "not a positive number"),
        ("sparsity=1", "share in"),
        ("sparsity=60%", "Cannot read the number"),
        ("size=3parsec", "Unknown unit"),
        ("size=0x", "positive share"),
        ("size=gtpq(bits=3,group=64)", "Unknown level"),
    ],
)
def test_bad_budgets_are_usage_errors(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Budget.parse(text, SPACE)


@pytest.mark.parametrize("text", ["bits=0.01", "size=10b", "sparsity=0.999", "params=0.001x"])
def test_too_small_a_budget_names_the_feasible_interval(text: str) -> None:
    space = planted_space(2, ("gptq",)) if text.startswith(("bits", "size")) else planted_space(2, ("sparsegpt",))
    with pytest.raises(InfeasibleBudget, match=r"less than the cheapest profile .*Feasible: .* to ") as error:
        check_feasible(space, [Budget.parse(text, space)])
    assert error.value.exit_code == 3


def test_too_large_a_budget_is_infeasible_too() -> None:
    with pytest.raises(InfeasibleBudget, match="no search"):
        check_feasible(SPACE, [Budget.parse("size=2x", SPACE)])


def test_the_ends_of_the_interval_are_feasible() -> None:
    for cost in (SPACE.cheapest, SPACE.dearest):
        check_feasible(SPACE, [Budget("size", "bytes", cost.bytes), Budget("params", "params", cost.params)])


def test_allows_is_up_to_and_with_the_limit() -> None:
    budget = Budget("size=10b", "bytes", 10)
    assert budget.allows(Cost(10, 99))
    assert not budget.allows(Cost(11, 0))
