"""Profiles that need no measurement: uniform compression, and the greedy descent on layer errors.

Not the exact optimum of the layer errors, which is `knapsack`. Called by the run (they start every search) and as searchers of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from evopress.api import DENSE, DROP, Genotype, Knowledge, Level, Problem, UsageError
from evopress.search.knapsack import error_of
from evopress.search.ledger import Draft, Ledger, ledger_of
from evopress.search.moves import fill_in_order
from evopress.search.settled import Settled

Ladders = dict[int, tuple[int, ...]]
"""Per gene the levels one method family may use, cheapest first; the rungs of uniform compression."""


def evenly(count: int, length: int) -> list[bool]:
    """`count` marks spread evenly over `length` places (Bresenham)."""
    return [(place + 1) * count // length > place * count // length for place in range(length)]


def even_order(length: int) -> list[int]:
    """Places 0 to length-1 in an order whose every prefix is spread widely: bit-reversed counting."""
    bits = max(length - 1, 1).bit_length()
    return [place for place in (int(f"{number:0{bits}b}"[::-1], 2) for number in range(2**bits)) if place < length]


def families(ledger: Ledger) -> dict[str, Ladders]:
    """Method name -> per gene the levels of that method, then dense, cheapest first; where a site lacks the method, its dearest level.

    With no method at all (only drops) the single family is called `dense`.
    """
    genes = range(len(ledger.space.genes))
    plain = frozenset(gene for gene in genes if gene not in frozenset(ledger.containers))
    names = sorted({level.method for gene in plain for level in ledger.space.choices(gene)} - {DENSE.method}) or [DENSE.method]
    found: dict[str, Ladders] = {}
    for name in names:
        ladders: Ladders = {}
        for gene in genes:
            levels = range(len(ledger.weight[gene]))
            if gene in plain:
                own = [at for at in levels if ledger.space.choices(gene)[at].method == name]
                own = (own + [at for at in levels if ledger.space.choices(gene)[at] == DENSE]) if own else []
            else:
                own = [at for at in levels if ledger.space.choices(gene)[at] != DROP]
            ladders[gene] = tuple(at for _, at in sorted((ledger.weight[gene][at], at) for at in own)) or (ledger.top(gene),)
        found[name] = ladders
    return found


def uniform_bases(ledger: Ledger, ladders: Ladders) -> list[Genotype]:
    """The uniform genotypes of a family, cheapest first: one a distinct level.

    A site that does not offer exactly this level takes its dearest rung that is no denser (cost a weight) than the level is elsewhere, or
    its cheapest rung. So sites of one ladder share the level, and ladders in steps of weights share the share.
    """
    space = ledger.space
    densities: dict[Level, list[float]] = {}
    for gene, rungs in ladders.items():
        if gene in ledger.plain and len(rungs) > 1:
            for rung in rungs:
                densities.setdefault(space.choices(gene)[rung], []).append(_density(ledger, gene, rung))
    if not densities:
        return [tuple(ladders[gene][-1] for gene in range(len(space.genes)))]
    ranked = sorted(densities, key=lambda level: (sum(densities[level]) / len(densities[level]), str(level)))
    bases = []
    for level in ranked:
        ceiling = sum(densities[level]) / len(densities[level]) * (1 + 1e-9)
        picks = []
        for gene in range(len(space.genes)):
            same = [rung for rung in ladders[gene] if space.choices(gene)[rung] == level]
            below = [rung for rung in ladders[gene] if _density(ledger, gene, rung) <= ceiling]
            picks.append(same[0] if same else below[-1] if below and gene in ledger.plain else ladders[gene][0])
        bases.append(tuple(picks))
    return list(dict.fromkeys(bases))


def _density(ledger: Ledger, gene: int, level: int) -> float:
    weights = sum(ledger.space.sites[site].weights for site in ledger.space.genes[gene])
    return ledger.weight[gene][level][0] / max(weights, 1)


def uniform_of(ledger: Ledger, ladders: Ladders) -> tuple[int, Genotype]:
    """Best uniform genotype of a family within the budgets, and the index of its base level (-1 when sublayers had to go).

    The densest base that fits; then sites spread evenly over depth go one rung up (as many as fit, then single ones in an evenly spread
    order); where no base fits, evenly spaced sublayers are dropped from the cheapest base. Deterministic.
    """
    bases = uniform_bases(ledger, ladders)
    fitting = [number for number, base in enumerate(bases) if ledger.fits(base)]
    if not fitting:
        return -1, _with_drops(ledger, bases)
    number = fitting[-1]
    above = bases[number + 1] if number + 1 < len(bases) else bases[number]
    return number, _interleave(ledger, bases[number], above)


def _interleave(ledger: Ledger, low: Genotype, high: Genotype) -> Genotype:
    places = [gene for gene in range(len(low)) if low[gene] != high[gene]]
    draft = Draft(ledger, low)
    for count in range(len(places) - 1, 0, -1):
        draft = Draft(ledger, low)
        for gene, raised in zip(places, evenly(count, len(places)), strict=True):
            if raised:
                draft.set(gene, high[gene])
        if draft.fits:
            break
    else:
        draft = Draft(ledger, low)
    for place in even_order(len(places)):
        gene = places[place]
        if draft.active(gene) and draft.levels[gene] != high[gene] and draft.allows(draft.delta(gene, high[gene])):
            draft.set(gene, high[gene])
    return draft.genotype


def _with_drops(ledger: Ledger, bases: Sequence[Genotype]) -> Genotype:
    # Sublayers first; whole blocks (containers that hold droppable ones) only where dropping every sublayer is not enough.
    holders = {gene for gene in ledger.containers if any(_inside(ledger, other, gene) for other in ledger.containers)}
    for group in ([gene for gene in ledger.containers if gene not in holders], list(ledger.containers)):
        for count in range(1, len(group) + 1):
            draft = Draft(ledger, bases[0])
            dropped = [gene for gene, mark in zip(group, evenly(count, len(group)), strict=True) if mark]
            for gene in dropped:
                draft.set(gene, ledger.space.choices(gene).index(DROP))
            if draft.fits:
                for place in even_order(len(dropped)):
                    back = bases[0][dropped[place]]
                    if draft.allows(draft.delta(dropped[place], back)):
                        draft.set(dropped[place], back)
                return _interleave(ledger, draft.genotype, _raised(draft.genotype, bases, ledger)) if len(bases) > 1 else draft.genotype
    return ledger.floor


def _raised(genotype: Genotype, bases: Sequence[Genotype], ledger: Ledger) -> Genotype:
    containers = frozenset(ledger.containers)
    return tuple(level if gene in containers else bases[1][gene] for gene, level in enumerate(genotype))


def _inside(ledger: Ledger, inner: int, outer: int) -> bool:
    return any(site in ledger.below[above] for site in ledger.space.genes[inner] for above in ledger.space.genes[outer])


def uniform_genotype(problem: Problem, ledger: Ledger | None = None) -> Genotype:
    """The best uniform profile that fits.

    With several methods there is one uniform profile a method. The one with the least summed layer error is taken where errors are known;
    otherwise the one that drops nothing, reaches the most sites, spends most of the budget, and stands first by name, in that order.
    """
    ledger = ledger or ledger_of(problem)
    ranked = []
    for name, ladders in families(ledger).items():
        base, genotype = uniform_of(ledger, ladders)
        reached = sum(len(rungs) > 1 for rungs in ladders.values())
        spent = sum(value / max(limit, 1) for value, limit in zip(ledger.spent(genotype), ledger.limits, strict=True))
        key = (error_of(ledger, genotype),) if ledger.has_errors else (base < 0, -reached, -spent)
        ranked.append((key, name, genotype))
    return min(ranked)[2]


def greedy_genotype(problem: Problem, ledger: Ledger | None = None) -> Genotype:
    """From the dearest profile take, again and again, the downgrade that adds the least layer error per saved share of an exceeded budget.

    Dropping a container is credited with the errors of what it shadows. When every budget holds, what is left is spent by the upgrades
    that gain the most per cost. Raises UsageError when layer errors are missing.
    """
    ledger = ledger or ledger_of(problem)
    if not ledger.has_errors:
        raise UsageError("Greedy needs layer errors, and the problem has none.", "Build the bank with calibration, or use uniform.")
    draft = Draft(ledger, [ledger.top(gene) for gene in range(len(ledger.space.genes))])
    offers: dict[int, tuple[float, int, int]] = {}
    stale = list(ledger.movable)
    exceeded = [over > 0 for over in draft.excess]
    while not draft.fits:
        # A budget that was exceeded once keeps counting: with a fixed weighted sum to lower, two budgets cannot chase each other for ever.
        now = [was or over > 0 for was, over in zip(exceeded, draft.excess, strict=True)]
        if now != exceeded:
            stale, exceeded = list(ledger.movable), now
        for gene in stale:
            offers.pop(gene, None)
            offer = _cheapest_loss(draft, gene, exceeded)
            if offer is not None:
                offers[gene] = offer
        if not offers:  # only reachable with several budgets that pull apart
            draft = Draft(ledger, ledger.floor)
            break
        _, gene, level = min(offers.values())
        draft.set(gene, level)
        stale = _relatives(ledger, gene)
    _fill_by_gain(draft)
    return draft.genotype


def _relatives(ledger: Ledger, gene: int) -> list[int]:
    """Movable genes whose offers a change of this gene can alter: itself, what encloses it, and what it encloses."""
    related = [other for other in ledger.movable if other == gene or _inside(ledger, gene, other) or _inside(ledger, other, gene)]
    return related


def _cheapest_loss(draft: Draft, gene: int, exceeded: Sequence[bool]) -> tuple[float, int, int] | None:
    if not draft.active(gene):
        return None
    best = None
    for level in range(len(draft.ledger.weight[gene])):
        change = draft.delta(gene, level)
        parts = zip(change, draft.ledger.limits, exceeded, strict=False)
        saved = -sum(value / max(limit, 1) for value, limit, over in parts if over)
        if saved > 0:
            offer = (change[-1] / saved, gene, level)
            best = offer if best is None or offer < best else best
    return best


def _fill_by_gain(draft: Draft) -> None:
    while True:
        best = None
        for gene in draft.ledger.movable:
            if not draft.active(gene):
                continue
            for level in draft.ledger.ups[gene][draft.levels[gene]]:
                change = draft.delta(gene, level)
                if change[-1] < 0 and draft.allows(change):
                    share = sum(value / max(limit, 1) for value, limit in zip(change, draft.ledger.limits, strict=False))
                    offer = (change[-1] / max(share, 1e-12), gene, level)
                    best = offer if best is None or offer < best else best
        if best is None:
            break
        draft.set(best[1], best[2])
    fill_in_order(draft, draft.ledger.movable)


class Uniform(Settled):
    """The same level everywhere, as dense as the budget allows; measures nothing."""

    name: ClassVar[str] = "uniform"
    needs: ClassVar[frozenset[Knowledge]] = frozenset({"errors"})

    def answer(self) -> Genotype:
        """As `uniform_genotype`."""
        return uniform_genotype(self.problem)


class Greedy(Settled):
    """Least added layer error per saved byte, one downgrade at a time; measures nothing."""

    name: ClassVar[str] = "greedy"
    needs: ClassVar[frozenset[Knowledge]] = frozenset({"errors"})

    def answer(self) -> Genotype:
        """As `greedy_genotype`."""
        return greedy_genotype(self.problem)
