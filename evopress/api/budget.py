"""Budget: an exact integer limit on one field of Cost. Several budgets hold together.

Written `bits=3.0`, `size=60MiB`, `size=0.5x`, `size=gptq(bits=3,group=64)` (the bytes of that level everywhere), `sparsity=0.6`,
`params=0.8x`.
Called by the run and the command line; the searchers only see `field` and `limit`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from evopress.api.cost import Cost
from evopress.api.errors import InfeasibleBudget, UsageError, unknown
from evopress.api.level import DENSE, Level
from evopress.api.space import Space

FIELDS: dict[str, Literal["bytes", "params"]] = {"bits": "bytes", "size": "bytes", "sparsity": "params", "params": "params"}
_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_COUNTS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}
_NUMBER = re.compile(r"^(\d+(?:\.\d+)?)\s*([A-Za-z]*)$")


@dataclass(frozen=True, slots=True)
class Budget:
    """text: as the user wrote it. field: the field of Cost it limits. limit: largest allowed value, with the fixed part of the model."""

    text: str
    field: Literal["bytes", "params"]
    limit: int

    def allows(self, cost: Cost) -> bool:
        """Is `cost` within the limit?"""
        return self.spent(cost) <= self.limit

    def spent(self, cost: Cost) -> int:
        """The part of `cost` this budget limits."""
        return cost.bytes if self.field == "bytes" else cost.params

    @staticmethod
    def parse(text: str, space: Space) -> Budget:
        """Turn `bits=3.0` and its kin into an integer limit for this space. Raises UsageError."""
        name, equals, value = text.strip().partition("=")
        name, value = name.strip().lower(), value.strip()
        if not equals or not value:
            raise UsageError(f"Cannot read budget {text!r}.", "Write it as bits=3.0, size=60MiB, sparsity=0.6 or params=0.8x.")
        if name not in FIELDS:
            raise unknown("budget", name, FIELDS, repr(text))
        return Budget(text.strip(), FIELDS[name], _limit(name, value, text, space))


def _number(value: str, text: str) -> tuple[Fraction, str]:
    match = _NUMBER.match(value)
    if not match:
        raise UsageError(f"Cannot read the number {value!r} of budget {text!r}.", "Write it like 3.0, 60MiB or 0.8x.")
    return Fraction(match.group(1)), match.group(2).lower()


def _limit(name: str, value: str, text: str, space: Space) -> int:
    dense = space.dense
    if name == "size" and value[0].isalpha():
        return uniform_cost(space, Level.parse(value)).bytes
    number, unit = _number(value, text)
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
            raise UsageError(f"Budget {text!r} must be a positive share of the dense model.", "Write e.g. 0.8x.")
        return int(number * (dense.bytes if name == "size" else dense.params))
    table = _UNITS if name == "size" else _COUNTS
    if unit not in table:
        raise unknown("unit", unit, [key for key in table if key] + ["x"], repr(text))
    return int(number * table[unit])


def parse_bytes(text: str, what: str) -> int:
    """`2GiB` or `500MB` as bytes. Raises UsageError."""
    number, unit = _number(text.strip(), f"{what}={text}")
    if unit not in _UNITS:
        raise unknown("unit", unit, [key for key in _UNITS if key], f"{what}={text}")
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
        if budget.limit < low:
            raise InfeasibleBudget(
                f"Budget {budget.text} allows {budget.limit:,} {budget.field}, less than the cheapest profile ({low:,}).",
                f"Feasible: {interval(space, budget)}. Allow more, or add a method that goes lower (sparsegpt, drop).",
            )
        if budget.limit > high:
            raise InfeasibleBudget(
                f"Budget {budget.text} allows {budget.limit:,} {budget.field}, more than the dearest profile ({high:,}): no search.",
                f"Feasible: {interval(space, budget)}.",
            )


def interval(space: Space, budget: Budget) -> str:
    """The feasible interval of a budget, in the unit the user wrote and in exact integers."""
    name = budget.text.partition("=")[0].strip().lower()
    low, high = space.cheapest, space.dearest
    exact = f"{budget.spent(low):,} to {budget.spent(high):,} {budget.field}"
    if name == "bits":
        return f"bits={max(space.bits(low), 0):.3f} to {space.bits(high):.3f} ({exact})"
    if name == "sparsity":
        return f"sparsity={max(space.sparsity(high), 0):.3f} to {space.sparsity(low):.3f} ({exact})"
    if name == "size":
        return f"size={low.bytes / 2**20:.2f}MiB to {high.bytes / 2**20:.2f}MiB ({exact})"
    return f"params={low.params / space.dense.params:.3f}x to {high.params / space.dense.params:.3f}x ({exact})"
