"""guided: slopes in context, exact proposals within a distance, a race, and again.

Each round: one backward pass at the incumbent fits a parabola to every site (`parabolas`); the exact multiple-choice knapsack turns them
into the best profiles within several distances (`proposals`); these race against the incumbent on documents of their own (`racing`).
A round that fails shortens the distance; one that wins keeps it. Where too few distinct answers are left, random moves that the same model
screens fill the race. Drops beside compressed sites are probed one by one (`probes`). In a space of nothing but drops, where what one costs
depends on all the others, nothing local holds, and it is `evolve`. Related: first-order saliency (OBD, LeCun 1990; SNIP, 1810.02340), and
the search it is measured against, EvoPress (2410.14649). Measuring is the caller's.
"""

from __future__ import annotations

import random
from collections.abc import Generator, Sequence
from typing import ClassVar

from evopress.api import DROP, Ask, Genotype, Knowledge, Problem, Profile, Searcher, Steps, Trial, UsageError
from evopress.search.evolve import Evolve
from evopress.search.ledger import Draft, ledger_of
from evopress.search.moves import is_dropped, mutate, switch_count
from evopress.search.parabolas import Parabolas
from evopress.search.probes import probe
from evopress.search.proposals import Table, predicted, propose
from evopress.search.racing import Deck, Race, check_looks, documents_needed, race
from evopress.search.selection import check_count
from evopress.search.starts import known_starts

SHARES = (1.0, 0.3, 0.15, 0.08, 0.04, 0.02, 0.01)
"""Distances of a proposal, as shares of the weights at another level."""
ATTEMPTS = 20
"""Random moves drawn and screened for every one that races."""


class Guided(Searcher):
    """Slopes, exact proposals, races.

    rounds: at most so many. slope_tokens: tokens of a backward pass. memory: share of what earlier slopes told that is kept when new
    ones come in. proposals: candidates of a race. looks: (candidates, tokens so far) of a race. alpha: chance that a race accepts what
    is no better. start_tokens: tokens on which the starts are ranked. probe_tokens: tokens of a probe. probes: droppable genes probed
    a round. patience: rounds in a row without a winner at the shortest distance before the search ends. Raises UsageError for bad options,
    and for a search set with fewer tokens than a question takes or fewer documents than a race needs.
    """

    name: ClassVar[str] = "guided"
    needs: ClassVar[frozenset[Knowledge]] = frozenset({"errors", "slopes"})

    def __init__(
        self,
        problem: Problem,
        rng: random.Random,
        *,
        rounds: int = 1000,
        slope_tokens: int = 2048,
        memory: float = 0.8,
        proposals: int = 4,
        looks: Sequence[Sequence[int]] = ((4, 1024), (1, 4096)),
        alpha: float = 0.2,
        start_tokens: int = 2048,
        probe_tokens: int = 512,
        probes: int = 4,
        patience: int = 6,
    ) -> None:
        super().__init__(problem, rng)
        self.rounds = check_count("rounds", rounds, 0)
        self.slope_tokens = check_count("slope_tokens", slope_tokens, 2)
        self.proposals = check_count("proposals", proposals)
        self.start_tokens = check_count("start_tokens", start_tokens, 2)
        self.probe_tokens = check_count("probe_tokens", probe_tokens, 2)
        self.probes = check_count("probes", probes, 0)
        self.patience = check_count("patience", patience)
        self.looks = check_looks(looks)
        for option, value in (("memory", memory), ("alpha", alpha)):
            if not 0 <= value < 1:
                raise UsageError(f"Option {option}={value!r} is not a share.", "Write a number of at least 0 and below 1.")
        self.alpha = alpha
        self.ledger = ledger_of(problem)
        self._starts = known_starts(problem, self.ledger)
        self._best = self._starts[0]
        self._parabolas = Parabolas(self.ledger, problem.errors, memory)
        self._deck = Deck(problem, rng)
        # Nothing but drops: they interact too strongly for a model that adds up, and evolution finds its way.
        self._blind = None if self.ledger.plain or not self.ledger.containers else Evolve(problem, rng, generations=rounds)
        if not self._blind:
            self._check_text()

    def _check_text(self) -> None:
        lengths = self.problem.document_tokens
        available = sum(lengths)
        wanted = max(self.slope_tokens, self.start_tokens, self.probe_tokens, self.looks[-1][1])
        if wanted > available:
            raise UsageError(
                f"guided asks for {wanted:,} tokens a question, but the search set holds {available:,}.",
                f"Lower slope_tokens, start_tokens and looks to at most {available:,}, or give more text.",
            )
        documents, needed = sum(length > 1 for length in lengths), documents_needed(self.looks, self.proposals, self.alpha)
        if documents < needed:
            raise UsageError(
                f"A race of {self.proposals} at alpha {self.alpha} needs {needed} documents to decide, and the search set has {documents}.",
                "Shorten --window, give more text, or raise alpha.",
            )

    @property
    def incumbent(self) -> Profile:
        """The best so far; the first start before anything was measured."""
        return self._blind.incumbent if self._blind else self.problem.space.profile(self._best)

    def steps(self) -> Steps:
        """Rank the starts; then rounds."""
        if self._blind:
            yield from self._blind.steps()
            return
        if len(self._starts) > 1:
            profiles = tuple(map(self.problem.space.profile, self._starts))
            trials = yield Ask(profiles, self._deck.deal(self.start_tokens))
            self._best = self._starts[min(range(len(trials)), key=lambda at: trials[at].fitness)]
        if not self.ledger.movable:
            return
        reach, failures = 0, 0
        for number in range(1, self.rounds + 1):
            yield from self._look_around(number)
            candidates = self._proposals(reach)
            if not candidates:
                return
            found: Race = yield from race(self.problem, self.rng, self._deck, candidates, self._best, self.looks, self.alpha, number)
            if found.winner is not None:
                self._best = candidates[found.winner]
                failures = 0
            elif reach < len(SHARES) - 1:
                reach += 1
            else:
                failures += 1
                if failures >= self.patience:
                    return

    def _look_around(self, number: int) -> Generator[Ask, Sequence[Trial], None]:
        """Slopes of what is compressed and probes of what can be dropped, at the incumbent."""
        (trial,) = yield Ask((self.incumbent,), self._deck.deal(self.slope_tokens), number, slopes=True)
        self._parabolas.learn(Draft(self.ledger, self._best), trial.slopes)
        genes = self._to_probe()
        if genes:
            found = yield from probe(self.problem, self.ledger, self._best, genes, self._deck.deal(self.probe_tokens), number)
            for gene, change in found.items():
                before = self._parabolas.drops.get(gene, change)
                self._parabolas.drops[gene] = (before + change) / 2

    def _to_probe(self) -> list[int]:
        """The few droppable genes that would save most for their price, and as many that are dropped."""
        draft = Draft(self.ledger, self._best)
        table = self._parabolas.changes(draft)

        def price(gene: int) -> float:
            change = draft.delta(gene, self.problem.space.choices(gene).index(DROP))
            saved = -sum(value / max(limit, 1) for value, limit in zip(change, self.ledger.limits, strict=False))
            return max(table[self.problem.space.genes[gene][0]]) / max(saved, 1e-12)

        kept = [gene for gene in self.ledger.containers if draft.active(gene) and not is_dropped(draft, gene)]
        gone = [gene for gene in self.ledger.containers if draft.active(gene) and is_dropped(draft, gene)]
        return [*sorted(kept, key=price)[: self.probes], *gone[: self.probes]]

    def _proposals(self, reach: int) -> list[Genotype]:
        """Distinct candidates, best guess first: exact answers at the present distance and the next two, then with a random half frozen."""
        found: dict[Genotype, Genotype] = {}
        table = self._parabolas.changes(Draft(self.ledger, self._best))
        present = self.ledger.key(self._best)

        def add(genotype: Genotype) -> None:
            key = self.ledger.key(genotype)
            if key != present:
                found.setdefault(key, genotype)

        for share in SHARES[reach : reach + 3]:
            add(propose(self.ledger, self._best, table, share))
        movable = list(self.ledger.movable)
        for _ in range(2 * self.proposals):
            if len(found) >= self.proposals:
                break
            frozen = frozenset(self.rng.sample(movable, len(movable) // 2))
            add(propose(self.ledger, self._best, table, SHARES[reach], frozen))
        for _ in range(self.proposals):
            if len(found) >= self.proposals:
                break
            add(self._screened(table))
        return list(found.values())[: self.proposals]

    def _screened(self, table: Table) -> Genotype:
        """The best of several random moves by the model."""
        drawn = [mutate(self.ledger, self._best, self.rng, switch_count(self.rng, 3)) for _ in range(ATTEMPTS)]
        present = self.ledger.key(self._best)
        return min(drawn, key=lambda genotype: (self.ledger.key(genotype) == present, predicted(self.ledger, table, genotype)))
