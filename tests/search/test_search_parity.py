"""Parity mode against the published algorithm: mutation statistics, groups, starts, theory, and its bugs."""

from __future__ import annotations

import random
from collections import Counter
from fractions import Fraction
from math import sqrt
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import SIZES, flat, ladder, masks, pooled

from evopress.api import DROP, Ask, Budget, Problem, Trial, UsageError
from evopress.search import parity
from evopress.search.evolve import Evolve
from evopress.search.ledger import ledger_of
from evopress.search.parity import PARITY, group_genes, level_switch, mutant, rules_of, swap_masks
from evopress.testing.searchers import follow, measure_with, planted_problem, planted_space

DRAWS = 20_000


def chi_square(counts: Counter[Any], expected: dict[Any, float]) -> float:
    assert set(counts) <= set(expected)
    return sum((counts[key] - value) ** 2 / value for key, value in expected.items())


def test_groups_are_drawn_in_proportion_to_their_layers() -> None:
    problem = ladder(SIZES)
    rules = rules_of(ledger_of(problem))
    assert [len(group) for group in rules.groups] == [8, 8, 16]
    rng, rungs = random.Random(3), [2] * 32
    counts: Counter[int] = Counter()
    for _ in range(DRAWS):
        pair = level_switch(rungs, rules, rng)
        assert pair is not None
        assert SIZES[pair[0]] == SIZES[pair[1]], "a switch stays in its group"
        counts[SIZES[pair[0]]] += 1
    assert chi_square(counts, {4: DRAWS / 4, 12: DRAWS / 4, 40: DRAWS / 2}) < 13.8  # p < 0.001, 2 degrees of freedom


def test_the_no_op_rate_is_that_of_two_independent_draws() -> None:
    """Up and down are judged before either moves, so in a group of n the same layer comes up in 1/n of the switches."""
    rules = rules_of(ledger_of(ladder(SIZES)))
    rng, rungs = random.Random(4), [2] * 32
    same = sum(len(set(level_switch(rungs, rules, rng) or ())) == 1 for _ in range(DRAWS))
    rate = 1 / 4 * 1 / 8 + 1 / 4 * 1 / 8 + 1 / 2 * 1 / 16
    assert abs(same / DRAWS - rate) < 4 * sqrt(rate * (1 - rate) / DRAWS)


@pytest.mark.parametrize("kind", ["quant", "sparsity", "depth"])
def test_switch_counts_are_five_three_one_ninths(kind: str) -> None:
    """Seen on the mutants: with very many layers, k switches change 2k genes but for rare overlaps."""
    problem = masks(800, 400) if kind == "depth" else ladder((4,) * 1000)
    ledger = ledger_of(problem)
    rules = rules_of(ledger, kind)
    rng = random.Random(5)
    parent = parity.starts(ledger, rules, rng, 1)[0]
    draws = 500
    counts: Counter[int] = Counter()
    for _ in range(draws):
        child = mutant(ledger, parent, rules, rng)
        assert child is not None
        counts[sum(a != b for a, b in zip(parent, child, strict=True)) // 2] += 1
    overlaps = counts.pop(0, 0)
    assert overlaps < 5
    assert chi_square(counts, {1: draws * 5 / 9, 2: draws / 3, 3: draws / 9}) < 14.5


def test_group_rules() -> None:
    problem = ladder((4, 4, 8, 8), names=("q", "k", "q", "k"))
    genes = list(range(4))
    assert group_genes(problem.space, genes, "size") == ((0, 1), (2, 3))
    assert group_genes(problem.space, genes, "name") == ((0, 2), (1, 3))
    assert group_genes(problem.space, genes, "none") == ((0, 1, 2, 3),)
    with pytest.raises(UsageError, match="Did you mean 'size'"):
        group_genes(problem.space, genes, "sizes")


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.sampled_from([3, 5, 9]), min_size=2, max_size=10),
    st.sampled_from(["size", "name", "none"]),
    st.integers(0, 30),
    st.integers(0, 10**9),
)
def test_no_group_rule_leaves_the_budget(sizes: list[int], rule: str, extra: int, seed: int) -> None:
    base = ladder(sizes, names=[f"r{size % 4}" for size in sizes])
    problem = Problem(base.space, (Budget("size", "bytes", base.budgets[0].limit + extra),), "planted", (300,) * 9)
    searcher = Evolve(
        problem,
        random.Random(seed),
        mode="parity",
        group_rule=rule,
        generations=3,
        offspring=5,
        rungs=((2, 100), (1, 200)),
        initial=(4, 50),
    )
    rng = random.Random(seed)
    history = follow(searcher, measure_with(lambda profile: random.Random(f"{seed}{profile.digest}").random(), problem.space))
    for ask, _ in history:
        for profile in (*ask.profiles, searcher.incumbent):
            assert problem.budgets[0].allows(problem.space.cost(profile))
            assert all(level.method == "gptq" for _, level in profile), "the dense level is no rung"
    rules = rules_of(ledger_of(problem), group_rule=rule)
    start = problem.space.genotype(searcher.incumbent)
    for _ in range(20):
        child = mutant(ledger_of(problem), start, rules, rng)
        if child is not None and rule == "size":
            for size in set(sizes):
                group = [gene for gene, own in enumerate(sizes) if own == size]
                assert sum(start[gene] for gene in group) == sum(child[gene] for gene in group), "cost inside a group is preserved"


def test_sparsity_pairs_keep_the_total_and_stay_in_their_box() -> None:
    problem = ladder((8,) * 12, rungs=9, target=4)
    ledger = ledger_of(problem)
    rules = rules_of(ledger, "sparsity", max_level=2, max_total_deviation=6)
    rng, origin = random.Random(1), [4] * 12
    parent, seen = (4,) * 12, 0
    for _ in range(400):
        child = mutant(ledger, parent, rules, rng, origin)
        if child is None:
            continue
        seen = max(seen, sum(abs(level - 4) for level in child))
        assert sum(child) == 48
        assert all(abs(level - 4) <= 2 for level in child)
        assert sum(abs(level - 4) for level in child) <= 6
        parent = child
    assert seen == 6


def test_sparsity_pairs_cross_sizes() -> None:
    base = ladder((8, 8), rungs=9, target=4)
    rules = rules_of(ledger_of(base), "sparsity")
    assert rules.groups == ((0, 1),)
    assert rules_of(ledger_of(ladder((4, 8, 4, 8))), "sparsity").groups == ((0, 1, 2, 3),)


def test_depth_swaps_flip_a_fair_coin_between_the_masks() -> None:
    problem = masks(10, 3, ("attention", "mlp"))
    ledger = ledger_of(problem)
    rules = rules_of(ledger)
    rng = random.Random(8)
    start = parity.starts(ledger, rules, rng, 1)[0]
    counts: Counter[str] = Counter()
    for _ in range(1000):
        child = swap_masks(start, ledger, rules, rng, 1)
        assert child is not None
        profile = problem.space.profile(child)
        changed = [name for name, level in profile if level != problem.space.profile(start)[name] and "." not in name]
        counts[changed[0].rstrip("0123456789")] += 1
        assert len(changed) == 2
        for kind in ("attention", "mlp"):
            assert sum(profile[f"{kind}{place}"] == DROP for place in range(10)) == 3
    assert abs(counts["mlp"] - 500) < 4 * sqrt(250)


def test_whole_blocks_are_dropped_only_where_nothing_else_can_be() -> None:
    both = planted_problem(planted_space(4, ("drop",), ("attention", "mlp", "block")), share=0.6)
    kinds = rules_of(ledger_of(both)).kinds
    assert [{both.space.sites[both.space.genes[gene][0]].kind for gene in kind} for kind in kinds] == [{"attention"}, {"mlp"}]
    blocks = planted_problem(planted_space(4, ("drop",), ("block",)), share=0.6)
    (kind,) = rules_of(ledger_of(blocks)).kinds
    assert {blocks.space.sites[gene].kind for gene in kind} == {"block"}


def test_mixed_kinds_and_methods_are_usage_errors() -> None:
    mixed = planted_problem(planted_space(2, ("gptq", "drop")))
    with pytest.raises(UsageError, match="one kind of compression"):
        rules_of(ledger_of(mixed))
    assert rules_of(ledger_of(mixed), "quant").variant == "quant"
    depth = rules_of(ledger_of(mixed), "depth")
    assert all(len(rungs) == 1 for rungs in depth.ladders.values())
    with pytest.raises(UsageError, match="levels of one method"):
        rules_of(ledger_of(planted_problem(planted_space(2, ("gptq", "sparsegpt")))))
    with pytest.raises(UsageError, match="Unknown variant"):
        rules_of(ledger_of(mixed), "width")


def test_an_integer_target_starts_at_uniform_without_measuring_it() -> None:
    problem = ladder((4,) * 8)
    searcher = Evolve(problem, random.Random(0), mode="parity", rungs=((1, 100),))
    assert problem.space.genotype(searcher.incumbent) == (2,) * 8
    ask = searcher.ask()
    assert ask is not None
    assert ask.generation == 1


def test_a_fractional_target_starts_from_a_selection_of_random_profiles() -> None:
    base = ladder((4,) * 8)
    problem = Problem(base.space, (Budget("size", "bytes", base.budgets[0].limit + 14),), "planted", (500,) * 9)
    searcher = Evolve(problem, random.Random(0), mode="parity", rungs=((1, 100),), initial=(20, 300))
    ask = searcher.ask()
    assert ask is not None
    assert (ask.generation, ask.slice.tokens) == (0, 300)
    assert len(ask.profiles) > 10
    for profile in ask.profiles:
        genotype = problem.space.genotype(profile)
        assert max(genotype) == 3, "from the ceiling of the target, layers are lowered"
        assert sum(genotype) == 8 * 3 - 5, "one rung at a time, until the budget holds and no further"


# --- theory ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("length", "dropped"), [(8, 2), (10, 4), (12, 6)])
def test_generations_on_linear_fitness_follow_the_exact_markov_chain(length: int, dropped: int) -> None:
    """λ=1, one switch: from j wrong removals a swap improves with p = (j/k)·(j/(n−k)), so the expected generations are Σ 1/p_j.

    That is k(n−k)·Σ 1/j², between k(n−k) and 1.65·k(n−k): the k(n−k)/λ of the theorem.
    """
    problem = masks(length, dropped)
    wrong = {f"mlp{place}" for place in range(dropped, length)}

    def function(profile: Any) -> float:
        return 5.0 + sum(profile[name] == DROP for name in wrong)

    measure = measure_with(function, problem.space)
    total, expected, variance = 0, Fraction(0), Fraction(0)
    for seed in range(40):
        searcher = Evolve(
            problem, random.Random(seed), mode="parity", offspring=1, max_mutations=1, rungs=((1, 50),), initial=(1, 50), generations=10**6
        )
        distance = int(function(searcher.incumbent)) - 5
        for j in range(1, distance + 1):
            p = Fraction(j * j, dropped * (length - dropped))
            expected += 1 / p
            variance += (1 - p) / p**2
        while function(searcher.incumbent) > 5:
            ask = searcher.ask()
            assert ask is not None
            searcher.tell(measure(ask))
            total += 1
    assert abs(total - float(expected)) < 3.5 * sqrt(float(variance))


# --- bugs of the published code ----------------------------------------------------------------------------------------------------------


def test_b6_more_tokens_than_the_pool_holds_is_an_error() -> None:
    problem = Problem(ladder((4,) * 4).space, ladder((4,) * 4).budgets, "planted", (100, 100))
    with pytest.raises(UsageError, match=r"131,072 tokens a stage, but the search set holds 200"):
        Evolve(problem, random.Random(0), mode="parity", **PARITY["quant"])


@pytest.mark.parametrize("target", [0, 4])
def test_b6_no_legal_move_ends_the_search(target: int) -> None:
    """At the bottom or the top of the ladder nothing can go down, or nothing can go up."""
    for variant in ("quant", "sparsity"):
        searcher = Evolve(ladder((4,) * 6, target=target), random.Random(0), mode="parity", variant=variant, rungs=((1, 100),))
        assert follow(searcher, measure_with(flat, searcher.problem.space)) == []


def test_b6_fewer_distinct_mutants_than_offspring_do_not_loop() -> None:
    """Two layers have exactly two mutants one switch away, and λ is 16."""
    searcher = Evolve(ladder((4, 4)), random.Random(0), mode="parity", offspring=16, max_mutations=1, rungs=((1, 100),), generations=3)
    history = follow(searcher, measure_with(flat, searcher.problem.space))
    assert [len(ask.profiles) for ask, _ in history] == [3, 3, 3]


def test_b7_the_parent_joins_in_the_last_stage_only() -> None:
    """Published code adds it as soon as a stage keeps as many as the last one: `4 1 1` one stage early, `1 1` in both."""
    problem = ladder((4,) * 12)
    for rungs in (((4, 100), (1, 200), (1, 400)), ((1, 100), (1, 400))):
        searcher = Evolve(problem, random.Random(0), mode="parity", offspring=8, rungs=rungs, generations=3)
        start = searcher.incumbent
        history = follow(searcher, measure_with(lambda profile, start=start: 0.0 if profile == start else 1.0, problem.space))  # type: ignore[misc]
        for ask, _ in history:
            assert (start in ask.profiles) == (ask.stage == len(rungs) - 1)


def test_b7_with_the_superfast_schedule_a_child_reaches_the_last_stage() -> None:
    """Even where the parent would win the first stage by luck, a child is compared on the 8192 tokens."""
    problem = pooled(ladder((4,) * 12), 8192)
    searcher = Evolve(problem, random.Random(0), mode="parity", **{**PARITY["superfast"], "generations": 2})
    start = searcher.incumbent

    def measure(ask: Ask) -> list[Trial]:
        lucky = ask.slice.tokens == 512
        return measure_with(lambda profile: (0.0 if lucky else 2.0) if profile == start else 1.0, problem.space)(ask)

    history = follow(searcher, measure)
    assert [len(ask.profiles) for ask, _ in history[:2]] == [16, 2]
    assert searcher.incumbent != start


def test_b10_copies_of_the_parent_are_no_offspring() -> None:
    for problem in (ladder((4,) * 3), masks(4, 2)):
        searcher = Evolve(problem, random.Random(0), mode="parity", offspring=8, rungs=((2, 100), (1, 200)), generations=6, initial=(2, 50))
        measure = measure_with(flat, problem.space)
        while (ask := searcher.ask()) is not None:
            if ask.generation and ask.stage == 0:
                assert searcher.incumbent not in ask.profiles
                assert len(set(ask.profiles)) == len(ask.profiles)
            searcher.tell(measure(ask))


def test_b11_at_an_exact_budget_switches_are_possible() -> None:
    """A pair is judged as a pair: the up step need not fit before its down step, so the search leaves uniform."""
    problem = ladder((4,) * 8 + (16,) * 4)
    assert ledger_of(problem).spent((2,) * 12) == (problem.budgets[0].limit,)
    searcher = Evolve(problem, random.Random(0), mode="parity", offspring=8, rungs=((1, 100),), generations=5)
    start = searcher.incumbent
    follow(searcher, measure_with(lambda profile: 1.0 if profile == start else 0.5, problem.space))
    assert searcher.incumbent != start
    assert problem.space.cost(searcher.incumbent).bytes == problem.budgets[0].limit


def test_the_none_rule_limits_changes_and_waste() -> None:
    sizes = (2,) * 4 + (50,) * 4
    base = ladder(sizes)
    ledger = ledger_of(base)
    rules = rules_of(ledger, group_rule="none")
    assert not rules.paired
    rng, parent, accepted = random.Random(0), (2,) * 8, 0
    for _ in range(800):
        child = mutant(ledger, parent, rules, rng)
        if child is None:
            continue
        accepted += 1
        ups = sum(size * (b - a) for size, a, b in zip(sizes, parent, child, strict=True) if b > a)
        downs = sum(size * (a - b) for size, a, b in zip(sizes, parent, child, strict=True) if b < a)
        assert sum(abs(a - b) for a, b in zip(parent, child, strict=True)) <= 10
        assert downs >= ups, "the budget holds"
        if not downs == ups == 0 and ups > 100:
            assert ups >= 0.5 * downs, "little is wasted (a gene may go up and down again, so the net figure is looser than 0.8)"
    assert accepted > 50
