"""Limits for a search whose answer, as a whole model, takes another time than the LatencyTable says. Pure; called by `evopress.run`.

The sum leaves out what cells do to each other in the caches, a per cent or two. So simple answers are timed before the search, until one
under a lowered limit keeps the budget and leaves little of it; the search has that limit. Its own answer is timed after it, and where that
misses the budget, the search goes on under a tighter one for a part of what it could spend at first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from math import ceil, inf

from evopress.api import Budget, Space
from evopress.search.loop import Outcome, Stops, Totals

TRIES = 6
"""Simple answers that are timed before a search, at most."""
ROUNDS = 3
"""Further searches after it, at most."""
SHARE = 4
"""A further search may spend one part in so many of what the first could: it starts from an answer that is nearly right."""
ENOUGH = 0.99
"""Of a budget that an answer may take in the timing here: one of another minute differs by a per cent."""
LITTLE = 0.97
"""Of a budget that a simple answer takes at least, or more is to be had under a looser limit."""
MARGIN = 0.985
"""Of the limit that would just do, for the same reason."""


def overtime(budgets: Sequence[Budget], space: Space, dense_seconds: float, seconds: float) -> float:
    """Measured time over the allowed, for the latency budget that is nearest to being missed.

    A budget in `x` allows a share of the dense model's measured time, any other a time.
    """
    dense = space.dense.nanoseconds
    found = [seconds / budget.allowed_seconds(dense, dense_seconds) for budget in budgets if budget.field == "nanoseconds"]
    return max(found, default=0.0)


def scaled(budgets: Sequence[Budget], share: float) -> tuple[Budget, ...]:
    """The budgets with limits on time that are a share of their own."""
    return tuple(replace(budget, limit=int(budget.limit * share)) if budget.field == "nanoseconds" else budget for budget in budgets)


def lower(share: float, times: float) -> float:
    """The share of the limits that would do for an answer which took `times` its budget under this one, and a little less."""
    return share / times * MARGIN


@dataclass(frozen=True)
class Fit:
    """Which share of a study's limits on time makes its answers keep the measured budget, as far as was tried.

    kept, missed: the largest share whose answer kept it, and the smallest above that whose answer did not. done: no other need be tried.
    """

    share: float = 1.0
    kept: float = 0.0
    missed: float = inf
    done: bool = False

    def after(self, times: float) -> Fit:
        """With what the answer under this share took, as a multiple of its budget, and the share to try next."""
        if times <= ENOUGH:
            kept, missed, done = max(self.kept, self.share), self.missed, self.share >= 1 or times >= LITTLE
        else:
            kept, missed, done = self.kept, min(self.missed, self.share), False
        guess = lower(self.share, times)
        # Answers are of few kinds, so their times jump, and timings differ: what was tried already holds the next one in.
        share = self.share if done else guess if kept < guess < missed else (kept + missed) / 2
        return Fit(share, kept, missed, done)

    @property
    def best(self) -> float:
        """The share to search under."""
        return self.kept or self.share


def further(stops: Stops) -> Stops:
    """Where a further search stops."""
    return _scaled(stops, Fraction(1, SHARE))


def altogether(stops: Stops) -> Stops:
    """What the first search and all further ones may spend."""
    return _scaled(stops, 1 + Fraction(ROUNDS, SHARE))


def _scaled(stops: Stops, times: Fraction) -> Stops:
    def whole(value: int | None) -> int | None:
        return None if value is None else ceil(value * times)

    seconds = None if stops.seconds is None else stops.seconds * float(times)
    return Stops(whole(stops.generations), whole(stops.tokens), seconds, whole(stops.evaluations))


def joined(first: Outcome, second: Outcome) -> Outcome:
    """The outcome of a further search, with what both took. Its next question needs a stop of the study that is `SHARE` times its own."""
    fields = ("evaluations", "tokens", "seconds", "cached", "wall_seconds", "thinking_seconds")
    sums = {field: getattr(first.totals, field) + getattr(second.totals, field) for field in fields}
    wanted = None if second.next_tokens is None else second.next_tokens * SHARE
    return replace(second, totals=Totals(first.totals.generation + second.totals.generation, **sums), next_tokens=wanted)
