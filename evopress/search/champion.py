"""The incumbent of a search that learns from many noisy values: starts first, paired comparisons on new documents, races for the title.

What a profile scores on one slice and another on the next differ by the slices, not by the profiles; a search that compared them would
follow the documents. So every batch is measured together with the incumbent on documents of its own (dealt like cards, none again before
all were seen), and what counts is the difference to it, added to the level of the incumbent itself: what its races told of it against its
predecessors. One evaluation a batch is the price. The lowest of many such values is also the luckiest, so the title changes only by a race
on further documents (`racing`). Not a search. Called by `bayes`, `nsga2`, `reinforce`, `relaxed` and `predictor`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Sequence

from evopress.api import Ask, Genotype, Problem, Profile, Trial, UsageError
from evopress.search.ledger import Ledger
from evopress.search.options import check_count
from evopress.search.racing import Deck, Race, check_alpha, check_documents, check_looks, race
from evopress.search.starts import known_starts
from evopress.search.watching import watched

LOOKS = ((2, 1024), (1, 5120))
"""Default looks of a race for the title."""
Asking = Generator[Ask, Sequence[Trial], None]
Watcher = Callable[[Ask, Sequence[Trial]], None]


class Champion:
    """The incumbent and how it is defended.

    who: name of the searcher, for messages. tokens: of an ordinary evaluation. looks, alpha: of a race, as in `racing`. watch: is shown
    every question of this class and its answer, so that a searcher can learn from races too.

    best: the incumbent. level: its fitness minus that of the best start, summed over the races it descends from. Raises UsageError for bad
    options, for fewer tokens in the search set than a question takes, and fewer documents than a race needs.
    """

    def __init__(
        self,
        problem: Problem,
        rng: random.Random,
        ledger: Ledger,
        who: str,
        tokens: int,
        looks: Sequence[Sequence[int]],
        alpha: float,
        watch: Watcher | None = None,
    ) -> None:
        self.problem, self.rng, self.ledger = problem, rng, ledger
        self.tokens, self.looks, self.alpha = check_count("tokens", tokens, 2), check_looks(looks), check_alpha(alpha)
        self.starts = known_starts(problem, ledger)
        self.best, self.level = self.starts[0], 0.0
        self._deck = Deck(problem, rng)
        self._watch = watch
        self._refused: set[Genotype] = set()
        self._check_text(who)

    def _check_text(self, who: str) -> None:
        lengths = self.problem.document_tokens
        available, wanted = sum(lengths), max(self.tokens, self.looks[-1][1])
        if wanted > available:
            raise UsageError(
                f"{who} asks for {wanted:,} tokens a question, but the search set holds {available:,}.",
                f"Lower tokens and looks to at most {available:,}, or give more text.",
            )
        check_documents(self.problem, self.looks, self.alpha)

    @property
    def profile(self) -> Profile:
        """The incumbent's profile."""
        return self.problem.space.profile(self.best)

    def rank_starts(self) -> Generator[Ask, Sequence[Trial], dict[Genotype, float]]:
        """The known starts on one slice of half a race; the best takes the title. Returns start -> fitness minus that of the best."""
        if len(self.starts) == 1:
            return {self.best: 0.0}
        found = yield from self._measured(self.starts, max(2, self.looks[-1][1] // 2), 0)
        self.best = min(self.starts, key=lambda start: found[self.ledger.key(start)])
        lowest = found[self.ledger.key(self.best)]
        return {start: found[self.ledger.key(start)] - lowest for start in self.starts}

    def compare(self, genotypes: Sequence[Genotype], generation: int) -> Generator[Ask, Sequence[Trial], list[float]]:
        """Per genotype its fitness minus that of the best start; lower is better.

        Measured beside the incumbent on new documents. Equal profiles are measured once, and nothing is where all are the incumbent.
        """
        keys = [self.ledger.key(genotype) for genotype in genotypes]
        present = self.ledger.key(self.best)
        if all(key == present for key in keys):
            return [self.level] * len(keys)
        found = yield from self._measured([*genotypes, self.best], self.tokens, generation)
        return [self.level + found[key] - found[present] for key in keys]

    def challenge(self, candidates: Sequence[Genotype], generation: int) -> Asking:
        """Race candidates, best guess first, against the incumbent; the winner takes its place. Who lost to it is not raced again."""
        standing: dict[Genotype, Genotype] = {}
        for genotype in candidates:
            key = self.ledger.key(genotype)
            if key not in self._refused and key != self.ledger.key(self.best):
                standing.setdefault(key, genotype)
        chosen = list(standing.values())[: self.looks[0][0]]
        if not chosen:
            return
        racing = race(self.problem, self.rng, self._deck, chosen, self.best, self.looks, self.alpha, generation)
        found: Race = yield from watched(racing, self._show)
        if found.winner is None:
            self._refused.update(map(self.ledger.key, chosen))
            return
        self.level += found.difference
        self.best = chosen[found.winner]
        self._refused.clear()

    def measure(self, genotypes: Sequence[Genotype], generation: int, slopes: bool = False) -> Generator[Ask, Sequence[Trial], list[Trial]]:
        """Trials of distinct genotypes on new documents, without the incumbent."""
        profiles = tuple(map(self.problem.space.profile, genotypes))
        ask = Ask(profiles, self._deck.deal(self.tokens), generation, slopes=slopes)
        trials = yield ask
        self._show(ask, trials)
        return list(trials)

    def _measured(
        self, genotypes: Sequence[Genotype], tokens: int, generation: int
    ) -> Generator[Ask, Sequence[Trial], dict[Genotype, float]]:
        """Key -> fitness on one slice, every profile asked for once."""
        distinct = {self.ledger.key(genotype): self.problem.space.profile(genotype) for genotype in genotypes}
        ask = Ask(tuple(distinct.values()), self._deck.deal(tokens), generation)
        trials = yield ask
        self._show(ask, trials)
        return {key: trial.fitness for key, trial in zip(distinct, trials, strict=True)}

    def _show(self, ask: Ask, trials: Sequence[Trial]) -> None:
        if self._watch is not None:
            self._watch(ask, trials)
