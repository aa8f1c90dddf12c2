"""The loop that drives a searcher: ask, measure, tell, until it is finished or a stop is reached.

Called by the run; measures nothing itself. What counts towards a stop is read off the trials, not off the clock, so a search that is
replayed from stored trials stops at the same place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite

from evopress.api import Ask, EvopressError, NumericalError, Profile, Searcher, Trial, UsageError


@dataclass(frozen=True)
class Stops:
    """Where to stop; None is no limit. Questions beyond generations, tokens or evaluations are not measured; seconds may be passed once."""

    generations: int | None = None
    tokens: int | None = None
    seconds: float | None = None
    evaluations: int | None = None

    def __post_init__(self) -> None:
        for name in ("generations", "tokens", "seconds", "evaluations"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise UsageError(f"Stop {name}={value!r} is negative.", "Write a number of at least 0, or leave it out.")


@dataclass(frozen=True)
class Totals:
    """What the trials so far took. generation: of the last answered question. wall_seconds: by the clock, since the loop began.

    thinking_seconds: by the clock, what the searcher itself took to ask and to be told. A replay spends them again.
    """

    generation: int = 0
    evaluations: int = 0
    tokens: int = 0
    seconds: float = 0.0
    cached: int = 0
    wall_seconds: float = 0.0
    thinking_seconds: float = 0.0


@dataclass(frozen=True)
class Event:
    """One answered question, for progress displays. incumbent: after the answer."""

    ask: Ask
    trials: tuple[Trial, ...]
    totals: Totals
    incumbent: Profile


@dataclass(frozen=True)
class Outcome:
    """How a search ended. reason: `finished`, or the stop that was reached: generations, tokens, seconds, evaluations.

    front: as of the searcher. next_tokens: what it would have come to with the question that the stop `tokens` did not let through.
    """

    best: Profile
    reason: str
    totals: Totals
    front: tuple[Profile, ...] = ()
    next_tokens: int | None = None


def drive(
    searcher: Searcher,
    measure: Callable[[Ask], Sequence[Trial]],
    stops: Stops,
    clock: Callable[[], float],
    on_event: Callable[[Event], None] | None = None,
) -> Outcome:
    """Run a searcher to its end or to the first stop.

    clock: seconds, which steer nothing. Whatever `measure` and `on_event` raise (Ctrl-C included) passes through. Raises NumericalError
    when a value is NaN or infinite, and EvopressError when the answer is beyond a budget.
    """
    began = clock()
    ask = searcher.ask()
    totals = Totals(thinking_seconds=(thinking := clock() - began))
    while ask is not None:
        reason = _stop(ask, totals, stops)
        if reason:
            next_tokens = totals.tokens + ask.tokens if reason == "tokens" else None
            return Outcome(_answer(searcher), reason, totals, searcher.front, next_tokens)
        trials = tuple(measure(ask))
        for trial in trials:
            _check_finite(trial)
        told = clock()
        searcher.tell(trials)
        following = searcher.ask()
        thinking += clock() - told
        totals = Totals(
            ask.generation,
            totals.evaluations + len(trials),
            totals.tokens + ask.tokens,
            totals.seconds + sum(trial.seconds for trial in trials),
            totals.cached + sum(trial.cached for trial in trials),
            clock() - began,
            thinking,
        )
        if on_event is not None:
            on_event(Event(ask, trials, totals, searcher.incumbent))
        ask = following
    return Outcome(_answer(searcher), "finished", totals, searcher.front)


def _answer(searcher: Searcher) -> Profile:
    cost = searcher.problem.space.cost(searcher.incumbent)
    for budget in searcher.problem.budgets:
        if not budget.allows(cost):
            raise EvopressError(
                f"The answer of searcher {searcher.name} has {budget.spent(cost):,} {budget.field}, {budget.text} allows {budget.limit:,}.",
                "That is a bug of the searcher: its author finds it with evopress.testing.searchers.check_searcher.",
            )
    return searcher.incumbent


def _stop(ask: Ask, totals: Totals, stops: Stops) -> str:
    if stops.generations is not None and ask.generation > stops.generations:
        return "generations"
    if stops.evaluations is not None and totals.evaluations + len(ask.profiles) > stops.evaluations:
        return "evaluations"
    if stops.tokens is not None and totals.tokens + ask.tokens > stops.tokens:
        return "tokens"
    if stops.seconds is not None and totals.seconds >= stops.seconds:
        return "seconds"
    return ""


def _check_finite(trial: Trial) -> None:
    if trial.values and all(isfinite(value) for value in trial.values) and sum(trial.weights) > 0 and isfinite(trial.fitness):
        return
    broken = [index for (index, _), value in zip(trial.slice.documents, trial.values, strict=True) if not isfinite(value)]
    what = f"NaN or infinite on documents {broken[:5]}" if broken else "undefined, because no position was scored"
    raise NumericalError(
        f"The fitness of profile {trial.profile.digest[:12]} on slice {trial.slice.digest[:12]} is {what}.",
        "Evaluate that profile alone to find the site, and leave out the level that breaks it.",
    )
