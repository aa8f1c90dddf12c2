"""Intervals and paired tests over documents. Pure functions of numbers; called by the run and the reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Interval:
    """A weighted mean with its 95 % bootstrap interval over n documents."""

    mean: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, slots=True)
class Paired:
    """A minus B over the same documents: weighted mean difference, its 95 % bootstrap interval, and p of "A is lower than B".

    p: one-sided Wilcoxon signed-rank test on per-document differences (exact for small n); 1.0 when all differences are zero.
    """

    difference: float
    low: float
    high: float
    p: float
    n: int


def _resample(values: Sequence[float], weights: Sequence[int], seed: int) -> tuple[float, float, float]:
    value, weight = np.asarray(values, dtype=np.float64), np.asarray(weights, dtype=np.float64)
    draws: NDArray[np.int64] = np.random.default_rng(seed).integers(0, len(value), size=(RESAMPLES, len(value)))
    means = (value[draws] * weight[draws]).sum(1) / weight[draws].sum(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float((value * weight).sum() / weight.sum()), float(low), float(high)


def interval(values: Sequence[float], weights: Sequence[int], seed: int = 0) -> Interval:
    """Weighted mean and percentile-bootstrap interval. Raises ValueError for no documents."""
    if not values:
        raise ValueError("an interval needs at least one document")
    mean, low, high = _resample(values, weights, seed)
    return Interval(mean, low, high, len(values))


def paired(a: Sequence[float], b: Sequence[float], weights: Sequence[int], seed: int = 0) -> Paired:
    """Compare A with B on the same documents. Raises ValueError when they differ in number."""
    if len(a) != len(b) or not a:
        raise ValueError(f"a paired test needs the same documents on both sides, got {len(a)} and {len(b)}")
    from scipy.stats import wilcoxon

    differences = [x - y for x, y in zip(a, b, strict=True)]
    mean, low, high = _resample(differences, weights, seed)
    p = 1.0 if not any(differences) else float(wilcoxon(differences, alternative="less", zero_method="zsplit").pvalue)
    return Paired(mean, low, high, p, len(differences))
