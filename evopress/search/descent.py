"""Descent: from nothing dropped, drop the depth that costs least for what it saves, measured in context, until the budgets hold.

A step drops everything droppable at one depth: an attention with its MLP, or the one kind that can go. Sublayer by sublayer a descent is
led astray: its first steps are cheap wherever they are, and lie scattered, while good profiles of many drops are runs of whole depths; and
the way from one to the other leads uphill. Which of a depth's sublayers to keep after all is left to the moves that follow.
What a drop costs depends on what else is gone. So the costs of all depths are measured once, and before every step only those of the
few that are cheapest by what was last seen of them (a lazy greedy, Minoux 1978, that looks once), and of a few that stand beside what is
gone. Related: SLEB (2402.09025), which measures all blocks again for every drop. For spaces of drops; levels of linear sites stay at
their dearest. Measuring is the caller's. Called by `guided`.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Mapping, Sequence

from evopress.api import Ask, Genotype, Problem, Slice, Trial
from evopress.search.ledger import Draft, Ledger
from evopress.search.moves import fill
from evopress.search.probes import drop_level

HERE = -1
"""Stands for the profile as it is, among depths that may go."""
FEWER = 4
"""So many times fewer tokens serve the first look at every depth."""
CHEAPEST = 4
"""Depths whose costs are taken again before a step: those that were cheapest when last seen,"""
BESIDE = 4
"""and so many more of those beside a dropped one, where what was seen is least true: what is left of a run may cost next to nothing."""


def descend(problem: Problem, ledger: Ledger, slice_: Slice) -> Generator[Ask, Sequence[Trial], Genotype]:
    """A genotype that meets every budget.

    All measurements are on one slice, so that old and new costs compare; but for the first, of every depth on its own, which are on a
    part of it, because they only say who comes up when.
    """
    depths: dict[int, list[int]] = {}
    for gene in ledger.containers:
        depths.setdefault(ledger.space.sites[ledger.space.genes[gene][0]].depth, []).append(gene)
    here = tuple(ledger.top(gene) for gene in range(len(ledger.space.genes)))
    if Draft(ledger, here).fits:
        return here
    without = {depth: _without(ledger, here, genes) for depth, genes in depths.items()}
    first = yield from _measure(problem, {HERE: here, **without}, _start(slice_, slice_.tokens // FEWER))
    costs = {depth: first[depth] - first[HERE] for depth in depths}
    fitness = (yield from _measure(problem, {HERE: here}, slice_))[HERE]
    gone: list[int] = []
    while not (draft := Draft(ledger, here)).fits:
        without = {depth: _without(ledger, here, genes) for depth, genes in depths.items() if depth not in gone}
        likely = _likely(gone, _by_price(draft, without, costs))
        if not likely:
            return ledger.floor
        found = yield from _measure(problem, {depth: without[depth] for depth in likely}, slice_)
        costs |= {depth: value - fitness for depth, value in found.items()}
        gone.append(next(depth for depth in _by_price(draft, without, costs) if depth in likely))
        here, fitness = without[gone[-1]], found[gone[-1]]
    # The last step may have freed more than was asked.
    return fill(ledger, here, [gene for depth in reversed(gone) for gene in depths[depth]])


def _without(ledger: Ledger, genotype: Genotype, genes: Sequence[int]) -> Genotype:
    """With these dropped; where one contains another, the outer one."""
    draft = Draft(ledger, genotype)
    for gene in genes:
        if draft.active(gene):
            draft.set(gene, drop_level(ledger, gene))
    return draft.genotype


def _measure(problem: Problem, genotypes: Mapping[int, Genotype], slice_: Slice) -> Generator[Ask, Sequence[Trial], dict[int, float]]:
    """The fitness of each."""
    trials = yield Ask(tuple(map(problem.space.profile, genotypes.values())), slice_)
    return {name: trial.fitness for name, trial in zip(genotypes, trials, strict=True)}


def _start(slice_: Slice, tokens: int) -> Slice:
    """The first so many tokens of a slice, or one more."""
    pieces: list[tuple[int, int]] = []
    for index, length in slice_.documents:
        pieces.append((index, min(length, max(2, tokens))))
        tokens -= length
        if tokens <= 0:
            break
    return Slice(slice_.token_set, tuple(pieces))


def _likely(gone: Collection[int], order: Sequence[int]) -> list[int]:
    """The first in the order, and the first of the others that stand beside a depth that is gone."""
    beside = [depth for depth in order[CHEAPEST:] if depth - 1 in gone or depth + 1 in gone]
    return [*order[:CHEAPEST], *beside[:BESIDE]]


def _by_price(draft: Draft, without: Mapping[int, Genotype], costs: Mapping[int, float]) -> list[int]:
    """Depths by what dropping them costs for the share of the exceeded budgets it frees; those that free nothing are left out."""
    prices, excess = {}, draft.excess
    for depth, genotype in without.items():
        after = Draft(draft.ledger, genotype).excess  # freeing more than is exceeded is of no use
        freed = sum((now - then) / max(limit, 1) for now, then, limit in zip(excess, after, draft.ledger.limits, strict=False))
        if freed > 0:
            prices[depth] = costs[depth] / freed if costs[depth] > 0 else costs[depth] * freed
    return sorted(prices, key=lambda depth: prices[depth])
