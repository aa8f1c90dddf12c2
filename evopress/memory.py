"""What the store remembers of earlier searches that a later one may start from: slopes and trials of profiles over the same sites.

They may be of another budget, another study, or a sibling of the model (sites of the same names, kinds and shapes, other weights). Only
what was measured before this study was first started counts, so that a resumed search starts from the same; and nothing of a search whose
text shares a document with what this study holds out. What that search was itself told by still earlier ones is not traced any further.
Searches nothing. Called by the run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evopress.api import Knowledge, KnownSlopes, KnownTrial, Profile, UsageError
from evopress.data.tokens import overlap
from evopress.events import Progress
from evopress.store import Store
from evopress.store.remembered import Earlier
from evopress.workbench import Workbench

NEWEST_SLOPES, NEWEST_TRIALS = 16, 600
"""How many are remembered, at most."""


class Memory:
    """What one study remembers, newest first; profiles with a level that its space lacks are left out. before: when it was first started.

    Called with the name of the field of the problem that it fills, and tells the user how much it found.
    """

    def __init__(self, bench: Workbench, store: Store, before: float) -> None:
        self.bench, self.store, self.before = bench, store, before
        self._kept: dict[Knowledge, tuple[Any, ...]] = {}

    def __call__(self, need: Knowledge) -> tuple[Any, ...]:
        """`Problem.known_slopes` or `Problem.known_trials`."""
        if need not in self._kept:
            self._kept[need], what = (self.slopes(), "backward passes") if need == "known_slopes" else (self.trials(), "trials")
            if self._kept[need]:
                self.bench.listen(Progress("plan", f"starts from what {len(self._kept[need])} {what} of earlier searches told"))
        return self._kept[need]

    @property
    def told(self) -> Mapping[str, int]:
        """How much was handed out, of what."""
        return {need: len(found) for need, found in self._kept.items() if found}

    def slopes(self) -> tuple[KnownSlopes, ...]:
        """Genotypes with their slopes."""
        found = self.store.slopes_before(self._wanted(NEWEST_SLOPES))
        return tuple((self.bench.plan.space.genotype(row.profile), row.slopes) for row in found)

    def trials(self) -> tuple[KnownTrial, ...]:
        """Measured genotypes. What a sibling scored, or another bank's variants, does not compare with this study's on the same tokens."""
        kept = []
        for row in self.store.trials_before(self._wanted(NEWEST_TRIALS)):
            made = (row.model, row.bank, row.numerics)
            own = made == (self.bench.model_digest, self.bench.bank_of(row.profile), self.bench.numerics(self._fitness))
            slice_ = row.slice if own else ":".join((*made, row.slice))
            kept.append(KnownTrial(self.bench.plan.space.genotype(row.profile), row.fitness, row.weight, slice_))
        return tuple(kept)

    @property
    def _fitness(self) -> str:
        return self.bench.plan.study.fitness

    def _wanted(self, most: int) -> Earlier:
        plan, heldout = self.bench.plan, self.bench.tokens("heldout").texts
        # Of a token set that does not say what it was drawn from, anything may be true.
        clean = {found.digest for found in self.store.token_sets("search") if found.texts and not overlap(found.texts, heldout)}
        over = [site.name for site in plan.space.sites]
        return Earlier(plan.sitemap.sites, over, self._fitness, self.before, clean, self._fits, most)

    def _fits(self, profile: Profile) -> bool:
        """Is it a profile of this space, and not one with a level of other methods?"""
        try:
            self.bench.plan.space.genotype(profile)
        except UsageError:
            return False
        return True
