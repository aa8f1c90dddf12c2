"""Budgets: every way to write one, the exact limit it means, and the errors with the feasible interval."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from evopress.api import Budget, Cost, InfeasibleBudget, Level, UsageError, check_feasible, uniform_cost
from evopress.api.budget import interval, parse_bytes, workload_of
from evopress.api.workload import Workload
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


# Latency --------------------------------------------------------------------------------------------------------------------------------

TIMED = replace(
    SPACE,
    costs=tuple(tuple(replace(cost, nanoseconds=10 * cost.bytes + 7) for cost in costs) for costs in SPACE.costs),
    fixed=replace(SPACE.fixed, nanoseconds=1001),
)
"""Every level takes time, a dropped sublayer 7 ns."""


def test_the_dense_model_takes_the_time_of_all_its_dense_levels() -> None:
    assert TIMED.dense.nanoseconds == 1001 + sum(10 * costs[-1].bytes + 7 for costs in TIMED.costs)
    assert replace(TIMED.dense, nanoseconds=0) == SPACE.dense


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("latency=0.8x", 4 * TIMED.dense.nanoseconds // 5),
        ("Latency = 0.5X", TIMED.dense.nanoseconds // 2),
        ("latency=20ms", 20_000_000),
        ("latency=500us", 500_000),
        ("latency=500µs", 500_000),
        ("latency=1.5s", 1_500_000_000),
        ("latency=1234ns", 1234),
        ("latency=0.8x,prefill,batch=4", 4 * TIMED.dense.nanoseconds // 5),
        ("latency=20ms, decode", 20_000_000),
    ],
)
def test_limits_of_latency_are_exact_nanoseconds(text: str, limit: int) -> None:
    budget = Budget.parse(text, TIMED)
    assert (budget.text, budget.field, budget.limit) == (text, "nanoseconds", limit)
    assert budget.allows(Cost(nanoseconds=limit, bytes=10**12))
    assert not budget.allows(Cost(nanoseconds=limit + 1))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("latency=20", "Unknown unit '' in 'latency=20'. Known: ms, ns, s, us, x, µs."),
        ("latency=20min", "Unknown unit 'min'"),
        ("latency=prefill", "Cannot read the number 'prefill'"),
        ("latency=,prefill", "Cannot read the number ''"),
        ("latency=0x", "not a positive share of the dense model. Write e.g. latency=0.8x."),
        ("latency=-1ms", "Budget 'latency=-1ms' is not a positive number. Write e.g. latency=20ms or latency=0.8x."),
        ("size=0.8x,prefill", "Cannot read the number '0.8x,prefill'"),
    ],
)
def test_bad_latency_budgets_are_usage_errors(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        Budget.parse(text, TIMED)


def test_the_workload_of_latency_budgets_is_one() -> None:
    assert workload_of(["bits=3", "size=0.5x"]) is None
    assert workload_of(["latency=0.8x"]) == Workload("decode", 1, 512)
    assert workload_of(["bits=3", " Latency =20ms,prefill,batch=4", "latency=0.8x,batch=4,prefill"]) == Workload("prefill", 4, 512)
    with pytest.raises(UsageError) as caught:
        workload_of(["latency=0.8x", "bits=3", "latency=0.5x,prefill"])
    assert str(caught.value) == ("Budgets 'latency=0.8x', 'latency=0.5x,prefill' limit different workloads. Limit one workload a study.")
    with pytest.raises(UsageError, match=re.escape("Unknown workload 'batch4' in budget 'latency=0.8x,batch4'. Did you mean 'batch=N'?")):
        workload_of(["latency=0.8x,batch4"])


def test_the_interval_of_a_latency_budget_is_shares_of_the_dense_model() -> None:
    low, high = TIMED.cheapest.nanoseconds, TIMED.dense.nanoseconds
    shown = interval(TIMED, Budget.parse("latency=20ms,prefill", TIMED))
    assert shown == f"latency={-(-1000 * low // high) / 1000:.3f}x to 1.000x ({low:,} to {high:,} nanoseconds)"
    for end in re.findall(r"\d+\.\d+x", shown):
        check_feasible(TIMED, [Budget.parse(f"latency={end}", TIMED)])
    with pytest.raises(
        InfeasibleBudget, match=re.escape(f"allows 1 nanoseconds, less than the cheapest profile ({low:,}). Feasible: {shown}")
    ):
        check_feasible(TIMED, [Budget.parse("latency=1ns", TIMED)])
