"""predictor: evolution on a learned fitness; only what it thinks best, and a share of the rest, is measured.

EQ-Net: Towards Unified Deep Quantization (2023), arXiv 2308.03213: a predictor from quantisation codes to accuracy is learnt from stored
rows, and a genetic algorithm asks it instead of the network. Departures: there is no supernet to be trained first, so the predictor learns
from what trials the store holds of earlier searches and from the search's own, and is refitted after every batch; it is a Gaussian process
with interactions (`surrogate`) instead of an MLP; an exploration share of every batch goes unscreened, because a predictor believes most in
what it knows least; what is measured before the first fit are random curves over roles and depths (`curves`) instead of random codes,
because what one matrix does drowns in the noise of a trial and what all of a role do does not; and the evolution also starts from the exact
best profiles by the surrogate's own effects of single levels (`proposals`).

Every batch has documents of its own and the incumbent with it; the surrogate gives every slice an offset, so all trials, those of races
too, serve to learn. The incumbent changes by races.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import ClassVar

from evopress.api import Ask, Genotype, Knowledge, Problem, Profile, Searcher, Steps, Trial
from evopress.search.champion import LOOKS, Champion
from evopress.search.curves import decoded, drawn_curves
from evopress.search.ledger import ledger_of
from evopress.search.moves import mutate, switch_count
from evopress.search.options import check_count, check_share
from evopress.search.proposals import propose
from evopress.search.surrogate import Surrogate

INNER = 8
"""Generations of the evolution on the surrogate between two batches."""
PARENTS = 4
"""Profiles that each of them breeds from."""
MOST = 600
"""Trials the surrogate learns from: the newest, which lie around the incumbent. Its cost grows with their cube."""
KNOTS, DEVIATION, SPREAD = 3, 0.4, 2.0
"""Of the random curves measured first: knots, standard deviation, and logarithm of the largest factor on a layer error."""
DISTANCES = (1.0, 0.2, 0.05)
"""Shares of the weights that the exact proposals may change."""
ATTEMPTS = 20
"""Mutants drawn per wanted one before a batch goes on with fewer."""


class Predictor(Searcher):
    """Screened evolution.

    rounds: batches, at most. batch: profiles measured in each. startup: profiles measured before the first fit, by random curves, or
    mutants of the best start where there are no layer errors; none where earlier searches measured so many.
    virtual: mutants the surrogate sees between two batches. explore: share of a batch that it has no say in. interactions: let
    it learn them. max_mutations: as in `evolve`. tokens: of an evaluation. looks, alpha: of a race. Raises UsageError for bad options, and
    for a search set with fewer tokens or documents than these take.
    """

    name: ClassVar[str] = "predictor"
    paper: ClassVar[str] = "EQ-Net: Towards Unified Deep Quantization, 2023, arXiv 2308.03213"
    needs: ClassVar[frozenset[Knowledge]] = frozenset({"errors", "known_trials"})

    def __init__(
        self,
        problem: Problem,
        rng: random.Random,
        *,
        rounds: int = 1000,
        batch: int = 16,
        startup: int = 16,
        virtual: int = 256,
        explore: float = 0.25,
        interactions: bool = True,
        max_mutations: int = 3,
        tokens: int = 512,
        looks: Sequence[Sequence[int]] = LOOKS,
        alpha: float = 0.2,
    ) -> None:
        super().__init__(problem, rng)
        self.rounds = check_count("rounds", rounds, 0)
        self.batch = check_count("batch", batch)
        self.startup = check_count("startup", startup)
        self.virtual = check_count("virtual", virtual)
        self.max_mutations = check_count("max_mutations", max_mutations)
        self.explore = check_share("explore", explore)
        self.ledger = ledger_of(problem)
        self.surrogate = Surrogate(self.ledger, problem.errors, interactions)
        self._champion = Champion(problem, rng, self.ledger, self.name, tokens, looks, alpha, self._learn)
        self._genotypes: list[Genotype] = []
        self._values: list[float] = []
        self._weights: list[float] = []
        self._slices: list[str] = []
        self._seen: dict[Genotype, Genotype] = {}
        for trial in reversed(problem.known_trials):
            self._keep(trial.genotype, trial.fitness, trial.weight, trial.slice)

    @property
    def incumbent(self) -> Profile:
        """The winner of the races so far; the best start before."""
        return self._champion.profile

    def steps(self) -> Steps:
        """Rank the starts, measure mutants of the best; then fit, evolve on what was learnt, measure, race."""
        yield from self._champion.rank_starts()
        if not self.ledger.movable:
            return
        self._seen[self.ledger.key(self._champion.best)] = self._champion.best
        if len({trial.genotype for trial in self.problem.known_trials}) < self.startup:
            chosen = self._first()
        else:
            self._refit()
            yield from self._champion.challenge(self._promising(), 0)
            chosen = self._screened()
        for number in range(1, self.rounds + 1):
            if not chosen:
                return
            yield from self._champion.compare(chosen, number)
            self._refit()
            yield from self._champion.challenge(self._promising(), number)
            chosen = self._screened()

    def _first(self) -> list[Genotype]:
        """Distinct profiles by random curves, as far as there are layer errors and curves differ; then mutants."""
        found: dict[Genotype, Genotype] = {}
        for _ in range(2 * self.startup if self.problem.errors else 0):
            if len(found) >= self.startup:
                break
            genotype = decoded(self.ledger, self.problem.errors, drawn_curves(self.ledger, KNOTS, DEVIATION, self.rng), KNOTS, SPREAD)
            key = self.ledger.key(genotype)
            if key not in self._seen:
                found.setdefault(key, genotype)
        for genotype in self._mutants([self._champion.best], self.startup - len(found)):
            found.setdefault(self.ledger.key(genotype), genotype)
        return list(found.values())

    def _learn(self, ask: Ask, trials: Sequence[Trial]) -> None:
        """Keep the trials of one question as rows of the surrogate."""
        for profile, trial in zip(ask.profiles, trials, strict=True):
            self._keep(self.problem.space.genotype(profile), trial.fitness, float(sum(trial.weights)), ask.slice.digest)

    def _keep(self, genotype: Genotype, fitness: float, weight: float, slice_: str) -> None:
        """A row of the surrogate; one of an earlier search may be beyond the budgets, and is then nothing to breed from."""
        if self.ledger.fits(genotype):
            self._seen.setdefault(self.ledger.key(genotype), genotype)
        self._genotypes.append(genotype)
        self._values.append(fitness)
        self._weights.append(weight)
        self._slices.append(slice_)

    def _refit(self) -> None:
        newest = slice(-MOST, None)
        self.surrogate.fit(self._genotypes[newest], self._values[newest], self._weights[newest], self._slices[newest])

    def _ranked(self, genotypes: Sequence[Genotype]) -> list[Genotype]:
        """Best prediction first."""
        mean, _ = self.surrogate.predict(genotypes)
        return [genotypes[at] for at in sorted(range(len(genotypes)), key=lambda at: mean[at])]

    def _promising(self) -> list[Genotype]:
        """Profiles measured here or by earlier searches that are predicted below the incumbent, best first."""
        ranked = self._ranked([*self._seen.values(), self._champion.best])
        present = self.ledger.key(self._champion.best)
        place = next(at for at, genotype in enumerate(ranked) if self.ledger.key(genotype) == present)
        return ranked[:place]

    def _screened(self) -> list[Genotype]:
        """The next batch: the best of an evolution on the surrogate, and an exploration share."""
        blind = min(int(self.explore * self.batch + self.rng.random()), self.batch)
        measured = self._ranked(list(self._seen.values()))[: PARENTS - 1]
        proposed = {self.ledger.key(genotype): genotype for genotype in self._proposals()}
        pool = {key: genotype for key, genotype in proposed.items() if key not in self._seen}
        found: list[tuple[float, Genotype]] = []
        if pool:
            mean, _ = self.surrogate.predict(list(pool.values()))
            found = sorted(zip(mean.tolist(), pool.values(), strict=True))
        parents = [self._champion.best, *measured, *proposed.values()]
        for _ in range(INNER):
            drawn = {self.ledger.key(child): child for child in self._mutants(parents, -(-self.virtual // INNER))}
            fresh = [child for key, child in drawn.items() if pool.setdefault(key, child) is child]
            if not fresh:  # all that mutants reach is in the pool
                break
            mean, _ = self.surrogate.predict(fresh)
            found = sorted([*found, *zip(mean.tolist(), fresh, strict=True)])
            parents = [self._champion.best, *(child for _, child in found[: PARENTS - 1])]
        chosen = [child for _, child in found[: self.batch - blind]]
        taken = set(map(self.ledger.key, chosen))
        others = [genotype for genotype in self._mutants([self._champion.best], 2 * blind) if self.ledger.key(genotype) not in taken]
        return [*chosen, *others[:blind]]

    def _proposals(self) -> list[Genotype]:
        """The exact best profiles at several distances by what single levels change at the incumbent, as predicted."""
        best, space = self._champion.best, self.problem.space
        alone = [(gene, level) for gene in self.ledger.movable for level in range(len(space.choices(gene))) if level != best[gene]]
        mean, _ = self.surrogate.predict([best, *((*best[:gene], level, *best[gene + 1 :]) for gene, level in alone)])
        table = [[0.0] * len(levels) for levels in space.levels]
        for (gene, level), value in zip(alone, mean[1:].tolist(), strict=True):
            table[space.genes[gene][0]][level] = value - float(mean[0])
        return [propose(self.ledger, best, table, share) for share in DISTANCES]

    def _mutants(self, parents: Sequence[Genotype], wanted: int) -> list[Genotype]:
        """Distinct mutants of random parents, none of them measured before; failed draws raise the number of moves."""
        found: dict[Genotype, Genotype] = {}
        failures = 0
        while len(found) < wanted and failures < ATTEMPTS * wanted:
            moves = switch_count(self.rng, self.max_mutations) + failures // (4 * wanted)
            child = mutate(self.ledger, self.rng.choice(parents), self.rng, moves, True)
            key = self.ledger.key(child)
            if key in self._seen or key in found:
                failures += 1
            else:
                found[key] = child
        return list(found.values())
