"""The surrogate: offsets, weights, interactions, uncertainty, ranks of unseen profiles; and a screened search against a blind one."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from scipy.stats import kendalltau

from evopress.api import Budget, Genotype, KnownTrial, Problem, UsageError
from evopress.search.evolve import Evolve
from evopress.search.knapsack import error_of
from evopress.search.ledger import Ledger, ledger_of
from evopress.search.moves import mutate, random_profile
from evopress.search.predictor import Predictor
from evopress.search.probes import drop_level
from evopress.search.starts import known_starts
from evopress.search.surrogate import NEAR, Surrogate
from evopress.testing.searchers import Planted, conformance_problems, follow, measure_with, planted_function, planted_problem, planted_space

SMALL: dict[str, Any] = {"tokens": 700, "looks": ((2, 700), (1, 4200))}


def planted(seed: int, methods: tuple[str, ...] = ("gptq",), interaction: float = 1.0) -> tuple[Problem, Ledger, Planted]:
    space = planted_space(6, methods)
    problem = planted_problem(space, share=0.35, seed=seed)
    return problem, ledger_of(problem), planted_function(space, seed, interaction)


def around(ledger: Ledger, start: Genotype, count: int, seed: int) -> list[Genotype]:
    """Profiles as a search meets them: some mutants of a start, near and far."""
    rng = random.Random(seed)
    return [mutate(ledger, start, rng, rng.randint(1, 12)) for _ in range(count)]


@pytest.mark.parametrize("methods", [("gptq",), ("gptq", "drop")])
@pytest.mark.parametrize("seed", range(3))
def test_200_trials_rank_unseen_profiles_better_than_the_sum_of_layer_errors(seed: int, methods: tuple[str, ...]) -> None:
    problem, ledger, function = planted(seed, methods)
    start = known_starts(problem, ledger)[0]
    drawn = around(ledger, start, 300, seed)
    true = [function(problem.space.profile(genotype)) for genotype in drawn]
    noise = np.random.default_rng(seed).normal(0, 0.02, size=200)
    surrogate = Surrogate(ledger, problem.errors)
    surrogate.fit(drawn[:200], [value + wobble for value, wobble in zip(true[:200], noise.tolist(), strict=True)])
    told, _ = surrogate.predict(drawn[200:])
    learnt = kendalltau(told, true[200:]).statistic
    summed = kendalltau([error_of(ledger, genotype) for genotype in drawn[200:]], true[200:]).statistic
    assert learnt > summed + 0.1
    assert learnt > 0.7


def test_layer_errors_help_while_trials_are_few() -> None:
    """Where the loss of a site is some multiple of its layer error, 20 trials say more with the errors than without."""
    gains = []
    for seed in range(4):
        problem, ledger, _ = planted(seed)
        rng = random.Random(seed)
        factors = [rng.uniform(0.3, 1.7) for _ in problem.space.sites]
        drawn = around(ledger, known_starts(problem, ledger)[0], 120, seed)
        true = [
            sum(factor * row[level] for factor, row, level in zip(factors, problem.errors, problem.space.spread(genotype), strict=True))
            for genotype in drawn
        ]
        ranks = []
        for errors in (problem.errors, ()):
            surrogate = Surrogate(ledger, errors)
            surrogate.fit(drawn[:20], true[:20])
            ranks.append(kendalltau(surrogate.predict(drawn[20:])[0], true[20:]).statistic)
        gains.append(ranks[0] - ranks[1])
    assert min(gains) > 0.1


def test_runs_of_drops_are_counted() -> None:
    """Of one kind at depths in a row, of two kinds at one depth; not what stands apart."""
    space = planted_space(6, ("drop",), ("attention", "mlp"))
    ledger = ledger_of(planted_problem(space, (Budget("params", "params", space.dearest.params),)))
    names = [space.sites[sites[0]].name for sites in space.genes]
    top = [ledger.top(gene) for gene in range(len(space.genes))]

    def runs(*gone: str) -> list[float]:
        genotype = [drop_level(ledger, gene) if name in gone else level for gene, (name, level) in enumerate(zip(names, top, strict=True))]
        groups = Surrogate(ledger).features([tuple(genotype)])
        depth = {name: space.sites[sites[0]].depth for name, sites in zip(names, space.genes, strict=True)}
        kind = {name: space.sites[sites[0]].kind for name, sites in zip(names, space.genes, strict=True)}
        pairs = [(a, b) for a, b in combinations(gone, 2) if abs(depth[a] - depth[b]) == (kind[a] == kind[b])]
        blended = sum((np.exp(-((((depth[a] + depth[b]) / 2 - np.arange(6)) / NEAR) ** 2) / 2) for a, b in pairs), np.zeros(6))
        assert groups["beside"].reshape(3, 6).sum(axis=0) == pytest.approx(blended)
        return sorted(groups["runs"][0].tolist())

    attention, mlp = ([site.name for site in space.sites if site.kind == kind] for kind in ("attention", "mlp"))
    assert runs() == [0, 0, 0]
    assert runs(attention[0], attention[2], mlp[4]) == [0, 0, 0]
    assert runs(attention[0], attention[1], attention[2]) == [0, 0, 2]
    assert runs(attention[0], attention[1], mlp[1], mlp[2]) == [1, 1, 1]


@pytest.mark.parametrize("name", sorted(conformance_problems()))
def test_features_are_sums_over_the_sites_that_run(name: str) -> None:
    problem, rng = conformance_problems()[name], random.Random(0)
    ledger, space = ledger_of(problem), problem.space
    drawn = [random_profile(ledger, rng) for _ in range(10)]
    groups = Surrogate(ledger, problem.errors).features(drawn)
    total, roles, near, own, ones = (groups[name] for name in ("total", "roles", "near", "sums", "ones"))
    assert total[:, 0] == pytest.approx([error_of(ledger, genotype) for genotype in drawn])
    assert roles.sum(axis=1) == pytest.approx(total[:, 0])
    depths = 1 + max(site.depth for site in space.sites)
    kinds = list(dict.fromkeys(site.role if site.kind == "linear" else site.kind for site in space.sites))
    assert near.shape == (10, len(kinds) * depths)
    for row, genotype in enumerate(drawn):
        levels = space.spread(genotype)
        hidden = space.shadowed(levels)
        blended = np.zeros((len(kinds), depths))
        for number, site in enumerate(space.sites):
            harm = 0.0 if hidden[number] else problem.errors[number][levels[number]] + ledger.is_drop[number][levels[number]]
            role = kinds.index(site.role if site.kind == "linear" else site.kind)
            blended[role] += harm * np.exp(-(((site.depth - np.arange(depths)) / NEAR) ** 2) / 2)
        assert near[row] == pytest.approx(blended.ravel())
        first = 0
        for gene, sites in enumerate(space.genes):
            running = [site for site in sites if not hidden[site]]
            assert own[row, gene] == pytest.approx(sum(problem.errors[site][genotype[gene]] for site in running))
            count = len(space.choices(gene))
            wanted = [len(running) / len(sites) if level == genotype[gene] else 0.0 for level in range(count)]
            assert ones[row, first : first + count] == pytest.approx(wanted)
            first += count


def test_offsets_of_slices_and_noisy_trials_do_not_mislead() -> None:
    problem, ledger, function = planted(1)
    drawn = around(ledger, known_starts(problem, ledger)[0], 220, 1)
    true = [function(problem.space.profile(genotype)) for genotype in drawn]
    rng = random.Random(0)
    slices = [str(at // 8) for at in range(160)]
    shifts = {label: rng.gauss(0, 5) for label in slices}
    weights = [100.0 if at % 2 else 1.0 for at in range(160)]
    values = [true[at] + shifts[slices[at]] + rng.gauss(0, 0.3 / weights[at] ** 0.5) for at in range(160)]
    ranks = {}
    for name, told in {"all": (weights, slices), "no weights": ((), slices), "no slices": (weights, ())}.items():
        surrogate = Surrogate(ledger, problem.errors)
        surrogate.fit(drawn[:160], values, *told)
        ranks[name] = kendalltau(surrogate.predict(drawn[160:])[0], true[160:]).statistic
    assert ranks["all"] > ranks["no weights"] > ranks["no slices"]
    assert ranks["all"] > 0.6


def test_interactions_learn_what_sums_cannot() -> None:
    ledger = ledger_of(planted_problem(planted_space(2, ("gptq",)), share=0.5))
    genes = ledger.movable[:4]
    rng = random.Random(0)
    drawn = [random_profile(ledger, rng) for _ in range(400)]
    true = [float((g[genes[0]] > 1) * (g[genes[1]] > 1) - (g[genes[2]] > 1) * (g[genes[3]] > 1)) for g in drawn]
    errors = {}
    for interactions in (True, False):
        surrogate = Surrogate(ledger, (), interactions)
        surrogate.fit(drawn[:300], true[:300])
        errors[interactions] = float(np.mean((surrogate.predict(drawn[300:])[0] - np.array(true[300:])) ** 2))
    assert errors[True] < 0.8 * errors[False]


def test_it_knows_what_it_was_told_and_is_less_sure_of_the_rest() -> None:
    problem, ledger, function = planted(2)
    surrogate = Surrogate(ledger, problem.errors)
    drawn = around(ledger, known_starts(problem, ledger)[0], 60, 2)
    mean, spread = surrogate.predict(drawn[:2])
    assert mean.tolist() == [0.0, 0.0]
    assert spread.tolist() == [1.0, 1.0]
    true = [function(problem.space.profile(genotype)) for genotype in drawn]
    surrogate.fit(drawn[:30], true[:30])
    mean, spread = surrogate.predict(drawn)
    assert mean[:30] == pytest.approx(true[:30], abs=0.05)
    assert spread[:30].mean() < 0.5 * spread[30:].mean()
    surrogate.fit(drawn[:1], [7.0])  # one trial, and one value for all, are no accident
    assert surrogate.predict(drawn[:1])[0][0] == pytest.approx(7.0, abs=0.01)
    surrogate.fit(drawn[:5], [3.0] * 5)
    assert surrogate.predict(drawn[:5])[0] == pytest.approx([3.0] * 5, abs=0.01)


def evaluations_to(searcher: Predictor | Evolve, function: Planted, target: float, limit: int) -> int:
    """Evaluations until the incumbent's true value is at the target; the limit where it never is."""
    measure, spent = measure_with(function, searcher.problem.space, 0.01), 0
    while (ask := searcher.ask()) is not None and spent < limit:
        searcher.tell(measure(ask))
        spent += len(ask.profiles)
        if function(searcher.incumbent) <= target:
            return spent
    return limit


def test_screened_search_needs_fewer_evaluations_than_blind_evolution() -> None:
    screened, blind = [], []
    for seed in range(4):
        problem, _, function = planted(seed, interaction=0.5)
        best = Evolve(problem, random.Random(99), generations=60, rungs=((1, 700),))
        follow(best, measure_with(function, problem.space))
        starts = known_starts(problem, ledger_of(problem))
        start = min(function(problem.space.profile(genotype)) for genotype in starts)
        target = start + 0.8 * (function(best.incumbent) - start)
        screened.append(evaluations_to(Predictor(problem, random.Random(seed), **SMALL), function, target, 900))
        blind.append(evaluations_to(Evolve(problem, random.Random(seed), rungs=((2, 700), (1, 4200))), function, target, 900))
    assert np.mean(screened) < 0.7 * np.mean(blind), (screened, blind)


def test_trials_of_an_earlier_search_save_evaluations() -> None:
    """What a search under a wider budget measured is learnt from, though all of it may be beyond this budget."""
    told, untold = [], []
    for seed in range(4):
        problem, _, function = planted(seed, interaction=0.5)
        space = problem.space
        wide = planted_problem(space, share=0.6, seed=seed)
        history = follow(Predictor(wide, random.Random(99), rounds=12, **SMALL), measure_with(function, space, 0.01))
        trials = tuple(
            KnownTrial(space.genotype(trial.profile), trial.fitness, float(sum(trial.weights)), f"wide {ask.slice.digest}")
            for ask, answer in reversed(history)
            for trial in answer
        )
        best = Evolve(problem, random.Random(99), generations=60, rungs=((1, 700),))
        follow(best, measure_with(function, space))
        start = min(function(space.profile(genotype)) for genotype in known_starts(problem, ledger_of(problem)))
        target = start + 0.8 * (function(best.incumbent) - start)
        told.append(evaluations_to(Predictor(replace(problem, known_trials=trials), random.Random(seed), **SMALL), function, target, 900))
        untold.append(evaluations_to(Predictor(problem, random.Random(seed), **SMALL), function, target, 900))
    assert np.mean(told) < 0.8 * np.mean(untold), (told, untold)


@pytest.mark.parametrize("methods", [("gptq",), ("gptq", "drop")])
def test_it_beats_the_simple_answers(methods: tuple[str, ...]) -> None:
    gains = []
    for seed in range(2):
        problem, _, function = planted(seed, methods)
        searcher = Predictor(problem, random.Random(seed), rounds=8, **SMALL)
        simple = min(function(problem.space.profile(start)) for start in searcher._champion.starts)
        follow(searcher, measure_with(function, problem.space))
        gains.append(simple - function(searcher.incumbent))
    assert min(gains) >= 0
    assert sum(gains) > 0


def test_it_says_what_is_wrong_with_its_options() -> None:
    problem = planted_problem()
    for options, message in (
        ({"batch": 0}, "Option batch=0 is not an integer"),
        ({"explore": 1.0}, "Option explore=1.0 is not a share"),
        ({"virtual": 2.5}, "Option virtual=2.5 is not an integer"),
        ({"tokens": 10**9}, "predictor asks for 1,000,000,000 tokens"),
    ):
        with pytest.raises(UsageError, match=message):
            Predictor(problem, random.Random(0), **options)  # type: ignore[arg-type]
