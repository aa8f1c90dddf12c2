"""WeLore: one threshold on the singular values of all matrices; what is above it is what a matrix keeps."""

from __future__ import annotations

from bisect import bisect_left
from typing import ClassVar

from evopress.api import Genotype, Knowledge, Level
from evopress.search.ledger import Ledger, ledger_of
from evopress.search.ratios import Shares, allot, cost_shares, gene_means, need_choices, need_facts
from evopress.search.settled import Settled

NO_RANKS = "no level has a rank here, so the share of singular values above the threshold was read as a share of the dense cost"


def share_above(spectrum: tuple[float, ...], threshold: float) -> float:
    """Share of the singular values, sorted with the largest first, that are at least the threshold; 0 where there are none."""
    if not spectrum:
        return 0.0
    return bisect_left(spectrum, True, key=lambda value: value < threshold) / len(spectrum)


def _rank(level: Level) -> int | None:
    rank = dict(level.options).get("rank")
    return rank if isinstance(rank, int) and not isinstance(rank, bool) else None


def held_ranks(ledger: Ledger) -> tuple[list[list[float]], bool]:
    """Per gene and level its option `rank` over the full rank, its share of the dense cost where it has none; and whether any has one."""
    held, found = cost_shares(ledger), False
    for gene, sites in enumerate(ledger.space.genes):
        full = min(ledger.space.sites[sites[0]].shape)
        for at, level in enumerate(ledger.space.choices(gene)):
            rank = _rank(level)
            if rank is not None and full:
                held[gene][at], found = rank / full, True
    return held, found


class Welore(Settled):
    """Every matrix keeps the share of its singular values, each divided by its largest, that is above one threshold for all.

    From GaLore to WeLore: How Low-Rank Weights Non-uniformly Emerge from Low-Rank Gradients (2024, 2407.11239). The share is
    the rank of a level where levels have one (option `rank`); elsewhere it is read as a share of the dense cost, which the remark says: a
    heuristic of ours, not of the paper. Departures: the threshold is bisected over what fits and not over a mean rank; a rank is rounded
    down to a level, and what that leaves is spent where most is missing. Measures nothing, and reads no text. Raises UsageError where no
    linear site has a choice.
    """

    name: ClassVar[str] = "welore"
    paper: ClassVar[str] = (
        "From GaLore to WeLore: How Low-Rank Weights Non-uniformly Emerge from Low-Rank Gradients (Jaiswal et al., 2024, arXiv:2407.11239)"
    )
    needs: ClassVar[frozenset[Knowledge]] = frozenset({"spectra"})

    def answer(self) -> Genotype:
        """Shares above one threshold."""
        problem = self.problem
        ledger = ledger_of(problem, errors=False)
        need_choices(problem, ledger, self.name)
        need_facts(problem, self.name, "spectra")
        held, ranks = held_ranks(ledger)
        self._remark = "" if ranks else NO_RANKS

        def wish(depth: float) -> list[float]:
            return gene_means(ledger, [share_above(spectrum, 1 - depth) for spectrum in problem.spectra])

        # At -1 the threshold is 2, which no singular value reaches.
        return allot(problem, ledger, Shares(ledger, wish, held), -1.0, 1.0)[0]
