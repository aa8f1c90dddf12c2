"""A searcher whose answer is settled before the first question: it measures nothing. The base of the allocators of the literature."""

from __future__ import annotations

import random
from abc import abstractmethod

from evopress.api import Genotype, Problem, Profile, Searcher, Steps


class Settled(Searcher):
    """Computes one genotype from what is known of the sites. A subclass reads its options in `__init__` before it calls this one's."""

    def __init__(self, problem: Problem, rng: random.Random) -> None:
        super().__init__(problem, rng)
        self._best = problem.space.profile(self.answer())

    @abstractmethod
    def answer(self) -> Genotype:
        """The genotype, within every budget; called once. May set `_remark`."""

    @property
    def incumbent(self) -> Profile:
        """The one profile it has."""
        return self._best

    def steps(self) -> Steps:
        """Nothing to measure."""
        yield from ()
