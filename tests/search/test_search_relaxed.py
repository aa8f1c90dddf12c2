"""relaxed: the gradient on mixing weights against differences of a planted quadratic, and what the search on planted losses finds."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from evopress.api import DROP, Problem, UsageError
from evopress.search.baselines import uniform_genotype
from evopress.search.knapsack import solve
from evopress.search.ledger import Draft, Ledger, ledger_of
from evopress.search.relaxed import Relaxed, mixing_gradient, step_size
from evopress.testing.searchers import Planted, follow, measure_with, planted_function, planted_problem, planted_space

SMALL: dict[str, Any] = {"tokens": 700, "looks": ((2, 700), (1, 4200))}


def test_the_gradient_is_that_of_a_quadratic_in_mixed_weights() -> None:
    """L(W) = ½ (W - W_dense)ᵀ A (W - W_dense), levels W_dense + t_l U, and p a mixture: differences in p, up to a constant of the site."""
    problem = planted_problem(planted_space(2, ("gptq",)), seed=4)
    space, ledger = problem.space, ledger_of(problem)
    generator = np.random.default_rng(0)
    linear = [at for at, site in enumerate(space.sites) if site.kind == "linear"]
    size = 3  # weights a site; A couples all sites
    root = generator.normal(size=(size * len(linear), size * len(linear)))
    curvature = root @ root.T
    direction = generator.normal(size=(len(linear), size))
    distances = [np.sqrt(np.array(problem.errors[at])) for at in linear]

    def loss(mixtures: list[Any]) -> float:
        error = np.concatenate([float(p @ t) * u for p, t, u in zip(mixtures, distances, direction, strict=True)])
        return 0.5 * float(error @ curvature @ error)

    rng = random.Random(0)
    genotype = tuple(rng.randrange(len(space.choices(gene)) - 1) if len(space.choices(gene)) > 1 else 0 for gene in range(len(space.genes)))
    picks = Draft(ledger, genotype).picks
    hard = [np.eye(len(problem.errors[at]))[picks[at]] for at in linear]
    error = np.concatenate([t[picks[at]] * u for at, t, u in zip(linear, distances, direction, strict=True)])
    weights = (curvature @ error).reshape(len(linear), size)  # ∂L/∂W
    slopes = [0.0] * len(space.sites)
    for place, at in enumerate(linear):
        slopes[at] = float(weights[place] @ -(distances[place][picks[at]] * direction[place]))  # <∂L/∂W, W_dense - W_now>
    found = mixing_gradient(ledger, problem.errors, genotype, slopes)
    gene_of = {sites[0]: gene for gene, sites in enumerate(space.genes)}
    for place, at in enumerate(linear):
        wanted = []
        for level in range(len(hard[place])):
            up, down = ([own.copy() for own in hard] for _ in range(2))
            up[place][level] += 1e-4
            down[place][level] -= 1e-4
            wanted.append((loss(up) - loss(down)) / 2e-4)
        got = found[gene_of[at]]
        assert got - got.mean() == pytest.approx(np.array(wanted) - np.mean(wanted), rel=1e-6, abs=1e-9)


def test_a_drop_has_its_slope_and_what_does_not_run_has_none() -> None:
    problem = planted_problem(planted_space(2, ("gptq", "drop")), share=0.3)
    space, ledger = problem.space, ledger_of(problem)
    gene = ledger.containers[0]
    site = space.genes[gene][0]
    kept = [0] * len(space.genes)
    for container in ledger.containers:
        kept[container] = ledger.top(container)
    slopes = [float(at + 1) for at in range(len(space.sites))]
    found = mixing_gradient(ledger, problem.errors, tuple(kept), slopes)
    drop = space.levels[site].index(DROP)
    assert found[gene][drop] == slopes[site]
    assert np.delete(found[gene], drop).tolist() == [0.0] * (len(found[gene]) - 1)
    gone = list(kept)
    gone[gene] = drop
    dark = mixing_gradient(ledger, problem.errors, tuple(gone), [0.0 if at == site else value for at, value in enumerate(slopes)])
    below = [own for own, sites in enumerate(space.genes) if sites[0] in ledger.below[site]]
    assert below
    assert not any(dark[own].any() for own in [gene, *below])
    assert step_size([np.zeros(3)]) == 0.0
    assert step_size([np.array([0.0, 3.0]), np.array([1.0, 1.0, 5.0]), np.zeros(2)]) == pytest.approx(2.5)


def parabolic(problem: Problem, seed: int) -> tuple[Planted, list[list[float]]]:
    """The sum of k·ρ/2 over sites with factors nobody was told, and the table of its terms."""
    rng = random.Random(seed)
    terms = [
        [0.5 * (rng_factor if site.kind == "linear" else 0.0) * error for error in errors]
        for site, errors, rng_factor in zip(
            problem.space.sites, problem.errors, [rng.uniform(0, 1) ** 3 for _ in problem.errors], strict=True
        )
    ]
    known = {site.name: (levels, row) for site, levels, row in zip(problem.space.sites, problem.space.levels, terms, strict=True)}

    def function(profile: Any) -> float:
        return sum(known[name][1][known[name][0].index(level)] for name, level in profile if level in known[name][0])

    return function, terms


@pytest.mark.parametrize("seed", range(3))
def test_on_a_quadratic_it_closes_most_of_the_gap_between_the_best_start_and_the_optimum(seed: int) -> None:
    problem = planted_problem(planted_space(8, ("gptq",)), share=0.2, seed=seed)
    function, terms = parabolic(problem, seed)
    optimum = function(problem.space.profile(solve(Ledger(problem.space, problem.budgets, terms)).genotype))
    searcher = Relaxed(problem, random.Random(seed), rounds=40, **SMALL)
    start = min(function(problem.space.profile(genotype)) for genotype in searcher._champion.starts)
    follow(searcher, measure_with(function, problem.space, noise=0.001))
    assert function(searcher.incumbent) - optimum < 0.25 * (start - optimum)


@pytest.mark.parametrize("methods", [("gptq",), ("gptq", "drop"), ("drop",)])
def test_interactions_never_leave_it_worse_than_the_simple_answers(methods: tuple[str, ...]) -> None:
    gains = []
    for seed in range(3):
        space = planted_space(4, methods)
        problem = planted_problem(space, share=0.45, seed=seed)
        function = planted_function(space, seed, interaction=1.0)
        searcher = Relaxed(problem, random.Random(seed), rounds=24, **SMALL)
        simple = min(function(space.profile(start)) for start in searcher._champion.starts)
        follow(searcher, measure_with(function, space))
        gains.append(simple - function(searcher.incumbent))
    assert min(gains) >= -1e-12
    assert sum(gains) > 0 or methods == ("drop",)


def test_it_says_what_is_wrong_with_its_options() -> None:
    problem = planted_problem()
    for options, message in (
        ({"rate": -1.0}, "Option rate=-1.0 is not a number above 0"),
        ({"every": 0}, "Option every=0 is not an integer"),
        ({"temperature": -0.5}, "Option temperature=-0.5 is not a number above 0"),
        ({"tokens": 10**9}, "relaxed asks for 1,000,000,000 tokens"),
    ):
        with pytest.raises(UsageError, match=message):
            Relaxed(problem, random.Random(0), **options)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="relaxed needs layer errors"):
        Relaxed(planted_problem(errors=False), random.Random(0))
    assert uniform_genotype(problem, ledger_of(problem)) in Relaxed(problem, random.Random(0))._champion.starts
