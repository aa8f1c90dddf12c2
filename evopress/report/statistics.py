"""Intervals and paired tests over documents. Pure functions of numbers; called by the run and the reports.

Windows of one source document are not independent: where `groups` names what each window came from (`TokenSet.origins`), its windows are
first merged into one value, and resampling and tests run over those. So a long document with many windows is one piece of evidence.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from math import inf

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
P_VALUE = 0.01
"""A winner is accepted when the paired test against uniform is below this."""
SIMPLE = ("greedy", "knapsack")
"""Answers that take no search, which a winner must not be worse than."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A weighted mean with its 95 % bootstrap interval over n independent documents."""

    mean: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, slots=True)
class Paired:
    """A minus B over the same documents: weighted mean difference, its 95 % bootstrap interval, and p of "A is lower than B".

    p: one-sided Wilcoxon signed-rank test on per-document differences (exact for small n); 1.0 when all differences are zero.
    n: independent documents.
    """

    difference: float
    low: float
    high: float
    p: float
    n: int


def accepted(difference: float, p: float) -> bool:
    """Is a lower mean shown? Lower, and unlikely to be chance."""
    return difference < 0 and p < P_VALUE


def below(differences: Mapping[str, float], winner: str) -> str:
    """The simple answer (greedy, knapsack) whose mean is lowest, when it is below the winner's; else nothing. differences: to uniform."""
    lower = [label for label in SIMPLE if differences.get(label, inf) < differences.get(winner, inf)]
    return min(lower, key=lambda label: differences[label], default="")


def merge(values: Sequence[float], weights: Sequence[int], groups: Sequence[Hashable] | None) -> tuple[list[float], list[int]]:
    """Weighted mean and total weight per group, in the order of first appearance; without groups every value stays by itself.

    Raises ValueError for sequences of different lengths.
    """
    members: dict[Hashable, list[int]] = {}
    for position, group in zip(range(len(values)), range(len(values)) if groups is None else groups, strict=True):
        members.setdefault(group, []).append(position)
    if len(weights) != len(values):
        raise ValueError(f"{len(values)} values need as many weights, got {len(weights)}")
    totals = [sum(weights[position] for position in found) for found in members.values()]
    merged = [
        # A lone value is kept as it is: multiplying and dividing by its weight could move its last bit.
        values[found[0]] if len(found) == 1 else sum(values[position] * weights[position] for position in found) / total
        for found, total in zip(members.values(), totals, strict=True)
    ]
    return merged, totals


def _resample(values: Sequence[float], weights: Sequence[int], seed: int) -> tuple[float, float, float]:
    value, weight = np.asarray(values, dtype=np.float64), np.asarray(weights, dtype=np.float64)
    draws: NDArray[np.int64] = np.random.default_rng(seed).integers(0, len(value), size=(RESAMPLES, len(value)))
    means = (value[draws] * weight[draws]).sum(1) / weight[draws].sum(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float((value * weight).sum() / weight.sum()), float(low), float(high)


def interval(values: Sequence[float], weights: Sequence[int], seed: int = 0, groups: Sequence[Hashable] | None = None) -> Interval:
    """Weighted mean and percentile-bootstrap interval over groups (default: every value its own). Raises ValueError for no documents."""
    if not values:
        raise ValueError("an interval needs at least one document")
    merged, totals = merge(values, weights, groups)
    return Interval(*_resample(merged, totals, seed), len(merged))


def paired(
    a: Sequence[float], b: Sequence[float], weights: Sequence[int], seed: int = 0, groups: Sequence[Hashable] | None = None
) -> Paired:
    """Compare A with B on the same documents, over groups (default: every value its own). Raises ValueError when they differ in number."""
    if len(a) != len(b) or not a:
        raise ValueError(f"a paired test needs the same documents on both sides, got {len(a)} and {len(b)}")
    from scipy.stats import wilcoxon

    differences, totals = merge([x - y for x, y in zip(a, b, strict=True)], weights, groups)
    mean, low, high = _resample(differences, totals, seed)
    p = 1.0 if not any(differences) else float(wilcoxon(differences, alternative="less", zero_method="zsplit").pvalue)
    return Paired(mean, low, high, p, len(differences))
