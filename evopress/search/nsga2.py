"""nsga2: a population on the front of fitness against bytes, and time where it has a price, within the budgets and by moves that keep them.

A Fast and Elitist Multiobjective Genetic Algorithm: NSGA-II (Deb et al., 2002, IEEE TEC 6(2)). Departures: children are brought within a
size of their own, drawn between the cheapest profile and the budget for a share of them, because repair alone would leave all of them at
the budget (where time counts, either their size or their time is drawn); the first population holds the simple answers; nobody is bred
twice.

Survivors of many generations must be comparable, so the population is measured on one slice for the whole run and a survivor never again;
a fresh slice a generation would cost every parent once more. The front is therefore that of this slice: give it `tokens` enough. The
incumbent does not rely on it: it changes by races on other documents.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Generator, Sequence
from typing import ClassVar

from evopress.api import Ask, Budget, Genotype, InfeasibleBudget, Knowledge, Problem, Profile, Searcher, Space, Steps, Trial
from evopress.api.budget import Field
from evopress.search.champion import LOOKS, Champion
from evopress.search.fronts import Objectives, sort_fronts, standings
from evopress.search.ledger import Ledger, ledger_of
from evopress.search.moves import mutate, switch_count, within
from evopress.search.options import check_count, check_share
from evopress.search.slices import draw_slice

ATTEMPTS = 40
"""Children drawn per wanted one before a generation goes on with fewer."""


class Nsga2(Searcher):
    """NSGA-II over (fitness, bytes), and (fitness, bytes, nanoseconds) of a space whose costs tell them: of a study with a latency budget.

    generations: at most so many. population: profiles kept, and children bred in each generation. crossover: chance that a child has two
    parents. max_mutations: as in `evolve`. below: share of the children whose size (or time) is drawn between the cheapest profile and
    the budget. tokens: of the slice the population is measured on. looks, alpha: of a race for the incumbent. Raises UsageError for bad
    options, and for a search set with fewer tokens or documents than these take.
    """

    name: ClassVar[str] = "nsga2"
    paper: ClassVar[str] = "A Fast and Elitist Multiobjective Genetic Algorithm: NSGA-II, 2002, IEEE TEC 6(2)"
    needs: ClassVar[frozenset[Knowledge]] = frozenset({"errors"})

    def __init__(
        self,
        problem: Problem,
        rng: random.Random,
        *,
        generations: int = 1000,
        population: int = 16,
        crossover: float = 0.5,
        max_mutations: int = 3,
        below: float = 0.5,
        tokens: int = 1024,
        looks: Sequence[Sequence[int]] = LOOKS,
        alpha: float = 0.2,
    ) -> None:
        super().__init__(problem, rng)
        self.generations = check_count("generations", generations, 0)
        self.population = check_count("population", population, 2)
        self.max_mutations = check_count("max_mutations", max_mutations)
        self.crossover, self.below = check_share("crossover", crossover), check_share("below", below)
        self.ledger = ledger_of(problem)
        self._axes = _axes(problem, self.ledger)
        self._champion = Champion(problem, rng, self.ledger, self.name, tokens, looks, alpha)
        self._slice = draw_slice(rng, problem, self._champion.tokens)
        self._known: dict[Genotype, Objectives] = {}
        self._people: list[Genotype] = list(self._champion.starts)

    @property
    def incumbent(self) -> Profile:
        """The profile of least fitness that won its races; the best start before."""
        return self._champion.profile

    def steps(self) -> Steps:
        """Starts, a first population around them, then generations until they are spent or nobody new can be bred."""
        yield from self._champion.rank_starts()
        if not self.ledger.movable:
            return
        people = [*self._people, *self._breed(max(self.population - len(self._people), 0), 0)]
        yield from self._measured(people, 0)
        self._live(people)
        for number in range(1, self.generations + 1):
            yield from self._champion.challenge(self._fittest(), number)
            children = self._breed(self.population, number)
            if not children:
                return
            yield from self._measured(children, number)
            crowd = [*self._people, *children]
            standing = standings([self._objectives(genotype) for genotype in crowd])
            self._live([crowd[at] for at in sorted(range(len(crowd)), key=lambda at: standing[at])[: self.population]])
        yield from self._champion.challenge(self._fittest(), self.generations + 1)

    def _live(self, people: list[Genotype]) -> None:
        """Go on with this population, all measured, and tell its first front, smallest first, and fastest first of one size."""
        self._people = people
        points = [self._objectives(genotype) for genotype in people]
        first = sorted(sort_fronts(points)[0], key=lambda at: points[at][1:])
        self._front = tuple(self.problem.space.profile(people[at]) for at in first)

    def _objectives(self, genotype: Genotype) -> Objectives:
        return self._known[self.ledger.key(genotype)]

    def _fittest(self) -> list[Genotype]:
        """Who scores below the incumbent on the slice of the run, best first."""
        limit = self._objectives(self._champion.best)[0]
        better = [genotype for genotype in self._people if self._objectives(genotype)[0] < limit]
        return sorted(better, key=lambda genotype: self._objectives(genotype)[0])

    def _measured(self, genotypes: Sequence[Genotype], generation: int) -> Generator[Ask, Sequence[Trial], None]:
        """Measure genotypes, distinct and new, on the slice of the run."""
        trials = yield Ask(tuple(map(self.problem.space.profile, genotypes)), self._slice, generation)
        for genotype, trial in zip(genotypes, trials, strict=True):
            # What it costs is asked of the space: a trial that comes from the store does not tell what its profile takes on this machine.
            cost = self.problem.space.cost_of(genotype)
            self._known[self.ledger.key(genotype)] = (trial.fitness, *(float(getattr(cost, field)) for field in sizes(self.problem.space)))

    def _breed(self, wanted: int, generation: int) -> list[Genotype]:
        """New children of the population; of random parents before it was measured. Failed draws raise the number of moves."""
        taken = {*self._known, *map(self.ledger.key, self._people)}
        standing = standings([self._objectives(genotype) for genotype in self._people]) if generation else []
        children: list[Genotype] = []
        failures = 0
        while len(children) < wanted and failures < ATTEMPTS * self.population:
            ledger = self._smaller() if self.rng.random() < self.below else self.ledger
            child = self._parent(standing)
            if self.rng.random() < self.crossover:
                child = crossed(child, self._parent(standing), self.rng)
            child = within(ledger, child, self.rng)
            child = mutate(ledger, child, self.rng, switch_count(self.rng, self.max_mutations) + failures // (4 * self.population))
            key = self.ledger.key(child)
            if key in taken:
                failures += 1
                continue
            taken.add(key)
            children.append(child)
        return children

    def _smaller(self) -> Ledger:
        """The ledger of a child that shall stand below the budgets: in all of them, or, of several objectives beside fitness, in one."""
        if not self._axes:
            return lowered(self.ledger, self.rng.random())
        return lowered(self.rng.choice(self._axes), self.rng.random(), 1)

    def _parent(self, standing: Sequence[tuple[int, float]]) -> Genotype:
        """The better of two random members; a random one while nobody is measured."""
        one, other = self.rng.randrange(len(self._people)), self.rng.randrange(len(self._people))
        return self._people[min(one, other, key=lambda at: standing[at]) if standing else one]


def sizes(space: Space) -> tuple[Field, ...]:
    """The fields of Cost that stand beside fitness: bytes, and nanoseconds where the space tells them."""
    return ("bytes", "nanoseconds") if space.dearest.nanoseconds else ("bytes",)


def _axes(problem: Problem, ledger: Ledger) -> list[Ledger]:
    """Per objective beside fitness, where there are several: a ledger with that field in its first column, limited or not.

    Its floor has the least of the field, where that meets all budgets. An axis without a floor that meets them is left out.
    """
    space, found = problem.space, []
    for field in sizes(space) if len(sizes(space)) > 1 else ():
        own = min((budget.limit for budget in problem.budgets if budget.field == field), default=getattr(space.dearest, field))
        others = [budget for budget in problem.budgets if budget.field != field]
        try:
            found.append(Ledger(space, (Budget(field, field, own), *others), problem.errors if ledger.has_errors else ()))
        except InfeasibleBudget:
            continue
    return found


def lowered(ledger: Ledger, share: float, columns: int | None = None) -> Ledger:
    """The ledger with the limits of its first so many columns (None: all) at a share of the way from the floor's spending up to them."""
    changed = copy.copy(ledger)
    least, count = ledger.spent(ledger.floor), len(ledger.limits) if columns is None else columns
    down = tuple(low + int(share * (limit - low)) for low, limit in zip(least, ledger.limits, strict=True))
    changed.limits = (*down[:count], *ledger.limits[count:])
    return changed


def crossed(one: Genotype, other: Genotype, rng: random.Random) -> Genotype:
    """Uniform crossover: every gene from either parent."""
    return tuple(a if rng.random() < 0.5 else b for a, b in zip(one, other, strict=True))
