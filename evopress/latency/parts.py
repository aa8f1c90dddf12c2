"""What a model does beside its linear layers (norms and attention of every block, and what runs once), and its formats within it.

A whole model with a mix of formats runs, and again with every sublayer of a kind dropped; what the LatencyTable says of the linear layers
is taken off the differences. So a profile's time is a sum: parts of what it keeps, and one cell for every linear layer. The parts are taken
from a model that streams weights, since without these its own code and data would stay in caches that they never see.

A kernel alone is not a kernel in a model, which leaves it other caches: a whole model of every format tells by how much its cells are off.
Called by `evopress kernels bench --workload`, which runs all these models in turns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evopress.api import Profile, Site
from evopress.api.workload import Workload
from evopress.latency.clock import Timing
from evopress.latency.mixed import cells_of, uniform, without
from evopress.latency.runtime import PLAIN
from evopress.latency.table import LatencyTable

EVERYTHING = "everything"
"""Name of the mix that drops nothing; another has the name of the kind that it drops, a uniform one that of its format."""


@dataclass(frozen=True, slots=True)
class Within:
    """Seconds that all matrices of a format take in one pass of a model that has it wherever it fits; their cells' sum and kernels."""

    taken: Timing
    cells: float
    kernels: Mapping[tuple[int, int], tuple[str, str]]


def part_profiles(sites: Sequence[Site], formats: Sequence[str]) -> dict[str, Profile]:
    """The models to run, by name: mixes with everything and without each kind of site, dense, and every format that fits anywhere."""
    kinds = dict.fromkeys(site.kind for site in sites if site.kind != "linear")
    mixes = {EVERYTHING: without(sites, formats, "")} | {kind: without(sites, formats, kind) for kind in kinds}
    alone = {format: uniform(sites, format) for format in dict.fromkeys((PLAIN, *formats))}
    return mixes | {format: one for format, one in alone.items() if format == PLAIN or one != alone[PLAIN]}


def parts_of(
    sites: Sequence[Site], profiles: Mapping[str, Profile], passes: Mapping[str, Sequence[float]], table: LatencyTable, workload: Workload
) -> tuple[dict[str, Timing], dict[str, Within]]:
    """Seconds of one pass in one site of each kind ("attention", "mlp", "block") and in the rest of the "model"; and formats within it.

    passes: seconds by name of `part_profiles`, in turns, so each difference is of one round; none is below zero. Raises NotFound for a
    cell the table lacks.
    """
    kinds = {site.kind for site in sites}
    whole = passes[EVERYTHING]
    mixed = {site: table.best(cell).median for site, cell in cells_of(profiles[EVERYTHING], sites, workload.tokens).items()}
    parts = subtract(sites, {"": whole, **{kind: passes[kind] for kind in passes if kind in kinds}}, mixed)
    within: dict[str, Within] = {}
    for format in (name for name in profiles if name != EVERYTHING and name not in kinds):
        cells = list(cells_of(profiles[format], sites, workload.tokens).values())
        own = [cell for cell in cells if cell.format == format]
        taken = [one - all_ + sum(mixed.values()) for one, all_ in zip(passes[format], whole, strict=True)]
        if len(own) < len(cells):  # where the format does not fit, the model is dense
            rest = sum(table.best(cell).median for cell in cells if cell.format == PLAIN)
            taken = [one - rest * within[PLAIN].taken.median / within[PLAIN].cells for one in taken]
        best = {cell.shape: table.best(cell) for cell in own}
        kernels = {shape: (measured.kernel, measured.version) for shape, measured in best.items()}
        within[format] = Within(Timing.of([max(0.0, one) for one in taken]), sum(best[cell.shape].median for cell in own), kernels)
    return parts, within


def subtract(sites: Sequence[Site], passes: Mapping[str, Sequence[float]], linear: Mapping[str, float]) -> dict[str, Timing]:
    """Parts from the seconds of whole passes: "" with everything, and by kind without all sites of that kind. linear: by site name."""
    kind_of = {site.name: site.kind for site in sites}
    own = dict.fromkeys(passes, 0.0)  # what the linear layers right in sites of a kind take
    for site in sites:
        if site.kind == "linear" and site.parent is not None:
            own[kind_of[site.parent]] += linear[site.name]
    counts = {kind: sum(site.kind == kind for site in sites) for kind in passes if kind}
    inner = [kind for kind in counts if kind != "block"]
    taken = {kind: [max(0.0, a - b - own[kind]) for a, b in zip(passes[""], passes[kind], strict=True)] for kind in inner}
    blocks = [a - b - sum(own.values()) for a, b in zip(passes[""], passes["block"], strict=True)]
    taken["block"] = [max(0.0, whole - sum(taken[kind][turn] for kind in inner)) for turn, whole in enumerate(blocks)]
    parts = {kind: Timing.of([sample / counts[kind] for sample in samples]) for kind, samples in taken.items()}
    return parts | {"model": Timing.of(passes["block"])}
