"""Planted spaces shared by the tests of the searchers: random small trees, flat ladders, drop masks, and enumeration."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import product

from hypothesis import strategies as st

from evopress.api import DENSE, DROP, ZERO, Budget, Cost, Genotype, Level, Problem, Site, Space, dense_cost, order_levels

POOL = (500,) * 40
SIZES = (4,) * 8 + (12,) * 8 + (40,) * 16
"""Weights of 32 layers of three sizes, for `ladder`."""


def random_tree(rng: random.Random, blocks: int = 2, links: bool = True) -> Problem:
    """Blocks with sublayers and linear sites, some droppable, odd costs, some links, a random feasible budget, random errors."""
    sites: list[Site] = []
    options: list[dict[Level, Cost]] = []
    pair = {DENSE: Cost(40, 20), Level("a"): Cost(11, 20), Level("b"): Cost(rng.randint(5, 39), rng.randint(3, 19))}
    twins: list[int] = []
    for depth in range(blocks):
        block = f"b{depth}"
        sites.append(Site(block, "block", (0, 0), depth, None, own_params=3))
        options.append({DENSE: dense_cost(3), **({DROP: ZERO} if rng.random() < 0.5 else {})})
        for kind in ("attention", "mlp"):
            name = f"{block}.{kind}"
            sites.append(Site(name, "attention" if kind == "attention" else "mlp", (0, 0), depth, block))
            options.append({DENSE: ZERO, **({DROP: ZERO} if rng.random() < 0.5 else {})})
            for number in range(rng.randint(1, 2)):
                weights = rng.randint(5, 30)
                sites.append(Site(f"{name}.{number}", "linear", (1, weights), depth, name))
                if number == 0 and kind == "mlp":
                    twins.append(len(sites) - 1)
                    options.append(pair)
                    continue
                levels = {
                    Level(letter): Cost(rng.randint(1, 2 * weights), rng.randint(1, weights)) for letter in "xyz"[: rng.randint(0, 3)]
                }
                options.append({DENSE: dense_cost(weights), **levels})
    groups = (tuple(twins),) if links and rng.random() < 0.6 else ()
    ordered = [order_levels(option) for option in options]
    space = Space(tuple(sites), tuple(levels for levels, _ in ordered), tuple(costs for _, costs in ordered), Cost(7, 5), groups)
    low, high = space.cheapest.bytes, space.dearest.bytes
    budget = Budget("size", "bytes", rng.randint(low, high))
    errors = tuple(tuple(round(rng.uniform(0, 3), 3) for _ in levels) for levels in space.levels)
    return Problem(space, (budget,), "planted", POOL, errors)


def every_genotype(space: Space) -> Iterator[Genotype]:
    """All genotypes of a small space."""
    yield from product(*[range(len(space.choices(gene))) for gene in range(len(space.genes))])


def genotypes(space: Space) -> st.SearchStrategy[Genotype]:
    """Random genotypes, feasible or not."""
    return st.tuples(*[st.integers(0, len(space.choices(gene)) - 1) for gene in range(len(space.genes))])


def ladder(sizes: Sequence[int], rungs: int = 5, target: int = 2, names: Sequence[str] = ()) -> Problem:
    """Flat linear sites; a rung costs as many bytes as the site has weights; the budget is exactly uniform rung `target`. Dense on top."""
    sites = tuple(Site(f"l{place}.{names[place] if names else 'w'}", "linear", (1, size), place, None) for place, size in enumerate(sizes))
    levels = (*(Level.of("gptq", bits=bits + 2) for bits in range(rungs)), DENSE)
    costs = tuple((*(Cost(size * (bits + 2), size) for bits in range(rungs)), Cost(size * 40, size)) for size in sizes)
    space = Space(sites, (levels,) * len(sizes), costs, Cost(13, 13))
    limit = 13 + sum(size * (target + 2) for size in sizes)
    return Problem(space, (Budget("size", "bytes", limit),), "planted", POOL)


def masks(length: int, dropped: int, kinds: Sequence[str] = ("mlp",)) -> Problem:
    """`length` blocks whose sublayers of each kind are all alike; the budget is `dropped` removals of each kind."""
    sites: list[Site] = []
    levels: list[tuple[Level, ...]] = []
    costs: list[tuple[Cost, ...]] = []
    for place in range(length):
        for kind in kinds:
            sites.append(Site(f"{kind}{place}", kind, (0, 0), place, None))  # type: ignore[arg-type]
            sites.append(Site(f"{kind}{place}.w", "linear", (4, 4), place, f"{kind}{place}"))
            levels += [(DROP, DENSE), (DENSE,)]
            costs += [(ZERO, ZERO), (dense_cost(16),)]
    space = Space(tuple(sites), tuple(levels), tuple(costs))
    limit = 16 * (length - dropped) * len(kinds)
    return Problem(space, (Budget(f"params={limit}", "params", limit),), "planted", POOL)


def pooled(problem: Problem, tokens: int) -> Problem:
    """The problem with a pool of at least so many tokens, in documents of the length that the published runs have."""
    return Problem(problem.space, problem.budgets, "planted", (991,) * (tokens // 991 + 1), problem.errors, problem.starts)


def flat(profile: object) -> float:
    """A fitness that tells no profiles apart."""
    return 1.0
