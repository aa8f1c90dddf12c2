"""The result of a run as a JSON document: every number of the comparison, and what it traces to. Formats only; measures nothing.

The text, HTML and Markdown tables (`comparison`, `leaderboard`) are made from this document, so a file and a screen never differ.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evopress.report.files import write_text
from evopress.report.latency import latency_json, workload_json
from evopress.report.statistics import Interval

if TYPE_CHECKING:
    from evopress.found import Row, Run
    from evopress.store.rows import RunRow

Document = dict[str, Any]


def result_json(run: Run) -> Document:
    """Everything the table says, and what it traces to: study digest, commits, environments, seed, and the wall time of every execution."""
    totals, workload, budgets = run.outcome.totals, run.plan.workload, run.plan.budgets
    dense = next((row.speed for row in run.rows if row.label == "dense"), {})
    return {
        "study": {"name": run.study.name, "digest": run.study.digest, **run.study.identity},
        "model": run.plan.ref.name,
        "coverage": run.plan.coverage,
        "commit": ", ".join(dict.fromkeys(execution.code_version for execution in run.history)),
        "environment": _environment(run.history[-1]) if run.history else {},
        "executions": [_execution(execution) for execution in run.history],
        "budgets": [{"text": b.text, "field": b.field, "limit": b.limit} for b in budgets],
        "workload": None if workload is None else workload_json(workload),
        "bank": {
            "bytes": run.plan.bank_bytes,
            "calibration_tokens": run.study.calibration_tokens,
            "seconds": None if run.bank_seconds is None else round(run.bank_seconds, 3),
        },
        "known": dict(run.known),
        "search": {
            "evaluations": totals.evaluations,
            "generations": totals.generation,
            "tokens": totals.tokens,
            "flops": 2 * run.plan.sitemap.total_params * totals.tokens,
            "seconds": round(totals.seconds, 3),
            "reason": run.outcome.reason,
            "next_tokens": run.outcome.next_tokens,
        },
        "fitness": run.study.fitness,
        "winner": run.best.label,
        "remarks": dict(run.remarks),
        "rows": [
            _row(row, None if workload is None else latency_json(row.cost, row.speed, workload, budgets, run.plan.space.dense, dense))
            for row in run.rows
        ],
    }


def write_result(run: Run, path: Path) -> None:
    """Write the document, whole or not at all. Raises StorageError."""
    write_json(result_json(run), path, "Everything is in the store: run the same command with another --result.")


def write_json(document: Document, path: Path, hint: str) -> None:
    """Write a document as indented JSON, whole or not at all. hint: as in `write_text`. Raises StorageError."""
    write_text(json.dumps(document, indent=2) + "\n", path, hint)


def perplexity(nll: Interval) -> Interval:
    """Exponential of a mean negative log-likelihood and of its interval's ends."""
    return Interval(math.exp(nll.mean), math.exp(nll.low), math.exp(nll.high), nll.n)


def _environment(execution: RunRow) -> dict[str, Any]:
    return {key: value for key, value in execution.environment.items() if key != "stops"}


def _execution(execution: RunRow) -> dict[str, Any]:
    seconds = None if execution.finished is None else round(execution.finished - execution.started, 1)
    about = {"commit": execution.code_version, "state": execution.state, "wall_seconds": seconds, "stops": execution.environment["stops"]}
    return {**about, "environment": _environment(execution)}


def _interval(found: Interval) -> dict[str, float]:
    return {"mean": found.mean, "low": found.low, "high": found.high, "n": found.n}


def _row(row: Row, latency: Mapping[str, Any] | None) -> dict[str, Any]:
    about: dict[str, Any] = {
        "label": row.label, "profile": row.profile.digest, "bytes": row.cost.bytes, "params": row.cost.params, "bits": row.bits,
        "kl": _interval(row.kl), "perplexity": _interval(perplexity(row.nll)), "search_evaluations": row.search_evaluations,
        "search_tokens": row.search_tokens,
    }  # fmt: skip
    if row.against_uniform is not None:
        gain = row.against_uniform
        about["against_uniform"] = {"difference": gain.difference, "low": gain.low, "high": gain.high, "p": gain.p, "n": gain.n}
    about["speed"] = {
        phase: {"tokens_per_second": s.tokens_per_second, "median_seconds": s.median_seconds, "low_seconds": s.low_seconds,
                "high_seconds": s.high_seconds, "samples": s.samples, "kernels": s.kernel, "device": s.device, "threads": s.threads,
                "tokens": s.tokens}
        for phase, s in row.speed.items()
    }  # fmt: skip
    if latency is not None:
        about["latency"] = dict(latency)
    return about
