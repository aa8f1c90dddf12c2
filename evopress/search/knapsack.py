"""Exact multiple choice: the profile with the least sum of layer errors within one byte (or parameter) budget. No measurements.

The tree of sites is walked in preorder. A kept site adds its cost and error and leads to the next site; a dropped one skips its subtree.
Partial solutions are labels (cost, error) in exact integers; a label dies when another costs no more and errs no more, or when its error
plus a lower bound of the rest (the convex hull relaxation) exceeds a solution already known. Any target works, fractional or not, because
costs are stored bytes and never level indices. Searchers elsewhere may call `solve` with other errors.

As an allocator it stands for SPDY: Accurate Pruning with Speedup Guarantees (2022), arXiv 2201.13096, and LAPTOP-Diff (2024), arXiv
2404.11098, which choose levels by a knapsack over additive errors, too. Departures: exact stored bytes, shadowing and links; no tuning of
the errors by trials, which `guided` does in its own way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from evopress.api import DROP, Genotype, Knowledge, Space, UsageError
from evopress.search.ledger import Ledger, ledger_of
from evopress.search.moves import fill
from evopress.search.settled import Settled

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Hull = tuple[Ints, Floats]
"""A convex, falling function as the corners of its graph: costs and errors."""

MAX_LABELS = 100_000
"""Labels kept at one site before the exact pass is given up; the answer then says so."""
MAX_COMBINATIONS = 4096
"""Joint settings of links that cross droppable sublayers; each is solved on its own."""


SEVERAL = "several budgets bind, and all but one are only priced"
ROUGH = 200
"""Labels of a first pass, whose answer lets the exact one drop most of its labels."""


def truncated(labels: int) -> str:
    """Why an answer is not proven optimal where labels were cut."""
    return f"the limit of {labels:,} partial solutions was reached"


@dataclass(frozen=True)
class Solution:
    """genotype: the answer. error: its summed layer error. doubt: why it is not proven optimal; "" where it is."""

    genotype: Genotype
    error: float
    doubt: str = ""

    @property
    def exact(self) -> bool:
        """Proven optimal: always, unless several budgets bind or the limit of partial solutions was reached."""
        return not self.doubt


@dataclass(frozen=True)
class _Item:
    """One gene in preorder. end: position after its subtree. Per option: level index, cost, error, whether it skips the subtree."""

    gene: int
    sites: tuple[int, ...]
    end: int
    levels: tuple[int, ...]
    costs: Ints
    errors: Floats
    skips: tuple[bool, ...]


def solve(ledger: Ledger, labels: int = MAX_LABELS) -> Solution:
    """Minimise the summed layer error within the budgets.

    labels: partial solutions kept at one site; a few give a nearly optimal profile at once.
    One budget: exact. Several: the first is exact and the others are priced (Lagrangian): the price is bisected until they hold, which
    gives a feasible and nearly, but not provably, optimal profile; every budget takes the part of the exact one in turn and the best
    answer is kept. Raises UsageError when layer errors are missing or links across droppable sublayers have too many joint settings.
    """
    if not ledger.has_errors:
        raise UsageError("The knapsack needs layer errors, and the problem has none.", "Build the bank with calibration, or use uniform.")
    best: Solution | None = None
    for column in range(len(ledger.limits)):
        found = _priced(ledger, column, labels) if len(ledger.limits) > 1 else _within(ledger, column, {}, labels)
        if found is not None and (best is None or (found.error, bool(found.doubt)) < (best.error, bool(best.doubt))):
            best = found
    if best is None:  # only several budgets can end here: one budget is feasible whenever the ledger could be built
        genotype = fill(ledger, ledger.floor, ledger.movable)
        return Solution(genotype, error_of(ledger, genotype), SEVERAL)
    return best


def error_of(ledger: Ledger, genotype: Sequence[int]) -> float:
    """Summed layer error of a genotype over unshadowed sites."""
    space = ledger.space
    picks = space.spread(genotype)
    hidden = space.shadowed(picks)
    return sum(ledger.costs[site][pick][-1] for site, pick in enumerate(picks) if not hidden[site])


def _priced(ledger: Ledger, column: int, labels: int) -> Solution | None:
    others = [other for other in range(len(ledger.limits)) if other != column]

    def attempt(price: float) -> Solution | None:
        found = _within(ledger, column, {other: price / max(ledger.limits[other], 1) for other in others}, labels)
        return found

    free = attempt(0.0)
    if free is not None and ledger.fits(free.genotype):
        return free  # the other budgets do not bind, so the exact answer for one is the exact answer for all
    low, high, best = 0.0, 1.0, None
    for _ in range(60):
        price = high if best is None else (low + high) / 2
        found = attempt(price)
        if found is not None and ledger.fits(found.genotype):
            if best is None or found.error <= best.error:
                best = Solution(found.genotype, found.error, SEVERAL)
            high = price
        else:
            low = price
            high = high if best is not None else high * 8
        if high - low <= 1e-4 * high or high > 1e18:
            break
    return best


def _within(ledger: Ledger, column: int, prices: dict[int, float], labels: int) -> Solution | None:
    """Best profile whose column holds, with the other columns priced into the error; None when the column cannot hold."""
    best: Solution | None = None
    for fixed in _joint_settings(ledger.space):
        items = _preorder(ledger, column, prices, fixed)
        capacity = ledger.limits[column] - int(ledger.fixed[column])
        bounds = _bounds(items, capacity)
        rough = _walk(items, bounds, capacity, np.inf, min(labels, ROUGH))
        if rough is None:
            continue
        answer = rough[0] if rough[2] else None
        doubt = best.doubt if best is not None else ""
        if answer is None:
            refined = _walk(items, bounds, capacity, rough[1], labels) if labels > ROUGH else None
            doubt = doubt if refined is not None and refined[2] else truncated(labels)
            answer = refined[0] if refined is not None else rough[0]
        levels = [ledger.top(gene) for gene in range(len(ledger.space.genes))]
        for gene, level in (*fixed.items(), *answer.items()):
            levels[gene] = level
        error = error_of(ledger, levels)
        if best is None or _objective(ledger, levels, error, prices) < _objective(ledger, best.genotype, best.error, prices):
            best = Solution(tuple(levels), error, doubt)
        else:
            best = replace(best, doubt=doubt)
    return best


def _objective(ledger: Ledger, genotype: Sequence[int], error: float, prices: dict[int, float]) -> float:
    spent = ledger.spent(genotype) if prices else ()
    return error + sum(price * spent[column] for column, price in prices.items())


def _joint_settings(space: Space) -> Iterator[dict[int, int]]:
    """Every joint level of the links that cannot be placed at one point of the tree (usually there are none: one empty setting)."""
    loose = [gene for gene in range(len(space.genes)) if not _placeable(space, gene)]
    counts = [len(space.choices(gene)) for gene in loose]
    total = int(np.prod([float(count) for count in counts])) if counts else 1
    if total > MAX_COMBINATIONS:
        raise UsageError(
            f"Links across droppable sublayers have {total:,} joint settings; the exact knapsack tries at most {MAX_COMBINATIONS:,}.",
            "Link fewer sites, or search without the knapsack.",
        )
    for levels in product(*[range(count) for count in counts]):
        yield dict(zip(loose, levels, strict=True))


def _ancestors(space: Space, site: int) -> list[int]:
    chain = []
    while (site := space.parents[site]) >= 0:
        chain.append(site)
    return chain


def _meeting(space: Space, gene: int) -> int:
    """The nearest site that encloses every site of a gene, -1 for the whole model."""
    chains = [_ancestors(space, site) for site in space.genes[gene]]
    return next((site for site in chains[0] if all(site in chain for chain in chains)), -1)


def _placeable(space: Space, gene: int) -> bool:
    """Can a linked gene stand as one node below its meeting point: is nothing droppable between them?

    Containers whose links are dropped together are one node too, if the node above them is.
    """
    sites = space.genes[gene]
    if len(sites) == 1:
        return True
    meeting = _meeting(space, gene)
    if any(site in _ancestors(space, other) for site in sites for other in sites):
        return False
    between = [above for site in sites for above in _ancestors(space, site)[: _depth_to(space, site, meeting)]]
    return not any(DROP in space.levels[above] for above in between)


def _depth_to(space: Space, site: int, meeting: int) -> int:
    chain = _ancestors(space, site)
    return chain.index(meeting) if meeting >= 0 else len(chain)


def _preorder(ledger: Ledger, column: int, prices: dict[int, float], fixed: dict[int, int]) -> list[_Item]:
    space = ledger.space
    owner = {site: gene for gene, sites in enumerate(space.genes) for site in sites}
    # A node is a gene, or one site of a gene that is fixed because it cannot be placed as a whole.
    nodes: list[tuple[int, tuple[int, ...]]] = []
    for gene, sites in enumerate(space.genes):
        nodes += [(gene, (site,)) for site in sites] if gene in fixed else [(gene, sites)]
    node_of = {site: number for number, (_, sites) in enumerate(nodes) for site in sites}
    children: dict[int, list[int]] = {-1: []}
    for number, (gene, sites) in enumerate(nodes):
        meeting = space.parents[sites[0]] if len(sites) == 1 else _meeting(space, owner[sites[0]])
        children.setdefault(node_of[meeting] if meeting >= 0 else -1, []).append(number)
        children.setdefault(number, [])
        assert owner[sites[0]] == gene
    items: list[_Item] = []

    def visit(number: int) -> None:
        gene, sites = nodes[number]
        position = len(items)
        items.append(_options(ledger, gene, sites, column, prices, fixed, position))
        for child in children[number]:
            visit(child)
        items[position] = _with_end(items[position], len(items))

    for root in children[-1]:
        visit(root)
    return items


def _options(
    ledger: Ledger, gene: int, sites: tuple[int, ...], column: int, prices: dict[int, float], fixed: dict[int, int], position: int
) -> _Item:
    levels = (fixed[gene],) if gene in fixed else tuple(range(len(ledger.space.choices(gene))))
    costs = np.array([sum(int(ledger.costs[site][level][column]) for site in sites) for level in levels], dtype=np.int64)
    rows = [[ledger.costs[site][level] for site in sites] for level in levels]
    priced = [sum(row[-1] + sum(price * row[other] for other, price in prices.items()) for row in rows_of) for rows_of in rows]
    errors = np.array(priced, dtype=np.float64)
    skips = tuple(ledger.is_drop[sites[0]][level] for level in levels)
    return _Item(gene, sites, position + 1, levels, costs, errors, skips)


def _with_end(item: _Item, end: int) -> _Item:
    return _Item(item.gene, item.sites, end, item.levels, item.costs, item.errors, item.skips)


def _hull(costs: Ints, errors: Floats) -> Hull:
    """Lower convex hull of points (cost, error), decreasing: the relaxation of a choice."""
    order = np.lexsort((errors, costs))
    costs, errors = costs[order], errors[order]
    falling = np.concatenate(([True], errors[1:] < np.minimum.accumulate(errors)[:-1]))
    stack: list[int] = []
    xs, ys = costs[falling].tolist(), errors[falling].tolist()
    for point in range(len(xs)):
        while len(stack) > 1:
            a, b = stack[-2], stack[-1]
            if (ys[b] - ys[a]) * (xs[point] - xs[a]) < (ys[point] - ys[a]) * (xs[b] - xs[a]):
                break
            stack.pop()
        stack.append(point)
    return np.array([xs[i] for i in stack], dtype=np.int64), np.array([ys[i] for i in stack], dtype=np.float64)


def _bounds(items: Sequence[_Item], capacity: int) -> list[Hull]:
    """Per position a convex lower bound of the error of everything from there on, as a function of what is left to spend."""
    zero = np.zeros(1, dtype=np.int64), np.zeros(1)
    bounds = [zero] * (len(items) + 1)
    for position in reversed(range(len(items))):
        item = items[position]
        parts = []
        for skip, following in ((False, position + 1), (True, item.end)):
            chosen = [option for option, skips in enumerate(item.skips) if skips == skip]
            if chosen:
                parts.append(_sum(_hull(item.costs[chosen], item.errors[chosen]), bounds[following]))
        # One way on: a sum of convex functions is convex. Two: the better of both is not, so their hull is taken.
        costs, errors = parts[0] if len(parts) == 1 else _hull(*(np.concatenate(part) for part in zip(*parts, strict=True)))
        stop = int(np.searchsorted(costs, capacity, side="right")) + 1  # one point beyond the capacity, for the interpolation
        bounds[position] = costs[:stop], errors[:stop]
    return bounds


def _sum(one: Hull, other: Hull) -> Hull:
    """The convex function of what is best spent on two things together: the steps of both, steepest first."""
    steps_costs = np.concatenate((np.diff(one[0]), np.diff(other[0])))
    steps_errors = np.concatenate((np.diff(one[1]), np.diff(other[1])))
    order = np.argsort(steps_errors / steps_costs, kind="stable")
    costs = np.concatenate((one[0][:1] + other[0][:1], steps_costs[order]))
    errors = np.concatenate((one[1][:1] + other[1][:1], steps_errors[order]))
    return np.cumsum(costs), np.cumsum(errors)


Walk = tuple[dict[int, int], float, bool]


def _walk(items: Sequence[_Item], bounds: Sequence[Hull], capacity: int, known: float, limit: int) -> Walk | None:
    """Carry labels through the preorder; (levels per gene, error, nothing was cut for `limit`), or None when nothing fits.

    known: error of a solution that exists; labels that cannot beat it (up to rounding) are dropped. limit: labels kept per position, those
    with the best bounds.
    """
    waiting: list[list[tuple[Any, ...]]] = [[] for _ in range(len(items) + 1)]
    waiting[0].append((np.zeros(1, np.int64), np.zeros(1), np.zeros(1, np.int32), np.zeros(1, np.int32), np.zeros(1, np.int16)))
    trail: list[tuple[Any, ...]] = []
    complete, final = True, np.zeros(0)
    slack = 1e-9 * max(abs(known), 1.0) if np.isfinite(known) else 0.0
    for position in range(len(items) + 1):
        arrived, waiting[position] = waiting[position], []
        if not arrived:
            trail.append(())
            continue
        cost, error, *back = (np.concatenate([batch[part] for batch in arrived]) for part in range(5))
        later_costs, later_errors = bounds[position]
        left = capacity - cost
        bound = error + np.interp(left, later_costs, later_errors)
        chosen = np.flatnonzero((left >= later_costs[0]) & (bound <= known + slack))
        chosen = chosen[np.lexsort((error[chosen], cost[chosen]))]
        if len(chosen):
            best = np.minimum.accumulate(error[chosen])
            chosen = chosen[np.concatenate(([True], error[chosen][1:] < best[:-1]))]
        if len(chosen) > limit:
            complete = False
            chosen = np.sort(chosen[np.argsort(bound[chosen], kind="stable")[:limit]])
        trail.append(tuple(part[chosen] for part in back))
        if position == len(items):
            final = error[chosen]
        elif len(chosen):
            _branch(items[position], position, cost[chosen], error[chosen], waiting)
    if not len(final):
        return None
    label = int(np.argmin(final))
    return _trace(items, trail, label), float(final[label]), complete


def _branch(item: _Item, position: int, cost: Ints, error: Floats, waiting: list[list[tuple[Any, ...]]]) -> None:
    index = np.arange(len(cost), dtype=np.int32)
    here = np.full(len(cost), position, dtype=np.int32)
    for option, skips in enumerate(item.skips):
        chosen = np.full(len(cost), option, dtype=np.int16)
        waiting[item.end if skips else position + 1].append((cost + item.costs[option], error + item.errors[option], here, index, chosen))


def _trace(items: Sequence[_Item], trail: Sequence[tuple[Any, ...]], label: int) -> dict[int, int]:
    position, levels = len(items), {}
    while position > 0:
        origin, before, option = (part[label] for part in trail[position])
        position, label = int(origin), int(before)
        levels[items[position].gene] = items[position].levels[int(option)]
    return levels


class Knapsack(Settled):
    """Least summed layer error within the budget by exact multiple choice; measures nothing."""

    name: ClassVar[str] = "knapsack"
    needs: ClassVar[frozenset[Knowledge]] = frozenset({"errors"})

    def answer(self) -> Genotype:
        """The optimum, or nearly: see `remark`."""
        ledger = ledger_of(self.problem)
        self.solution = solve(ledger)
        self._remark = f"not proven optimal: {self.solution.doubt}" if self.solution.doubt else ""
        # Errors can be flat (two levels equally good); what the optimum leaves unspent is of no use to anyone.
        filled = fill(ledger, self.solution.genotype, ledger.movable)
        return filled if error_of(ledger, filled) <= self.solution.error else self.solution.genotype
