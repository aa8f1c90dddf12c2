"""What `--dry-run` prints: sites, coverage, feasible interval, bank size and an estimate of time, from the configuration alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from evopress.api import DENSE, DROP
from evopress.api.budget import interval
from evopress.plan import Plan, missed_roles
from evopress.report.latency import amount, per, workload_json

SHARE_OF_MATMUL = 0.25
"""A scored forward pass runs at about this share of a bare matrix product's speed (measured on the demo model: 1.7k tokens/s)."""

SHARE_SOLVING = 0.02
"""Second-order methods take about rows × columns² multiplications a level, at about this share of that speed (measured likewise)."""


def matmul_flops(clock: Callable[[], float], size: int = 1024, repeats: int = 5) -> float:
    """Floating-point operations a second of a square matrix product, in the faster of bfloat16 and float32; takes milliseconds."""
    import torch

    best = 0.0
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.ones(size, size, dtype=dtype)
        a @ a
        for _ in range(repeats):
            began = clock()
            a @ a
            best = max(best, 2 * size**3 / max(clock() - began, 1e-9))
    return best


def dry_run_json(plan: Plan, flops: float) -> dict[str, Any]:
    """The facts as JSON values. flops: speed of this machine, from `matmul_flops`."""
    study, sitemap, space = plan.study, plan.sitemap, plan.space
    searched = study.stop_tokens
    forward_seconds = 2 * sitemap.total_params / (SHARE_OF_MATMUL * flops)
    profiles = 2 + len(study.baselines)
    solving = 2 * sum(
        site.shape[0] * site.shape[1] ** 2 * sum(level not in (DENSE, DROP) for level in levels)
        for site, levels in zip(space.sites, space.levels, strict=True)
    )
    variants = sum(level not in (DENSE, DROP) for levels in space.levels for level in levels)
    return {
        "study": study.name,
        "digest": study.digest,
        "model": plan.ref.name,
        "parameters": sitemap.total_params,
        "sites": dict(Counter(site.kind for site in sitemap.sites)),
        "genes": sum(len(space.choices(gene)) > 1 for gene in range(len(space.genes))),
        "coverage": plan.coverage,
        "coverage_total": plan.coverage_total,
        "without_level": [{"role": role, "parameters": params} for role, params in missed_roles(space)],
        "missed": [{"module": name, "parameters": params} for name, params in sitemap.missed[:5]],
        "dense_bytes": space.dense.bytes,
        "budgets": [
            {
                "text": budget.text,
                "field": budget.field,
                "limit": budget.limit,
                "feasible": interval(space, budget),
                "share_of_dense": budget.limit / budget.spent(space.dense),
            }
            for budget in plan.budgets
        ],
        **_latency(plan),
        "variants": variants,
        "bank_bytes": plan.bank_bytes,
        "matmul_flops_per_second": flops,
        "seconds": {
            "calibration": study.calibration_tokens * forward_seconds * 2,
            "bank": solving / (SHARE_SOLVING * flops),
            "dense_answers": (study.search_tokens + study.heldout_tokens) * forward_seconds,
            "heldout": 2 * profiles * study.heldout_tokens * forward_seconds,
            "search_per_million_tokens": 1e6 * forward_seconds,
            **({"search": 2 * searched * forward_seconds} if searched else {}),
        },
    }


def _latency(plan: Plan) -> dict[str, Any]:
    """What the LatencyTable says, where the study has a latency budget: of the dense model, and of the quickest and slowest profile."""
    if plan.workload is None or plan.table is None:
        return {}
    least, most, dense = (cost.nanoseconds / 1e9 for cost in (plan.space.cheapest, plan.space.dearest, plan.space.dense))
    measured_on = {"table": plan.table.about}
    return {"workload": workload_json(plan.workload) | measured_on, "dense_seconds": dense, "feasible_seconds": [least, most]}


def dry_run_text(plan: Plan, flops: float) -> str:
    """The facts for people."""
    about = dry_run_json(plan, flops)
    sites = ", ".join(f"{count} {kind}" for kind, count in about["sites"].items())
    seconds = about["seconds"]
    lines = [
        f"study       {about['study']} ({about['digest'][:12]})",
        f"model       {about['model']}: {about['parameters']:,} parameters, {about['dense_bytes']:,} bytes dense",
        f"sites       {sites}; {about['genes']} of them free to choose",
        f"coverage    {about['coverage']:.1%} of the parameters outside embeddings and head, {about['coverage_total']:.1%} of all",
    ]
    if about["without_level"]:
        shown = ", ".join(f"{missed['role']} ({missed['parameters']:,})" for missed in about["without_level"])
        lines.append(f"  no level  {shown}")
    if plan.sitemap.input_error:
        lines.append(f"  note      it is not known which sites share an input, so each is calibrated by itself: {plan.sitemap.input_error}")
    if "workload" in about:
        workload, (least, most) = about["workload"], about["feasible_seconds"]
        lines.append(f"workload    {workload['text']}, timed on {workload['table']}")
        dense, span = f"{1e3 * about['dense_seconds']:,.3f} ms {per(workload)}", f"{1e3 * least:,.3f} to {1e3 * most:,.3f} ms"
        lines.append(f"  estimate  the dense model takes {dense}; profiles of this study take {span}")
    for budget in about["budgets"]:
        share = f"{budget['share_of_dense']:.1%} of dense"
        lines.append(f"budget      {budget['text']}: at most {amount(budget['limit'], budget['field'])} ({share})")
        lines.append(f"  feasible  {budget['feasible']}")
    bank = about["bank_bytes"]
    lines.append(f"bank        {about['variants']:,} variants, {bank:,} bytes ({bank / 2**20:.0f} MiB), packed")
    shown = ", ".join(f"{name.replace('_', ' ')} {value:,.0f} s" for name, value in seconds.items())
    lines.append(f"time        estimated from {flops / 1e9:,.0f} GFLOP/s measured now: {shown}")
    return "\n".join(lines)
