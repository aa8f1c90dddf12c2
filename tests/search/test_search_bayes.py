"""bayes: what a point decodes to, samplers by name, optuna only when it is used, replays, and the simple answers beaten."""

from __future__ import annotations

import random
import subprocess
import sys
from typing import Any

import pytest

from evopress.api import Ask, MissingDependency, Trial, UsageError
from evopress.search.bayes import Bayes, make_sampler
from evopress.search.curves import curve_names, curve_role, curve_values, decoded, drawn_curves
from evopress.search.knapsack import solve
from evopress.search.ledger import ledger_of
from evopress.testing.searchers import (
    check_searcher,
    conformance_problems,
    follow,
    measure_with,
    planted_function,
    planted_problem,
    planted_space,
)

SMALL: dict[str, Any] = {"tokens": 700, "looks": ((2, 700), (1, 4200))}


def test_the_origin_is_the_knapsack_and_a_curve_moves_budget_to_its_role_and_depth() -> None:
    problem = planted_problem(planted_space(6, ("gptq",)), share=0.3)
    ledger, space = ledger_of(problem), problem.space
    names = curve_names(ledger, 3)
    assert names == [f"{role}@{knot}" for role in ("q", "k", "o", "up", "down") for knot in range(3)]
    flat = dict.fromkeys(names, 0.0)
    origin = decoded(ledger, problem.errors, flat, 3, 2.0)
    assert origin == solve(ledger).genotype
    for knot, half in ((0, range(3)), (2, range(3, 6))):
        raised = decoded(ledger, problem.errors, {**flat, f"up@{knot}": 1.0}, 3, 2.0)
        assert ledger.fits(raised)
        own = [gene for gene, sites in enumerate(space.genes) if space.sites[sites[0]].role == "up"]
        near = [gene for gene in own if space.sites[space.genes[gene][0]].depth in half]
        paid = {genotype: sum(ledger.gene_cost(gene, genotype[gene], 0) for gene in near) for genotype in (origin, raised)}
        assert paid[raised] > paid[origin]


def test_curves_are_linear_between_knots() -> None:
    space = planted_space(5, ("gptq", "drop"))
    heights = curve_values(space, {"q@0": -1.0, "q@1": 0.0, "q@2": 1.0, "attention@0": 0.5, "attention@1": 0.5, "attention@2": 0.5}, 3)
    found = {site.name: value for site, value in zip(space.sites, heights, strict=True)}
    assert [found[site.name] for site in space.sites if site.role == "q"] == pytest.approx([-1, -0.5, 0, 0.5, 1])
    assert {found[site.name] for site in space.sites if site.kind == "attention"} == {0.5}
    assert {found[site.name] for site in space.sites if curve_role(site) not in ("q", "attention")} == {0.0}


def test_random_curves_stay_within_bounds_and_decode_to_many_profiles() -> None:
    problem = planted_problem(planted_space(6, ("gptq", "drop")), share=0.3)
    ledger, rng = ledger_of(problem), random.Random(0)
    points = [drawn_curves(ledger, 3, 0.8, rng) for _ in range(12)]
    assert all(-1 <= value <= 1 for point in points for value in point.values())
    assert 1.0 in {abs(value) for point in points for value in point.values()}
    found = {decoded(ledger, problem.errors, point, 3, 2.0) for point in points}
    assert len(found) >= 10
    assert all(ledger.fits(genotype) for genotype in found)


def test_one_depth_has_one_knot() -> None:
    problem = planted_problem(planted_space(1, ("gptq",)))
    assert curve_names(ledger_of(problem), 3) == ["q@0", "k@0", "o@0", "up@0", "down@0"]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"family": "full"},
        {"sampler": "RandomSampler"},
        {"family": "full", "sampler": "NSGAIISampler"},
        {"family": "full", "sampler": "BruteForceSampler"},
    ],
    ids=str,
)
def test_it_conforms_whatever_the_family_and_the_sampler(options: dict[str, Any]) -> None:
    problems = {"mixed kinds": conformance_problems()["mixed kinds"]}
    check_searcher(Bayes, problems, rounds=4, batch=3, startup=3, tokens=300, looks=((2, 300), (1, 1000)), **options)


def test_what_optuna_is_told_is_what_was_measured() -> None:
    """A suggestion over all levels is told as the profile it became, at its difference to the incumbent."""
    problem = planted_problem(planted_space(3, ("gptq",)), share=0.3)
    function = planted_function(problem.space, 2)
    searcher = Bayes(problem, random.Random(0), family="full", rounds=5, startup=4, **SMALL)
    told: list[dict[int, int]] = []
    point = searcher._point
    searcher._point = lambda genotype: told.append(genotype) or point(genotype)  # type: ignore[method-assign, func-returns-value, assignment, return-value, arg-type]
    asked: list[Ask] = []

    def measure(ask: Ask) -> list[Trial]:
        asked.append(ask)
        return measure_with(function, problem.space)(ask)

    follow(searcher, measure)
    measured = {profile for ask in asked for profile in ask.profiles}
    assert len(told) > 10
    assert {problem.space.profile(genotype) for genotype in told} <= measured  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{}, {"sampler": "tpe"}, {"family": "full"}], ids=str)
def test_it_beats_the_simple_answers(options: dict[str, Any]) -> None:
    gains = []
    for seed in range(2):
        space = planted_space(3, ("gptq",))
        problem = planted_problem(space, share=0.35, seed=seed)
        function = planted_function(space, seed, interaction=1.0)
        searcher = Bayes(problem, random.Random(seed), rounds=6, **SMALL, **options)
        simple = min(function(space.profile(start)) for start in searcher._champion.starts)
        follow(searcher, measure_with(function, space))
        gains.append(simple - function(searcher.incumbent))
    assert min(gains) >= 0
    assert sum(gains) > 0


def test_it_says_what_is_wrong_with_its_options() -> None:
    problem = planted_problem()
    for options, message in (
        ({"family": "curves"}, "Unknown family 'curves' in bayes. Did you mean 'curve'"),
        ({"sampler": "tpee"}, r"Unknown sampler 'tpee' in bayes\(family=curve\). Did you mean 'tpe'\? Known: .*GPSampler.*gp, tpe"),
        ({"sampler": "GridSampler"}, "Unknown sampler 'GridSampler'"),
        ({"sampler": "BruteForceSampler"}, "Unknown sampler 'BruteForceSampler'"),
        ({"spread": 0}, "Option spread=0 is not a number above 0"),
        ({"tokens": 10**9}, "bayes asks for 1,000,000,000 tokens"),
    ):
        with pytest.raises(UsageError, match=message):
            Bayes(problem, random.Random(0), **options)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="Curves scale layer errors"):
        Bayes(planted_problem(errors=False), random.Random(0))


def test_optuna_is_loaded_by_nothing_but_a_searcher_that_is_made() -> None:
    code = "import sys\nfrom evopress.search import evopress_searchers\nimport evopress.search.bayes\nlist(evopress_searchers())\n"
    assert subprocess.run([sys.executable, "-c", code + "sys.exit('optuna' in sys.modules)"], check=False).returncode == 0


def test_without_optuna_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingDependency, match=r"needs optuna, which is not installed. Run: pip install 'evopress\[bayes\]'"):
        Bayes(planted_problem(), random.Random(0))


def test_a_sampler_without_its_own_package_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    import optuna

    class Needy(optuna.samplers.RandomSampler):
        def __init__(self, seed: int | None = None) -> None:
            raise ImportError("install cmaes")

    monkeypatch.setattr(optuna.samplers, "RandomSampler", Needy)
    with pytest.raises(MissingDependency, match="RandomSampler needs another package: install cmaes"):
        make_sampler("RandomSampler", "curve", 0)


def test_optunas_own_verbosity_is_left_as_it_was() -> None:
    import optuna

    before = optuna.logging.get_verbosity()
    Bayes(planted_problem(), random.Random(0))
    assert optuna.logging.get_verbosity() == before
