"""Proposals: the exact best profile by a table of changes, within a distance of the present one.

A table says what each site would change if it alone took another level. Its best profile under the budgets is a multiple-choice knapsack; a
price on every changed weight keeps the answer near, where the table holds (a trust region in Lagrangian form: every answer is balanced to
the byte at its own size, where cutting off a larger one would not be). Measures nothing. Called by `guided` and `predictor`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from evopress.api import Genotype
from evopress.search.knapsack import MAX_LABELS, solve
from evopress.search.ledger import Draft, Ledger

Table = Sequence[Sequence[float]]
"""Per site position and level index the change of the fitness, 0 at the present level."""
FAR = 1e4
"""Change of a level that may not be taken; finite, because the knapsack adds up."""
LABELS = 50
"""Partial solutions of an answer that need not be exact."""
STEPS = 8
"""Halvings of the interval of a price."""


def propose(ledger: Ledger, genotype: Genotype, table: Table, share: float, frozen: Collection[int] = ()) -> Genotype:
    """The best profile by the table with at most about `share` of the weights at another level.

    frozen: genes that stay. The price of a changed weight is bisected on nearly optimal answers until they are just small enough, and the
    last one made exact; the genotype itself when it fits and nothing improves it. Beyond the budgets it is only where the table was taken:
    the answer fits, whatever it costs; then `share` must be 1.
    """
    found = _within(ledger, genotype, table, share, frozen)
    stay = ledger.fits(genotype) and predicted(ledger, table, found) >= predicted(ledger, table, genotype)
    return genotype if stay else found


def _within(ledger: Ledger, genotype: Genotype, table: Table, share: float, frozen: Collection[int]) -> Genotype:
    """As `propose`; among the nearly optimal answers may be one that is worse than the genotype."""
    best = _answer(ledger, genotype, table, 0.0, frozen, LABELS if share < 1 else MAX_LABELS)
    if changed(ledger, genotype, best) <= share:
        return best if share == 1 else _answer(ledger, genotype, table, 0.0, frozen)
    best = genotype
    low, high = 0.0, sum(max(map(abs, row), default=0.0) for row in table)
    for _ in range(STEPS):
        price = (low + high) / 2 if low else high / 8  # small prices matter most, so the interval is first cut from above
        found = _answer(ledger, genotype, table, price, frozen, LABELS)
        if changed(ledger, genotype, found) <= share:
            best, high = found, price
        else:
            low = price
    exact = _answer(ledger, genotype, table, high, frozen)
    return exact if best != genotype and changed(ledger, genotype, exact) <= share else best


def _answer(ledger: Ledger, genotype: Genotype, table: Table, price: float, frozen: Collection[int], labels: int = MAX_LABELS) -> Genotype:
    """The exact best profile where changing every weight of the model would cost `price`."""
    space = ledger.space
    picks = space.spread(genotype)
    still = {site for gene in frozen for site in space.genes[gene]}
    priced = []
    for site, row in enumerate(table):
        inside = [site, *ledger.below[site]]  # a drop or a restoration changes every weight below it
        moved = price * sum(space.sites[member].weights for member in inside) / max(space.weights, 1)
        away = FAR if site in still else moved
        priced.append(tuple(change + (away if level != picks[site] else 0.0) for level, change in enumerate(row)))
    return solve(ledger.telling(priced), labels).genotype


def changed(ledger: Ledger, one: Genotype, other: Genotype) -> float:
    """Share of the linear weights that are at another level, or dropped in one of two genotypes and kept in the other."""
    space = ledger.space
    a, b = Draft(ledger, one), Draft(ledger, other)
    moved = sum(
        site.weights
        for position, site in enumerate(space.sites)
        if bool(a.dark[position]) != bool(b.dark[position]) or (not a.dark[position] and a.picks[position] != b.picks[position])
    )
    return moved / max(space.weights, 1)


def predicted(ledger: Ledger, table: Table, genotype: Genotype) -> float:
    """What the table says of a genotype: the changes of its sites, added up over those that run."""
    draft = Draft(ledger, genotype)
    return sum(row[pick] for row, pick, dark in zip(table, draft.picks, draft.dark, strict=True) if not dark)
