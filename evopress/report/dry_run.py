"""What `--dry-run` prints: sites, coverage, feasible interval, bank size and an estimate of time, from the configuration alone."""

from __future__ import annotations

from collections import Counter
from typing import Any

from evopress.api import DENSE, DROP
from evopress.api.budget import interval
from evopress.plan import Plan

FORWARD_FLOPS_PER_WEIGHT = 2
ASSUMED_FLOPS = 2e11
"""Assumed speed, a modest CPU; the estimate is scaled by it and says so. Measuring would need weights of the model's size."""


def dry_run_json(plan: Plan) -> dict[str, Any]:
    """The facts as JSON values."""
    study, sitemap, space = plan.study, plan.sitemap, plan.space
    searched = study.stop_tokens
    weights = sitemap.total_params
    forward_seconds = FORWARD_FLOPS_PER_WEIGHT * weights / ASSUMED_FLOPS
    profiles = 2 + len(study.baselines)
    levels = sum(level not in (DENSE, DROP) for levels in space.levels for level in levels)
    return {
        "study": study.name,
        "digest": study.digest,
        "model": plan.ref.name,
        "parameters": sitemap.total_params,
        "sites": dict(Counter(site.kind for site in sitemap.sites)),
        "genes": sum(len(space.choices(gene)) > 1 for gene in range(len(space.genes))),
        "coverage": sitemap.coverage,
        "coverage_total": sitemap.coverage_total,
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
        "variants": levels,
        "bank_bytes": plan.bank_bytes,
        "assumed_flops_per_second": ASSUMED_FLOPS,
        "seconds": {
            "calibration": study.calibration_tokens * forward_seconds * 2,
            "dense_answers": (study.search_tokens + study.heldout_tokens) * forward_seconds,
            "heldout": 2 * profiles * study.heldout_tokens * forward_seconds,
            "search_per_million_tokens": 1e6 * forward_seconds,
            **({"search": 2 * searched * forward_seconds} if searched else {}),
        },
    }


def dry_run_text(plan: Plan) -> str:
    """The facts for people."""
    about = dry_run_json(plan)
    sites = ", ".join(f"{count} {kind}" for kind, count in about["sites"].items())
    seconds = about["seconds"]
    lines = [
        f"study       {about['study']} ({about['digest'][:12]})",
        f"model       {about['model']}: {about['parameters']:,} parameters, {about['dense_bytes']:,} bytes dense",
        f"sites       {sites}; {about['genes']} of them free to choose",
        f"coverage    {about['coverage']:.1%} of the parameters outside embeddings and head, {about['coverage_total']:.1%} of all",
    ]
    for budget in about["budgets"]:
        share = f"{budget['share_of_dense']:.1%} of dense"
        lines.append(f"budget      {budget['text']}: at most {budget['limit']:,} {budget['field']} ({share})")
        lines.append(f"  feasible  {budget['feasible']}")
    bank = about["bank_bytes"]
    lines.append(f"bank        {about['variants']:,} variants, {bank:,} bytes ({bank / 2**20:.0f} MiB), packed")
    shown = ", ".join(f"{name.replace('_', ' ')} {value:,.0f} s" for name, value in seconds.items())
    lines.append(f"time        at an assumed {ASSUMED_FLOPS / 1e9:,.0f} GFLOP/s: {shown}; solving the bank comes on top")
    return "\n".join(lines)
