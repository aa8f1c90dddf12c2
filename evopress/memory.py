"""What the store remembers of earlier searches that a later one may start from: slopes at profiles over the same sites.

They may be of another budget, another study, or a sibling of the model (the same sites, other weights). Only what was measured before this
study was first started counts, so that a resumed search starts from the same; and nothing that saw a document this study holds out, so that
what is remembered cannot have been fitted to it. Searches nothing. Called by the run.
"""

from __future__ import annotations

from evopress.api import Remembered, UsageError
from evopress.store import Store
from evopress.workbench import Workbench

NEWEST = 16
"""Slopes that are remembered, at most."""


def remember(bench: Workbench, store: Store, before: float) -> tuple[Remembered, ...]:
    """Genotypes of the study's space with their slopes, newest first; profiles with a level that the space lacks are left out.

    before: when the study was first started.
    """
    space, heldout = bench.plan.space, bench.tokens("heldout")
    withheld = frozenset(heldout.origins)
    kept: list[Remembered] = []
    for row in store.slopes_before([site.name for site in space.sites], bench.plan.study.fitness, before):
        # Where it is not known what a slice of the same text was made of, it may have been of anything.
        if row.source != heldout.source or (row.origins and not row.origins & withheld):
            try:
                kept.append((space.genotype(row.profile), row.slopes))
            except UsageError:  # a level of other methods
                continue
        if len(kept) == NEWEST:
            break
    return tuple(kept)
