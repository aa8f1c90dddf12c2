"""What a run knows of each site beside its levels and costs: computed when a searcher first asks, kept on disk for every later run.

Not the bank, though layer errors are read there, and not a measurement of any profile. All facts are of the dense model, on the study's
calibration tokens. Called by the two composition roots, `evopress.run` and `evopress.contest`, which hand them to searchers by the names
that a `Problem` has for them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from evopress.api import DENSE, DROP, REMEMBERED, Knowledge
from evopress.api.plugins import OUTLIER
from evopress.bank.facts import Facts
from evopress.events import Progress
from evopress.workbench import Workbench

TAG = "evopress-facts-2"
"""Raised when one of the facts comes to mean other numbers."""
Row = tuple[float, ...]
ONE_PASS: Mapping[Knowledge, Knowledge] = {"outliers": "energies"}
"""Facts that the pass for another one tells as well."""
COMPUTED: tuple[Knowledge, ...] = ("energies", "outliers", "spectra", "similarities")
"""Facts that take more than reading the bank."""


class Known:
    """What is known of the sites of one study, each fact asked for by its name in `Problem`."""

    def __init__(self, bench: Workbench) -> None:
        self.bench = bench
        self.facts = Facts(bench.bank.root)
        self._kept: dict[Knowledge, tuple[Any, ...]] = {}

    def __call__(self, need: Knowledge) -> tuple[Any, ...]:
        """One entry a site position, as `Problem` says; nothing of earlier searches, which is no fact of a site.

        Raises KeyError for slopes, which are facts of a profile.
        """
        if need in REMEMBERED:
            return ()
        if need not in self._kept:
            self._kept[need] = layer_errors(self.bench) if need == "errors" else self._shaped(need)
        return self._kept[need]

    def seconds(self, needs: Collection[Knowledge]) -> float:
        """What these facts took to compute, whoever did it and whenever; one pass over the model counts once."""
        return sum(map(self.facts.seconds, {self.key(ONE_PASS.get(need, need)) for need in needs if need in COMPUTED}))

    def key(self, need: Knowledge) -> str:
        """Digest of what determines a fact: the weights and the arithmetic they are read in, and the tokens where any are needed."""
        source = self.bench.arithmetic if need == "spectra" else self.bench.recipe.calibration
        detail = f"{need} {OUTLIER}" if need == "outliers" else need
        sites = ",".join(site.name for site in self.bench.plan.space.sites)
        return hashlib.sha256("\n".join([TAG, self.bench.model_digest, source, detail, sites]).encode()).hexdigest()

    def _shaped(self, need: Knowledge) -> tuple[Any, ...]:
        rows = self.facts.get(self.key(need))
        if rows is None:
            self.bench.listen(Progress("model", f"reading {need} of {len(self.bench.plan.space.sites)} sites"))
            began = self.bench.clock()
            self.bench.stitcher.restore()
            found = {"energies": _inputs, "outliers": _inputs, "spectra": _spectra, "similarities": _similarities}[need](self.bench)
            took = self.bench.clock() - began
            for name, made in found.items():
                self.facts.put(self.key(name), name, made, took)
            rows = tuple(map(tuple, found[need]))
        return rows if need == "spectra" else tuple(row[0] for row in rows)


def _rows(bench: Workbench, found: Mapping[str, Row], otherwise: Row) -> list[Row]:
    return [found.get(site.name, otherwise) for site in bench.plan.space.sites]


def _inputs(bench: Workbench) -> dict[Knowledge, Sequence[Row]]:
    """Energies and outliers: both from the second moments of the inputs, so one pass over the model tells both."""
    from evopress.bank.build import energy, known_moment
    from evopress.models import weights
    from evopress.models.calibrate import calibrate
    from evopress.models.sitefacts import outlier_share

    linear = {site.name: site for site in bench.plan.sitemap.of_kind("linear")}
    energies: dict[str, Row] = {}
    outliers: dict[str, Row] = {}
    for _, statistics in calibrate(bench.model, bench.plan.sitemap, bench.calibration_batches(), set(linear)):
        for name, stats in statistics.items():
            weight_RC, stats = weights.read(bench.model, linear[name]).cpu(), known_moment(stats)
            assert stats.second_moment is not None
            energies[name] = (energy(weight_RC, stats),)
            outliers[name] = (outlier_share(weight_RC, stats.second_moment, OUTLIER),)
    return {"energies": _rows(bench, energies, (0.0,)), "outliers": _rows(bench, outliers, (0.0,))}


def _spectra(bench: Workbench) -> dict[Knowledge, Sequence[Row]]:
    from evopress.models import weights
    from evopress.models.sitefacts import spectrum

    found = {site.name: spectrum(weights.read(bench.model, site)) for site in bench.plan.sitemap.of_kind("linear")}
    return {"spectra": _rows(bench, found, ())}


def _similarities(bench: Workbench) -> dict[Knowledge, Sequence[Row]]:
    from evopress.models.sitefacts import similarities

    found = similarities(bench.model, bench.plan.sitemap, bench.calibration_batches())
    return {"similarities": _rows(bench, {name: (value,) for name, value in found.items()}, (1.0,))}


def layer_errors(bench: Workbench) -> tuple[Row, ...]:
    """Relative layer error per site position and level index, from the bank; a drop counts 1 for every linear site below it."""
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
