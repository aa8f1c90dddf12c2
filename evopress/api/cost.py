"""Cost: what a variant or a profile takes, as exact integers that add up. Used by methods, spaces and budgets."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Cost:
    """Stored size, and time where a study limits it.

    bytes: every stored byte of the tensors: codes, scales, zeros, masks, indices and padding.
    params: parameters that are stored (the non-zeros of a sparse weight; every weight of a quantised one).
    nanoseconds: of one pass of the study's workload on this machine, from its LatencyTable; 0 where the study has no latency budget.
    """

    bytes: int = 0
    params: int = 0
    nanoseconds: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.bytes + other.bytes, self.params + other.params, self.nanoseconds + other.nanoseconds)

    def __sub__(self, other: Cost) -> Cost:
        return Cost(self.bytes - other.bytes, self.params - other.params, self.nanoseconds - other.nanoseconds)


ZERO = Cost()
DENSE_BYTES_PER_PARAM = 2
"""A dense parameter is stored in 16 bits (float16 or bfloat16), whatever type it is computed in."""


def dense_cost(params: int) -> Cost:
    """Cost of `params` dense parameters."""
    return Cost(params * DENSE_BYTES_PER_PARAM, params)
