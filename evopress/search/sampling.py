"""Random search: the best of N random feasible profiles, chosen by the same stages as evolution, so that both compare at equal cost."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import ClassVar

from evopress.api import Genotype, Problem, Profile, Searcher, Steps
from evopress.search.ledger import ledger_of
from evopress.search.moves import random_profile
from evopress.search.selection import check_count, check_rungs, tournament


class Random(Searcher):
    """Best of `candidates` random profiles a round; the best so far defends itself in the last stage of every later round.

    candidates: profiles a round, all distinct (fewer where the space has no more). rungs: (survivors, tokens) per stage. rounds: 1 is the
    plain best of N; with more, N candidates a round cost what a generation of N offspring costs.
    """

    name: ClassVar[str] = "random"

    def __init__(
        self,
        problem: Problem,
        rng: random.Random,
        *,
        candidates: int = 32,
        rungs: Sequence[Sequence[int]] = ((1, 8192),),
        rounds: int = 1,
    ) -> None:
        super().__init__(problem, rng)
        self.candidates = check_count("candidates", candidates)
        self.rounds = check_count("rounds", rounds)
        self.rungs = check_rungs(rungs)
        self.ledger = ledger_of(problem, errors=False)
        self._best = random_profile(self.ledger, rng)

    @property
    def incumbent(self) -> Profile:
        """Best profile so far; a random one before the first answer."""
        return self.problem.space.profile(self._best)

    def steps(self) -> Steps:
        """One tournament a round."""
        seen: set[Genotype] = set()
        first = [self._best]
        for number in range(1, self.rounds + 1):
            drawn = self._draw(first if number == 1 else [], seen)
            if not drawn:
                return
            parent = self._best if number > 1 else None
            self._best = yield from tournament(self.problem, self.rng, drawn, self.rungs, parent, number)

    def _draw(self, drawn: list[Genotype], seen: set[Genotype]) -> list[Genotype]:
        seen.update(self.ledger.key(genotype) for genotype in drawn)
        for _ in range(20 * self.candidates):
            if len(drawn) == self.candidates:
                break
            genotype = random_profile(self.ledger, self.rng)
            key = self.ledger.key(genotype)
            if key not in seen:
                seen.add(key)
                drawn.append(genotype)
        return drawn
