"""BAQ: as many bits as make every weight lose the same. A closed form in the sensitivity of a site, met by bisection on the loss."""

from __future__ import annotations

import random
from collections.abc import Sequence
from math import inf, log2
from typing import ClassVar

from evopress.api import DENSE, Genotype, Knowledge, Level, Problem, UsageError, unknown
from evopress.search.ledger import Ledger, ledger_of
from evopress.search.ratios import Demand, allot, need_choices, need_facts
from evopress.search.settled import Settled

DENSE_BITS = 16
LOSSES = ("output", "relative")


def sensitivity(points: Sequence[tuple[int, float]]) -> float:
    """log2 of c in loss = c · 4^(-bits), least squares in log2 over (bits, loss); -inf where every loss is 0.

    With the slope fixed at -2 a bit, the fit is the mean of log2(loss) + 2 bits.
    """
    found = [log2(loss) + 2 * bits for bits, loss in points if loss > 0]
    return sum(found) / len(found) if found else -inf


def closed_form(log2_c: float, log2_loss: float) -> float:
    """Bits at which a site of sensitivity c loses L a weight: R = ½ log2(c / L); all sites then lose the same, and their sum is least."""
    return (log2_c - log2_loss) / 2


class Sensitivities(Demand):
    """The wishes of BAQ; the number is -log2 of the loss a weight, so that more of it costs more.

    A gene whose levels are widths of one method takes the widest not above the closed form (16 bits for dense). Any other gene takes the
    cheapest level whose measured loss is at most that; of its levels with bits too, so that kinds compare by what they do.
    """

    def __init__(self, ledger: Ledger, errors: Sequence[Sequence[float]], energies: Sequence[float]) -> None:
        space = ledger.space
        self._order = [[level for _, level in sorted((weight, level) for level, weight in enumerate(row))] for row in ledger.weight]
        self._losses: list[list[float]] = []
        self._log2_c: list[float | None] = []
        self._bits: list[list[int | None]] = []
        for gene, sites in enumerate(space.genes):
            levels = space.choices(gene)
            weights = max(sum(space.sites[site].weights for site in sites), 1)
            lost = [sum(errors[site][at] * energies[site] for site in sites) / weights for at in range(len(levels))]
            bits = [DENSE_BITS if level == DENSE else _bits(level) for level in levels]
            points = [(width, loss) for level, width, loss in zip(levels, bits, lost, strict=True) if level != DENSE and width is not None]
            closed = None not in bits and len({level.method for level in levels if level != DENSE}) == 1
            self._bits.append(bits)
            self._log2_c.append(sensitivity(points) if closed else None)
            self._losses.append([log2(loss) if loss > 0 else -inf for loss in lost])

    def level(self, number: float, gene: int) -> int:
        """The widest level not above the closed form; else the cheapest within the loss."""
        log2_c, order = self._log2_c[gene], self._order[gene]
        if log2_c is None:
            return next((level for level in order if self._losses[gene][level] <= -number), order[-1])
        wish = closed_form(log2_c, -number)
        return next((level for level in reversed(order) if (self._bits[gene][level] or 0) <= wish), order[0])

    def unmet(self, number: float, gene: int, level: int) -> float:
        """What the level loses, so that the most lossy rises first."""
        return self._modelled(gene, level)

    def ends(self, genes: Sequence[int]) -> tuple[float, float]:
        """Numbers at which all of these genes stand at their cheapest and at their dearest."""
        finite = [loss for gene in genes for level in self._order[gene] if (loss := self._modelled(gene, level)) > -inf]
        return -max(finite, default=0.0) - 1, -min(finite, default=0.0) + 1

    def _modelled(self, gene: int, level: int) -> float:
        log2_c, bits = self._log2_c[gene], self._bits[gene][level]
        return self._losses[gene][level] if log2_c is None or bits is None else log2_c - 2 * bits


def _bits(level: Level) -> int | None:
    bits = dict(level.options).get("bits")
    return bits if isinstance(bits, int) and not isinstance(bits, bool) else None


class Baq(Settled):
    """Equal loss a weight everywhere: R = ½ log2(c / L) bits, rounded down to a width on offer; L by bisection over what fits.

    BAQ: Efficient Bit Allocation Quantization for Large Language Models (2025, 2506.05664): under loss = c · 4^(-R), the sum of losses at a
    given number of bits is least where all are equal. loss: `output` counts a layer's loss in the units of its output, error × energy /
    weights; `relative` as a share of it, error / weights, because the outputs of a few matrices are a thousand times as large as those of
    others (massive activations), and would take all bits. Departures: a site, and not each of its columns, has a width; c is fitted to the
    measured layer errors of the site's widths, not computed from ranges and the inverse Hessian; L is solved for the budget, scales and
    zeros included, and is no tuned constant; what rounding leaves is spent where most is lost. A site with levels without bits (sparsity),
    or of several methods, takes part by the same principle with its measured losses in the place of the closed form. Measures nothing.
    Raises UsageError for another loss, and where no linear site has a choice.
    """

    name: ClassVar[str] = "baq"
    paper: ClassVar[str] = "BAQ: Efficient Bit Allocation Quantization for Large Language Models (2025, arXiv:2506.05664)"
    needs: ClassVar[frozenset[Knowledge]] = frozenset({"errors", "energies"})

    def __init__(self, problem: Problem, rng: random.Random, *, loss: str = "output") -> None:
        if loss not in LOSSES:
            raise unknown("loss", loss, LOSSES, "option loss of searcher baq")
        self.loss = loss
        super().__init__(problem, rng)

    def answer(self) -> Genotype:
        """Widths of equal loss."""
        problem = self.problem
        ledger = ledger_of(problem)
        need_choices(problem, ledger, self.name)
        need_facts(problem, self.name, "errors", "energies")
        if any(energy < 0 for energy in problem.energies):
            raise UsageError("An energy is negative.", "Energies are mean squares; compute them anew.")
        energies = problem.energies if self.loss == "output" else (1.0,) * len(problem.energies)
        demand = Sensitivities(ledger, problem.errors, energies)
        return allot(problem, ledger, demand, *demand.ends(ledger.plain))[0]
