"""Probes: what dropping each droppable gene changes at a profile, measured one gene at a time.

A dropped sublayer is no small error, so no slope tells it; and what it costs depends on what else is gone, so it is measured in context. A
kept gene is dropped alone, which frees budget. A dropped one is restored alone where the budgets allow it, else paid for by the cheapest of
the drops measured just before, whose own change is taken off. Called by `guided`.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence

from evopress.api import DROP, Ask, Genotype, Problem, Slice, Trial
from evopress.search.ledger import Draft, Ledger
from evopress.search.moves import is_dropped

PAYERS = 4
"""Drops that may pay for one restoration."""


def probe(
    problem: Problem, ledger: Ledger, genotype: Genotype, genes: Sequence[int], slice_: Slice, generation: int
) -> Generator[Ask, Sequence[Trial], dict[int, float]]:
    """Gene -> change of the fitness by its being dropped. Genes that stand under a dropped one are left out.

    genes: droppable ones to look at.
    """
    start = Draft(ledger, genotype)
    active = [gene for gene in genes if start.active(gene)]
    kept = [gene for gene in active if not is_dropped(start, gene)]
    found: dict[int, float] = {}
    here = 0.0
    if kept:
        alone = {gene: _dropping(ledger, genotype, [gene]) for gene in kept}
        trials = yield from _ask(problem, [genotype, *alone.values()], slice_, generation)
        here = trials[0].fitness
        found = {gene: trial.fitness - here for gene, trial in zip(alone, trials[1:], strict=True)}
    payers = sorted(found, key=lambda gene: found[gene])[:PAYERS]
    restored: dict[int, tuple[Genotype, float]] = {}
    for gene in active:
        if gene not in found:
            paid = _restoring(ledger, genotype, gene, payers)
            if paid is not None:
                restored[gene] = (paid[0], sum(found[payer] for payer in paid[1]))
    if restored:
        extra = [] if kept else [genotype]
        trials = yield from _ask(problem, [*extra, *(made for made, _ in restored.values())], slice_, generation)
        if extra:
            here, trials = trials[0].fitness, trials[1:]
        for (gene, (_, price)), trial in zip(restored.items(), trials, strict=True):
            found[gene] = here + price - trial.fitness
    return found


def _ask(problem: Problem, genotypes: Sequence[Genotype], slice_: Slice, generation: int) -> Generator[Ask, Sequence[Trial], list[Trial]]:
    """Trials of genotypes, each profile asked for once."""
    profiles = [problem.space.profile(genotype) for genotype in genotypes]
    distinct = tuple(dict.fromkeys(profiles))
    trials = yield Ask(distinct, slice_, generation)
    known = dict(zip(distinct, trials, strict=True))
    return [known[profile] for profile in profiles]


def _dropping(ledger: Ledger, genotype: Genotype, genes: Sequence[int]) -> Genotype:
    draft = Draft(ledger, genotype)
    for gene in genes:
        draft.set(gene, ledger.space.choices(gene).index(DROP))
    return draft.genotype


def _restoring(ledger: Ledger, genotype: Genotype, gene: int, payers: Sequence[int]) -> tuple[Genotype, list[int]] | None:
    """The genotype with a gene kept again, and what was dropped for it; None where the payers do not suffice."""
    draft = Draft(ledger, genotype)
    draft.set(gene, ledger.top(gene))
    paid: list[int] = []
    for payer in payers:
        if draft.fits:
            break
        if draft.active(payer):
            draft.set(payer, ledger.space.choices(payer).index(DROP))
            paid.append(payer)
    return (draft.genotype, paid) if draft.fits else None
