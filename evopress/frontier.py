"""Runs a frontier: one search a budget on one bank, every uniform choice beside them, and all of them timed in turns as whole models.

Finds nothing itself: the searches are ordinary ones, kept in the store under names of their own, so the same command again goes on. Called
by `evopress study run`; what is claimed of the document is judged by `evopress.report.speed_claims`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evopress.api import ABSENT, DENSE, DROP, Level, Profile, Space, UsageError
from evopress.api.budget import workload_of
from evopress.api.speed_study import FrontierStudy
from evopress.api.workload import Workload
from evopress.events import Listener, Progress
from evopress.hooks.registry import Registry
from evopress.latency.table import Cell, LatencyTable
from evopress.plan import Plan, make_plan, with_weights
from evopress.pricing import environment, priced, runnable, tables
from evopress.provenance import commit
from evopress.run import execute
from evopress.search.loop import Stops, Totals
from evopress.store import Store
from evopress.texts import Texts
from evopress.tightening import altogether
from evopress.workbench import Workbench

if TYPE_CHECKING:
    from evopress.latency.runtime import PackedModel

MORE = 2
"""Times the usual number of samples, for what is published."""


@dataclass(frozen=True)
class Found:
    """A profile of the frontier. kind: dense, latency, size or uniform. totals: what its search took."""

    kind: str
    profile: Profile
    totals: Totals = field(default_factory=Totals)


def run_frontier(
    frontier: FrontierStudy, storage: str, home: Path, listen: Listener, device: str, dtype: str, quota: int | None, command: str
) -> dict[str, Any]:
    """Search, measure on held-out documents, time, and return the document. Raises as `execute` does, and UsageError without workload."""
    registry = Registry.load()
    plan = whole_plan(frontier, registry, storage, home, device, dtype)
    found = {"dense": Found("dense", uniform(plan.space, DENSE))}
    for label, budgets in frontier.winners.items():
        study = frontier.study.model_copy(update={"name": f"{frontier.name}-{label}", "budgets": budgets, "baselines": ()})
        timed = workload_of(budgets) is not None  # then a winner must keep its budget as a whole model
        if not timed:  # may spend what a search under a time and its further ones may spend together
            most = altogether(Stops(study.stop_generations, study.stop_tokens, study.stop_seconds))
            stops = {"stop_generations": most.generations, "stop_tokens": most.tokens, "stop_seconds": most.seconds}
            study = study.model_copy(update=stops)
        run = execute(study, storage, home, registry, listen, device, dtype, quota, speed=timed, command=command)
        found[label] = Found("latency" if timed else "size", run.best.profile, run.outcome.totals)
    for level in shared_levels(plan.space):
        found[f"uniform {level}"] = Found("uniform", uniform(plan.space, level))
    with Store.open(storage) as store:
        bench = Workbench(with_weights(plan, home), Texts(plan, listen), registry, store, home, listen, device, dtype, quota)
        bench.complete_bank()
        return _document(frontier, bench, found)


def whole_plan(frontier: FrontierStudy, registry: Registry, storage: str, home: Path, device: str, dtype: str) -> Plan:
    """The plan of all levels, none left out for being slow, with the times of the frontier's workload."""
    workload = next(filter(None, (workload_of(budgets) for budgets in frontier.winners.values())), None)
    if workload is None:
        raise UsageError(f"No winner of {frontier.name} has a latency budget.", 'Give one, e.g. fast = "latency=0.8x".')
    plan = make_plan(frontier.study.model_copy(update={"budgets": ("size=1x",), "baselines": ()}), registry, home)
    table = runnable(tables(storage, home, device, dtype)(), registry.kernels())
    space = priced(plan.space, plan.methods, table, workload, plan.ref.config_digest, frontier.study.model)
    return replace(plan, space=space, workload=workload, table=table)


def shared_levels(space: Space) -> list[Level]:
    """Levels that every linear site may take."""
    own = [set(levels) for site, levels in zip(space.sites, space.levels, strict=True) if site.kind == "linear"]
    return sorted(set.intersection(*own) - {DENSE, DROP}, key=str)


def uniform(space: Space, level: Level) -> Profile:
    """One level at every linear site, nothing dropped."""
    return Profile.of({site.name: level if site.kind == "linear" else DENSE for site in space.sites})


def _document(frontier: FrontierStudy, bench: Workbench, found: Mapping[str, Found]) -> dict[str, Any]:
    from evopress.latency.runtime import TURNS, build, fastest, workload_seconds

    plan, workload = bench.plan, bench.plan.workload
    assert plan.table is not None
    assert workload is not None
    slice_ = bench.texts.whole("heldout")
    trials = {}
    for number, (label, one) in enumerate(found.items()):
        bench.listen(Progress("heldout", label, number, len(found)))
        trials[label] = bench.measure([one.profile], slice_, "kl", "heldout")[0]
    bench.listen(Progress("speed", f"timing {len(found)} profiles as whole models: {workload}", 0, len(found)))
    bench.stitcher.restore()
    pick = fastest(bench.registry.kernels(), plan.table, workload.tokens)
    packed = {label: build(bench.model, plan.sitemap.sites, one.profile, bench.variant, pick) for label, one in found.items()}
    with bench.store.holding(f"timing on {bench.owner.host}", bench.owner):
        seconds = workload_seconds(packed, workload, MORE * TURNS[workload.phase])
    here = environment(bench.device, str(bench.dtype).removeprefix("torch."))
    rows = [
        _row(plan, label, one, trials[label].values, trials[label].weights, seconds[label])
        | _running(packed[label])
        | {"device": here["device"], "threads": here["threads"]}
        for label, one in found.items()
    ]
    return {
        "frontier": {"name": frontier.name, "winners": {label: list(texts) for label, texts in frontier.winners.items()},
                     "study": frontier.study.identity},
        "digest": frontier.digest, "model": plan.ref.name, "commit": commit(), "workload": str(workload),
        "environment": {**here, "arithmetic": bench.arithmetic},
        "heldout": {"slice": slice_.digest, "weights": list(trials["dense"].weights), "origins": list(bench.tokens("heldout").origins)},
        "rows": rows,
        "table": _table_json(plan.table, packed.values(), workload, plan.ref.config_digest),
    }  # fmt: skip


def _running(packed: PackedModel) -> dict[str, Any]:
    """What multiplies in a whole model: sites by format, shape and kernel."""
    counts = Counter((one.cell, one.site.shape, one.label) for one in packed.running)
    kernels = [{"format": cell, "shape": list(shape), "kernel": name, "sites": n} for (cell, shape, name), n in sorted(counts.items())]
    return {"kernels": kernels, "weight_bytes": packed.weight_bytes}


def _table_json(table: LatencyTable, models: Iterable[PackedModel], workload: Workload, model: str) -> dict[str, Any]:
    """What the estimates are sums of: parts of the LatencyTable, and cells times their formats' factors. model: digest of its config."""
    used = sorted({Cell(one.cell, one.site.shape, workload.tokens) for packed in models for one in packed.running})
    parts = {str(part.kind): asdict(measured) for part, measured in table.parts.items() if (part.model, part.workload) == (model, workload)}
    factors = {
        part.kind: factor.value for part, factor in table.factors.items()
        if (part.model, part.workload) == (model, workload) and part.kind in {cell.format for cell in used}
    }  # fmt: skip
    return {
        "about": table.about, "cells": [{**asdict(cell), **asdict(table.best(cell))} for cell in used], "parts": parts, "factors": factors
    }  # fmt: skip


def _row(plan: Plan, label: str, found: Found, values: Sequence[float], weights: Sequence[int], seconds: Sequence[float]) -> dict[str, Any]:
    from evopress.latency.clock import Timing

    profile = found.profile
    timing, cost = Timing.of(seconds), plan.space.cost(profile)
    estimated = cost.nanoseconds / 1e9
    mean = sum(value * weight for value, weight in zip(values, weights, strict=True)) / sum(weights)
    levels: dict[str, int] = {}
    for name, level in profile:
        if level != ABSENT and (level == DROP or plan.space.sites[plan.space.index[name]].kind == "linear"):
            levels[str(level)] = levels.get(str(level), 0) + 1
    assert plan.workload is not None
    return {
        "label": label, "kind": found.kind, "search_tokens": found.totals.tokens, "search_evaluations": found.totals.evaluations,
        "profile": profile.digest, "levels": dict(sorted(levels.items())), "bytes": cost.bytes,
        "bits": plan.space.bits(cost), "kl": {"mean": mean, "values": list(values)}, "estimated_seconds": estimated,
        "error": estimated / timing.median - 1, "seconds": list(seconds), "median_seconds": timing.median, "low_seconds": timing.low,
        "high_seconds": timing.high, "samples": timing.n, "tokens_per_second": plan.workload.tokens / timing.median,
    }  # fmt: skip
