"""The loop, selection and slices: stops at the same place on a replay, broken values, exact slices."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import ladder

from evopress.api import Ask, EvopressError, NumericalError, Problem, Profile, Trial, UsageError
from evopress.search.evolve import Evolve
from evopress.search.loop import Event, Outcome, Stops, drive
from evopress.search.slices import draw_slice
from evopress.testing.searchers import Measure, conformance_problems, measure_with, planted_function

PROBLEM = conformance_problems()["quantisation"]
MEASURE = measure_with(planted_function(PROBLEM.space), PROBLEM.space)


def searcher() -> Evolve:
    return Evolve(PROBLEM, random.Random(0), offspring=6, rungs=((2, 100), (1, 400)), generations=5)


def run(stops: Stops, measure: Measure = MEASURE, events: list[Event] | None = None) -> Outcome:
    ticks = iter(range(10**6))
    return drive(searcher(), measure, stops, lambda: float(next(ticks)), None if events is None else events.append)


def test_without_stops_it_runs_to_the_end_and_tells_every_answer() -> None:
    events: list[Event] = []
    outcome = run(Stops(), events=events)
    assert outcome.reason == "finished"
    assert outcome.totals.generation == 5
    assert outcome.totals.evaluations == sum(len(event.trials) for event in events)
    assert outcome.totals.tokens == sum(len(event.ask.profiles) * event.ask.slice.tokens for event in events)
    assert outcome.totals.seconds == pytest.approx(outcome.totals.tokens / 1000)
    assert outcome.totals.wall_seconds > 0
    assert events[-1].incumbent == outcome.best


def test_an_answer_beyond_a_budget_is_an_error() -> None:
    class Beyond(Evolve):
        @property
        def incumbent(self) -> Profile:
            space = self.problem.space
            return space.profile(tuple(len(space.choices(gene)) - 1 for gene in range(len(space.genes))))

    greedy = Beyond(PROBLEM, random.Random(0), offspring=6, rungs=((2, 100), (1, 400)), generations=1)
    with pytest.raises(EvopressError, match="allows"):
        drive(greedy, MEASURE, Stops(), lambda: 0.0)


def test_thinking_is_timed_apart_from_measuring() -> None:
    """A clock that only measuring moves, and one that only the searcher moves."""
    now = [0.0]

    def measure(ask: Ask) -> Sequence[Trial]:
        now[0] += 10
        return MEASURE(ask)

    class Slow(Evolve):
        def tell(self, trials: Sequence[Trial]) -> None:
            now[0] += 1
            super().tell(trials)

    events: list[Event] = []
    quick = drive(searcher(), measure, Stops(), lambda: now[0], events.append)
    assert quick.totals.thinking_seconds == 0
    assert quick.totals.wall_seconds == 10 * len(events)
    slow = Slow(PROBLEM, random.Random(0), offspring=6, rungs=((2, 100), (1, 400)), generations=5)
    outcome = drive(slow, measure, Stops(), lambda: now[0])
    assert outcome.totals.thinking_seconds == len(events)
    assert outcome.totals.seconds == quick.totals.seconds


@pytest.mark.parametrize(
    ("stops", "reason"),
    [
        (Stops(generations=2), "generations"),
        (Stops(tokens=4000), "tokens"),
        (Stops(evaluations=20), "evaluations"),
        (Stops(seconds=3.0), "seconds"),
    ],
)
def test_every_stop_stops_and_a_replay_from_stored_trials_stops_at_the_same_place(stops: Stops, reason: str) -> None:
    stored: dict[tuple[object, ...], Sequence[Trial]] = {}

    def record(ask: Ask) -> list[Trial]:
        trials = MEASURE(ask)
        stored[ask.profiles, ask.slice] = trials
        return trials

    first = run(stops, record)
    assert first.reason == reason
    assert first.totals.generation <= 2 or reason != "generations"
    assert first.totals.tokens <= 4000 or reason != "tokens"
    assert first.totals.evaluations <= 20 or reason != "evaluations"

    def replay(ask: Ask) -> list[Trial]:
        return [Trial(t.profile, t.slice, t.values, t.weights, t.cost, t.seconds, cached=True) for t in stored[ask.profiles, ask.slice]]

    second = run(stops, replay)
    assert (second.best, second.reason) == (first.best, first.reason)
    assert second.totals.cached == second.totals.evaluations == first.totals.evaluations
    assert second.totals.seconds == first.totals.seconds


def test_a_negative_stop_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="Stop tokens=-1 is negative"):
        Stops(tokens=-1)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_broken_values_name_profile_slice_and_document(value: float) -> None:
    asked: list[Ask] = []

    def measure(ask: Ask) -> list[Trial]:
        asked.append(ask)
        trials = MEASURE(ask)
        bad = trials[1]
        trials[1] = Trial(bad.profile, bad.slice, (value, *bad.values[1:]), bad.weights, bad.cost, bad.seconds)
        return trials

    with pytest.raises(NumericalError, match="NaN or infinite on documents") as error:
        run(Stops(), measure)
    assert asked[0].profiles[1].digest[:12] in str(error.value)
    assert asked[0].slice.digest[:12] in str(error.value)


def test_a_trial_without_scored_positions_is_a_numerical_error() -> None:
    def measure(ask: Ask) -> list[Trial]:
        return [Trial(t.profile, t.slice, t.values, (0,) * len(t.weights), t.cost, t.seconds) for t in MEASURE(ask)]

    with pytest.raises(NumericalError, match="no position was scored"):
        run(Stops(), measure)


def test_an_interrupt_passes_through_and_the_question_stays_pending() -> None:
    search = searcher()

    def measure(ask: Ask) -> list[Trial]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        drive(search, measure, Stops(), lambda: 0.0)
    assert search.ask() == searcher().ask()


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, 30) | st.integers(0, 4), min_size=1, max_size=12), st.integers(2, 200), st.integers(0, 10**6))
def test_slices_are_exact_repeat_nothing_and_have_no_piece_of_one_token(documents: list[int], tokens: int, seed: int) -> None:
    base = ladder((4, 4))
    problem = Problem(base.space, base.budgets, "set", tuple(documents))
    usable = [length for length in documents if length > 1]
    if tokens > sum(usable):
        with pytest.raises(UsageError, match="tokens, but the search set holds"):
            draw_slice(random.Random(seed), problem, tokens)
        return
    if tokens % 2 and max(usable) == 2:  # the only sum that pieces of two or more cannot make
        with pytest.raises(UsageError, match=r"every document has 2, which make no odd number\. Ask for"):
            draw_slice(random.Random(seed), problem, tokens)
        return
    drawn = draw_slice(random.Random(seed), problem, tokens)
    indices = [index for index, _ in drawn.documents]
    assert drawn.tokens == tokens
    assert len(set(indices)) == len(indices)
    assert all(2 <= used <= documents[index] for index, used in drawn.documents)
    assert sum(used != documents[index] for index, used in drawn.documents) <= 2, "the last piece is cut, and one may give it a token"
    assert draw_slice(random.Random(seed), problem, tokens) == drawn


@pytest.mark.parametrize(
    ("documents", "tokens", "expected"),
    [
        ((10, 10, 10), 21, [10, 9, 2]),
        ((2, 2, 2, 2, 9), 3, [3]),
        ((2, 3), 3, [3]),
        ((2, 2, 2, 5), 7, [2, 2, 3]),
        ((1, 1, 4, 1), 3, [3]),
    ],
)
def test_a_token_too_few_is_found_elsewhere(documents: tuple[int, ...], tokens: int, expected: list[int]) -> None:
    base = ladder((4, 4))
    problem = Problem(base.space, base.budgets, "set", documents)
    seen = {tuple(used for _, used in draw_slice(random.Random(seed), problem, tokens).documents) for seed in range(40)}
    assert tuple(expected) in seen
    assert all(sum(pieces) == tokens and min(pieces) > 1 for pieces in seen)


def test_b6_a_stage_of_one_token_is_an_error() -> None:
    with pytest.raises(UsageError, match="at least 2"):
        draw_slice(random.Random(0), PROBLEM, 1)
