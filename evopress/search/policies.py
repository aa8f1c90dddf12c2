"""Independent categorical distributions over the levels of every gene: logits, samples, and the likeliest profile within the budgets.

Arithmetic and draws only; how logits are learnt is the business of `reinforce` and `relaxed`, which call this.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from math import log

import numpy as np
from numpy.typing import NDArray

from evopress.api import Genotype
from evopress.search.knapsack import solve
from evopress.search.ledger import Ledger
from evopress.search.moves import within

Floats = NDArray[np.float64]
Logits = list[Floats]
"""One array of level logits a gene."""


def softmax(logits: Floats) -> Floats:
    """Probabilities of one gene."""
    raised = np.exp(logits - logits.max())
    return np.asarray(raised / raised.sum(), dtype=np.float64)


def around(ledger: Ledger, start: Sequence[int], changes: float) -> Logits:
    """Logits whose likeliest genotype is `start` and whose samples leave it at `changes` movable genes on average.

    Every gene leaves with the same probability (at most 1/2), for a level with half the chance of the next nearer one: levels stand in
    order of what they cost.
    """
    leave = min(changes / max(len(ledger.movable), 1), 0.5)
    logits = []
    for gene, level in enumerate(start):
        order = sorted(range(len(ledger.weight[gene])), key=lambda at, gene=gene: (ledger.weight[gene][at], at))  # type: ignore[misc]
        place = order.index(level)
        chances = [0.5 ** abs(order.index(at) - place) if at != level else 0.0 for at in range(len(order))]
        total = sum(chances)
        # A half goes to the start itself even where there is one other level, so that it is never less likely than that one.
        logits.append(np.array([log(leave * chance / total) if at != level else log(1 - leave) for at, chance in enumerate(chances)]))
    return logits


def sample(ledger: Ledger, logits: Logits, rng: random.Random) -> Genotype:
    """An independent draw for every gene, lowered at random until the budgets hold, then raised at random until nothing fits."""
    levels = [rng.choices(range(len(own)), softmax(own).tolist())[0] for own in logits]
    return within(ledger, levels, rng)


def gumbel(rng: random.Random) -> float:
    """A standard Gumbel draw: the arg max of logits plus such noise has the distribution of their softmax."""
    return -log(max(rng.expovariate(1.0), 1e-300))


def likeliest(ledger: Ledger, logits: Logits, rng: random.Random | None = None, temperature: float = 1.0) -> Genotype:
    """The genotype with the largest sum of logits within the budgets, exactly where the knapsack is exact (see `knapsack.solve`).

    With an `rng` every logit first gets Gumbel noise times `temperature`: perturb-and-MAP (Papandreou and Yuille, 2011), which without a
    budget and at temperature 1 is an exact sample. Genes under dropped parents count for nothing. What the optimum leaves unspent is left.
    """
    space = ledger.space
    table: list[tuple[float, ...]] = [(0.0,) * len(levels) for levels in space.levels]
    for sites, own in zip(space.genes, logits, strict=True):
        noisy = [value + (temperature * gumbel(rng) if rng is not None else 0.0) for value in own.tolist()]
        # The best level costs nothing, so that a gene under a dropped parent and one that has its wish count alike.
        table[sites[0]] = tuple(max(noisy) - value for value in noisy)
    return solve(ledger.telling(table)).genotype
