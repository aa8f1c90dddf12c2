"""Times what a model does beside its linear layers: norms and attention of every block, and what runs once. Knows no kernel but `absent`.

The model runs with all linear layers answering zeros, and again with every sublayer of a kind dropped; the differences, over their number,
are the parts. So a profile's time is a sum: parts of what it keeps, and one cell of the LatencyTable for every linear layer. Called by
`evopress kernels bench --model`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from torch import nn

from evopress.api import ABSENT, DENSE, DROP, ZERO, Level, Profile, Site, Variant
from evopress.api.workload import Workload
from evopress.latency.clock import Clock, Timing
from evopress.latency.runtime import Pick, bench_interleaved, build

STEPS = 16
"""Decoded tokens of one sample."""
NULL = Level("null")


def measure_parts(
    model: nn.Module, sites: Sequence[Site], pick: Pick, workload: Workload, absent_seconds: Mapping[tuple[int, int], float],
    repeats: int = 15, clock: Clock = time.perf_counter,
) -> dict[str, Timing]:  # fmt: skip
    """Seconds of one pass of the workload in one site of each kind ("attention", "mlp", "block"), and in the rest of the "model".

    absent_seconds: what a linear layer of a shape takes to answer zeros, which is taken off. Samples are of runs in turns, so each
    difference is of one round; none is below zero.
    """
    kinds = list(dict.fromkeys(site.kind for site in sites if site.kind != "linear"))
    models = {kind: build(model, sites, without(sites, kind), _null, pick) for kind in ("", *kinds)}
    steps = STEPS if workload.phase == "decode" else 1
    speeds = bench_interleaved(models, workload.context, steps, workload.batch, repeats, clock=clock)
    passes = {
        kind: [sample / steps for sample in (speed.decode if workload.phase == "decode" else speed.prefill).samples]
        for kind, speed in speeds.items()
    }
    return subtract(sites, passes, absent_seconds)


def without(sites: Sequence[Site], kind: str) -> Profile:
    """Zeros for every linear layer, and every sublayer of a kind dropped with all below it."""
    gone: set[str] = set()
    levels: dict[str, Level] = {}
    for site in sites:
        if site.parent in gone:
            levels[site.name] = ABSENT
            gone.add(site.name)
        elif site.kind == kind:
            levels[site.name] = DROP
            gone.add(site.name)
        else:
            levels[site.name] = NULL if site.kind == "linear" else DENSE
    return Profile.of(levels)


def subtract(
    sites: Sequence[Site], passes: Mapping[str, Sequence[float]], absent_seconds: Mapping[tuple[int, int], float]
) -> dict[str, Timing]:  # fmt: skip
    """Parts from the seconds of whole passes: "" with everything but the linear layers, and by kind without all sites of that kind."""
    kind_of = {site.name: site.kind for site in sites}
    zeros = dict.fromkeys(passes, 0.0)  # what the zeros of the linear layers take that stand right in sites of a kind
    for site in sites:
        if site.kind == "linear" and site.parent is not None:
            zeros[kind_of[site.parent]] += absent_seconds[site.shape]
    counts = {kind: sum(site.kind == kind for site in sites) for kind in passes if kind}
    inner = [kind for kind in counts if kind != "block"]
    taken = {kind: [max(0.0, a - b - zeros[kind]) for a, b in zip(passes[""], passes[kind], strict=True)] for kind in inner}
    blocks = [a - b - sum(zeros.values()) for a, b in zip(passes[""], passes["block"], strict=True)]
    taken["block"] = [max(0.0, whole - sum(taken[kind][turn] for kind in inner)) for turn, whole in enumerate(blocks)]
    parts = {kind: Timing.of([sample / counts[kind] for sample in samples]) for kind, samples in taken.items()}
    return parts | {"model": Timing.of(passes["block"])}


def _null(site: Site, level: Level) -> Variant:
    return Variant(site, level, "absent", {}, ZERO)
