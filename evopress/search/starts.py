"""Where a search starts: from the simple answers the run has, else from its own. Called by `evolve`, `guided` and `champion`."""

from __future__ import annotations

from collections.abc import Sequence

from evopress.api import Genotype, Problem, UsageError
from evopress.search.baselines import greedy_genotype, uniform_genotype
from evopress.search.knapsack import solve
from evopress.search.ledger import Ledger


def known_starts(problem: Problem, ledger: Ledger) -> list[Genotype]:
    """Distinct genotypes: the starts of the problem, else uniform and, where layer errors are known, greedy and knapsack.

    Raises UsageError for a start that does not meet the budgets.
    """
    starts = [tuple(start) for start in problem.starts]
    if any(not ledger.fits(start) for start in starts):
        raise UsageError("A start of the search does not meet the budgets.", "Pass starts that fit, or none.")
    if not starts:
        starts = [uniform_genotype(problem, ledger)]
        if ledger.has_errors:
            starts += [greedy_genotype(problem, ledger), solve(ledger).genotype]
    return distinct(ledger, starts)


def distinct(ledger: Ledger, genotypes: Sequence[Genotype]) -> list[Genotype]:
    """The genotypes with different profiles, the first of each, in order."""
    found: dict[Genotype, Genotype] = {}
    for genotype in genotypes:
        found.setdefault(ledger.key(genotype), genotype)
    return list(found.values())
