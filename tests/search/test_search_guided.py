"""guided: parabolas from slopes, exact proposals, probes, and what a search on planted losses finds with how little."""

from __future__ import annotations

import random
from collections.abc import Collection, Generator, Sequence
from dataclasses import replace
from itertools import product
from typing import TypeVar

import pytest
from planted import random_tree

from evopress.api import DROP, Ask, Budget, Genotype, Problem, Profile, Slice, Space, Trial, UsageError
from evopress.search.baselines import greedy_genotype, uniform_genotype
from evopress.search.descent import descend
from evopress.search.evolve import Evolve
from evopress.search.guided import Guided
from evopress.search.knapsack import solve
from evopress.search.ledger import Draft, Ledger, ledger_of
from evopress.search.moves import is_dropped
from evopress.search.parabolas import Parabolas
from evopress.search.probes import drop_level, probe
from evopress.search.proposals import changed, predicted, propose
from evopress.search.screening import Screening
from evopress.testing.searchers import (
    Measure,
    Planted,
    budget_between,
    follow,
    measure_with,
    planted_function,
    planted_problem,
    planted_space,
)

Answer = TypeVar("Answer")
SMALL = {"slope_tokens": 700, "looks": ((4, 700), (1, 4200)), "start_tokens": 700, "probe_tokens": 700}


def quantised(seed: int = 0, blocks: int = 8) -> Problem:
    """Bits for 40 matrices, documents enough, layer errors that fall with the bytes kept."""
    return planted_problem(planted_space(blocks, ("gptq",)), share=0.2, seed=seed, documents=(700,) * 60)


def parabolic(problem: Problem, seed: int, spread: float = 3.0) -> tuple[Planted, list[list[float]]]:
    """A loss that is the sum of k·ρ/2 over sites, with factors k nobody was told, and the table of its terms."""
    rng = random.Random(seed)
    terms = []
    for site, errors in zip(problem.space.sites, problem.errors, strict=True):
        factor = rng.uniform(0, 1) ** spread if site.kind == "linear" else 0.0
        terms.append([0.5 * factor * error for error in errors])

    def function(profile: Profile) -> float:
        own = zip(profile, problem.space.levels, terms, strict=True)
        return sum(row[levels.index(level)] for (_, level), levels, row in own if level in levels)

    return function, terms


def test_slopes_of_a_parabolic_loss_tell_its_factors() -> None:
    problem = quantised()
    function, terms = parabolic(problem, 1)
    ledger = ledger_of(problem)
    genotype = uniform_genotype(problem, ledger)
    profile = problem.space.profile(genotype)
    measure = measure_with(function, problem.space)
    (trial,) = measure(Ask((profile,), Slice("planted", ((0, 700),)), slopes=True))
    parabolas = Parabolas(ledger, problem.errors, 0.5)
    assert parabolas.factors() == [1.0] * len(problem.space.sites)
    draft = Draft(ledger, genotype)
    parabolas.learn(draft, trial.slopes)
    table = parabolas.changes(draft)
    rng = random.Random(0)
    told, true = [], []
    for _ in range(200):
        site = rng.choice([at for at, found in enumerate(problem.space.sites) if found.kind == "linear"])
        level = rng.randrange(len(table[site]))
        told.append(table[site][level])
        true.append(terms[site][level] - terms[site][draft.picks[site]])
    # Drawn a little towards the mean of the role, so not equal; the order and the size are right.
    mean = sum(true) / len(true)
    explained = 1 - sum((a - b) ** 2 for a, b in zip(told, true, strict=True)) / sum((b - mean) ** 2 for b in true)
    assert explained > 0.9
    assert all(row[pick] == 0.0 for row, pick in zip(table, draft.picks, strict=True))


def test_factors_are_never_free_nor_negative_whatever_the_slopes() -> None:
    problem = quantised()
    ledger = ledger_of(problem)
    parabolas = Parabolas(ledger, problem.errors, 0.8)
    rng = random.Random(0)
    for _ in range(5):
        genotype = uniform_genotype(problem, ledger)
        parabolas.learn(Draft(ledger, genotype), [rng.gauss(-1, 3) for _ in problem.space.sites])
        assert min(parabolas.factors()) > 0


@pytest.mark.parametrize("seed", range(30))
def test_the_unpriced_proposal_is_the_best_of_all(seed: int) -> None:
    problem = random_tree(random.Random(seed), blocks=1)
    ledger = Ledger(problem.space, problem.budgets)
    genotype = ledger.floor
    rng = random.Random(seed)
    picks = problem.space.spread(genotype)
    table = [
        [0.0 if level == picks[site] else rng.uniform(-1, 1) for level in range(len(row))] for site, row in enumerate(problem.space.levels)
    ]
    best = propose(ledger, genotype, table, 1.0)
    assert ledger.fits(best)
    every = product(*[range(len(problem.space.choices(gene))) for gene in range(len(problem.space.genes))])
    assert predicted(ledger, table, best) == pytest.approx(min(predicted(ledger, table, other) for other in every if ledger.fits(other)))


@pytest.mark.parametrize("share", [0.3, 0.1, 0.03])
def test_proposals_stay_near_fit_and_gain(share: float) -> None:
    problem = quantised(2)
    ledger = Ledger(problem.space, problem.budgets)
    genotype = uniform_genotype(problem)
    rng = random.Random(1)
    picks = problem.space.spread(genotype)
    table = [
        [(pick - level) * rng.uniform(0, 1) for level in range(len(row))] for pick, row in zip(picks, problem.space.levels, strict=True)
    ]
    frozen = frozenset(rng.sample(range(len(problem.space.genes)), 20))
    for still in (frozenset[int](), frozen):
        found = propose(ledger, genotype, table, share, still)
        assert ledger.fits(found)
        assert 0 <= changed(ledger, genotype, found) <= share
        assert predicted(ledger, table, found) < 0 or share < 0.05  # a trade takes two sites, of 1/40 each on average
        assert all(found[gene] == genotype[gene] for gene in still)


def drive(searcher: Guided | Evolve, function: Planted, noise: float, tokens: int) -> tuple[float, int]:
    """Final planted loss after at most so many token-forwards, and how many were taken."""
    measure = measure_with(function, searcher.problem.space, noise)
    spent = 0
    while (ask := searcher.ask()) is not None and spent + ask.tokens <= tokens:
        searcher.tell(measure(ask))
        spent += ask.tokens
    return function(searcher.incumbent), spent


@pytest.mark.parametrize("seed", range(5))
def test_a_parabolic_loss_is_solved_with_a_small_part_of_the_tokens_of_evolution(seed: int) -> None:
    problem = replace(quantised(seed), starts=())
    function, terms = parabolic(problem, seed)
    optimum = function(problem.space.profile(solve(Ledger(problem.space, problem.budgets, terms)).genotype))
    guided, spent = drive(Guided(problem, random.Random(seed), **SMALL), function, 0.001, 40_000)
    evolved, more = drive(Evolve(problem, random.Random(seed), rungs=((2, 700), (1, 4200))), function, 0.001, 160_000)
    assert more >= 3.5 * spent
    assert guided - optimum < 0.5 * (evolved - optimum) + 1e-6


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("share", [0.15, 0.3])
def test_a_second_budget_starts_from_the_exact_answer_by_what_the_first_search_learnt(seed: int, share: float) -> None:
    first = quantised(seed)
    function, terms = parabolic(first, seed)
    searcher = Guided(first, random.Random(seed), rounds=8, **SMALL)
    history = follow(searcher, measure_with(function, first.space))
    known = [(first.space.genotype(trial.profile), trial.slopes) for ask, (trial, *_) in history if ask.slopes]
    second = replace(first, budgets=(budget_between(first.space, "bytes", share),), known_slopes=tuple(reversed(known)))

    def best_start(problem: Problem) -> float:
        ask = Guided(problem, random.Random(seed), **SMALL).ask()
        assert ask is not None
        assert all(problem.budgets[0].allows(problem.space.cost(profile)) for profile in ask.profiles)
        return min(map(function, ask.profiles))

    optimum = function(second.space.profile(solve(Ledger(second.space, second.budgets, terms)).genotype))
    assert best_start(second) - optimum < 0.7 * (best_start(replace(second, known_slopes=())) - optimum)


def test_after_every_screened_round_the_incumbent_is_what_all_trials_say_is_best(monkeypatch: pytest.MonkeyPatch) -> None:
    """A race at a high alpha is often wrong; so what won it is not always what the search goes on from."""
    space = planted_space(8, ("drop",))
    problem = planted_problem(space, share=0.6)
    said: list[Profile] = []
    asking = Screening.best_of

    def best_of(screening: Screening, genotypes: Sequence[Genotype]) -> Genotype:
        said.append(space.profile(asking(screening, genotypes)))
        return asking(screening, genotypes)

    monkeypatch.setattr(Screening, "best_of", best_of)
    searcher = Guided(problem, random.Random(0), rounds=12, local_looks=((16, 512), (4, 1536), (1, 5736)), **SMALL)
    measure, before = measure_with(planted_function(space, 0, 1.0), space, noise=0.3), 0
    at_round_ends, kept = 0, 0
    while (ask := searcher.ask()) is not None:
        if said and len(said) > before:
            at_round_ends += 1
            kept += searcher.incumbent == said[-1]
        before = len(said)
        searcher.tell(measure(ask))
    assert at_round_ends >= 10
    assert kept == at_round_ends
    assert searcher.incumbent == said[-1]
    assert len(set(said)) > 2


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("methods", [("gptq",), ("sparsegpt",), ("gptq", "drop"), ("drop",)])
def test_strong_interactions_never_leave_it_worse_than_the_simple_answers(seed: int, methods: tuple[str, ...]) -> None:
    space = planted_space(4, methods)
    problem = planted_problem(space, share=0.45, seed=seed)
    function = planted_function(space, seed, interaction=2.0)
    ledger = ledger_of(problem)
    simple = [uniform_genotype(problem, ledger), greedy_genotype(problem, ledger), solve(ledger).genotype]
    searcher = Guided(problem, random.Random(seed), rounds=6, **SMALL)
    follow(searcher, measure_with(function, space))
    assert function(searcher.incumbent) <= min(function(space.profile(genotype)) for genotype in simple) + 1e-9


@pytest.mark.parametrize("seed", range(3))
def test_bits_and_drops_that_add_up_are_weighed_against_each_other(seed: int) -> None:
    space = planted_space(6, ("gptq", "drop"), ("attention", "mlp"))
    problem = planted_problem(space, share=0.25, seed=seed)
    rng = random.Random(seed)
    terms = []
    for site, levels, errors in zip(space.sites, space.levels, problem.errors, strict=True):
        factor = rng.uniform(0, 1) ** 3
        linear = site.kind == "linear"
        terms.append(
            [0.5 * factor * error if linear else 1.5 * factor * (level == DROP) for level, error in zip(levels, errors, strict=True)]
        )

    def loss(profile: Profile) -> float:
        own = zip(profile, space.levels, terms, strict=True)
        return sum(row[levels.index(level)] for (_, level), levels, row in own if level in levels)

    optimum = space.profile(solve(Ledger(space, problem.budgets, terms)).genotype)
    searcher = Guided(problem, random.Random(seed), rounds=12, **SMALL)
    follow(searcher, measure_with(loss, space, 0.001))
    ledger = ledger_of(problem)
    simple = min(loss(space.profile(genotype)) for genotype in (greedy_genotype(problem, ledger), solve(ledger).genotype))
    assert any(level == DROP for _, level in optimum)
    assert loss(searcher.incumbent) - loss(optimum) < 0.1 * (simple - loss(optimum))


def answered(steps: Generator[Ask, Sequence[Trial], Answer], measure: Measure) -> tuple[Answer, list[Ask]]:
    """What a generator of questions returns, and what it asked."""
    asked: list[Ask] = []
    try:
        asked.append(next(steps))
        while True:
            asked.append(steps.send(measure(asked[-1])))
    except StopIteration as done:
        return done.value, asked


def test_probes_are_the_changes_of_single_drops_and_restorations() -> None:
    space = planted_space(4, ("drop",), ("attention", "mlp"))
    budget = Budget("params", "params", int(space.cheapest.params + 0.6 * (space.dearest.params - space.cheapest.params)))
    problem = planted_problem(space, (budget,))
    ledger = ledger_of(problem)
    genotype = uniform_genotype(problem, ledger)
    losses = {site.name: random.Random(site.name).uniform(0.1, 1) for site in space.sites}

    def function(profile: Profile) -> float:
        return sum(losses[name] for name, level in profile if level == DROP)

    steps = probe(problem, ledger, genotype, ledger.containers, Slice("planted", ((0, 700),)), 1)
    found, (ask,) = answered(steps, measure_with(function, space))
    assert set(found) == set(ledger.containers)
    for gene, change in found.items():
        assert change == pytest.approx(losses[space.sites[space.genes[gene][0]].name])
    assert len(ask.profiles) == 1 + len(ledger.containers)
    assert not all(budget.allows(space.cost(profile)) for profile in ask.profiles), "a restoration alone is beyond the budget"


def test_the_descent_goes_by_whole_depths() -> None:
    space = planted_space(8, ("drop",), ("attention", "mlp"))
    limit = space.cheapest.params + (space.dearest.params - space.cheapest.params) // 2
    problem = planted_problem(space, (Budget("params", "params", limit),))
    ledger = ledger_of(problem)
    reached, _ = answered(descend(problem, ledger, Slice("planted", ((0, 700),))), measure_with(growing(space, 0, 0.0), space))
    draft = Draft(ledger, reached)
    depths = [space.sites[space.genes[gene][0]].depth for gene in ledger.containers if is_dropped(draft, gene)]
    assert len(depths) == 8
    assert all(depths.count(depth) == 2 for depth in depths)


@pytest.mark.parametrize("seed", range(4))
def test_the_descent_sees_that_drops_grow_cheap_beside_others(seed: int) -> None:
    """A run of sublayers that is dear to begin and cheap to go on with, among single ones that are cheaper to begin."""
    space = planted_space(16, ("drop",), ("mlp",))
    single = {site.name: random.Random(f"{seed}/{site.name}").uniform(1, 1.2) for site in space.sites}

    def function(profile: Profile) -> float:
        gone = {int(name.split(".")[1]): single[name] for name, level in profile if level == DROP}
        return sum(cost * (0.2 if depth - 1 in gone else 1) for depth, cost in gone.items())

    problem = planted_problem(space, (Budget("params", "params", int(0.6 * space.dearest.params)),), seed=seed)
    ledger = ledger_of(problem)
    reached, asked = answered(descend(problem, ledger, Slice("planted", ((0, 700),))), measure_with(function, space))
    draft = Draft(ledger, reached)
    gone = sorted(space.sites[space.genes[gene][0]].depth for gene in ledger.containers if is_dropped(draft, gene))
    assert gone == list(range(gone[0], gone[0] + len(gone)))
    assert sum(len(ask.profiles) for ask in asked) < 17 + len(gone) * 10, "and not by looking at everything again"


def growing(space: Space, seed: int, growth: float = 0.5) -> Planted:
    """Dropping costs a random amount of each container, and `growth` more with every other drop in its block or beside it."""
    losses = {site.name: random.Random(f"{seed}/{site.name}").uniform(0.1, 1) for site in space.sites}

    def function(profile: Profile) -> float:
        gone = [name for name, level in profile if level == DROP]
        beside = sum(a != b and abs(int(a.split(".")[1]) - int(b.split(".")[1])) <= 1 for a in gone for b in gone)
        return sum(losses[name] for name in gone) + growth * beside

    return function


@pytest.mark.parametrize("seed", range(8))
def test_the_lazy_descent_drops_what_looking_at_everything_again_would_drop(seed: int) -> None:
    space = planted_space(12, ("drop",), ("attention", "mlp"))
    problem = planted_problem(space, (Budget("params", "params", int(0.5 * space.dearest.params)),), seed=seed)
    ledger, function = ledger_of(problem), growing(space, seed)
    reached, asked = answered(descend(problem, ledger, Slice("planted", ((0, 700),))), measure_with(function, space))
    depths = {site.depth for site in space.sites if site.kind == "mlp"}

    def without(gone: Collection[int]) -> Profile:
        genotype = [ledger.top(gene) for gene in range(len(space.genes))]
        for gene in ledger.containers:
            if space.sites[space.genes[gene][0]].depth in gone:
                genotype[gene] = drop_level(ledger, gene)
        return space.profile(genotype)

    gone: list[int] = []
    while not problem.budgets[0].allows(space.cost(without(gone))):
        gone.append(min(depths - set(gone), key=lambda depth: function(without([*gone, depth]))))
    assert ledger.fits(reached)
    assert function(space.profile(reached)) <= function(without(gone)) + 1e-9
    everything = sum(len(depths) - dropped + 1 for dropped in range(len(gone)))
    assert sum(len(ask.profiles) for ask in asked) < everything, "as many measurements as without laziness"


def test_it_says_what_is_wrong_with_its_options() -> None:
    problem = quantised()
    for options, message in (
        ({"fading": 1.0}, "Option fading=1.0 is not a share"),
        ({"alpha": -0.1}, "Option alpha=-0.1 is not a chance"),
        ({"slope_tokens": 10**9}, "guided asks for 1,000,000,000 tokens a question, but the search set holds 42,000"),
        ({"rounds": 1.5}, "Option rounds=1.5 is not an integer"),
    ):
        with pytest.raises(UsageError, match=message):
            Guided(problem, random.Random(0), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(4))
def test_in_a_space_of_drops_it_ends_where_evolution_ends_for_a_part_of_the_evaluations(seed: int) -> None:
    space = planted_space(8, ("drop",), ("attention", "mlp"))
    problem = planted_problem(space, (Budget("params", "params", int(0.7 * space.dearest.params)),), seed=seed, documents=(700,) * 60)
    function = growing(space, seed)
    found = []
    for searcher in (Guided(problem, random.Random(seed), rounds=8, **SMALL), Evolve(problem, random.Random(seed), generations=30)):
        history = follow(searcher, measure_with(function, space))
        found.append((function(searcher.incumbent), sum(len(ask.profiles) for ask, _ in history)))
    assert found[0][0] <= found[1][0] + 1e-9
    assert found[0][1] <= found[1][1] / 3
