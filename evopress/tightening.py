"""Limits for a search whose answer, as a whole model, takes another time than the LatencyTable says. Pure; called by `evopress.run`.

The sum leaves out what cells do to each other in the caches, a few per cent. So simple answers are timed before the search, until one under
a lowered limit keeps the budget and leaves little of it; the search has that limit. Its own answer is timed after it, and where that misses
the budget, the search goes on under another limit for a part of what it could spend at first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from math import ceil

from evopress.api import Budget, Space
from evopress.search.loop import Outcome, Stops, Totals

ROUNDS = 3
"""Other limits that are tried before a search, and further searches after it, at most."""
SHARE = 4
"""A further search may spend one part in so many of what the first could: it starts from an answer that is nearly right."""
ENOUGH = 0.995
"""Of a budget that an answer may take in the timing here: the next timing differs a little."""
LITTLE = 0.975
"""Of a budget that an answer takes at least, or more is to be had under a looser limit."""
MARGIN = 0.99
"""Of the limit that would just do, for the same reason."""


def overtime(budgets: Sequence[Budget], space: Space, dense_seconds: float, seconds: float) -> float:
    """Measured time over the allowed, for the latency budget that is missed most; at most `ENOUGH` where all hold.

    A budget in `x` allows a share of the dense model's measured time, any other a time.
    """
    dense = space.dense.nanoseconds
    found = [seconds / budget.allowed_seconds(dense, dense_seconds) for budget in budgets if budget.field == "nanoseconds"]
    return max(found, default=0.0)


def adjusted(budgets: Sequence[Budget], own: Sequence[Budget], times: float, least: float = 0.0) -> tuple[Budget, ...]:
    """The budgets with limits on time that an answer which took `times` its budget would keep, and a little less.

    own: of the study, above which no limit is set. The budgets themselves where the answer keeps its budget and takes at least a share
    `least` of it.
    """
    if least <= times <= ENOUGH:
        return tuple(budgets)
    return tuple(
        replace(budget, limit=min(int(budget.limit / times * MARGIN), most.limit)) if budget.field == "nanoseconds" else budget
        for budget, most in zip(budgets, own, strict=True)
    )


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
    """The second outcome, with what both took."""
    fields = ("evaluations", "tokens", "seconds", "cached", "wall_seconds", "thinking_seconds")
    sums = {field: getattr(first.totals, field) + getattr(second.totals, field) for field in fields}
    return replace(second, totals=Totals(first.totals.generation + second.totals.generation, **sums))
