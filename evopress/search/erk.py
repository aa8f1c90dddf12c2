"""ERK: densities from the shapes alone, so that small and oblong matrices keep more. A baseline that knows nothing of the weights."""

from __future__ import annotations

from typing import ClassVar

from evopress.api import Genotype, Site
from evopress.search.ledger import ledger_of
from evopress.search.ratios import Shares, allot, gene_means, need_choices
from evopress.search.settled import Settled


def erk_density(site: Site) -> float:
    """(rows + columns) / (rows · columns): the density of a linear site but for one factor that all share; 0 for other sites.

    The Erdős-Rényi-kernel rule of RigL (section 3) for a matrix, whose kernel is 1 by 1; it stands there as the sparsity, 1 minus this.
    """
    return sum(site.shape) / site.weights if site.weights else 0.0


class Erk(Settled):
    """Keeps min(1, factor · (rows + columns) / (rows · columns)) of every matrix; the factor by bisection over what fits.

    Rigging the Lottery: Making All Tickets Winners (RigL, 2020, 1911.11134), section 3; The Unreasonable Effectiveness of Random Pruning
    (2022, 2202.02643) prunes at random by it. Departures: a density is read as a share of the dense cost, so that it also shares out bits
    and bytes; it is rounded down to a level, and what that leaves is spent where most is missing. Measures nothing. Raises UsageError
    where no linear site has a choice.
    """

    name: ClassVar[str] = "erk"
    paper: ClassVar[str] = "Rigging the Lottery: Making All Tickets Winners (Evci et al., 2020, arXiv:1911.11134)"

    def answer(self) -> Genotype:
        """Densities by shape."""
        ledger = ledger_of(self.problem, errors=False)
        need_choices(self.problem, ledger, self.name)
        densities = gene_means(ledger, [erk_density(site) for site in self.problem.space.sites])
        top = 1 / min(density for gene in ledger.plain if (density := densities[gene]) > 0)
        return allot(self.problem, ledger, Shares(ledger, lambda factor: [min(1.0, factor * one) for one in densities]), 0.0, top)[0]
