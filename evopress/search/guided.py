"""guided: slopes in context, exact proposals within a distance, a race, and again; then moves screened by a model of the run's own trials.

Each round: one backward pass at the incumbent fits a parabola to every site (`parabolas`); the exact multiple-choice knapsack turns them
into the best profiles within several distances (`proposals`); these race against the incumbent on documents of their own (`racing`). A
round that fails shortens the distance; one that wins keeps it. What a drop changes no slope tells, so drops and restorations are probed
one by one (`probes`). In a space of nothing but drops, which interact too strongly for anything that adds up, a measured descent
(`descent`) takes the place of these rounds. When nothing wins any more, random moves that a surrogate has screened (`screening`) race in
rounds of their own. Related: first-order saliency (OBD, LeCun 1990; SNIP, 1810.02340), and the search it is measured against, EvoPress
(2410.14649). Measuring is the caller's.
"""

from __future__ import annotations

import random
from collections.abc import Generator, Sequence
from typing import ClassVar

from evopress.api import Ask, Genotype, Knowledge, Problem, Profile, Searcher, Steps, Trial, UsageError
from evopress.search.descent import descend
from evopress.search.ledger import Draft, ledger_of
from evopress.search.moves import is_dropped
from evopress.search.options import check_count, check_share
from evopress.search.parabolas import Parabolas
from evopress.search.probes import drop_level, probe
from evopress.search.proposals import propose
from evopress.search.racing import Deck, Looks, Race, check_alpha, check_documents, check_looks, race
from evopress.search.screening import Screening
from evopress.search.starts import distinct, known_starts
from evopress.search.watching import watched

SHARES = (1.0, 0.3, 0.15, 0.08, 0.04, 0.02, 0.01)
"""Distances of a proposal, as shares of the weights at another level."""
EVIDENCE = 0.5
"""Tokens an answer must have been measured on in screened rounds, as a share of those of the profile with most."""
TRADES_AFTER = 3
"""Screened rounds in a row without a winner after which drops of one kind may be traded for drops of another."""


class Guided(Searcher):
    """Slopes, exact proposals, races.

    rounds: at most so many. slope_tokens: tokens of a backward pass. fading: share of what earlier slopes told that is kept when new ones
    come in. looks: (candidates, tokens so far) of a race. alpha: chance that a race accepts what is no better. start_tokens: tokens on
    which the starts are ranked. probe_tokens: tokens of a probe, the descent's too. probes: droppable genes probed a round. patience:
    rounds in a row without a winner at the shortest distance before screened moves begin; local_looks, local_alpha: of their races;
    local_patience: rounds of them without a winner before the search ends. Raises UsageError for bad options, and for a search set with
    fewer tokens than a question takes or fewer documents than a race needs.
    """

    name: ClassVar[str] = "guided"
    strays: ClassVar[bool] = True
    needs: ClassVar[frozenset[Knowledge]] = frozenset({"errors", "slopes", "known_slopes"})

    def __init__(
        self,
        problem: Problem,
        rng: random.Random,
        *,
        rounds: int = 1000,
        slope_tokens: int = 2048,
        fading: float = 0.8,
        looks: Sequence[Sequence[int]] = ((4, 1024), (1, 4096)),
        alpha: float = 0.3,
        start_tokens: int = 2048,
        probe_tokens: int = 512,
        probes: int = 8,
        patience: int = 3,
        local_looks: Sequence[Sequence[int]] = ((16, 512), (4, 1536), (1, 3584)),
        local_alpha: float = 0.9,
        local_patience: int = 40,
    ) -> None:
        super().__init__(problem, rng)
        self.rounds = check_count("rounds", rounds, 0)
        self.slope_tokens = check_count("slope_tokens", slope_tokens, 2)
        self.start_tokens = check_count("start_tokens", start_tokens, 2)
        self.probe_tokens = check_count("probe_tokens", probe_tokens, 2)
        self.probes = check_count("probes", probes, 0)
        self.patience = check_count("patience", patience)
        self.local_patience = check_count("local_patience", local_patience)
        self.looks = check_looks(looks)
        self.local_looks = check_looks(local_looks, "local_looks")
        self.alpha = check_alpha(alpha)
        self.local_alpha = check_alpha(local_alpha, "local_alpha")
        self.ledger = ledger_of(problem)
        self._starts = known_starts(problem, self.ledger)
        self._best = self._answer = self._starts[0]
        self._parabolas = Parabolas(self.ledger, problem.errors, check_share("fading", fading))
        self._deck = Deck(problem, rng)
        self._screening = Screening(problem, self.ledger, rng)
        self._check_text()

    def _check_text(self) -> None:
        lengths = self.problem.document_tokens
        available = sum(lengths)
        asked = [self.slope_tokens, self.start_tokens, self.looks[-1][1], self.local_looks[-1][1]]
        wanted = max([*asked, self.probe_tokens] if self.ledger.containers else asked)
        if wanted > available:
            raise UsageError(
                f"guided asks for {wanted:,} tokens a question, but the search set holds {available:,}.",
                f"Lower slope_tokens, start_tokens, probe_tokens, looks and local_looks to at most {available:,}, or give more text.",
            )
        check_documents(self.problem, self.looks, self.alpha)
        check_documents(self.problem, self.local_looks, self.local_alpha)

    @property
    def incumbent(self) -> Profile:
        """The best so far, of what has been measured well; the first start before anything was."""
        return self.problem.space.profile(self._answer)

    def steps(self) -> Steps:
        """As `_search`; every answer is remembered for screening."""
        yield from watched(self._search(), self._screening.see)

    def _search(self) -> Steps:
        """Rank the starts; rounds of exact proposals; then rounds of screened moves."""
        starts = distinct(self.ledger, [*self._starts, *self._continued()])
        only_drops = self.ledger.containers and not self.ledger.plain
        if only_drops:
            reached = yield from descend(self.problem, self.ledger, self._deck.deal(self.probe_tokens))
            starts = distinct(self.ledger, [*starts, reached])
        if len(starts) > 1:
            profiles = tuple(map(self.problem.space.profile, starts))
            trials = yield Ask(profiles, self._deck.deal(self.start_tokens))
            self._best = self._answer = starts[min(range(len(trials)), key=lambda at: trials[at].fitness)]
        if not self.ledger.movable:
            return
        if only_drops:  # what every flip alone does here: where screening begins
            yield from probe(self.problem, self.ledger, self._best, self.ledger.containers, self._deck.deal(self.probe_tokens), 0)
        number = (yield from self._model_rounds()) if self.ledger.plain else 0
        yield from self._screened_rounds(number)

    def _continued(self) -> list[Genotype]:
        """The exact answer to this budget by what earlier searches learnt, from where the last one ended; none where nothing is known."""
        if not self.problem.known_slopes or not self.ledger.plain:
            return []
        for genotype, slopes in reversed(self.problem.known_slopes):
            self._parabolas.learn(Draft(self.ledger, genotype), slopes)
        last = self.problem.known_slopes[0][0]
        return [propose(self.ledger, last, self._parabolas.changes(Draft(self.ledger, last)), 1.0)]

    def _model_rounds(self) -> Generator[Ask, Sequence[Trial], int]:
        """Rounds of exact proposals, until nothing wins at the shortest distance either; the number of the last round."""
        reach, failures = 0, 0
        for number in range(1, self.rounds + 1):
            yield from self._look_around(number)
            candidates = self._proposals(reach)
            won = (yield from self._race(candidates, self.looks, self.alpha, number)) if candidates else False
            self._answer = self._best
            if won:
                failures = 0
            elif candidates and reach < len(SHARES) - 1:
                reach += 1
            else:
                failures += 1
                if not candidates or failures >= self.patience:
                    return number
        return self.rounds

    def _screened_rounds(self, number: int) -> Steps:
        """Rounds of screened moves, until too many in a row found nothing.

        In a space of drops, kinds are not traded before a few rounds in a row have failed: three attentions that are not yet the best
        ones are soon given back for one more MLP, and from there no small step leads back.
        """
        failures = 0
        self._reconsider()
        while number < self.rounds and failures < self.local_patience:
            number += 1
            trades = bool(self.ledger.plain) or failures >= TRADES_AFTER
            candidates = self._screening.candidates(self._best, self.local_looks[0][0], trades)
            if candidates:
                won = yield from self._race(candidates, self.local_looks, self.local_alpha, number)
                failures = 0 if won else failures + 1
                self._reconsider()
            elif trades and not self._screening.resting:
                return
            else:
                self._screening.refuse([])
                failures += 1

    def _reconsider(self) -> None:
        """Go on from the profile that all trials together say is best: a race at a high alpha is often wrong, either way.

        Of those only that have seen as much as a second look: at the first, chance flatters some of many. The answer is the best of those
        about which most is known, because a step that is no good is found out only as it is measured on.
        """
        self._screening.learn(self._best)
        measured = self._screening.measured
        seen = [genotype for genotype, tokens in measured.items() if tokens >= self.local_looks[:2][-1][1]]
        best = self._screening.best_of([*seen, self._best])
        if best != self._best:
            self._best = best
            self._screening.accept()
        enough = EVIDENCE * max(measured.values(), default=0)
        self._answer = self._screening.best_of([*(genotype for genotype, tokens in measured.items() if tokens >= enough), self._answer])

    def _race(self, candidates: Sequence[Genotype], looks: Looks, alpha: float, number: int) -> Generator[Ask, Sequence[Trial], bool]:
        """Race candidates against the incumbent, which the winner replaces. Was there one?"""
        found: Race = yield from race(self.problem, self.rng, self._deck, candidates, self._best, looks, alpha, number)
        if found.winner is None:
            self._screening.refuse(candidates)
            return False
        self._best = candidates[found.winner]
        self._screening.accept()
        return True

    def _look_around(self, number: int) -> Generator[Ask, Sequence[Trial], None]:
        """Slopes of what is compressed and probes of what can be dropped, at the incumbent."""
        (trial,) = yield Ask((self.problem.space.profile(self._best),), self._deck.deal(self.slope_tokens), number, slopes=True)
        self._parabolas.learn(Draft(self.ledger, self._best), trial.slopes)
        genes = self._to_probe()
        if genes:
            slice_ = self._deck.deal(self.probe_tokens)
            found = yield from probe(self.problem, self.ledger, self._best, genes, slice_, number)
            for gene, change in found.items():
                before = self._parabolas.drops.get(gene, change)
                self._parabolas.drops[gene] = (before + change) / 2

    def _to_probe(self) -> list[int]:
        """The few droppable genes that would save most for their price, and as many that are dropped."""
        draft = Draft(self.ledger, self._best)
        table = self._parabolas.changes(draft)

        def price(gene: int) -> float:
            change = draft.delta(gene, drop_level(self.ledger, gene))
            saved = -sum(value / max(limit, 1) for value, limit in zip(change, self.ledger.limits, strict=False))
            return max(table[self.problem.space.genes[gene][0]]) / max(saved, 1e-12)

        active = [gene for gene in self.ledger.containers if draft.active(gene)]
        kept = [gene for gene in active if not is_dropped(draft, gene)]
        gone = [gene for gene in active if is_dropped(draft, gene)]
        return [*sorted(kept, key=price)[: self.probes], *sorted(gone, key=self._worth)[: self.probes]]

    def _worth(self, gene: int) -> float:
        """What was seen of restoring a dropped gene, the best first; one never looked at comes before all others."""
        return -self._parabolas.drops.get(gene, float("inf"))

    def _proposals(self, reach: int) -> list[Genotype]:
        """Distinct candidates, best guess first: exact answers at the present distance and the next two, then with a random half frozen."""
        count = self.looks[0][0]
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
        for _ in range(2 * count):
            if len(found) >= count:
                break
            frozen = frozenset(self.rng.sample(movable, len(movable) // 2))
            add(propose(self.ledger, self._best, table, SHARES[reach], frozen))
        return list(found.values())[:count]
