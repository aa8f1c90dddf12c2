"""Which rows of a leaderboard nothing beats: the Pareto front of size, fitness and speed. Pure; measures and prints nothing.

Called by the command line.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from evopress.store import BoardRow

Point = tuple[float, ...]


def non_dominated(points: Sequence[Point]) -> list[bool]:
    """Per point: is no other point at most as large in every coordinate and smaller in one? Equal points do not dominate each other.

    Every coordinate is better when lower; infinity stands for "not measured". O(n²) comparisons at worst. Raises ValueError for points of
    different lengths and for NaN.
    """
    if len({len(point) for point in points}) > 1 or any(math.isnan(x) for point in points for x in point):
        raise ValueError("points must have equal lengths and no NaN")
    keep = [False] * len(points)
    front: list[Point] = []
    # In lexicographic order a point can only be dominated by an earlier one, and then by one of the front (dominance is transitive).
    for number in sorted(range(len(points)), key=lambda i: points[i]):
        point = points[number]
        if not any(_dominates(other, point) for other in front):
            keep[number] = True
            front.append(point)
    return keep


def _dominates(a: Point, b: Point) -> bool:
    return a != b and all(x <= y for x, y in zip(a, b, strict=True))


def pareto_rows(rows: Sequence[BoardRow], metric: str) -> list[BoardRow]:
    """The rows that no other row beats in bytes, `metric` and seconds per decoded token, in the order given.

    Rows are compared with those of the same model, measured on the same slice. A row without `metric` is left out. A row whose speed was
    not measured counts as slower than one whose was; speeds of different devices are not compared.
    """
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for number, row in enumerate(rows):
        if metric in row.values:
            groups[(row.model, row.slices.get(metric, ""))].append(number)
    kept: set[int] = set()
    for members in groups.values():
        devices = sorted({row.device for row in (rows[i] for i in members) if row.device is not None and row.decode})
        points = [_point(rows[i], metric, devices) for i in members]
        kept |= {i for i, keep in zip(members, non_dominated(points), strict=True) if keep}
    return [rows[i] for i in sorted(kept)]


def _point(row: BoardRow, metric: str, devices: Sequence[str]) -> Point:
    seconds = [1 / row.decode if row.decode and row.device == device else math.inf for device in devices]
    return (float(row.bytes), row.values[metric], *seconds)
