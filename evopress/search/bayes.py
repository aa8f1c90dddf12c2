"""bayes: Bayesian optimisation by Optuna's samplers, over a few curves or over all levels.

Optuna (Akiba et al., 2019, arXiv 1907.10902) gives the algorithm only: its study lives in memory and is rebuilt by replaying our own trials
through the same seeded sampler, so nothing of it is stored. Gaussian processes: `GPSampler`; tree-structured Parzen estimators (Bergstra et
al., 2011): `TPESampler`; or any other sampler by its class name.

family=curve: a point holds, per role, the values of a curve over depth at a few knots, each in [-1, 1], linear in between. The layer errors
of a site are multiplied by exp(spread · curve) and the exact knapsack finds the profile of least sum within the budgets (`curves`). So
every point is feasible, the origin is the knapsack's own answer, and what is learnt is which roles and depths deserve better than their
errors say: a handful of numbers, which Gaussian processes can manage. family=full: one categorical a gene; the start is the simple answers
and mutants of the best, and a suggestion is brought within the budgets and told as what it became.

Values are differences to the incumbent on the same documents (`champion`); a batch is suggested as a whole, Optuna imputing what
runs (constant liar), and measured in one question. The incumbent changes by races. Deterministic for one number of threads of the sampler.
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

from evopress.api import Genotype, Knowledge, MissingDependency, Problem, Profile, Searcher, Steps, UsageError, unknown
from evopress.search.champion import LOOKS, Champion
from evopress.search.curves import curve_names, decoded, drawn_curves
from evopress.search.ledger import ledger_of
from evopress.search.moves import mutate, switch_count, within
from evopress.search.options import check_count, check_positive

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

FAMILIES = ("curve", "full")
SHORT = {"gp": "GPSampler", "tpe": "TPESampler"}
AUTO = {"curve": "gp", "full": "tpe"}
IDLE = 20
"""Batches in a row of nothing but the incumbent after which the search ends."""
NEAR = 0.3
"""Standard deviation of the first points around the origin."""
Point = dict[str, Any]
"""Parameter name -> value, as Optuna has them."""


class Bayes(Searcher):
    """Bayesian optimisation.

    family: curve or full. sampler: gp, tpe, the name of a class in optuna.samplers, or auto: gp for curves, tpe for all levels. rounds:
    batches, at most. batch: profiles suggested and measured together. startup: points around the start before the sampler is asked. knots:
    points of a curve. spread: logarithm of the largest factor on a layer error. max_mutations: of the mutants that family=full
    starts from. tokens: of an evaluation. looks, alpha: of a race. Raises MissingDependency without Optuna, UsageError for bad options,
    missing layer errors (curve), and a search set with fewer tokens or documents than these take.
    """

    name: ClassVar[str] = "bayes"
    paper: ClassVar[str] = "Optuna: A Next-generation Hyperparameter Optimization Framework, 2019, arXiv 1907.10902"
    needs: ClassVar[frozenset[Knowledge]] = frozenset({"errors"})

    def __init__(
        self,
        problem: Problem,
        rng: random.Random,
        *,
        family: str = "curve",
        sampler: str = "auto",
        rounds: int = 1000,
        batch: int = 4,
        startup: int = 12,
        knots: int = 3,
        spread: float = 2.0,
        max_mutations: int = 3,
        tokens: int = 1024,
        looks: Sequence[Sequence[int]] = LOOKS,
        alpha: float = 0.2,
    ) -> None:
        super().__init__(problem, rng)
        if family not in FAMILIES:
            raise unknown("family", family, FAMILIES, self.name)
        if family == "curve" and not problem.errors:
            raise UsageError("Curves scale layer errors, and the problem has none.", "Build the bank with calibration, or use family=full.")
        self.family = family
        self.rounds = check_count("rounds", rounds, 0)
        self.batch = check_count("batch", batch)
        self.startup = check_count("startup", startup, 0)
        self.knots = check_count("knots", knots)
        self.max_mutations = check_count("max_mutations", max_mutations)
        self.spread = check_positive("spread", spread)
        self._sampler = make_sampler(AUTO[family] if sampler == "auto" else sampler, family, rng.getrandbits(32))
        self.ledger = ledger_of(problem)
        self._champion = Champion(problem, rng, self.ledger, self.name, tokens, looks, alpha)

    @property
    def incumbent(self) -> Profile:
        """The winner of the races so far; the best start before."""
        return self._champion.profile

    def steps(self) -> Steps:
        """Rank the starts; measure points near the start; then batches of suggestions."""
        ranked = yield from self._champion.rank_starts()
        if not self.ledger.movable:
            return
        distributions = self._distributions()
        with quiet() as optuna:
            study = optuna.create_study(sampler=self._sampler)
            if self.family == "full":
                for start, value in ranked.items():
                    study.add_trial(optuna.trial.create_trial(params=self._point(start), distributions=distributions, value=value))
        first = self._near()
        idle = 0
        for number in range(1, self.rounds + 1):
            points, first = first[: self.batch], first[self.batch :]
            asked = []
            if not points:
                with quiet():
                    asked = [study.ask(distributions) for _ in range(self.batch)]
                points = [dict(trial.params) for trial in asked]
            genotypes = [self._genotype(point) for point in points]
            values = yield from self._champion.compare(genotypes, number)
            told = points if self.family == "curve" else [self._point(genotype) for genotype in genotypes]
            with quiet() as optuna:
                for trial in asked:  # closed without a value: what was measured is added as what it became
                    study.tell(trial, state=optuna.trial.TrialState.FAIL)
                for point, value in zip(told, values, strict=True):
                    study.add_trial(optuna.trial.create_trial(params=point, distributions=distributions, value=value))
            level = self._champion.level
            better = [genotype for value, genotype in sorted(zip(values, genotypes, strict=True)) if value < level]
            yield from self._champion.challenge(better, number)
            present = self.ledger.key(self._champion.best)
            idle = 0 if better or any(self.ledger.key(genotype) != present for genotype in genotypes) else idle + 1
            if idle == IDLE:
                return

    def _distributions(self) -> dict[str, Any]:
        with quiet() as optuna:
            if self.family == "curve":
                return {name: optuna.distributions.FloatDistribution(-1.0, 1.0) for name in curve_names(self.ledger, self.knots)}
            counts = {gene: len(self.problem.space.choices(gene)) for gene in self.ledger.movable}
            return {f"g{gene}": optuna.distributions.CategoricalDistribution(range(count)) for gene, count in counts.items()}

    def _near(self) -> list[Point]:
        """The first points: the origin and draws around it; or mutants of the best start."""
        if self.family == "full":
            best = self._champion.best
            moves = [switch_count(self.rng, self.max_mutations) for _ in range(self.startup)]
            return [self._point(mutate(self.ledger, best, self.rng, count, True)) for count in moves]
        origin: Point = dict.fromkeys(curve_names(self.ledger, self.knots), 0.0)
        return [origin, *(drawn_curves(self.ledger, self.knots, NEAR, self.rng) for _ in range(self.startup))]

    def _point(self, genotype: Genotype) -> Point:
        return {f"g{gene}": genotype[gene] for gene in self.ledger.movable}

    def _genotype(self, point: Point) -> Genotype:
        """A feasible genotype of a point."""
        if self.family == "curve":
            return decoded(self.ledger, self.problem.errors, point, self.knots, self.spread)
        levels = list(self._champion.best)
        for gene in self.ledger.movable:
            levels[gene] = point[f"g{gene}"]
        return within(self.ledger, levels, self.rng, self.ledger.has_errors)


@contextmanager
def quiet() -> Iterator[Any]:
    """Optuna, imported late, saying nothing below an error. Raises MissingDependency."""
    try:
        import optuna
    except ImportError as error:
        raise MissingDependency("Searcher 'bayes' needs optuna, which is not installed.", "Run: pip install 'evopress[bayes]'.") from error
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield optuna
    finally:
        optuna.logging.set_verbosity(before)


def make_sampler(name: str, family: str, seed: int) -> BaseSampler:
    """The sampler of a name, seeded. Raises UsageError for one that Optuna has not, or that cannot work here, MissingDependency."""
    with quiet() as optuna:
        usable = sampler_names(optuna.samplers, family)
        chosen = SHORT.get(name, name)
        if chosen not in usable:
            raise unknown("sampler", name, [*SHORT, *usable], f"bayes(family={family})")
        cls = getattr(optuna.samplers, chosen)
        known = inspect.signature(cls).parameters
        try:
            made: BaseSampler = cls(**({"seed": seed} if "seed" in known else {}))
        except ImportError as error:  # Optuna's own optional packages, such as cmaes
            raise MissingDependency(f"Optuna's {chosen} needs another package: {error}") from error
    return made


def sampler_names(module: Any, family: str) -> list[str]:
    """Samplers that can be made without arguments; trying all points one by one takes points that can be counted."""
    found = []
    for name in module.__all__:
        cls = getattr(module, name)
        if not inspect.isclass(cls) or inspect.isabstract(cls) or name == "BaseSampler" or (name, family) == ("BruteForceSampler", "curve"):
            continue
        parameters = inspect.signature(cls).parameters.values()
        if all(own.default is not own.empty for own in parameters if own.kind not in (own.VAR_POSITIONAL, own.VAR_KEYWORD)):
            found.append(name)
    return found
