"""The incumbent of the searchers that learn from noisy values: paired differences, races for the title, and what is never asked twice."""

from __future__ import annotations

import random
from collections.abc import Generator, Sequence
from typing import Any, TypeVar

import pytest

from evopress.api import Ask, Genotype, Problem, Trial, UsageError
from evopress.plan import ENDLESS, default_options, options_like
from evopress.search import evopress_searchers
from evopress.search.champion import Champion
from evopress.search.evolve import Evolve
from evopress.search.guided import Guided
from evopress.search.ledger import ledger_of
from evopress.search.moves import mutate
from evopress.testing.searchers import measure_with, planted_function, planted_problem, planted_space

T = TypeVar("T")
PROBLEM = planted_problem(planted_space(6, ("gptq",)), share=0.3)
FUNCTION = planted_function(PROBLEM.space, 3)
LOOKS = ((2, 700), (1, 4200))


def answered(steps: Generator[Ask, Sequence[Trial], T], noise: float = 0.0, seen: list[Ask] | None = None) -> T:
    """What the steps return when every question is answered by the planted function, shifted by an offset of the slice's own."""
    measure = measure_with(FUNCTION, PROBLEM.space, noise)
    try:
        ask = next(steps)
        while True:
            if seen is not None:
                seen.append(ask)
            shift = random.Random(ask.slice.digest).gauss(0, 5)
            shifted = [
                Trial(trial.profile, trial.slice, tuple(value + shift for value in trial.values), trial.weights, trial.cost, trial.seconds)
                for trial in measure(ask)
            ]
            ask = steps.send(shifted)
    except StopIteration as done:
        value: T = done.value
        return value


def champion(problem: Problem = PROBLEM, **options: Any) -> Champion:
    given: dict[str, Any] = {"tokens": 700, "looks": LOOKS, "alpha": 0.2, **options}
    return Champion(problem, random.Random(0), ledger_of(problem), "searcher", **given)


def loss(genotype: Genotype) -> float:
    return FUNCTION(PROBLEM.space.profile(genotype))


def mutants(start: Genotype, count: int, seed: int = 0) -> list[Genotype]:
    rng, ledger = random.Random(seed), ledger_of(PROBLEM)
    return [mutate(ledger, start, rng, 2) for _ in range(count)]


def test_values_of_different_slices_compare_though_the_slices_do_not() -> None:
    one = champion()
    ranked = answered(one.rank_starts())
    assert one.best == min(one.starts, key=loss)
    assert ranked[one.best] == 0.0
    origin = loss(one.best)
    for number in range(6):
        drawn = mutants(one.best, 3, number)
        values = answered(one.compare(drawn, number))
        assert values == pytest.approx([loss(genotype) - origin for genotype in drawn], abs=1e-9)
        answered(one.challenge([min(drawn, key=loss)], number))
        assert one.level == pytest.approx(loss(one.best) - origin, abs=1e-9)
    assert one.level < 0, "no mutant ever won; the test shows nothing"


def test_who_lost_is_not_raced_again_until_the_title_changes() -> None:
    one = champion()
    answered(one.rank_starts())
    better = [genotype for genotype in mutants(one.best, 60) if loss(genotype) < loss(one.best) - 1e-9]
    worse = [genotype for genotype in mutants(one.best, 60) if loss(genotype) > loss(one.best) + 1e-9]
    seen: list[Ask] = []
    answered(one.challenge(worse[:2], 1), seen=seen)
    assert len(seen) == 1  # both were worse at the first look
    answered(one.challenge([*worse[:2], one.best], 2), seen=seen)
    assert len(seen) == 1
    answered(one.challenge(better[:1], 3))
    assert one.best == better[0]
    answered(one.challenge(worse[:2], 4), seen=seen)
    assert len(seen) == 2


def test_the_luckiest_of_many_equals_rarely_takes_the_title() -> None:
    """Among profiles that are all alike but for noise, a challenge by the best of a batch succeeds at most about as often as alpha says."""
    constant = measure_with(lambda _: 1.0, PROBLEM.space, noise=0.1)
    taken = 0
    for seed in range(40):
        one = Champion(PROBLEM, random.Random(seed), ledger_of(PROBLEM), "searcher", 700, LOOKS, 0.2)
        drawn = mutants(one.best, 8, seed)
        values = run(one.compare(drawn, 1), constant)
        run(one.challenge([drawn[min(range(len(values)), key=lambda at, values=values: values[at])]], 1), constant)
        taken += one.best != one.starts[0]
    assert taken <= 0.35 * 40


def run(steps: Any, measure: Any) -> Any:
    try:
        ask = next(steps)
        while True:
            ask = steps.send(measure(ask))
    except StopIteration as done:
        return done.value


def test_equal_profiles_are_measured_once_and_the_incumbent_alone_never() -> None:
    one = champion()
    answered(one.rank_starts())
    seen: list[Ask] = []
    assert answered(one.compare([one.best, one.best], 1), seen=seen) == [one.level, one.level]
    assert not seen
    child = next(genotype for genotype in mutants(one.best, 9) if genotype != one.best)
    values = answered(one.compare([child, one.best, child], 1), seen=seen)
    assert len(seen[0].profiles) == 2
    assert values[0] == values[2] != values[1] == one.level


@pytest.mark.parametrize("name", ["bayes", "nsga2", "predictor", "reinforce", "relaxed"])
def test_as_rivals_they_end_by_their_tokens_alone(name: str) -> None:
    """Beside a searcher with stages they are not given its number of evaluations: theirs are of another size."""
    cls = next(found for found in evopress_searchers() if found.name == name)
    for main in (Evolve, Guided):
        matched = options_like(default_options(main), cls, 100)
        assert list(matched.values()) == [ENDLESS]
        assert cls(PROBLEM, random.Random(0), **matched).ask() is not None


def test_a_watcher_sees_every_question() -> None:
    shown: list[Ask] = []
    one = champion(watch=lambda ask, trials: shown.append(ask))
    seen: list[Ask] = []
    answered(one.rank_starts(), seen=seen)
    answered(one.compare(mutants(one.best, 3), 1), seen=seen)
    answered(one.challenge(mutants(one.best, 9), 1), seen=seen)
    answered(one.measure(mutants(one.best, 1), 1), seen=seen)
    assert shown == seen
    assert len(seen) >= 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens": 10**9}, "searcher asks for 1,000,000,000 tokens a question, but the search set holds 42,000"),
        ({"tokens": 1}, "Option tokens=1 is not an integer"),
        ({"alpha": 1.1}, "Option alpha=1.1 is not a chance"),
        ({"looks": ((1, 100), (2, 50))}, "does not narrow down"),
        (
            {"alpha": 1e-9, "problem": planted_problem(PROBLEM.space, documents=(700,) * 20)},
            "needs [0-9]+ documents, and the search set has 20",
        ),
    ],
)
def test_it_says_what_is_wrong_with_its_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        champion(**options)
