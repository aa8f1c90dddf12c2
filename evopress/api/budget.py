"""Budget: an exact integer limit on one field of Cost. Several budgets hold together.

Written `bits=3.0`, `size=60MiB`, `size=0.5x`, `size=gptq(bits=3,group=64)` (the bytes of that level everywhere), `sparsity=0.6`,
`params=0.8x`, `latency=0.8x` of the dense model or `latency=20ms`, of decoding one token unless it says `latency=0.8x,prefill,batch=4`.
Called by the run and the command line; the searchers only see `field` and `limit`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor
from typing import Literal

from evopress.api.cost import Cost
from evopress.api.errors import InfeasibleBudget, UsageError, unknown
from evopress.api.level import DENSE, Level
from evopress.api.space import Space
from evopress.api.workload import Workload

Field = Literal["bytes", "params", "nanoseconds"]
FIELDS: dict[str, Field] = {"bits": "bytes", "size": "bytes", "sparsity": "params", "params": "params", "latency": "nanoseconds"}
UNITS: dict[Field, str] = {"bytes": "bytes", "params": "parameters", "nanoseconds": "nanoseconds"}
_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_TIMES = {"ns": 1, "us": 10**3, "µs": 10**3, "ms": 10**6, "s": 10**9}
_COUNTS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}
_NUMBER = re.compile(r"([+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+))\s*([A-Za-zµ]*)")


@dataclass(frozen=True, slots=True)
class Budget:
    """text: as the user wrote it. field: the field of Cost it limits. limit: largest allowed value, with the fixed part of the model."""

    text: str
    field: Field
    limit: int

    def allows(self, cost: Cost) -> bool:
        """Is `cost` within the limit?"""
        return self.spent(cost) <= self.limit

    def spent(self, cost: Cost) -> int:
        """The part of `cost` this budget limits."""
        value: int = getattr(cost, self.field)
        return value

    @property
    def relative(self) -> bool:
        """Is it a share of the dense model, as in `latency=0.8x`?"""
        return self.text.partition("=")[2].partition(",")[0].strip().lower().endswith("x")

    def allowed_seconds(self, dense_nanoseconds: int, dense_seconds: float | None) -> float:
        """What a latency budget allows of measured time: a share is of what the dense model was measured at, not of what its costs say.

        dense_nanoseconds: the dense model's cost, from which the limit was taken. dense_seconds: None where it was not measured.
        """
        if self.relative and dense_seconds is not None:
            return dense_seconds * self.limit / dense_nanoseconds
        return self.limit / 1e9

    @staticmethod
    def parse(text: str, space: Space) -> Budget:
        """Turn `bits=3.0` and its kin into an integer limit for this space. Raises UsageError."""
        name, equals, value = text.strip().partition("=")
        name, value = name.strip().lower(), value.strip()
        if not equals or not value:
            examples = "bits=3.0, size=60MiB, sparsity=0.6, params=0.8x or latency=0.8x"
            raise UsageError(f"Cannot read budget {text!r}.", f"Write it as {examples}.")
        if name not in FIELDS:
            raise unknown("budget", name, FIELDS, repr(text))
        amount = value.partition(",")[0].strip() if name == "latency" else value
        return Budget(text.strip(), FIELDS[name], _limit(name, amount, text, space))


def workload_of(texts: Sequence[str]) -> Workload | None:
    """What the latency budgets among `texts` are of; None where there are none. Raises UsageError when they are of different things."""
    found = {}
    for text in texts:
        name, _, value = text.partition("=")
        if name.strip().lower() == "latency":
            found[text] = Workload.parse(value.partition(",")[2], f"budget {text!r}")
    if len(set(found.values())) > 1:
        raise UsageError(f"Budgets {', '.join(map(repr, found))} limit different workloads.", "Limit one workload a study.")
    return next(iter(found.values()), None)


def _number(value: str, what: str) -> tuple[Fraction, str]:
    match = _NUMBER.fullmatch(value)
    if not match:
        raise UsageError(f"Cannot read the number {value!r} of {what}.", "Write it like 3.0, 60MiB or 0.8x.")
    return Fraction(match.group(1)), match.group(2).lower()


def _limit(name: str, value: str, text: str, space: Space) -> int:
    dense = space.dense
    if name == "size" and value[0].isalpha():
        return uniform_cost(space, Level.parse(value)).bytes
    number, unit = _number(value, f"budget {text!r}")
    if name == "bits":
        if unit or number <= 0:
            raise UsageError(f"Budget {text!r} is not a positive number of bits a weight.", "Write e.g. bits=3.0.")
        return space.base.bytes + int(number * space.weights / 8)
    if name == "sparsity":
        if unit or not 0 <= number < 1:
            raise UsageError(f"Budget {text!r} is not a share in [0, 1).", "Write e.g. sparsity=0.6.")
        return space.base.params + int((1 - number) * space.weights)
    if unit == "x":
        if number <= 0:
            raise UsageError(f"Budget {text!r} is not a positive share of the dense model.", f"Write e.g. {name}=0.8x.")
        return int(number * getattr(dense, FIELDS[name]))
    table = {"size": _UNITS, "params": _COUNTS, "latency": _TIMES}[name]
    if unit not in table:
        raise unknown("unit", unit, [key for key in table if key] + ["x"], repr(text))
    if number <= 0:
        example = {"size": "size=60MiB", "params": "params=100M", "latency": "latency=20ms"}[name]
        raise UsageError(f"Budget {text!r} is not a positive number.", f"Write e.g. {example} or {name}=0.8x.")
    return int(number * table[unit])


def parse_bytes(text: str, what: str) -> int:
    """`2GiB` or `500MB` as bytes. Raises UsageError."""
    number, unit = _number(text.strip(), what)
    if unit not in _UNITS:
        raise unknown("unit", unit, [key for key in _UNITS if key], f"{what} {text}")
    if number < 0:
        raise UsageError(f"{what} {text} is negative.", "Write e.g. 2GiB.")
    return int(number * _UNITS[unit])


def uniform_cost(space: Space, level: Level) -> Cost:
    """Cost of the profile with `level` at every linear site that has it and dense elsewhere. Raises UsageError if none has it."""
    total, found = space.fixed, False
    for levels, costs in zip(space.levels, space.costs, strict=True):
        here = level in levels
        found |= here
        total += costs[levels.index(level if here else DENSE)]
    if not found:
        known = sorted({str(item) for levels in space.levels for item in levels})
        raise unknown("level", str(level), known, "the budget")
    return total


def check_feasible(space: Space, budgets: Sequence[Budget]) -> None:
    """Raise InfeasibleBudget, with the feasible interval, when a budget is below the cheapest profile or above the dense model."""
    for budget in budgets:
        low, high = budget.spent(space.cheapest), budget.spent(space.dearest)
        what = UNITS[budget.field]
        if budget.limit < low:
            advice = "Ask for less compression, or add a method that goes lower (sparsegpt, drop)."
            if low == high:
                advice = f"No method of the study changes the number of {what}: add one that does (sparsegpt, magnitude, wanda, drop)."
            raise InfeasibleBudget(
                f"Budget {budget.text} allows {budget.limit:,} {what}, less than the cheapest profile ({low:,}).",
                f"Feasible: {interval(space, budget)}. {advice}",
            )
        if budget.limit > high:
            raise InfeasibleBudget(
                f"Budget {budget.text} allows {budget.limit:,} {what}, more than the dearest profile ({high:,}): no search is needed.",
                f"Feasible: {interval(space, budget)}. Ask for more compression.",
            )


def interval(space: Space, budget: Budget) -> str:
    """The feasible interval of a budget, in the unit the user wrote, rounded inwards so that both ends can be asked for, and exactly."""
    name = budget.text.partition("=")[0].strip().lower()
    low, high, base = space.cheapest, space.dearest, space.base
    exact = f"{budget.spent(low):,} to {budget.spent(high):,} {UNITS[budget.field]}"
    if name == "bits":
        ends = [Fraction(8 * (cost.bytes - base.bytes), space.weights) for cost in (low, high)]
    elif name == "sparsity":
        ends = [1 - Fraction(cost.params - base.params, space.weights) for cost in (high, low)]
    elif name == "size":
        ends = [Fraction(cost.bytes, 2**20) for cost in (low, high)]
    else:
        ends = [Fraction(budget.spent(cost), max(budget.spent(space.dense), 1)) for cost in (low, high)]
    unit = {"size": "MiB", "params": "x", "latency": "x"}.get(name, "")
    # Where everything can be dropped the ends are bits=0 and sparsity=1, which are no budgets: the next ones inside are.
    first = max(Fraction(ceil(ends[0] * 1000), 1000), Fraction(1 if name == "bits" else 0, 1000))
    last = min(Fraction(floor(ends[1] * 1000), 1000), Fraction(999, 1000) if name == "sparsity" else ends[1])
    last = max(first, last)  # narrower than the rounding: one number, and only exact integers can be asked for
    return f"{name}={float(first):.3f}{unit} to {float(last):.3f}{unit} ({exact})"
