"""Random changes of genotypes that keep every budget: repair, fill, random profiles, and the move of the global search.

Not a search: nothing here knows a fitness. Works on any mix of quantisation, sparsity and dropped sublayers, because it only looks at what
a change costs. The published level switch with its groups is in `parity`. Called by the searchers.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence

from evopress.api import Genotype
from evopress.search.ledger import Draft, Ledger

NOBODY: frozenset[int] = frozenset()


def switch_count(rng: random.Random, maximum: int) -> int:
    """Number of switches of one mutation: the smaller of two uniform draws from 1 to `maximum` (for 3: 5/9, 3/9, 1/9)."""
    return min(rng.randint(1, maximum), rng.randint(1, maximum))


def climb(draft: Draft, gene: int) -> bool:
    """Raise a gene to the nearest dearer level that fits; False when none does."""
    steps = draft.ledger.ups[gene][draft.levels[gene]]
    if not steps or not draft.active(gene):
        return False
    for level in steps:
        if draft.allows(draft.delta(gene, level)):
            draft.set(gene, level)
            return True
    return False


def fill(ledger: Ledger, genotype: Sequence[int], order: Sequence[int]) -> Genotype:
    """Raise genes one rung a turn, in the given order, until nothing of them fits."""
    draft = Draft(ledger, genotype)
    fill_in_order(draft, order)
    return draft.genotype


def fill_in_order(draft: Draft, order: Sequence[int]) -> None:
    """As `fill`, on a draft."""
    while sum([climb(draft, gene) for gene in order]):
        pass


def fill_at_random(draft: Draft, rng: random.Random, spared: Collection[int] = NOBODY, guided: bool = False) -> None:
    """Raise random genes one rung at a time until none outside `spared` fits any more."""
    again = True
    while again:  # a restored container wakes genes that were struck off, hence the outer loop
        again = False
        pending = [gene for gene in draft.ledger.movable if gene not in spared and draft.ledger.ups[gene][draft.levels[gene]]]
        while pending:
            at = _favourite(draft, rng, pending, upward=True) if guided and len(pending) > 1 else rng.randrange(len(pending))
            gene = pending[at]
            if climb(draft, gene):
                again = again or not draft.ledger.leaf[gene]
            else:
                pending[at] = pending[-1]
                pending.pop()


def _favourite(draft: Draft, rng: random.Random, pending: Sequence[int], upward: bool) -> int:
    """Of two random genes the one whose next rung changes the summed layer error best for its cost."""
    best, best_score = -1, 0.0
    for at in (rng.randrange(len(pending)), rng.randrange(len(pending))):
        gene = pending[at]
        steps = (draft.ledger.ups if upward else draft.ledger.downs)[gene][draft.levels[gene]]
        if not steps:
            score = float("inf")
        else:
            change = draft.delta(gene, steps[0])
            share = sum(abs(value) / max(limit, 1) for value, limit in zip(change, draft.ledger.limits, strict=False))
            score = change[-1] / share if share else 0.0
            score = score if upward else -score if share < 0 else score
        if best < 0 or score < best_score:
            best, best_score = at, score
    return best


def _lower(draft: Draft, gene: int) -> bool:
    """Take the nearest cheaper level that frees some of an exceeded budget; False when none does."""
    if not draft.active(gene):
        return False
    excess = draft.excess
    for level in draft.ledger.downs[gene][draft.levels[gene]]:
        change = draft.delta(gene, level)
        if any(over and value < 0 for over, value in zip(excess, change, strict=False)):
            draft.set(gene, level)
            return True
    return False


def repair(draft: Draft, rng: random.Random, spared: Collection[int] = NOBODY, guided: bool = False, drops_first: bool = False) -> bool:
    """Lower random genes until every budget holds; False when that fails.

    Plain sites go first and containers are dropped only where those do not free enough (or the other way round with `drops_first`), then
    spared genes are touched too, then changes that trade one budget for another are tried.
    """
    ledger = draft.ledger
    groups = (ledger.containers, ledger.plain) if drops_first else (ledger.plain, ledger.containers)
    for keep in (spared, NOBODY):
        for group in groups:
            pending = [gene for gene in group if gene not in keep]
            while pending and not draft.fits:
                at = _donor(draft, rng, pending, guided)
                if not _lower(draft, pending[at]):
                    pending[at] = pending[-1]
                    pending.pop()
    return draft.fits or _trade_budgets(draft, rng)


def within(ledger: Ledger, genotype: Sequence[int], rng: random.Random, guided: bool = False) -> Genotype:
    """The genotype lowered at random until it fits (or its floor where that fails), then raised at random until nothing fits."""
    draft = Draft(ledger, genotype)
    if not repair(draft, rng, guided=guided):
        draft = Draft(ledger, ledger.floor)
    fill_at_random(draft, rng, guided=guided)
    return draft.genotype


def _donor(draft: Draft, rng: random.Random, pending: Sequence[int], guided: bool) -> int:
    # A third of the draws are blind, a third look for the one step that frees just enough (so that a switch stays a pair), and a
    # third follow the layer errors, where they are known.
    way = rng.randrange(3)
    if way == 0 or len(pending) == 1:
        return rng.randrange(len(pending))
    if way == 1 and guided:
        return _favourite(draft, rng, pending, upward=False)
    excess = draft.excess
    best, best_score = -1, (True, 0.0)
    for at in (rng.randrange(len(pending)), rng.randrange(len(pending)), rng.randrange(len(pending))):
        gene = pending[at]
        steps = draft.ledger.downs[gene][draft.levels[gene]]
        if not steps or not draft.active(gene):
            score = (True, float("inf"))
        else:
            change = draft.delta(gene, steps[0])
            short = any(value + over > 0 for value, over in zip(change, excess, strict=False) if over)
            freed = -sum(value / max(limit, 1) for value, limit in zip(change, draft.ledger.limits, strict=False))
            score = (short, -freed if short else freed)
        if best < 0 or score < best_score:
            best, best_score = at, score
    return best


def _trade_budgets(draft: Draft, rng: random.Random) -> bool:
    """Where one budget is met only by exceeding another: random changes that shrink the summed excess, a bounded number of them."""
    limits = draft.ledger.limits
    if len(limits) < 2 or not draft.ledger.movable:
        return draft.fits
    for _ in range(50 * len(draft.ledger.movable)):
        if draft.fits:
            return True
        gene = rng.choice(draft.ledger.movable)
        level = rng.randrange(len(draft.ledger.weight[gene]))
        change = draft.delta(gene, level)
        before = sum(over / max(limit, 1) for over, limit in zip(draft.excess, limits, strict=True))
        after = sum(
            max(total + value - limit, 0) / max(limit, 1) for total, value, limit in zip(draft.totals, change, limits, strict=False)
        )
        if after < before:
            draft.set(gene, level)
    return draft.fits


def random_profile(ledger: Ledger, rng: random.Random) -> Genotype:
    """A random feasible genotype that fills the budget: random levels, lowered at random until it fits, then raised at random.

    Half of the profiles start with nothing dropped; the others drop each container with one probability drawn from 0 to 1/2.
    """
    share = max(0.0, rng.random() - 0.5)
    levels = []
    containers = frozenset(ledger.containers)
    for gene in range(len(ledger.space.genes)):
        count = len(ledger.weight[gene])
        if gene not in containers:
            levels.append(rng.randrange(count))
            continue
        dropped = rng.random() < share
        levels.append(rng.choice([level for level in range(count) if (ledger.weight[gene][level][0] < 0) == dropped]))
    return within(ledger, levels, rng)


def mutate(ledger: Ledger, parent: Sequence[int], rng: random.Random, moves: int, guided: bool = False) -> Genotype:
    """A mutant of `parent` after `moves` budget-keeping moves anywhere in the model; it fits, and no upgrade is left that would fit.

    One move changes one gene (a rung up or down, another method, a drop or a restoration, or a drop traded for a restoration), then frees
    what is missing by random downgrades elsewhere, then spends what is left by random upgrades elsewhere. guided: let known layer errors
    decide between two candidates half of the time. Returns the parent where no move is possible.
    """
    draft = Draft(ledger, parent)
    touched: dict[int, None] = {}
    for _ in range(moves):
        _move(draft, rng, touched, guided and ledger.has_errors and rng.random() < 0.5)
    fill_at_random(draft, rng, touched)
    fill_at_random(draft, rng)
    return draft.genotype


def _move(draft: Draft, rng: random.Random, touched: dict[int, None], guided: bool) -> None:
    ledger = draft.ledger
    plain = [gene for gene in ledger.plain if draft.active(gene)]
    containers = [gene for gene in ledger.containers if draft.active(gene)]
    if not plain and not containers:
        return
    before = draft.genotype
    drops_first = False
    if containers and (not plain or rng.random() < 0.3):
        gene = rng.choice(containers)
        drops_first = _toggle(draft, rng, gene, containers, touched)
    else:
        gene = rng.choice(plain)
        here = draft.levels[gene]
        near = [steps[0] for steps in (ledger.ups[gene][here], ledger.downs[gene][here]) if steps]
        others = [level for level in range(len(ledger.weight[gene])) if level != here]
        draft.set(gene, rng.choice(near) if near and rng.random() < 0.8 else rng.choice(others))
    touched[gene] = None
    if not draft.fits and not repair(draft, rng, touched, guided, drops_first):
        for back, level in enumerate(before):
            draft.set(back, level)
        return
    for changed, level in enumerate(before):
        if draft.levels[changed] != level:
            touched[changed] = None
    fill_at_random(draft, rng, touched, guided)
    for changed, level in enumerate(before):
        if draft.levels[changed] != level:
            touched[changed] = None


def _toggle(draft: Draft, rng: random.Random, gene: int, containers: Sequence[int], touched: dict[int, None]) -> bool:
    """Drop or restore a container; half of the time the opposite is done to another. Returns: pay for a restoration with drops first."""
    dropped = is_dropped(draft, gene)
    _flip(draft, rng, gene)
    if rng.random() < 0.5:
        partners = [other for other in containers if other != gene and is_dropped(draft, other) != dropped and other not in touched]
        if partners:
            partner = rng.choice(partners)
            _flip(draft, rng, partner)
            touched[partner] = None
            return True
    return rng.random() < 0.5


def is_dropped(draft: Draft, gene: int) -> bool:
    """Is a droppable gene dropped?"""
    return draft.ledger.weight[gene][draft.levels[gene]][0] < 0


def _flip(draft: Draft, rng: random.Random, gene: int) -> None:
    weights, dropped = draft.ledger.weight[gene], is_dropped(draft, gene)
    draft.set(gene, rng.choice([level for level in range(len(weights)) if (weights[level][0] < 0) != dropped]))
