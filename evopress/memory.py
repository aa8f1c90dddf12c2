"""What the store remembers of earlier searches that a later one may start from: slopes and trials of profiles over the same sites.

They may be of another budget, another study, or a sibling of the model (the same sites, other weights). Only what was measured before this
study was first started counts, so that a resumed search starts from the same; and nothing that saw a document this study holds out, so that
what is remembered cannot have been fitted to it. Searches nothing. Called by the run.
"""

from __future__ import annotations

from typing import Any

from evopress.api import Genotype, Knowledge, Profile, Recalled, Remembered, UsageError
from evopress.events import Progress
from evopress.store import Store
from evopress.store.remembered import Text
from evopress.workbench import Workbench

NEWEST_SLOPES, NEWEST_TRIALS = 16, 600
"""How many are remembered, at most."""


class Memory:
    """What one study remembers, newest first; profiles with a level that its space lacks are left out. before: when it was first started.

    Called with the name of the field of the problem that it fills, and tells the user how much it found.
    """

    def __init__(self, bench: Workbench, store: Store, before: float) -> None:
        self.bench, self.store, self.before = bench, store, before
        self._heldout = bench.tokens("heldout")
        self._kept: dict[Knowledge, tuple[Any, ...]] = {}

    def __call__(self, need: Knowledge) -> tuple[Any, ...]:
        """`Problem.memory` or `Problem.trials`."""
        if need not in self._kept:
            self._kept[need], what = (self.slopes(), "backward passes") if need == "memory" else (self.trials(), "trials")
            if self._kept[need]:
                self.bench.listen(Progress("plan", f"starts from what {len(self._kept[need])} {what} of earlier searches told"))
        return self._kept[need]

    def slopes(self) -> tuple[Remembered, ...]:
        """Genotypes with their slopes."""
        rows = self.store.slopes_before(self._sites, self._fitness, self.before)
        found = ((self._genotype(row.profile, row.text), row.slopes) for row in rows)
        return tuple((genotype, slopes) for genotype, slopes in found if genotype is not None)[:NEWEST_SLOPES]

    def trials(self) -> tuple[Recalled, ...]:
        """Measured genotypes. What a sibling scored, or another bank's variants, does not compare with this study's on the same tokens."""
        kept = []
        for row in self.store.trials_before(self._sites, self._fitness, self.before):
            genotype = self._genotype(row.profile, row.text)
            if genotype is not None:
                made = (row.model, row.bank, row.numerics)
                own = made == (self.bench.model_digest, self.bench.bank_of(row.profile), self.bench.numerics(self._fitness))
                kept.append(Recalled(genotype, row.fitness, row.weight, row.slice if own else ":".join((*made, row.slice))))
        return tuple(kept[:NEWEST_TRIALS])

    @property
    def _sites(self) -> list[str]:
        return [site.name for site in self.bench.plan.space.sites]

    @property
    def _fitness(self) -> str:
        return self.bench.plan.study.fitness

    def _genotype(self, profile: Profile, text: Text) -> Genotype | None:
        """The profile in this space; None for one with a level of other methods, and for what may have seen a held-out document."""
        # Where it is not known what a slice of the same text was made of, it may have been of anything.
        if text.source == self._heldout.source and (not text.origins or text.origins & frozenset(self._heldout.origins)):
            return None
        try:
            return self.bench.plan.space.genotype(profile)
        except UsageError:
            return None
