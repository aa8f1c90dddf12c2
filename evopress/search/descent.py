"""Descent: from nothing dropped, drop what costs least for what it saves, measured in context, until the budgets hold.

What a drop costs depends on what else is gone, and mostly grows with it. So a measured cost is kept until the gene comes up, and only then
taken again at the present profile: a gene whose fresh cost is still below every other's old one is dropped without looking further (lazy
greedy, Minoux 1978). Of the same kind as SLEB (2402.09025), which measures all of them again for every drop. For spaces of drops; levels
of linear sites stay at their dearest. Measuring is the caller's. Called by `guided`.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence

from evopress.api import Ask, Genotype, Problem, Slice, Trial
from evopress.search.ledger import Draft, Ledger
from evopress.search.moves import fill, is_dropped
from evopress.search.probes import drop_level, flipped, probe

FEWER = 4
"""So many times fewer documents serve the first look at every gene."""
BATCH = 4
"""Genes whose costs are taken again together: neighbours share a prefix, and a batch is one question."""


def descend(problem: Problem, ledger: Ledger, slice_: Slice) -> Generator[Ask, Sequence[Trial], Genotype]:
    """A genotype that meets every budget.

    All measurements are on one slice, so that old and new costs compare; but for the first, of every gene on its own, which are on a part
    of it, because they only say who comes up when.
    """
    here = tuple(ledger.top(gene) for gene in range(len(ledger.space.genes)))
    few = Slice(slice_.token_set, slice_.documents[: -(-len(slice_.documents) // FEWER)])
    costs = yield from probe(problem, ledger, here, ledger.containers, few, 0)
    while not (draft := Draft(ledger, here)).fits:
        fresh: set[int] = set()
        while order := _by_price(draft, costs):
            if order[0] in fresh:
                break
            stale = [gene for gene in order if gene not in fresh][:BATCH]
            costs |= yield from probe(problem, ledger, here, stale, slice_, 0)
            fresh |= set(stale)
        if not order:
            return ledger.floor
        here = flipped(ledger, here, order[0])
    gone = [gene for gene in ledger.containers if is_dropped(draft, gene)]
    return fill(ledger, here, sorted(gone, key=lambda gene: -costs[gene]))


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
