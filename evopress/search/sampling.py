"""Random search: the best of N random feasible profiles, chosen by the same stages as evolution, so that both compare at equal cost."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import count
from typing import ClassVar

from evopress.api import Genotype, Problem, Profile, Searcher, Steps
from evopress.search.ledger import ledger_of
from evopress.search.moves import random_profile
from evopress.search.options import check_count
from evopress.search.selection import check_rungs, tournament, tournament_evaluations


class Random(Searcher):
    """Best of `candidates` random profiles a round; the best so far defends itself in the last stage of every later round.

    candidates: profiles a round, all distinct (fewer where the space has no more). rungs: (survivors, tokens) per stage. rounds: 1 is the
    plain best of N; with more, N candidates a round cost what a generation of N offspring costs. evaluations: where not 0, it takes the
    place of rounds, and exactly so many evaluations are asked for, over all stages of all rounds: the last round is smaller, and where even
    that leaves a few over, as many new profiles join in its last stage. A number too small for one candidate to pass all stages is spent on
    the last stage alone. Only a space without enough distinct profiles ends the search earlier.
    """

    name: ClassVar[str] = "random"

    def __init__(
        self,
        problem: Problem,
        rng: random.Random,
        *,
        candidates: int = 16,
        rungs: Sequence[Sequence[int]] = ((2, 512), (1, 4096)),
        rounds: int = 1,
        evaluations: int = 0,
    ) -> None:
        super().__init__(problem, rng)
        self.candidates = check_count("candidates", candidates)
        self.rounds = check_count("rounds", rounds)
        self.evaluations = check_count("evaluations", evaluations, 0)
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
        drawn, left = [self._best], self.evaluations
        for number in count(1) if self.evaluations else range(1, self.rounds + 1):
            parent = self._best if number > 1 else None
            through, late = self._share(left, number > 1) if self.evaluations else (self.candidates, 0)
            self._draw(drawn, through + late, seen)
            if not drawn:
                return
            early, joining = drawn[:through], drawn[through:]
            left -= tournament_evaluations(len(early), self.rungs) + len(joining) + (number > 1)
            self._best = yield from tournament(self.problem, self.rng, early, self.rungs, parent, number, late=joining)
            drawn = []

    def _share(self, left: int, defended: bool) -> tuple[int, int]:
        """Candidates of the next round that pass all stages, and those that join in the last one, when so many evaluations are left."""
        sizes = range(self.candidates, -1, -1)
        costs = ((size, tournament_evaluations(size, self.rungs) + defended) for size in sizes)
        size, cost = next(((size, cost) for size, cost in costs if cost <= left), (0, left))
        smallest_round = tournament_evaluations(1, self.rungs) + 1
        over = left - cost
        return size, over if size < self.candidates or over < smallest_round else 0

    def _draw(self, drawn: list[Genotype], wanted: int, seen: set[Genotype]) -> None:
        """Add new random profiles until there are as many as wanted, or no new one turns up."""
        seen.update(self.ledger.key(genotype) for genotype in drawn)
        for _ in range(20 * self.candidates):
            if len(drawn) >= wanted:
                break
            genotype = random_profile(self.ledger, self.rng)
            key = self.ledger.key(genotype)
            if key not in seen:
                seen.add(key)
                drawn.append(genotype)
