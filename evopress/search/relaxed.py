"""relaxed: gradients of measured profiles on the mixing weights of every site's levels, and the exact best profile within the budget.

DiffRate: Differentiable Compression Rate for Efficient Vision Transformers (2023), arXiv 2305.17997, learns the rate of a layer as a
probability over nested candidates, through which the loss has a gradient. Here the candidates are the levels of a site.

Let W(p) = Σ_l p_l W_l be the mixture at one linear site, and let the levels be nested in the sense that their errors share a direction:
W_l = W_dense + t_l U, with t_l = √ρ_l, ρ_l the layer error of level l (the output error is quadratic in the weight error, so its root is
the distance along U). Then ∂L/∂p_l = <∂L/∂W, W_l> = <∂L/∂W, W_dense> + t_l <∂L/∂W, U>. The first term is the same for all l and falls out
of a softmax. A trial's slope is s = <∂L/∂W, W_dense - W_now> = -t_now <∂L/∂W, U>, and so, up to that constant,

    ∂L/∂p_l = t_l dL/dt,    dL/dt = -s / t_now.

A sublayer or block mixes its output and nothing: L(p) changes by its slope when it is dropped, so ∂L/∂p_drop = s and 0 for the other
levels. Nothing is known, and 0 taken, at dense and dropped sites and below the latter.

The slopes are those of one hard profile, drawn by perturb-and-MAP from the present probabilities, and the gradient reaches the logits
straight through. Departures: the update is the natural gradient, logit_l -= rate · ∂L/∂p_l (exponentiated gradient on p), not the
chain through the softmax, which would vanish wherever a site's own wish, more bits always, has won already, and it is divided by a running
mean of its own size, so that `rate` has no unit; no penalty on the size, because the profile drawn meets the budgets by the exact
knapsack (together: follow the perturbed leader; at its fixed point ∂L/∂t is balanced against bytes between all sites); and the weights are
not mixed in the forward pass, which takes hard levels. Every gradient has documents of its own; what counts is the sum of all.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from evopress.api import DROP, Genotype, Knowledge, Problem, Profile, Searcher, Steps, UsageError
from evopress.search.champion import LOOKS, Champion
from evopress.search.ledger import Draft, Ledger, ledger_of
from evopress.search.options import check_count, check_positive
from evopress.search.policies import Floats, around, likeliest

FADING = 0.8
"""Share of the running size of gradients that is kept when a new one comes in."""


class Relaxed(Searcher):
    """Differentiable mixing of levels.

    rounds: gradients, at most. rate: of the update: how far logits of neighbouring levels part in one step, on average over sites. changes:
    genes at which the first samples leave the best start, on average. temperature: of the noise of a sample; 0 takes the likeliest
    profile. every: gradients between two challenges of the incumbent by the likeliest profile. tokens: of a gradient. looks, alpha: of a
    race. Raises UsageError for bad options, for missing layer errors, and for a search set with fewer tokens or documents than these take.
    """

    name: ClassVar[str] = "relaxed"
    paper: ClassVar[str] = "DiffRate: Differentiable Compression Rate for Efficient Vision Transformers, 2023, arXiv 2305.17997"
    needs: ClassVar[frozenset[Knowledge]] = frozenset({"errors", "slopes"})

    def __init__(
        self,
        problem: Problem,
        rng: random.Random,
        *,
        rounds: int = 1000,
        rate: float = 2.0,
        changes: float = 6.0,
        temperature: float = 1.0,
        every: int = 2,
        tokens: int = 1024,
        looks: Sequence[Sequence[int]] = LOOKS,
        alpha: float = 0.2,
    ) -> None:
        super().__init__(problem, rng)
        if not problem.errors:
            raise UsageError("relaxed needs layer errors, and the problem has none.", "Build the bank with calibration, or use evolve.")
        self.rounds = check_count("rounds", rounds, 0)
        self.every = check_count("every", every)
        self.rate, self.changes = check_positive("rate", rate), check_positive("changes", changes)
        self.temperature = check_positive("temperature", temperature) if temperature else 0.0
        self.ledger = ledger_of(problem)
        self._champion = Champion(problem, rng, self.ledger, self.name, tokens, looks, alpha)

    @property
    def incumbent(self) -> Profile:
        """The winner of the races so far; the best start before."""
        return self._champion.profile

    def steps(self) -> Steps:
        """Rank the starts; then gradients, an update after each."""
        yield from self._champion.rank_starts()
        if not self.ledger.movable:
            return
        logits = around(self.ledger, self._champion.best, self.changes)
        size = 0.0
        for number in range(1, self.rounds + 1):
            drawn = likeliest(self.ledger, logits, self.rng, self.temperature) if self.temperature else likeliest(self.ledger, logits)
            (trial,) = yield from self._champion.measure([drawn], number, slopes=True)
            gradient = mixing_gradient(self.ledger, self.problem.errors, drawn, trial.slopes)
            found = step_size(gradient)
            size = FADING * size + (1 - FADING) * found if size else found
            for own, slope in zip(logits, gradient, strict=True):
                own -= self.rate * slope / size if size else 0.0
            if number % self.every == 0 or number == self.rounds:
                yield from self._champion.challenge([likeliest(self.ledger, logits)], number)


def mixing_gradient(ledger: Ledger, errors: Sequence[Sequence[float]], genotype: Genotype, slopes: Sequence[float]) -> list[Floats]:
    """∂L/∂p_l per gene, up to a constant of the gene; linked sites add up. errors: ρ per site and level. slopes: `Trial.slopes`."""
    space = ledger.space
    draft = Draft(ledger, genotype)
    found = [np.zeros(len(space.choices(gene))) for gene in range(len(space.genes))]
    for gene, sites in enumerate(space.genes):
        for site in sites:
            if draft.dark[site]:
                continue
            if space.sites[site].kind != "linear":
                found[gene] += [slopes[site] if level == DROP else 0.0 for level in space.levels[site]]
                continue
            now = errors[site][draft.picks[site]] ** 0.5
            if now > 0:
                found[gene] += -slopes[site] / now * np.sqrt(np.asarray(errors[site], dtype=np.float64))
    return found


def step_size(gradient: Sequence[Floats]) -> float:
    """Mean over genes with any gradient of its range, per step from one level to the next; 0 where there is none."""
    sizes = [float(own.max() - own.min()) / (len(own) - 1) for own in gradient if len(own) > 1]
    moving = [size for size in sizes if size > 0]
    return sum(moving) / len(moving) if moving else 0.0
