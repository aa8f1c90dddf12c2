"""Pareto fronts of few points: ranks and crowding distances, as in NSGA-II. Lower is better in every objective. Pure; called by `nsga2`.

A Fast and Elitist Multiobjective Genetic Algorithm: NSGA-II (Deb et al., 2002, IEEE TEC 6(2)), sections III-A and III-B.
"""

from __future__ import annotations

from collections.abc import Sequence

Objectives = tuple[float, ...]


def dominates(one: Objectives, other: Objectives) -> bool:
    """Is `one` nowhere worse and somewhere better?"""
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))


def sort_fronts(points: Sequence[Objectives]) -> list[list[int]]:
    """Positions by front: the first is dominated by nobody, the next only by those before it. Equal points share a front."""
    beats: list[list[int]] = [[] for _ in points]
    beaten_by = [0] * len(points)
    for one, a in enumerate(points):
        for other, b in enumerate(points):
            if dominates(a, b):
                beats[one].append(other)
                beaten_by[other] += 1
    fronts = []
    present = [at for at, count in enumerate(beaten_by) if not count]
    while present:
        fronts.append(present)
        following = []
        for at in present:
            for loser in beats[at]:
                beaten_by[loser] -= 1
                if not beaten_by[loser]:
                    following.append(loser)
        present = sorted(following)
    return fronts


def crowding(points: Sequence[Objectives]) -> list[float]:
    """How far the neighbours of each point of one front stand apart, summed over objectives in shares of their ranges.

    Infinite for the ends of an objective. An objective that is equal everywhere counts for nothing.
    """
    found = [0.0] * len(points)
    for axis in range(len(points[0]) if points else 0):
        order = sorted(range(len(points)), key=lambda at, axis=axis: points[at][axis])  # type: ignore[misc]
        spread = points[order[-1]][axis] - points[order[0]][axis]
        if spread <= 0:
            continue
        found[order[0]] = found[order[-1]] = float("inf")
        for before, at, after in zip(order, order[1:], order[2:], strict=False):
            found[at] += (points[after][axis] - points[before][axis]) / spread
    return found


def standings(points: Sequence[Objectives]) -> list[tuple[int, float]]:
    """(front, minus crowding distance) per point: smaller stands before larger."""
    found = [(0, 0.0)] * len(points)
    for rank, front in enumerate(sort_fronts(points)):
        for at, distance in zip(front, crowding([points[at] for at in front]), strict=True):
            found[at] = (rank, -distance)
    return found
