"""One number to an exact budget: bisection for every allocator of the literature whose answer moves one way with one number.

A layerwise sparsity ratio, a bit width from a sensitivity, a threshold on singular values: each says what a site wishes to keep, given one
number. Here that number is found under which the model fits, and what rounding to levels leaves is spent. Holds no allocator itself
(`erk`, `owl`, `baq` and `welore` are one file each) and decides no drops: sublayers stay unless nothing else fits. No randomness.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import final

from evopress.api import DROP, Genotype, Problem, UsageError
from evopress.search.baselines import uniform_genotype
from evopress.search.ledger import Draft, Ledger
from evopress.search.moves import climb, fill_in_order

HALVINGS = 200
"""Bisections at most; the interval of two floats ends long before."""


class Demand(ABC):
    """What every plain gene wishes for at one number; both answers must rise, or stay, as the number rises."""

    @abstractmethod
    def level(self, number: float, gene: int) -> int:
        """The level a gene takes."""

    @abstractmethod
    def unmet(self, number: float, gene: int, level: int) -> float:
        """How far a level is below the wish; what is left of the budget goes to the largest first."""


@final
class Shares(Demand):
    """Wishes in shares of what a gene costs dense: it takes the dearest level not above its wish, its cheapest if none.

    wish: number -> share per gene, in [0, 1]; only plain genes are read. held: per gene and level what a level counts as, in the same
    units; default: its part of the gene's dearest level, the budgets weighted by their limits.
    """

    def __init__(self, ledger: Ledger, wish: Callable[[float], Sequence[float]], held: Sequence[Sequence[float]] | None = None) -> None:
        self._wish, self._held = wish, held or cost_shares(ledger)
        self._order = [[level for _, level in sorted((weight, level) for level, weight in enumerate(row))] for row in ledger.weight]
        self._known: tuple[float, Sequence[float]] | None = None

    def level(self, number: float, gene: int) -> int:
        """The dearest level not above the wish."""
        wish, held = self._wishes(number)[gene] * (1 + 1e-12), self._held[gene]
        fitting = [level for level in self._order[gene] if held[level] <= wish]
        return max(fitting, key=lambda level: held[level], default=self._order[gene][0])

    def unmet(self, number: float, gene: int, level: int) -> float:
        """Share of the dense cost that is missing."""
        return self._wishes(number)[gene] - self._held[gene][level]

    def _wishes(self, number: float) -> Sequence[float]:
        if self._known is None or self._known[0] != number:
            self._known = (number, self._wish(number))
        return self._known[1]


def cost_shares(ledger: Ledger) -> list[list[float]]:
    """Per gene and level its part of the gene's dearest level, the budgets weighted by their limits."""
    found = []
    for gene, weights in enumerate(ledger.weight):
        full = weights[ledger.top(gene)][0]
        found.append([max(weight[0], 0.0) / full if full > 0 else 1.0 for weight in weights])
    return found


def gene_means(ledger: Ledger, values: Sequence[float]) -> list[float]:
    """Per gene the mean of a value per site position, weighted by the sites' weights; 0 for genes without weights."""
    found = []
    for sites in ledger.space.genes:
        weights = [ledger.space.sites[site].weights for site in sites]
        found.append(sum(weight * values[site] for weight, site in zip(weights, sites, strict=True)) / max(sum(weights), 1))
    return found


def allot(problem: Problem, ledger: Ledger, demand: Demand, low: float, high: float) -> tuple[Genotype, float]:
    """The genotype of the largest number in [low, high] at which every budget holds, filled up; and that number.

    low: where every gene takes its cheapest level; high: where it takes its dearest. What rounding leaves is spent one rung at a time on
    the gene with the largest unmet wish whose next rung fits, until nothing fits. Where not even `low` fits, sublayers are dropped as
    `uniform` drops them, and the number is found for what is left.
    """
    kept = [0 if gene in ledger.plain else ledger.top(gene) for gene in range(len(ledger.space.genes))]

    def at(number: float, base: Sequence[int]) -> Draft:
        plain = frozenset(ledger.plain)
        return Draft(ledger, [demand.level(number, gene) if gene in plain else level for gene, level in enumerate(base)])

    base = next((base for base in (kept, uniform_genotype(problem, ledger), ledger.floor) if at(low, base).fits), None)
    if base is None:
        draft, number = Draft(ledger, ledger.floor), low
    else:
        number = _largest(low, high, lambda number: at(number, base).fits)
        draft = at(number, base)
    _spend(draft, lambda gene, level: demand.unmet(number, gene, level))
    return draft.genotype, number


def _largest(low: float, high: float, fits: Callable[[float], bool]) -> float:
    """The largest number that fits, to the last bit of a float; `low` fits."""
    if fits(high):
        return high
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _spend(draft: Draft, unmet: Callable[[int, int], float]) -> None:
    pending = [gene for gene in draft.ledger.plain if draft.active(gene)]
    while pending:
        gene = max(pending, key=lambda gene: (unmet(gene, draft.levels[gene]), -gene))
        if not climb(draft, gene):
            pending.remove(gene)  # budgets only get fuller, so what does not fit now will not fit later
    fill_in_order(draft, draft.ledger.movable)  # sublayers that can come back, and what stands below them


def need_choices(problem: Problem, ledger: Ledger, name: str) -> None:
    """Raise UsageError, naming a searcher that serves the space, when no linear site has a level to choose."""
    if ledger.plain:
        return
    other = "similarity" if any(DROP in levels for levels in problem.space.levels) else "uniform"
    raise UsageError(
        f"Searcher {name!r} shares a budget out among linear sites, and none of them has a level to choose.",
        f"Take --searcher {other}, or add a method for linear sites, e.g. --method 'gptq(bits=2..5,group=64)'.",
    )


def need_facts(problem: Problem, name: str, *facts: str) -> None:
    """Raise UsageError when the problem does not tell what the searcher reads."""
    for fact in facts:
        if len(getattr(problem, fact)) != len(problem.space.sites):
            raise UsageError(
                f"Searcher {name!r} needs the {fact} of every site, and the problem does not tell them.", "Name it in `needs`."
            )
