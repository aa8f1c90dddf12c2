"""reinforce and the policies it shares with relaxed: probabilities, exact likeliest profiles, the gradient, and planted optima."""

from __future__ import annotations

import random
from itertools import product
from math import log
from typing import Any

import numpy as np
import pytest
from planted import random_tree

from evopress.api import UsageError
from evopress.search.ledger import ledger_of
from evopress.search.policies import around, likeliest, sample, softmax
from evopress.search.reinforce import Reinforce, advantages, update
from evopress.testing.searchers import follow, measure_with, planted_function, planted_problem, planted_space

SMALL: dict[str, Any] = {"tokens": 700, "looks": ((2, 700), (1, 4200))}


def test_first_samples_leave_the_start_as_often_as_asked_and_mostly_for_neighbours() -> None:
    problem = planted_problem(planted_space(6, ("gptq",)))
    ledger = ledger_of(problem)
    start = ledger.floor
    logits = around(ledger, start, 4.0)
    leaving = [1 - softmax(logits[gene])[start[gene]] for gene in ledger.movable]
    assert sum(leaving) == pytest.approx(4.0)
    for gene in ledger.movable:
        shares = softmax(logits[gene])
        order = sorted(range(len(shares)), key=lambda level: ledger.weight[gene][level])  # the floor is the cheapest of them
        assert [shares[level] for level in order[1:]] == pytest.approx([shares[order[1]] / 2**step for step in range(len(order) - 1)])
    assert all(softmax(own).argmax() == level for own, level in zip(around(ledger, start, 10**6), start, strict=True))


@pytest.mark.parametrize("seed", range(30))
def test_the_likeliest_profile_is_the_best_of_all(seed: int) -> None:
    rng = random.Random(seed)
    problem = random_tree(rng, blocks=1)
    ledger = ledger_of(problem, errors=False)
    space = problem.space
    logits = [np.array([rng.gauss(0, 1) for _ in space.choices(gene)]) for gene in range(len(space.genes))]

    def lost(genotype: tuple[int, ...]) -> float:
        """What the wishes that count lose; a gene counts where its first site runs."""
        hidden = space.shadowed(space.spread(genotype))
        return sum(
            float(own.max() - own[level]) for sites, own, level in zip(space.genes, logits, genotype, strict=True) if not hidden[sites[0]]
        )

    every = product(*[range(len(space.choices(gene))) for gene in range(len(space.genes))])
    found = likeliest(ledger, logits)
    assert ledger.fits(found)
    assert lost(found) == pytest.approx(min(lost(genotype) for genotype in every if ledger.fits(genotype)))


def test_perturbed_maxima_without_a_binding_budget_are_samples() -> None:
    problem = planted_problem(planted_space(1, ("gptq",)), share=1.0)
    ledger = ledger_of(problem, errors=False)
    rng = random.Random(0)
    logits = [np.array([rng.gauss(0, 1) for _ in problem.space.choices(gene)]) for gene in range(len(problem.space.genes))]
    drawn = [likeliest(ledger, logits, rng) for _ in range(800)]
    for gene in ledger.movable:
        seen = np.bincount([genotype[gene] for genotype in drawn], minlength=len(logits[gene])) / len(drawn)
        assert seen == pytest.approx(softmax(logits[gene]), abs=0.06)


def test_samples_fit_and_follow_the_policy() -> None:
    problem = planted_problem(planted_space(4, ("gptq", "drop")), share=0.3)
    ledger = ledger_of(problem)
    rng = random.Random(1)
    searcher = Reinforce(problem, rng, **SMALL)
    start = searcher._champion.best
    near, far = (
        [sum(a != b for a, b in zip(sample(ledger, around(ledger, start, changes), rng), start, strict=True)) for _ in range(100)]
        for changes in (0.5, 8.0)
    )
    assert sum(near) < sum(far) / 2
    assert all(ledger.fits(sample(ledger, around(ledger, start, 8.0), rng)) for _ in range(50))


def test_an_update_is_a_step_up_the_gradient_of_the_expected_advantage() -> None:
    """Against central differences of mean(A · log p(sample)) + w · H."""
    rng = random.Random(0)
    sizes, weight = (3, 2, 4), 0.3
    logits = [np.array([rng.gauss(0, 1) for _ in range(size)]) for size in sizes]
    samples = [tuple(rng.randrange(size) for size in sizes) for _ in range(5)]
    advantage = advantages([rng.gauss(0, 1) for _ in samples])
    assert advantage.mean() == pytest.approx(0)
    assert advantage.std() == pytest.approx(1)

    def objective(policy: list[Any]) -> float:
        shares = [softmax(own) for own in policy]
        told = [sum(log(own[level]) for own, level in zip(shares, genotype, strict=True)) for genotype in samples]
        bonus = sum(-float(own @ np.log(own)) for own in shares)
        return float(np.mean(advantage * np.array(told))) + weight * bonus

    moved = [own.copy() for own in logits]
    update(moved, samples, advantage, 1.0, weight)
    for gene, size in enumerate(sizes):
        for level in range(size):
            up, down = ([own.copy() for own in logits] for _ in range(2))
            up[gene][level] += 1e-5
            down[gene][level] -= 1e-5
            assert moved[gene][level] - logits[gene][level] == pytest.approx((objective(up) - objective(down)) / 2e-5, abs=1e-7)


def test_equal_values_move_nothing() -> None:
    assert advantages([2.0, 2.0, 2.0]).tolist() == [0.0, 0.0, 0.0]
    assert advantages([1.0, 3.0]).tolist() == [1.0, -1.0]


@pytest.mark.parametrize("methods", [("gptq",), ("gptq", "drop")])
def test_it_beats_the_simple_answers(methods: tuple[str, ...]) -> None:
    gains = []
    for seed in range(3):
        space = planted_space(4, methods)
        problem = planted_problem(space, share=0.35, seed=seed)
        function = planted_function(space, seed, interaction=1.0)
        searcher = Reinforce(problem, random.Random(seed), rounds=60, **SMALL)
        simple = min(function(space.profile(start)) for start in searcher._champion.starts)
        follow(searcher, measure_with(function, space))
        gains.append(simple - function(searcher.incumbent))
    assert min(gains) >= 0
    assert sum(gains) > 0


def test_it_says_what_is_wrong_with_its_options() -> None:
    problem = planted_problem()
    for options, message in (
        ({"batch": 1}, "Option batch=1 is not an integer of at least 2"),
        ({"rate": 0}, "Option rate=0 is not a number above 0"),
        ({"entropy": -0.1}, "Option entropy=-0.1 is not a number above 0"),
        ({"tokens": 10**9}, "reinforce asks for 1,000,000,000 tokens"),
    ):
        with pytest.raises(UsageError, match=message):
            Reinforce(problem, random.Random(0), **options)  # type: ignore[arg-type]
