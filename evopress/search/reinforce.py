"""reinforce: a policy gradient over the levels of all sites.

N2N Learning: Network to Network Compression via Policy Gradient Reinforcement Learning (2017), arXiv 1709.06030, with the estimator of
Williams (1992). Departures, because what N2N searches is not what is searched here: the policy is one independent categorical a gene
instead of two LSTMs that walk the layers (there is one model, so nothing is to be carried over to another); profiles are measured as they
are instead of after training with distillation; size is no part of the reward, because samples are brought within the budgets before they
are measured, and it is the repaired profile, the one that earned it, that gets the credit. With independent categoricals the gradient of
log p of a level is one-hot minus probabilities.

The reward of a sample is how far it lies below the mean of its batch on the same documents, in standard deviations, so that neither the
slice nor the unit of the fitness steers anything; every batch has documents of its own, so the policy follows no slice.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from evopress.api import Genotype, Knowledge, Problem, Profile, Searcher, Steps
from evopress.search.champion import LOOKS, Champion
from evopress.search.ledger import ledger_of
from evopress.search.options import check_count, check_positive
from evopress.search.policies import Floats, Logits, around, likeliest, sample, softmax

ATTEMPTS = 20
"""Samples drawn per wanted one before a batch goes on with fewer."""
IDLE = 20
"""Batches in a row without two different profiles after which the policy has settled and the search ends."""


class Reinforce(Searcher):
    """REINFORCE with a baseline.

    rounds: batches, at most. batch: samples of each. rate: learning rate of the logits. changes: genes at which the first samples leave
    the best start, on average. entropy: weight of the entropy bonus. every: batches between two challenges of the incumbent, by the
    best sample since the last one and by the likeliest profile. tokens: of an evaluation. looks, alpha: of a race. Raises UsageError for
    bad options, and for a search set with fewer tokens or documents than these take.
    """

    name: ClassVar[str] = "reinforce"
    paper: ClassVar[str] = "N2N Learning: Network to Network Compression via Policy Gradient Reinforcement Learning, 2017, arXiv 1709.06030"
    needs: ClassVar[frozenset[Knowledge]] = frozenset({"errors"})

    def __init__(
        self,
        problem: Problem,
        rng: random.Random,
        *,
        rounds: int = 1000,
        batch: int = 16,
        rate: float = 2.0,
        changes: float = 6.0,
        entropy: float = 0.0,
        every: int = 2,
        tokens: int = 512,
        looks: Sequence[Sequence[int]] = LOOKS,
        alpha: float = 0.2,
    ) -> None:
        super().__init__(problem, rng)
        self.rounds = check_count("rounds", rounds, 0)
        self.batch = check_count("batch", batch, 2)
        self.every = check_count("every", every)
        self.rate, self.changes = check_positive("rate", rate), check_positive("changes", changes)
        self.entropy = check_positive("entropy", entropy) if entropy else 0.0
        self.ledger = ledger_of(problem)
        self._champion = Champion(problem, rng, self.ledger, self.name, tokens, looks, alpha)

    @property
    def incumbent(self) -> Profile:
        """The winner of the races so far; the best start before."""
        return self._champion.profile

    def steps(self) -> Steps:
        """Rank the starts; then batches, an update after each."""
        yield from self._champion.rank_starts()
        if not self.ledger.movable:
            return
        logits = around(self.ledger, self._champion.best, self.changes)
        best: list[tuple[float, Genotype]] = []
        idle = 0
        for number in range(1, self.rounds + 1):
            drawn = self._drawn(logits)
            if len(drawn) > 1:
                idle = 0
                values = yield from self._champion.compare(drawn, number)
                update(logits, drawn, advantages(values), self.rate, self.entropy)
                best += [(value, genotype) for value, genotype in zip(values, drawn, strict=True) if value < self._champion.level]
            else:
                idle += 1
            if number % self.every == 0 or number == self.rounds or idle == IDLE:
                promising = [genotype for _, genotype in sorted(best)[:1]]
                yield from self._champion.challenge([likeliest(self.ledger, logits), *promising], number)
                best = []
            if idle == IDLE:
                return

    def _drawn(self, logits: Logits) -> list[Genotype]:
        """Samples with different profiles."""
        found: dict[Genotype, Genotype] = {}
        for _ in range(ATTEMPTS * self.batch):
            if len(found) >= self.batch:
                break
            genotype = sample(self.ledger, logits, self.rng)
            found.setdefault(self.ledger.key(genotype), genotype)
        return list(found.values())


def advantages(values: Sequence[float]) -> Floats:
    """How far each value lies below the mean, in standard deviations; zeros where all are equal."""
    found = np.asarray(values, dtype=np.float64)
    spread = float(found.std())
    return (found.mean() - found) / spread if spread > 0 else np.zeros(len(found))


def update(logits: Logits, samples: Sequence[Genotype], advantage: Floats, rate: float, entropy: float = 0.0) -> None:
    """One step up the gradient of the mean of advantage · log p(sample), plus `entropy` times the entropy, in place.

    ∂ log p(l) / ∂ logit_j = [j = l] - p_j;  ∂H / ∂ logit_j = -p_j (log p_j + H).
    """
    for gene, own in enumerate(logits):
        shares = softmax(own)
        gradient = np.zeros_like(own)
        for genotype, weight in zip(samples, advantage.tolist(), strict=True):
            gradient -= weight * shares
            gradient[genotype[gene]] += weight
        gradient /= len(samples)
        if entropy:
            logs = np.log(np.maximum(shares, 1e-300))
            gradient -= entropy * shares * (logs - float(shares @ logs))
        own += rate * gradient
