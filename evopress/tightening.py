"""Tighter limits for a search whose answer, as a whole model, takes longer than the LatencyTable says. Pure; called by `evopress.run`.

The sum leaves out what cells do to each other in the caches, a few per cent. So a simple answer is timed before the search, which then has
a limit that is lower by as much as that missed it; its own answer is timed after it, and where that is above the budget the search goes on
under a lower limit again, for a part of what it could spend at first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from math import ceil

from evopress.api import Budget, Space
from evopress.search.loop import Outcome, Stops, Totals

ROUNDS = 3
"""Searches under tighter limits, at most."""
SHARE = 4
"""A further search may spend one part in so many of what the first could: it starts from an answer that is nearly right."""
ENOUGH = 0.995
"""Of a budget that an answer may take in the timing here: the next timing differs a little."""
MARGIN = 0.99
"""Of the limit that would just do, for the same reason."""


def overtime(budgets: Sequence[Budget], space: Space, dense_seconds: float, seconds: float) -> float:
    """Measured time over the allowed, for the latency budget that is missed most; at most `ENOUGH` where all hold.

    A budget in `x` allows a share of the dense model's measured time, any other a time.
    """
    dense = space.dense.nanoseconds
    found = [seconds / budget.allowed_seconds(dense, dense_seconds) for budget in budgets if budget.field == "nanoseconds"]
    return max(found, default=0.0)


def tighter(budgets: Sequence[Budget], times: float) -> tuple[Budget, ...]:
    """The budgets with their limits on time so many times lower, and a little more."""
    return tuple(
        replace(budget, limit=int(budget.limit / times * MARGIN)) if budget.field == "nanoseconds" else budget for budget in budgets
    )


def further(stops: Stops) -> Stops:
    """Where a search under a tighter limit stops."""
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
