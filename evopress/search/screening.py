"""Screening: random moves around a profile, most of which are only looked at by a model of the search's own trials.

Where slopes and probes find nothing more, what is left are moves that gain by working together. A surrogate with interactions
(`surrogate`) is fitted on the newest trials of the search; many mutants are predicted, and a few are handed on: some for their mean, some
for their doubt, and some blindly. Works in any space; in a space of drops it is all the search there is behind the descent. Measures
nothing. Called by `guided`.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Sequence
from math import log

from evopress.api import Ask, Genotype, Problem, Trial
from evopress.search.ledger import Draft, Ledger
from evopress.search.moves import is_dropped, mutate, switch_count
from evopress.search.surrogate import Surrogate

VIRTUAL = 1500
"""Mutants of the incumbent that are predicted for one choice."""
MOVES = 3
"""Moves of a mutant, at most."""
NEWEST = 800
"""Trials the surrogate learns from; its cost grows with their cube."""
LEAST, MOST = 0.3, 4.0
"""Trials below this multiple of the incumbent's fitness are of another landscape; those above that one are just bad, however bad."""
DOUBTS = (0.0, 0.5, 1.0, None)
"""Standard deviations by which the chosen ones may be better than predicted, in turns; None: drawn blindly, as the model may be wrong."""
REST = 5
"""Rounds for which a loser is not proposed: later ones are on other documents, and some lost by bad luck."""


class Screening:
    """Remembers every trial, and proposes. Drops cost by factors, not by sums, so positive values are learnt as logarithms."""

    def __init__(self, problem: Problem, ledger: Ledger, rng: random.Random) -> None:
        self._problem, self._ledger, self._rng = problem, ledger, rng
        self._surrogate = Surrogate(ledger, problem.errors)
        self._seen: list[tuple[Genotype, Genotype, float, int, str]] = []
        self._measured: dict[Genotype, tuple[Genotype, int]] = {}
        self._refused: deque[set[Genotype]] = deque(maxlen=REST)

    def see(self, ask: Ask, trials: Sequence[Trial]) -> None:
        """Remember what was answered."""
        for trial in trials:
            draft = Draft(self._ledger, self._problem.space.genotype(trial.profile))
            self._seen.append((draft.key, draft.genotype, trial.fitness, ask.slice.tokens, ask.slice.digest))
            if draft.fits:
                _, before = self._measured.get(draft.key, (None, 0))
                self._measured[draft.key] = draft.genotype, before + ask.slice.tokens

    def refuse(self, genotypes: Sequence[Genotype]) -> None:
        """These lost against the incumbent, and are not proposed again for some rounds or until there is another one."""
        self._refused.append(set(map(self._ledger.key, genotypes)))

    @property
    def resting(self) -> bool:
        """Is there anybody who may be proposed again later?"""
        return any(self._refused)

    def accept(self) -> None:
        """There is another incumbent: everybody may try again."""
        self._refused.clear()

    @property
    def measured(self) -> dict[Genotype, int]:
        """What meets every budget, and the tokens it was measured on, all trials together."""
        return dict(self._measured.values())

    def learn(self, best: Genotype) -> None:
        """Fit the surrogate on the trials so far, as seen from `best`."""
        present = self._ledger.key(best)
        level = next((value for key, _, value, _, _ in reversed(self._seen) if key == present), 0.0)
        near = [row for row in self._seen if level <= 0 or row[2] >= LEAST * level][-NEWEST:]
        if len({row[0] for row in near}) < 2:
            return
        values = [log(min(row[2], MOST * level)) if level > 0 else row[2] for row in near]
        self._surrogate.fit([row[1] for row in near], values, [row[3] for row in near], [row[4] for row in near])

    def best_of(self, genotypes: Sequence[Genotype]) -> Genotype:
        """The one that all trials together say is best; the last of equals."""
        means, _ = self._surrogate.predict(genotypes)
        return genotypes[max(range(len(genotypes)), key=lambda at: (-means[at], at))]

    def candidates(self, best: Genotype, count: int, trades: bool = True) -> list[Genotype]:
        """At most so many distinct mutants of `best` that were not refused, best guess first; fewer where no others turn up.

        trades: whether they may drop more of one kind and less of another. By what was learnt last.
        """
        present, dropped = self._ledger.key(best), self._dropped(best)
        drawn: dict[Genotype, Genotype] = {}
        for _ in range(VIRTUAL):
            mutant = mutate(self._ledger, best, self._rng, switch_count(self._rng, MOVES))
            key = self._ledger.key(mutant)
            if key == present or key in drawn or any(key in lost for lost in self._refused):
                continue
            if trades or not self._trades(dropped, mutant):
                drawn[key] = mutant
        mutants = list(drawn.values())
        if not mutants:
            return []
        means, spreads = self._surrogate.predict(mutants)
        orders = [
            iter(range(len(mutants)) if doubt is None else (means - doubt * spreads).argsort(kind="stable").tolist()) for doubt in DOUBTS
        ]
        chosen: dict[int, None] = {}
        for turn in range(min(count, len(mutants))):
            chosen[next(at for at in orders[turn % len(DOUBTS)] if at not in chosen)] = None
        return [mutants[at] for at in sorted(chosen, key=lambda at: float(means[at]))]

    def _dropped(self, genotype: Genotype) -> Counter[str]:
        """How many of each kind are dropped."""
        draft, space = Draft(self._ledger, genotype), self._problem.space
        gone = (gene for gene in self._ledger.containers if draft.active(gene) and is_dropped(draft, gene))
        return Counter(space.sites[space.genes[gene][0]].kind for gene in gone)

    def _trades(self, dropped: Counter[str], genotype: Genotype) -> bool:
        """Does it drop more of one kind and less of another?"""
        now = self._dropped(genotype)
        return any((now - dropped).values()) and any((dropped - now).values())
