"""Budgets: every way to write one, the exact limit it means, and the errors with the feasible interval."""

from __future__ import annotations

import re

import pytest

from evopress.api import Budget, Cost, InfeasibleBudget, Level, UsageError, check_feasible, uniform_cost
from evopress.api.budget import interval, parse_bytes
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
        ("bits=-3", "Budget 'bits=-3' is not a positive number of bits a weight. Write e.g. bits=3.0."),
        ("size=-60MiB", "Budget 'size=-60MiB' is not a positive number. Write e.g. size=60MiB or size=0.8x."),
        ("params=-1", "Write e.g. params=100M or params=0.8x."),
        ("params=-0.5x", "not a positive share of the dense model. Write e.g. params=0.8x."),
        ("sparsity=-0.5", "share in"),
        ("size=0", "is not a positive number"),
        ("bits=3x", "not a positive number"),
        ("sparsity=1", "share in"),
        ("sparsity=60%", "Cannot read the number"),
        ("size=3parsec", "Unknown unit"),
        ("size=0x", "positive share"),
        ("size=gtpq(bits=3,group=64)", "Unknown level"),
    ],
)
def test_bad_budgets_are_usage_errors(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        Budget.parse(text, SPACE)


def test_a_budget_that_no_method_can_touch_says_which_would() -> None:
    space = planted_space(2, ("gptq",))
    with pytest.raises(InfeasibleBudget) as caught:
        check_feasible(space, [Budget.parse("sparsity=0.5", space)])
    params = space.dense.params
    assert caught.value.message == (
        f"Budget sparsity=0.5 allows {params - space.weights // 2:,} parameters, less than the cheapest profile ({params:,})."
    )
    assert caught.value.hint == (
        f"Feasible: sparsity=0.000 to 0.000 ({params:,} to {params:,} parameters). "
        "No method of the study changes the number of parameters: add one that does (sparsegpt, magnitude, wanda, drop)."
    )


@pytest.mark.parametrize("name", ["bits", "size", "sparsity", "params"])
def test_both_ends_of_the_interval_that_is_printed_can_be_asked_for(name: str) -> None:
    """Rounded to the nearest, an end would lie outside as often as not."""
    space = planted_space(3, ("gptq", "sparsegpt", "drop"))
    shown = interval(space, Budget(f"{name}=1", "params" if name in ("sparsity", "params") else "bytes", 1))
    for end in re.findall(r"\d+\.\d+(?:MiB|x)?", shown.partition(" (")[0]):
        check_feasible(space, [Budget.parse(f"{name}={end}", space)])


@pytest.mark.parametrize(("text", "message"), [("lots", "Cannot read the number 'lots' of --bank-quota."), ("-1GiB", "is negative")])
def test_sizes_of_options_name_the_option(text: str, message: str) -> None:
    assert parse_bytes("1.5GiB", "--bank-quota") == 3 * 2**29
    with pytest.raises(UsageError, match=re.escape(message)):
        parse_bytes(text, "--bank-quota")


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
