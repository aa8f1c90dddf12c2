"""A few numbers that stand for a whole profile: per role a curve over depth, decoded by the exact knapsack. Not a search; measures nothing.

A curve has values in [-1, 1] at knots spread evenly over the depth, and is linear in between. The layer errors of a site are multiplied by
exp(spread · curve), and the knapsack finds the profile of least sum within the budgets: every point is feasible, and the origin is the
knapsack's own answer. Called by `bayes` and `predictor`.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import numpy as np

from evopress.api import Genotype, Site, Space
from evopress.search.knapsack import solve
from evopress.search.ledger import Ledger


def drawn_curves(ledger: Ledger, knots: int, deviation: float, rng: random.Random) -> dict[str, float]:
    """A random point: normal draws around the origin, cut to [-1, 1]."""
    return {name: max(-1.0, min(1.0, rng.gauss(0, deviation))) for name in curve_names(ledger, knots)}


def curve_role(site: Site) -> str:
    """The curve a site belongs to: its role, or the kind of a container (a block's own role is a number)."""
    return site.role if site.kind == "linear" else site.kind


def curve_names(ledger: Ledger, knots: int) -> list[str]:
    """Parameters of all curves: `role@knot`, for roles with something to choose. One knot where all sites stand at one depth."""
    space = ledger.space
    sites = [space.sites[site] for gene in ledger.movable for site in space.genes[gene]]
    count = knots if len({site.depth for site in space.sites}) > 1 else 1
    return [f"{role}@{knot}" for role in dict.fromkeys(map(curve_role, sites)) for knot in range(count)]


def curve_values(space: Space, point: Mapping[str, float], knots: int) -> list[float]:
    """The value of its curve per site, in [-1, 1]; 0 for a role without one."""
    deepest = max((site.depth for site in space.sites), default=0)
    found = []
    for site in space.sites:
        heights = [point[name] for name in (f"{curve_role(site)}@{knot}" for knot in range(knots)) if name in point]
        places = np.linspace(0.0, 1.0, len(heights)) if len(heights) > 1 else [0.0]
        found.append(float(np.interp(site.depth / max(deepest, 1), places, heights)) if heights else 0.0)
    return found


def decoded(ledger: Ledger, errors: Sequence[Sequence[float]], point: Mapping[str, float], knots: int, spread: float) -> Genotype:
    """The knapsack's answer with every site's layer errors times exp(spread · curve); at the origin, the knapsack's own."""
    factors = [float(np.exp(spread * value)) for value in curve_values(ledger.space, point, knots)]
    table = [tuple(factor * error for error in row) for factor, row in zip(factors, errors, strict=True)]
    return solve(ledger.telling(table)).genotype
