"""Exact integer bookkeeping of genotypes: what a genotype spends, whether it fits, and what one change would cost.

Not a search and not random: `Ledger` holds the tables of one problem, `Draft` is one genotype that is being edited, with its totals kept
up to date change by change. `Space.cost_of` is the slow oracle both are tested against. Called by every searcher here.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from math import isfinite

from evopress.api import DROP, Budget, Genotype, InfeasibleBudget, Problem, Space, UsageError


class Ledger:
    """Costs of one space under its budgets, in one column a budget; a last column sums layer errors where they are known.

    limits: largest allowed total per budget, `Space.fixed` included. movable: genes with a choice. containers: movable genes that can be
    dropped and shadow other sites; plain: the other movable genes. ups, downs: per gene and level the dearer and the cheaper levels,
    nearest first. A level is dearer when it takes no less of every budget and more of one (of bytes or parameters where all budgets are
    equal); a dropped container is cheaper than every other level. Where layer errors are known, a dearer level that loses more is no way
    up: under a latency budget a slower level may be worse, and whoever spends what is left would take it. Raises UsageError for no budgets
    or malformed errors, InfeasibleBudget when no profile was found that meets all budgets.
    """

    def __init__(self, space: Space, budgets: Sequence[Budget], errors: Sequence[Sequence[float]] = ()) -> None:
        if not budgets:
            raise UsageError("A search needs at least one budget.", "Add one, e.g. bits=3.0.")
        self.space, self.budgets = space, tuple(budgets)
        self.limits = tuple(budget.limit for budget in budgets)
        self._tell(errors)
        self.is_drop = tuple(tuple(level == DROP for level in levels) for levels in space.levels)
        self.below = _descendants(space)
        self.leaf = tuple(all(not self.below[site] for site in sites) for sites in space.genes)
        self.movable = tuple(gene for gene in range(len(space.genes)) if len(space.choices(gene)) > 1)
        self.containers = tuple(gene for gene in self.movable if not self.leaf[gene] and DROP in space.choices(gene))
        self.plain = tuple(gene for gene in self.movable if gene not in self.containers)
        genes = range(len(space.genes))
        self.weight = tuple(tuple(self._weight(gene, level) for level in range(len(space.choices(gene)))) for gene in genes)
        self.ups = tuple(self._neighbours(gene, upward=True) for gene in genes)
        self.downs = tuple(self._neighbours(gene, upward=False) for gene in genes)
        self.floor = self._floor()

    def _tell(self, errors: Sequence[Sequence[float]]) -> None:
        self.has_errors = bool(errors)
        if errors and [len(row) for row in errors] != [len(row) for row in self.space.levels]:
            raise UsageError("The layer errors do not match the space.", "Give one number per site and level.")
        if not all(isfinite(value) for row in errors for value in row):
            raise UsageError("A layer error is NaN or infinite.", "Rebuild the bank; every layer error must be a finite number.")
        self.costs = tuple(
            tuple(
                tuple(budget.spent(cost) for budget in self.budgets) + ((float(errors[site][level]),) if errors else ())
                for level, cost in enumerate(row)
            )
            for site, row in enumerate(self.space.costs)
        )
        self.fixed = tuple(budget.spent(self.space.fixed) for budget in self.budgets) + ((0.0,) if errors else ())

    def telling(self, errors: Sequence[Sequence[float]]) -> Ledger:
        """The same ledger with another table in place of the layer errors; the rest is shared, `ups` too.

        What is told is an opinion (predicted changes, log odds, prices of moving away), and makes no level better or worse than another by
        itself; what is a way up stays as the layer errors of this ledger say, so that telling costs no more than the table.
        """
        other = copy(self)
        other._tell(errors)
        return other

    def spent(self, genotype: Sequence[int]) -> tuple[int, ...]:
        """Exact total per budget, shadowed sites left out."""
        return tuple(int(value) for value in Draft(self, genotype).totals[: len(self.limits)])

    def fits(self, genotype: Sequence[int]) -> bool:
        """Does the genotype meet every budget?"""
        return Draft(self, genotype).fits

    def key(self, genotype: Sequence[int]) -> Genotype:
        """The genotype with -1 for genes that stand under dropped parents: equal keys, equal profiles."""
        return Draft(self, genotype).key

    def gene_cost(self, gene: int, level: int, column: int) -> float:
        """Sum of one column over the sites of a gene, shadowing left out of account."""
        return sum(self.costs[site][level][column] for site in self.space.genes[gene])

    def top(self, gene: int) -> int:
        """The dearest level of a gene."""
        return max(range(len(self.weight[gene])), key=lambda level: self.weight[gene][level])

    def _weight(self, gene: int, level: int) -> tuple[float, int, int]:
        if self.is_drop[self.space.genes[gene][0]][level] and not self.leaf[gene]:
            return (-1.0, 0, 0)
        costs = [self.space.costs[site][level] for site in self.space.genes[gene]]
        share = sum(self.gene_cost(gene, level, column) / max(limit, 1) for column, limit in enumerate(self.limits))
        return (share, sum(cost.bytes for cost in costs), sum(cost.params for cost in costs))

    def _dearer(self, gene: int, low: int, high: int) -> bool:
        weight = self.weight[gene]
        if (weight[low][0] < 0) != (weight[high][0] < 0):
            return weight[low][0] < 0
        columns = range(len(self.limits))
        least = [self.gene_cost(gene, low, column) for column in columns]
        most = [self.gene_cost(gene, high, column) for column in columns]
        if least == most:
            a, b = weight[low][1:], weight[high][1:]
            return a != b and a[0] <= b[0] and a[1] <= b[1]
        return all(a <= b for a, b in zip(least, most, strict=True))

    def _worse(self, gene: int, low: int, high: int) -> bool:
        """Is it known that the dearer level loses more? Bringing a dropped container back never does: what it loses is told below it."""
        if not self.has_errors or self.weight[gene][low][0] < 0:
            return False
        return self.gene_cost(gene, high, -1) > self.gene_cost(gene, low, -1)

    def _neighbours(self, gene: int, upward: bool) -> tuple[tuple[int, ...], ...]:
        levels = range(len(self.weight[gene]))
        found = []
        for here in levels:
            if upward:
                there = [other for other in levels if self._dearer(gene, here, other) and not self._worse(gene, here, other)]
            else:
                there = [other for other in levels if self._dearer(gene, other, here)]
            found.append(tuple(sorted(there, key=lambda other: (self.weight[gene][other], other), reverse=not upward)))
        return tuple(found)

    def _floor(self) -> Genotype:
        # The least weighted cost over the tree of sites, children first. Exact for one budget; two budgets are mixed in several
        # proportions, because the profile with the fewest bytes may not be the one with the fewest parameters.
        columns = len(self.limits)
        mixes = [tuple(float(column == chosen) for column in range(columns)) for chosen in range(columns)]
        mixes += [(part / 32, 1 - part / 32, *([0.5] * (columns - 2))) for part in range(1, 32)] if columns > 1 else []
        for mix in mixes:
            # Exact integers for the pure mixes: 2**53 bytes is far away, so float products of one column stay exact.
            scale = [share / max(limit, 1) if sum(mix) != max(mix) else share for share, limit in zip(mix, self.limits, strict=True)]
            draft = Draft(self, [self.top(gene) for gene in range(len(self.space.genes))])
            for gene in reversed(range(len(self.space.genes))):
                draft.set(gene, self._least(draft, gene, scale))
            if draft.fits:
                return draft.genotype
        wanted = ", ".join(budget.text for budget in self.budgets)
        raise InfeasibleBudget(f"No profile was found that meets {wanted}.", "Raise a budget or add a method with cheaper levels.")

    def _least(self, draft: Draft, gene: int, scale: Sequence[float]) -> int:
        totals = []
        for level in range(len(self.weight[gene])):
            draft.set(gene, level)
            totals.append(sum(share * total for share, total in zip(scale, draft.totals, strict=False)))
        # Equal costs: keep what stands rather than dropping it for nothing.
        return min(range(len(totals)), key=lambda level: (totals[level], tuple(-value for value in self.weight[gene][level])))


class Draft:
    """A genotype under edit. totals: running sums per column (budgets exact, then the layer error); dark: dropped ancestors per site."""

    __slots__ = ("dark", "ledger", "levels", "picks", "totals")

    def __init__(self, ledger: Ledger, genotype: Sequence[int]) -> None:
        space = ledger.space
        self.ledger, self.levels = ledger, list(genotype)
        self.picks = space.spread(genotype)
        self.dark = [0] * len(space.sites)
        for site, parent in enumerate(space.parents):
            if parent >= 0:
                self.dark[site] = self.dark[parent] + ledger.is_drop[parent][self.picks[parent]]
        self.totals: list[float] = list(ledger.fixed)
        for site, dark in enumerate(self.dark):
            if not dark:
                self._add(site, 1)

    def _add(self, site: int, sign: int) -> None:
        totals = self.totals
        for column, value in enumerate(self.ledger.costs[site][self.picks[site]]):
            totals[column] += sign * value

    def set(self, gene: int, level: int) -> None:
        """Put a gene at a level and keep the totals right, shadowing included."""
        if self.levels[gene] == level:
            return
        ledger, dark = self.ledger, self.dark
        self.levels[gene] = level
        for site in ledger.space.genes[gene]:
            was, now = ledger.is_drop[site][self.picks[site]], ledger.is_drop[site][level]
            if not dark[site]:
                self._add(site, -1)
            self.picks[site] = level
            if not dark[site]:
                self._add(site, 1)
            if was == now:
                continue
            for child in ledger.below[site]:
                if now and not dark[child]:
                    self._add(child, -1)
                dark[child] += 1 if now else -1
                if was and not dark[child]:
                    self._add(child, 1)

    def delta(self, gene: int, level: int) -> tuple[float, ...]:
        """How every column would change if the gene went to the level."""
        ledger = self.ledger
        if ledger.leaf[gene]:
            change: list[float] = [0] * len(self.totals)
            for site in ledger.space.genes[gene]:
                if not self.dark[site]:
                    here, there = ledger.costs[site][self.picks[site]], ledger.costs[site][level]
                    change = [value + b - a for value, a, b in zip(change, here, there, strict=True)]
            return tuple(change)
        before, old = list(self.totals), self.levels[gene]
        self.set(gene, level)
        after = tuple(b - a for a, b in zip(before, self.totals, strict=True))
        self.set(gene, old)
        self.totals = before
        return after

    def allows(self, delta: Sequence[float]) -> bool:
        """Would every budget hold after this change?"""
        return all(total + change <= limit for total, change, limit in zip(self.totals, delta, self.ledger.limits, strict=False))

    def active(self, gene: int) -> bool:
        """Does the gene matter, that is, has it a site that is not shadowed?"""
        sites, dark = self.ledger.space.genes[gene], self.dark
        return not dark[sites[0]] if len(sites) == 1 else not all(dark[site] for site in sites)

    @property
    def fits(self) -> bool:
        """Does the draft meet every budget?"""
        return all(total <= limit for total, limit in zip(self.totals, self.ledger.limits, strict=False))

    @property
    def excess(self) -> list[float]:
        """Amount over the limit per budget; 0 where it holds."""
        return [max(total - limit, 0) for total, limit in zip(self.totals, self.ledger.limits, strict=False)]

    @property
    def genotype(self) -> Genotype:
        """The genotype as it stands."""
        return tuple(self.levels)

    @property
    def key(self) -> Genotype:
        """The genotype with -1 for genes that do not matter: equal keys, equal profiles."""
        return tuple(level if self.active(gene) else -1 for gene, level in enumerate(self.levels))


def _descendants(space: Space) -> tuple[tuple[int, ...], ...]:
    below: list[list[int]] = [[] for _ in space.sites]
    for site in range(len(space.sites)):
        parent = space.parents[site]
        while parent >= 0:
            below[parent].append(site)
            parent = space.parents[parent]
    return tuple(tuple(row) for row in below)


def ledger_of(problem: Problem, errors: bool = True) -> Ledger:
    """The ledger of a problem; `errors=False` leaves the layer errors out."""
    return Ledger(problem.space, problem.budgets, problem.errors if errors else ())
