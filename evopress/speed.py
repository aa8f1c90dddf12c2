"""How fast profiles run as whole models with real kernels: timed in turns, stored, and never timed beside another timing.

Picks no kernel and reads no clock itself (`evopress.latency` does). Called by the run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from evopress.api import Profile
from evopress.events import Progress
from evopress.pricing import ABOUT, environment
from evopress.store import LatencyRow
from evopress.workbench import Workbench

if TYPE_CHECKING:
    from evopress.latency.clock import Timing
    from evopress.latency.runtime import PackedModel, Speed

REPEATS = 7
"""Prompts with their answers."""
PROMPT_TOKENS, DECODE_TOKENS = 512, 64
"""Length of the timed passes, less where the model has fewer positions."""
PHASES = ("prefill", "decode")

Speeds = dict[str, dict[str, LatencyRow]]
"""Label -> phase -> measured speed."""


def speeds(bench: Workbench, profiles: Mapping[str, Profile]) -> Speeds:
    """Measured whole-model speed of labelled profiles: from the store where one run timed all of them here so long, else taken now.

    Profiles are timed in turns against drift of the machine, so times of different runs are never set side by side. One process of a
    machine times at a time: two at once would both be slow. The profiles must be measured on held-out text already.
    """
    from evopress.latency.runtime import bench_interleaved

    prompt, decode, batch = _lengths(bench)

    def take(packed: Mapping[str, PackedModel], here: dict[str, Any]) -> Speeds:
        timed = bench_interleaved(packed, prompt, decode, batch, REPEATS)
        return {label: rows_of(bench, profiles[label], speed, here) for label, speed in timed.items()}

    return _told(bench, profiles, {"prefill": prompt, "decode": decode}, take)


def pass_seconds(bench: Workbench, profiles: Mapping[str, Profile], purpose: str) -> dict[str, float]:
    """Median seconds of one pass of the study's workload by label, as `pass_speeds` tells them."""
    return {label: next(iter(phases.values())).median_seconds for label, phases in pass_speeds(bench, profiles, purpose).items()}


def pass_speeds(bench: Workbench, profiles: Mapping[str, Profile], purpose: str) -> Speeds:
    """Single passes of the study's workload, many in turns after every one, told and taken as `speeds` does.

    purpose: what the times are for; those for another are not read.
    """
    from evopress.latency.clock import Timing
    from evopress.latency.runtime import workload_seconds

    workload = bench.plan.workload
    assert workload is not None

    def take(packed: Mapping[str, PackedModel], here: dict[str, Any]) -> Speeds:
        seconds = workload_seconds(packed, workload)
        return {
            label: {
                workload.phase: _row(
                    bench, profiles[label], packed[label].kernels, workload.phase, (tokens, workload.batch), Timing.of(samples), here
                )
            }
            for label, samples in seconds.items()
        }

    tokens = 1 if workload.phase == "decode" else workload.context
    return _told(bench, profiles, {workload.phase: tokens}, take, purpose)


def _told(
    bench: Workbench, profiles: Mapping[str, Profile], tokens: Mapping[str, int],
    take: Callable[[Mapping[str, PackedModel], dict[str, Any]], Speeds], purpose: str = "",
) -> Speeds:  # fmt: skip
    """Rows by label and phase, from the store or taken now and stored. tokens: of each phase that is asked for."""
    import torch

    from evopress.latency.runtime import build, fastest, first_fitting

    batch = _lengths(bench)[2]
    here = {**environment(bench.device, str(bench.dtype).removeprefix("torch.")), **({"purpose": purpose} if purpose else {})}

    same = (*ABOUT, "device", "purpose")

    def known() -> Speeds | None:
        rows = {
            label: [
                row
                for row in bench.store.latencies(profile_id=bench.profile_id(profile))
                if all(row.environment.get(key) == here.get(key) for key in same)
                and tokens.get(row.phase) == row.tokens
                and row.batch == batch
            ]
            for label, profile in profiles.items()
        }
        return common_run(rows, tuple(tokens))

    found = known()
    if found is not None:
        return found
    with bench.store.holding(f"timing on {bench.owner.host}", bench.owner):
        found = known()
        if found is not None:
            return found
        bench.listen(Progress("speed", f"timing {', '.join(profiles)}", 0, len(profiles)))
        bench.stitcher.restore()
        kernels, table, workload = bench.registry.kernels(), bench.plan.table, bench.plan.workload
        pick = fastest(kernels, table, workload.tokens) if table and workload else first_fitting(kernels, torch.device(bench.device).type)
        first = {profile: label for label, profile in reversed(list(profiles.items()))}  # labels may share a profile, which is timed once
        packed = {label: build(bench.model, bench.plan.sitemap.sites, one, bench.variant, pick) for one, label in first.items()}
        taken = take(packed, here)
        for phases in taken.values():
            for row in phases.values():
                bench.store.put_latency(row)
        return {label: taken[first[profile]] for label, profile in profiles.items()}


def rows_of(bench: Workbench, profile: Profile, speed: Speed, here: dict[str, Any]) -> dict[str, LatencyRow]:
    """How fast a profile ran, by phase, as the store keeps it."""
    phases = zip(PHASES, (speed.prefill, speed.decode), (speed.prompt_tokens, speed.decode_tokens), strict=True)
    return {phase: _row(bench, profile, speed.kernels, phase, (tokens, speed.batch), timing, here) for phase, timing, tokens in phases}


def _row(
    bench: Workbench, profile: Profile, kernels: Mapping[str, int], phase: str, asked: tuple[int, int], timing: Timing, here: dict[str, Any]
) -> LatencyRow:
    """asked: tokens that were timed, and sequences."""
    tokens, batch = asked
    return LatencyRow(
        kernel=kernels_text(kernels), device=bench.device, phase=phase, batch=batch, tokens=tokens, threads=here["threads"],
        samples=timing.n, median_seconds=timing.median, low_seconds=timing.low, high_seconds=timing.high,
        tokens_per_second=batch * tokens / timing.median, profile_id=bench.profile_id(profile), environment=here, run_id=bench.run_id,
    )  # fmt: skip


def kernels_text(kernels: Mapping[str, int]) -> str:
    """`native-int3 ×120 + dense ×4`."""
    return " + ".join(f"{name} ×{count}" for name, count in sorted(kernels.items()))


def _lengths(bench: Workbench) -> tuple[int, int, int]:
    """Tokens of the prompt and of the answer, and sequences: of the study's workload, where it has one, and then not one token less."""
    workload = bench.plan.workload
    wanted = workload.context if workload else PROMPT_TOKENS
    positions = bench.plan.positions or wanted + DECODE_TOKENS
    decode = min(DECODE_TOKENS, positions // 4)
    if workload:
        decode = max(1, min(decode, positions - wanted))
    return min(wanted, positions - decode), decode, workload.batch if workload else 1


def common_run(rows: Mapping[str, Sequence[LatencyRow]], phases: Sequence[str] = PHASES) -> Speeds | None:
    """Label -> phase -> row of the latest run that timed every label in all phases; None where there is no such run."""
    by_run: dict[int, Speeds] = {}
    for label, found in rows.items():
        for row in found:
            if row.run_id is not None:
                by_run.setdefault(row.run_id, {}).setdefault(label, {})[row.phase] = row
    whole = [run_id for run_id, known in by_run.items() if all(set(phases) <= known.get(label, {}).keys() for label in rows)]
    return by_run[max(whole)] if whole else None
