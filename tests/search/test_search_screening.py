"""Screening: what it proposes from the trials it saw, in spaces where nothing adds up."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest

from evopress.api import DROP, Ask, Problem, Profile, Slice
from evopress.search.baselines import uniform_genotype
from evopress.search.ledger import Draft, Ledger, ledger_of
from evopress.search.moves import is_dropped, mutate
from evopress.search.screening import REST, Screening
from evopress.search.surrogate import Surrogate
from evopress.testing.searchers import Planted, budget_between, measure_with, planted_problem, planted_space


def drops(seed: int) -> tuple[Problem, Ledger, Planted]:
    """Twelve blocks of which some sublayers must go; what a drop costs is multiplied by every other drop of the same block."""
    space = planted_space(12, ("drop",), ("attention", "mlp"))
    problem = planted_problem(space, (budget_between(space, "params", 0.7),), seed=seed)
    rng = random.Random(seed)
    factors = {site.name: rng.uniform(1.05, 1.6) for site in space.sites}

    def function(profile: Profile) -> float:
        value = 0.05
        gone = [name for name, level in profile if level == DROP]
        for name in gone:
            value *= factors[name]
        return value * 1.5 ** sum(a < b and a.split(".")[1] == b.split(".")[1] for a in gone for b in gone)

    return problem, ledger_of(problem), function


def shown(seed: int, trials: int) -> tuple[Screening, Problem, Ledger, Planted, tuple[int, ...]]:
    """A screening that saw random profiles on slices of different difficulty, and the last incumbent among them."""
    problem, ledger, function = drops(seed)
    rng = random.Random(seed)
    screening = Screening(problem, ledger, random.Random(seed))
    best = uniform_genotype(problem, ledger)
    for number in range(trials // 8):
        mutants = {problem.space.profile(mutate(ledger, best, rng, 3)): None for _ in range(7)}
        profiles = tuple(dict.fromkeys((problem.space.profile(best), *mutants)))
        ask = Ask(profiles, Slice("planted", ((number, 700),)))
        hard = rng.uniform(0.5, 2)
        screening.see(ask, measure_with(lambda profile, hard=hard: hard * function(profile), problem.space)(ask))
    screening.learn(best)
    return screening, problem, ledger, function, best


@pytest.mark.parametrize("seed", range(5))
def test_what_it_proposes_is_far_better_than_what_it_was_drawn_from(seed: int) -> None:
    screening, problem, ledger, function, best = shown(seed, 160)
    drawn = (function(problem.space.profile(genotype)) for genotype in screening.candidates(best, 4))
    chosen = sorted(drawn)[:3]  # one of four is drawn blindly
    rng = random.Random(99)
    blind = sorted(function(problem.space.profile(mutate(ledger, best, rng, 2))) for _ in range(200))
    assert sum(chosen) / len(chosen) < blind[len(blind) // 5], "worse than the best fifth of what was drawn"


def test_candidates_fit_are_distinct_and_leave_out_what_was_refused() -> None:
    screening, problem, ledger, _, best = shown(0, 80)
    first = screening.candidates(best, 8)
    keys = {ledger.key(genotype) for genotype in first}
    assert len(keys) == 8
    assert ledger.key(best) not in keys
    assert all(ledger.fits(genotype) for genotype in first)
    screening.refuse(first)
    assert not keys & {ledger.key(genotype) for genotype in screening.candidates(best, 8)}
    screening.accept()
    every = {ledger.key(genotype) for _ in range(20) for genotype in screening.candidates(best, 8)}
    assert keys & every, "behind a new incumbent they may come again"
    assert problem.budgets[0].allows(problem.space.cost(problem.space.profile(first[0])))


def test_losers_come_again_after_some_rounds() -> None:
    screening, _, ledger, _, best = shown(0, 80)
    lost = screening.candidates(best, 10**6)
    screening.refuse(lost)
    for _ in range(REST):
        assert screening.resting
        assert not set(map(ledger.key, lost)) & set(map(ledger.key, screening.candidates(best, 10**6)))
        screening.refuse([])
    assert not screening.resting
    assert set(map(ledger.key, lost)) & set(map(ledger.key, screening.candidates(best, 10**6)))


def test_without_trades_no_kind_loses_drops_to_another() -> None:
    screening, problem, ledger, _, best = shown(0, 80)
    kinds = [site.kind for site in problem.space.sites]

    def gone(genotype: tuple[int, ...]) -> Counter[str]:
        draft = Draft(ledger, genotype)
        return Counter(kinds[problem.space.genes[gene][0]] for gene in ledger.containers if is_dropped(draft, gene))

    before = gone(best)
    for trades in (False, True):
        changes = [(gone(mutant) - before, before - gone(mutant)) for mutant in screening.candidates(best, 10**6, trades)]
        assert any(more and less for more, less in changes) == trades


def test_one_of_four_is_drawn_blindly(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a model that is sure of everything, three queues agree and the fourth takes what was drawn first."""
    screening, _, _, _, best = shown(0, 80)
    asked: list[tuple[int, ...]] = []

    def predict(_: Surrogate, mutants: list[tuple[int, ...]]) -> tuple[np.ndarray, np.ndarray]:
        asked[:] = mutants
        return -np.arange(len(mutants), dtype=float), np.zeros(len(mutants))

    monkeypatch.setattr(Surrogate, "predict", predict)
    chosen = screening.candidates(best, 8)
    assert len(asked) > 8
    assert chosen == [*reversed(asked[-6:]), asked[1], asked[0]]


def test_the_best_of_several_is_what_all_trials_say() -> None:
    """Not what the easiest documents say, nor the order they are given in."""
    problem, ledger, _ = drops(0)
    rng = random.Random(0)
    known = uniform_genotype(problem, ledger)
    others = [mutate(ledger, known, rng, 3) for _ in range(6)]
    screening = Screening(problem, ledger, random.Random(0))
    for number in range(20):
        profiles = tuple(dict.fromkeys(map(problem.space.profile, (known, *others) if number else others)))
        hard = 1.0 if number else 0.5

        def score(profile: Profile, hard: float = hard, number: int = number) -> float:
            value = 1.0 if profile == problem.space.profile(known) else 1.2
            return hard * value * random.Random(f"{profile.digest}/{number}").lognormvariate(0, 0.1)

        ask = Ask(profiles, Slice("planted", ((number, 700),)))
        screening.see(ask, measure_with(score, problem.space)(ask))
    screening.learn(known)
    assert screening.best_of([known, *others]) == screening.best_of([*others, known]) == known


def test_measured_is_what_fits_with_its_tokens_in_all() -> None:
    problem, ledger, function = drops(0)
    rng = random.Random(0)
    often = uniform_genotype(problem, ledger)
    once = mutate(ledger, often, rng, 3)
    beyond = tuple(ledger.top(gene) for gene in range(len(problem.space.genes)))
    assert not ledger.fits(beyond)
    screening = Screening(problem, ledger, random.Random(0))
    for number, genotypes in enumerate(((often, beyond), (often, once, beyond), (often, beyond))):
        ask = Ask(tuple(map(problem.space.profile, genotypes)), Slice("planted", ((number, 500),)))
        screening.see(ask, measure_with(function, problem.space)(ask))
    assert screening.measured == {often: 1500, once: 500}


def test_before_it_saw_anything_it_proposes_what_it_drew() -> None:
    problem, ledger, _ = drops(1)
    screening = Screening(problem, ledger, random.Random(0))
    assert len(screening.candidates(uniform_genotype(problem, ledger), 3)) == 3
