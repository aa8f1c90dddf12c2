"""Times what a model does beside its linear layers: norms and attention of every block, and what runs once.

A whole model with a mix of formats runs, and again with every sublayer of a kind dropped; what the LatencyTable says of the linear layers
is taken off the differences. So a profile's time is a sum: parts of what it keeps, and one cell for every linear layer. The parts are taken
from a model that streams weights, since without these its own code and data would stay in caches that they never see. Called by
`evopress kernels bench --workload`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from torch import nn

from evopress.api import Site
from evopress.api.workload import Workload
from evopress.latency.clock import Clock, Timing
from evopress.latency.mixed import RandomVariants, linear_seconds, without
from evopress.latency.runtime import Pick, build, workload_seconds
from evopress.latency.table import LatencyTable


def measure_parts(
    model: nn.Module, sites: Sequence[Site], formats: Sequence[str], table: LatencyTable, pick: Pick, workload: Workload, seed: int = 0,
    repeats: int | None = None, clock: Clock = time.perf_counter,
) -> dict[str, Timing]:  # fmt: skip
    """Seconds of one pass of the workload in one site of each kind ("attention", "mlp", "block"), and in the rest of the "model".

    Samples are of runs in turns, so each difference is of one round; none is below zero. Raises NotFound for a cell the table lacks.
    """
    kinds = list(dict.fromkeys(site.kind for site in sites if site.kind != "linear"))
    variants = RandomVariants(seed)
    profiles = {kind: without(sites, formats, kind) for kind in ("", *kinds)}
    models = {kind: build(model, sites, profile, variants, pick) for kind, profile in profiles.items()}
    passes = workload_seconds(models, workload, repeats, clock)
    return subtract(sites, passes, linear_seconds(profiles[""], sites, table, workload.tokens))


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
