"""Every built-in searcher passes the shipped conformance check, and the check catches broken ones."""

from __future__ import annotations

import random
import subprocess
import sys
from typing import Any, ClassVar

import pytest

from evopress.api import Ask, Problem, Profile, Searcher, Steps, UsageError
from evopress.search import evopress_searchers
from evopress.search.evolve import Evolve
from evopress.search.selection import best_of
from evopress.search.slices import draw_slice
from evopress.testing.searchers import check_searcher, conformance_problems, degenerate_problems

RUNGS = ((2, 300), (1, 1000))
OPTIONS: dict[str, dict[str, Any]] = {
    "uniform": {},
    "greedy": {},
    "knapsack": {},
    "random": {"candidates": 5, "rungs": RUNGS, "rounds": 2},
    "guided": {"rounds": 2, "slope_tokens": 700, "looks": ((4, 700), (2, 2100)), "start_tokens": 700, "probe_tokens": 700},
    "bayes": {"rounds": 3, "batch": 2, "startup": 3, "sampler": "tpe", "tokens": 300, "looks": RUNGS},
    "nsga2": {"generations": 3, "population": 5, "tokens": 300, "looks": RUNGS},
    "reinforce": {"rounds": 4, "batch": 3, "tokens": 300, "looks": RUNGS},
    "relaxed": {"rounds": 4, "tokens": 300, "looks": RUNGS},
    "predictor": {"rounds": 2, "batch": 3, "startup": 2, "virtual": 16, "tokens": 300, "looks": RUNGS},
    "evolve": {"generations": 3, "offspring": 4, "rungs": RUNGS, "initial": (2, 300)},
}
RATIOS = ("baq", "erk", "owl", "welore")
"""They share a budget out among linear sites; `similarity` drops containers. Each refuses the spaces of the other."""
REFUSED = {**{name: {"depth", "no choice"} for name in RATIOS}, "similarity": {"quantisation", "sparsity", "one site", "no choice"}}
CLASSES = {cls.name: cls for cls in evopress_searchers()}


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_built_in_searchers_conform(name: str) -> None:
    refused = REFUSED.get(name, set())
    problems = conformance_problems() | degenerate_problems()
    check_searcher(CLASSES[name], {key: problem for key, problem in problems.items() if key not in refused}, **OPTIONS.get(name, {}))


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_an_allocator_refuses_a_space_that_is_not_its_own_and_names_who_serves_it(name: str) -> None:
    problems = conformance_problems() | degenerate_problems()
    for key in REFUSED[name]:
        with pytest.raises(UsageError) as raised:
            CLASSES[name](problems[key], random.Random(0))
        other = next(word for word in ("similarity", "uniform") if f"--searcher {word}" in str(raised.value))
        assert CLASSES[other](problems[key], random.Random(0)).incumbent
        assert "--method" in str(raised.value)


@pytest.mark.parametrize("rule", ["size", "name", "none"])
def test_parity_mode_conforms_on_single_kinds(rule: str) -> None:
    problems = {name: conformance_problems()[name] for name in ("quantisation", "sparsity", "depth")} | degenerate_problems()
    check_searcher(Evolve, problems, mode="parity", group_rule=rule, generations=3, offspring=4, rungs=RUNGS, initial=(4, 300))


def test_the_hook_imports_no_torch() -> None:
    answer = "from evopress.search import evopress_searchers; evopress_searchers(); import evopress.testing.searchers"
    code = f"import sys; {answer}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


class Broken(Searcher):
    """Conforms on purpose to nothing in particular; subclasses break one rule each."""

    name: ClassVar[str] = "broken"

    @property
    def incumbent(self) -> Profile:
        return self.problem.space.profile(self.genotype())

    def genotype(self) -> tuple[int, ...]:
        return tuple(CLASSES["uniform"](self.problem, random.Random(0)).problem.space.genotype(self.fine()))

    def fine(self) -> Profile:
        return CLASSES["uniform"](self.problem, random.Random(0)).incumbent

    def steps(self) -> Steps:
        yield from ()


class Overspends(Broken):
    def genotype(self) -> tuple[int, ...]:
        space = self.problem.space
        return tuple(len(space.choices(gene)) - 1 for gene in range(len(space.genes)))


class Forgetful(Broken):
    def steps(self) -> Steps:
        yield Ask((self.fine(),), draw_slice(random.Random(), self.problem, 100))  # its own randomness


class Repeats(Broken):
    def steps(self) -> Steps:
        yield from best_of(self.problem, self.rng, [self.genotype(), self.genotype()], 100)


class Endless(Broken):
    def steps(self) -> Steps:
        while True:
            yield Ask((self.fine(),), draw_slice(self.rng, self.problem, 100))


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (Overspends, "exceed budget"),
        (Forgetful, "the same seed gives other questions"),
        (Repeats, "asked twice"),
        (Endless, "was not finished"),
    ],
)
def test_the_check_catches_a_broken_searcher(cls: type[Searcher], message: str) -> None:
    problems: dict[str, Problem] = {"quantisation": conformance_problems()["quantisation"]}
    with pytest.raises(AssertionError, match=message):
        check_searcher(cls, problems, questions=50)


def test_a_searcher_is_given_layer_errors_only_where_it_names_them() -> None:
    class Silent(CLASSES["greedy"]):  # type: ignore[misc, name-defined]
        needs = frozenset()

    with pytest.raises(UsageError, match="needs layer errors"):
        check_searcher(Silent)
    assert {name for name, cls in CLASSES.items() if "errors" in cls.needs} >= {"uniform", "greedy", "knapsack", "evolve", "guided", "baq"}
    assert not {name for name, cls in CLASSES.items() if "errors" in cls.needs} & {"random", "erk", "owl", "welore"}
