"""Probes: what dropping each droppable gene changes at a profile, measured one gene at a time.

A dropped sublayer is no small error, so no slope tells it; and what it costs depends on what else is gone, so it is measured in context: a
kept gene is dropped alone, a dropped one restored alone, wherever the budgets are. Called by `guided` and `descent`.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence

from evopress.api import DROP, Ask, Genotype, Problem, Slice, Trial
from evopress.search.ledger import Draft, Ledger
from evopress.search.moves import is_dropped


def probe(
    problem: Problem, ledger: Ledger, genotype: Genotype, genes: Sequence[int], slice_: Slice, generation: int
) -> Generator[Ask, Sequence[Trial], dict[int, float]]:
    """Gene -> change of the fitness by its being dropped. Genes that stand under a dropped one are left out.

    genes: droppable ones to look at.
    """
    draft = Draft(ledger, genotype)
    changed = {gene: flipped(ledger, genotype, gene) for gene in genes if draft.active(gene)}
    if not changed:
        return {}
    profiles = tuple(map(problem.space.profile, (genotype, *changed.values())))
    trials = yield Ask(profiles, slice_, generation)
    here = trials[0].fitness
    moved = {gene: trial.fitness - here for gene, trial in zip(changed, trials[1:], strict=True)}
    return {gene: -change if is_dropped(draft, gene) else change for gene, change in moved.items()}


def flipped(ledger: Ledger, genotype: Genotype, gene: int) -> Genotype:
    """The genotype with one kept gene dropped, or one dropped gene kept again."""
    draft = Draft(ledger, genotype)
    draft.set(gene, ledger.top(gene) if is_dropped(draft, gene) else drop_level(ledger, gene))
    return draft.genotype


def drop_level(ledger: Ledger, gene: int) -> int:
    """The level at which a droppable gene is dropped."""
    return ledger.space.choices(gene).index(DROP)
