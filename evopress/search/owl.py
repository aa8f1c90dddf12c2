"""OWL: what has many outliers keeps more. Ratios around one target, within a narrow band, in proportion to the share of outliers."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import ClassVar

from evopress.api import Genotype, Knowledge, Problem, Space, UsageError, unknown
from evopress.search.ledger import ledger_of
from evopress.search.ratios import Shares, allot, gene_means, need_choices, need_facts
from evopress.search.settled import Settled

SCOPES = ("block", "site")


def banded(shares: Sequence[float], spread: float) -> list[float]:
    """What each keeps above the target: from -spread to +spread in proportion to its share of outliers, shifted to a mean of 0.

    All 0 where no share differs from another.
    """
    low, high = min(shares), max(shares)
    scaled = [2 * spread * (share - low) / (high - low) if high > low else 0.0 for share in shares]
    mean = sum(scaled) / len(scaled)
    return [value - mean for value in scaled]


def pooled(space: Space, outliers: Sequence[float]) -> list[float]:
    """Per site position the share of outliers of its whole block: the mean over the block's weights."""
    counts: dict[int, tuple[float, int]] = {}
    for site, share in zip(space.sites, outliers, strict=True):
        hits, weights = counts.get(site.depth, (0.0, 0))
        counts[site.depth] = (hits + share * site.weights, weights + site.weights)
    return [counts[site.depth][0] / max(counts[site.depth][1], 1) for site in space.sites]


class Owl(Settled):
    """Keeps target + spread · (share of outliers, scaled to [-1, 1], less its mean); the target by bisection over what fits.

    Outlier Weighed Layerwise Sparsity (2024, 2310.05175). spread: the paper's λ; no two ratios differ by more than twice that.
    per: `block`, as in the paper, gives one ratio to all matrices of a block; `site` one to each. Departures: a score is an outlier against
    the mean of its own matrix and not of its block; a ratio is read as a share of the dense cost, so that it also shares out bits and
    bytes; it is rounded down to a level, and what that leaves is spent where most is missing. Measures nothing. Raises UsageError for other
    options, and where no linear site has a choice.
    """

    name: ClassVar[str] = "owl"
    paper: ClassVar[str] = (
        "Outlier Weighed Layerwise Sparsity (OWL): A Missing Secret Sauce for Pruning LLMs to High Sparsity"
        " (Yin et al., 2024, arXiv:2310.05175)"
    )
    needs: ClassVar[frozenset[Knowledge]] = frozenset({"outliers"})

    def __init__(self, problem: Problem, rng: random.Random, *, spread: float = 0.08, per: str = "block") -> None:
        if per not in SCOPES:
            raise unknown("scope of outliers", per, SCOPES, "option per of searcher owl")
        if not 0 <= spread <= 1:
            raise UsageError(f"Option 'spread' of searcher owl is {spread}.", "It is a share of the dense cost, from 0 to 1.")
        self.spread, self.per = spread, per
        super().__init__(problem, rng)

    def answer(self) -> Genotype:
        """Ratios by outliers."""
        problem, space = self.problem, self.problem.space
        ledger = ledger_of(problem, errors=False)
        need_choices(problem, ledger, self.name)
        need_facts(problem, self.name, "outliers")
        shares = gene_means(ledger, pooled(space, problem.outliers) if self.per == "block" else problem.outliers)
        offsets = dict(zip(ledger.plain, banded([shares[gene] for gene in ledger.plain], self.spread), strict=True))
        genes = range(len(space.genes))

        def wish(target: float) -> list[float]:
            return [min(max(target + offsets.get(gene, 0.0), 0.0), 1.0) for gene in genes]

        # Offsets lie within [-2 spread, 2 spread], so these targets wish for nothing and for all.
        return allot(problem, ledger, Shares(ledger, wish), -2 * self.spread, 1 + 2 * self.spread)[0]
