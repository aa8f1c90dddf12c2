"""What a run knows of each site beside its levels and costs: computed when a searcher first asks, kept for the next.

Not the bank, though it reads the layer errors there, and not a measurement of any profile. Called by the run, which hands it to searchers
by the names that a `Problem` has for it.
"""

from __future__ import annotations

from typing import Any

from evopress.api import DENSE, DROP, Knowledge
from evopress.workbench import Workbench


class Known:
    """What is known of the sites of one study, each fact asked for by its name in `Problem`."""

    def __init__(self, bench: Workbench) -> None:
        self.bench = bench
        self._kept: dict[Knowledge, tuple[Any, ...]] = {}

    def __call__(self, need: Knowledge) -> tuple[Any, ...]:
        """One entry a site position. Raises KeyError for what is no fact of sites."""
        if need not in self._kept:
            self._kept[need] = {"errors": layer_errors}[need](self.bench)
        return self._kept[need]


def layer_errors(bench: Workbench) -> tuple[tuple[float, ...], ...]:
    """Relative layer error per site position and level index; a drop counts 1 for every linear site below it."""
    space = bench.plan.space
    below = [0] * len(space.sites)
    for position in reversed(range(len(space.sites))):
        if space.parents[position] >= 0:
            below[space.parents[position]] += below[position] + (space.sites[position].kind == "linear")
    table = []
    for position, (site, levels) in enumerate(zip(space.sites, space.levels, strict=True)):
        row = []
        for level in levels:
            if level == DENSE:
                row.append(0.0)
            elif level == DROP:
                row.append(float(below[position]))
            else:
                row.append(bench.error(site, level))
        table.append(tuple(row))
    return tuple(table)
