"""BAQ: as many bits as make every weight lose the same. A closed form in the sensitivity of a site, met by bisection on the loss."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, log2
from typing import ClassVar

from evopress.api import Genotype, Knowledge, Level, UsageError
from evopress.search.ledger import Ledger, ledger_of
from evopress.search.ratios import Demand, allot, need_choices, need_facts
from evopress.search.settled import Settled


def sensitivity(points: Sequence[tuple[int, float]]) -> float:
    """log2 of c in loss = c · 4^(-bits), least squares in log2 over (bits, loss); -inf where every loss is 0.

    With the slope fixed at -2 a bit, the fit is the mean of log2(loss) + 2 bits.
    """
    found = [log2(loss) + 2 * bits for bits, loss in points if loss > 0]
    return sum(found) / len(found) if found else -inf


def closed_form(log2_c: float, log2_loss: float) -> float:
    """Bits at which a site of sensitivity c loses L a weight: R = ½ log2(c / L); all sites then lose the same, and their sum is least."""
    return (log2_c - log2_loss) / 2


def loss_table(ledger: Ledger, errors: Sequence[Sequence[float]], energies: Sequence[float]) -> list[list[float]]:
    """Per gene and level log2 of the loss a weight, -inf for none: by the closed form where a level has bits, else as measured."""
    space = ledger.space
    table = []
    for gene, sites in enumerate(space.genes):
        weights = max(sum(space.sites[site].weights for site in sites), 1)
        levels = space.choices(gene)
        lost = [sum(errors[site][at] * energies[site] for site in sites) / weights for at in range(len(levels))]
        points: dict[str, list[tuple[int, float]]] = {}
        for level, loss in zip(levels, lost, strict=True):
            if (bits := _bits(level)) is not None:
                points.setdefault(level.method, []).append((bits, loss))
        fitted = {method: sensitivity(found) for method, found in points.items()}
        row = []
        for level, loss in zip(levels, lost, strict=True):
            bits = _bits(level)
            row.append(fitted[level.method] - 2 * bits if bits is not None else log2(loss) if loss > 0 else -inf)
        table.append(row)
    return table


def _bits(level: Level) -> int | None:
    bits = dict(level.options).get("bits")
    return bits if isinstance(bits, int) and not isinstance(bits, bool) else None


class EqualLoss(Demand):
    """Every gene takes its cheapest level that loses at most L a weight; the number is -log2 L, so that more of it costs more."""

    def __init__(self, ledger: Ledger, losses: Sequence[Sequence[float]]) -> None:
        self._losses = losses
        self._order = [[level for _, level in sorted((weight, level) for level, weight in enumerate(row))] for row in ledger.weight]

    def level(self, number: float, gene: int) -> int:
        """The cheapest level within the loss; the dearest where there is none."""
        return next((level for level in self._order[gene] if self._losses[gene][level] <= -number), self._order[gene][-1])

    def unmet(self, number: float, gene: int, level: int) -> float:
        """What the level loses, so that the most lossy rises first."""
        return self._losses[gene][level]


class Baq(Settled):
    """Equal loss a weight everywhere: R = ½ log2(c / L) bits, rounded up to a width on offer; L by bisection over what fits.

    BAQ: Efficient Bit Allocation Quantization for Large Language Models (2025, 2506.05664): under loss = c · 4^(-R), the sum of losses at a
    given number of bits is least where all are equal. Departures: a site, and not each of its columns, has a width; c is fitted to the
    measured layer errors of the site's levels of one method (error × energy / weights), not computed from ranges and the inverse Hessian;
    L is solved for the budget, scales and zeros included, and is no tuned constant. A level without bits (sparsity) takes part by the same
    principle with its measured loss in the place of the closed form. Measures nothing. Raises UsageError where no linear site has a choice.
    """

    name: ClassVar[str] = "baq"
    paper: ClassVar[str] = "BAQ: Efficient Bit Allocation Quantization for Large Language Models (2025, arXiv:2506.05664)"
    needs: ClassVar[frozenset[Knowledge]] = frozenset({"errors", "energies"})

    def answer(self) -> Genotype:
        """Widths of equal loss."""
        problem = self.problem
        ledger = ledger_of(problem)
        need_choices(problem, ledger, self.name)
        need_facts(problem, self.name, "errors", "energies")
        if any(energy < 0 for energy in problem.energies):
            raise UsageError("An energy is negative.", "Energies are mean squares; compute them anew.")
        losses = loss_table(ledger, problem.errors, problem.energies)
        finite = [loss for gene in ledger.plain for loss in losses[gene] if loss > -inf] or [0.0]
        # At the low end no loss is too large, at the high end every loss but none is.
        return allot(problem, ledger, EqualLoss(ledger, losses), -max(finite) - 1, -min(finite) + 1)[0]
