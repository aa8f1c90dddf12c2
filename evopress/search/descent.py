"""Descent: from nothing dropped, drop what costs least for what it saves, measured in context, until the budgets hold.

What a drop costs depends on what else is gone, and mostly grows with it. So the costs of all genes are measured once, and before every
drop only those of the few that are cheapest by what was last seen of them (a lazy greedy, Minoux 1978, that looks once). Kinds of genes
take turns, so that as large a share goes of each: the first drops of one kind may be cheap and its later ones ruinous, and the way back
from such an extreme leads uphill; trades between kinds are left to the moves that follow. Of the same kind as SLEB
(2402.09025), which measures all genes again for every drop. For spaces of drops; levels of linear sites stay at their dearest. Measuring
is the caller's. Called by `guided`.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence

from evopress.api import Ask, Genotype, Problem, Slice, Trial
from evopress.search.ledger import Draft, Ledger
from evopress.search.moves import fill, is_dropped
from evopress.search.probes import drop_level, flipped, probe

FEWER = 4
"""So many times fewer tokens serve the first look at every gene."""
LIKELY = 4
"""Genes whose costs are taken again before a drop."""


def descend(problem: Problem, ledger: Ledger, slice_: Slice) -> Generator[Ask, Sequence[Trial], Genotype]:
    """A genotype that meets every budget.

    All measurements are on one slice, so that old and new costs compare; but for the first, of every gene on its own, which are on a part
    of it, because they only say who comes up when.
    """
    here = tuple(ledger.top(gene) for gene in range(len(ledger.space.genes)))
    costs = yield from probe(problem, ledger, here, ledger.containers, _start(slice_, slice_.tokens // FEWER), 0)
    while not (draft := Draft(ledger, here)).fits:
        likely = _in_turn(draft, _by_price(draft, costs))[:LIKELY]
        if not likely:
            return ledger.floor
        costs |= yield from probe(problem, ledger, here, likely, slice_, 0)
        here = flipped(ledger, here, next(gene for gene in _by_price(draft, costs) if gene in likely))
    gone = [gene for gene in ledger.containers if is_dropped(draft, gene)]
    return fill(ledger, here, sorted(gone, key=lambda gene: -costs[gene]))


def _start(slice_: Slice, tokens: int) -> Slice:
    """The first so many tokens of a slice, or one more."""
    pieces: list[tuple[int, int]] = []
    for index, length in slice_.documents:
        pieces.append((index, min(length, max(2, tokens))))
        tokens -= length
        if tokens <= 0:
            break
    return Slice(slice_.token_set, tuple(pieces))


def _in_turn(draft: Draft, order: Sequence[int]) -> list[int]:
    """Those of the kind of which the smallest share is gone, in the given order."""
    kinds = {gene: draft.ledger.space.sites[draft.ledger.space.genes[gene][0]].kind for gene in draft.ledger.containers}
    shares: dict[str, float] = {}
    for kind in dict.fromkeys(kinds[gene] for gene in order):
        members = [gene for gene, other in kinds.items() if other == kind]
        shares[kind] = sum(is_dropped(draft, gene) for gene in members) / len(members)
    return [gene for gene in order if shares[kinds[gene]] == min(shares.values())]


def _by_price(draft: Draft, costs: dict[int, float]) -> list[int]:
    """Kept genes by what dropping them costs for the share of the exceeded budgets it frees; those that free nothing are left out."""
    prices = {}
    for gene in draft.ledger.containers:
        if gene in costs and draft.active(gene) and not is_dropped(draft, gene):
            change = draft.delta(gene, drop_level(draft.ledger, gene))
            over = zip(change, draft.excess, draft.ledger.limits, strict=False)
            # More than is exceeded is of no use.
            freed = sum(min(-value, excess) / max(limit, 1) for value, excess, limit in over if excess > 0)
            if freed > 0:
                prices[gene] = costs[gene] / freed
    return sorted(prices, key=lambda gene: prices[gene])
