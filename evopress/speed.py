"""How fast profiles run as whole models with real kernels: timed in turns, stored, and never timed beside another timing.

Picks no kernel and reads no clock itself (`evopress.latency` does). Called by the run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from evopress.api import Profile
from evopress.events import Progress
from evopress.pricing import environment
from evopress.store import LatencyRow
from evopress.workbench import Workbench

if TYPE_CHECKING:
    from evopress.latency.runtime import Speed

REPEATS = 7
PROMPT_TOKENS, DECODE_TOKENS = 512, 64
"""Length of the timed passes, less where the model has fewer positions."""
PHASES = ("prefill", "decode")

Speeds = dict[str, dict[str, LatencyRow]]
"""Label -> phase -> measured speed."""


def speeds(bench: Workbench, profiles: Mapping[str, Profile], purpose: str = "") -> Speeds:
    """Measured whole-model speed of labelled profiles: from the store where one run timed all of them here so long, else taken now.

    Profiles are timed in turns against drift of the machine, so times of different runs are never set side by side. One process of a
    machine times at a time: two at once would both be slow. The profiles must be measured on held-out text already.
    """
    known = _known(bench, profiles, purpose)
    if known is not None:
        return known
    with bench.store.holding(f"timing on {bench.owner.host}", bench.owner):
        return _known(bench, profiles, purpose) or _taken(bench, profiles, purpose)


def _known(bench: Workbench, profiles: Mapping[str, Profile], purpose: str) -> Speeds | None:
    prompt, decode, batch = _lengths(bench)
    here = _environment(bench, purpose)
    asked = {("prefill", prompt, batch), ("decode", decode, batch)}
    rows = {
        label: [
            row
            for row in bench.store.latencies(profile_id=bench.profile_id(profile))
            if row.environment == here and (row.phase, row.tokens, row.batch) in asked
        ]
        for label, profile in profiles.items()
    }
    return common_run(rows)


def _taken(bench: Workbench, profiles: Mapping[str, Profile], purpose: str) -> Speeds:
    import torch

    from evopress.latency.runtime import bench_interleaved, build, fastest, first_fitting

    bench.listen(Progress("speed", f"timing {', '.join(profiles)}", 0, len(profiles)))
    bench.stitcher.restore()
    kernels, table, workload = bench.registry.kernels(), bench.plan.table, bench.plan.workload
    pick = fastest(kernels, table, workload.tokens) if table and workload else first_fitting(kernels, torch.device(bench.device).type)
    by_digest = {profile.digest: profile for profile in profiles.values()}
    packed = {digest: build(bench.model, bench.plan.sitemap.sites, one, bench.variant, pick) for digest, one in by_digest.items()}
    prompt, decode, batch = _lengths(bench)
    here = _environment(bench, purpose)
    known: dict[str, dict[str, LatencyRow]] = {}
    for digest, speed in bench_interleaved(packed, prompt, decode, batch, repeats=REPEATS).items():
        known[digest] = rows_of(bench, by_digest[digest], speed, here)
        for row in known[digest].values():
            bench.store.put_latency(row)
    return {label: known[profile.digest] for label, profile in profiles.items()}


def rows_of(bench: Workbench, profile: Profile, speed: Speed, here: dict[str, Any]) -> dict[str, LatencyRow]:
    """How fast a profile ran, by phase, as the store keeps it."""
    phases = zip(PHASES, (speed.prefill, speed.decode), (speed.prompt_tokens, speed.decode_tokens), strict=True)
    return {
        phase: LatencyRow(
            kernel=kernels_text(speed.kernels), device=bench.device, phase=phase, batch=speed.batch, tokens=tokens, threads=here["threads"],
            samples=timing.n, median_seconds=timing.median, low_seconds=timing.low, high_seconds=timing.high,
            tokens_per_second=speed.batch * tokens / timing.median, profile_id=bench.profile_id(profile), environment=here,
            run_id=bench.run_id,
        )
        for phase, timing, tokens in phases
    }  # fmt: skip


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


def _environment(bench: Workbench, purpose: str) -> dict[str, Any]:
    return {**environment(bench.device, str(bench.dtype).removeprefix("torch.")), **({"purpose": purpose} if purpose else {})}


def common_run(rows: Mapping[str, Sequence[LatencyRow]]) -> Speeds | None:
    """Label -> phase -> row of the latest run that timed every label in both phases; None where there is no such run."""
    by_run: dict[int, Speeds] = {}
    for label, found in rows.items():
        for row in found:
            if row.run_id is not None:
                by_run.setdefault(row.run_id, {}).setdefault(label, {})[row.phase] = row
    whole = [run_id for run_id, known in by_run.items() if all(set(PHASES) <= known.get(label, {}).keys() for label in rows)]
    return by_run[max(whole)] if whole else None
