"""The table a search ends in: every profile of the comparison at one budget, as text, HTML and JSON. Formats only; measures nothing."""

from __future__ import annotations

import html
import json
import math
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evopress.report.statistics import Interval

if TYPE_CHECKING:
    from evopress.run import Row, Run
    from evopress.store.rows import LatencyRow

HEADER = ("profile", "bytes", "bits", "KL (nats/token)", "perplexity", "vs uniform", "prefill tok/s", "decode tok/s", "search tokens")


def ranged(found: Interval, digits: int = 4) -> str:
    """`0.4321 [0.40, 0.46]`: mean and 95 % interval."""
    return f"{found.mean:.{digits}f} [{found.low:.{digits}f}, {found.high:.{digits}f}]"


def perplexity(nll: Interval) -> Interval:
    """Exponential of a mean negative log-likelihood and of its interval's ends."""
    return Interval(math.exp(nll.mean), math.exp(nll.low), math.exp(nll.high), nll.n)


def cells(row: Row) -> tuple[str, ...]:
    """One row of the table as text, in the order of HEADER."""
    against = "-" if row.against_uniform is None else f"{row.against_uniform.difference:+.4f} (p={row.against_uniform.p:.1e})"
    speeds = tuple(speed(row.speed[phase]) if phase in row.speed else "-" for phase in ("prefill", "decode"))
    tokens = f"{row.search_tokens:,}" if row.search_tokens else "-"
    return (row.label, f"{row.cost.bytes:,}", f"{row.bits:.3f}", ranged(row.kl), ranged(perplexity(row.nll), 2), against, *speeds, tokens)


def speed(found: LatencyRow) -> str:
    """`812 [790, 830]`: median tokens a second and the interval of the median."""
    per_second = found.tokens_per_second * found.median_seconds
    return f"{found.tokens_per_second:,.0f} [{per_second / found.high_seconds:,.0f}, {per_second / found.low_seconds:,.0f}]"


def title(run: Run) -> str:
    """One line above the table."""
    n = run.rows[0].kl.n
    return f"{run.plan.ref.name} · {', '.join(run.study.budgets)} · {n} held-out documents, 95 % intervals"


def footnotes(run: Run) -> list[str]:
    """The kernels that ran, the cost of the search, and the verdict."""
    notes = []
    labels = {row.label: row.speed["decode"].kernel for row in run.rows if "decode" in row.speed}
    notes += [f"kernels, {label}: {kernels}" for label, kernels in labels.items()]
    out = run.outcome.totals
    spent = f"{out.evaluations:,} evaluations, {out.tokens:,} token-forwards, {out.seconds:.0f} s of measuring"
    notes.append(f"search: {spent} ({run.outcome.reason})")
    if run.gain is not None:
        gain = run.gain
        verdict = "beats uniform" if gain.p < 0.01 and gain.difference < 0 else "is not shown to beat uniform"
        notes.append(
            f"verdict: {run.best.label} {verdict}: {gain.difference:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}] {run.study.fitness}"
            f" within the same budget (paired over {gain.n} documents, p = {gain.p:.1e}, asked for p < 0.01)"
        )
    same = [row.label for row in run.rows if row.profile == run.best.profile and row.label != run.best.label]
    if same:
        notes.append(f"note: {run.best.label} ended at the profile of {' and '.join(same)}; search longer to go beyond it")
    if not out.evaluations:
        notes.append("note: nothing was measured in the search, because its stop is smaller than its first question; raise --max-tokens")
    notes.append(f"winner: {run.best.profile.digest[:12]}  (evopress profile show {run.best.profile.digest[:12]})")
    return notes


def comparison_text(run: Run, width: int | None = None) -> str:
    """The whole table as plain text."""
    rows: list[Sequence[str]] = [HEADER, *(cells(row) for row in run.rows)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    lines = ["  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]) for row in rows]
    lines.insert(1, "-" * len(lines[0]))
    return "\n".join([title(run), *lines, *footnotes(run)])


def comparison_html(run: Run) -> str:
    """The table for a notebook."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in HEADER)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells(row)) + "</tr>" for row in run.rows)
    notes = "<br>".join(map(html.escape, footnotes(run)))
    return f"<table><caption>{html.escape(title(run))}</caption><tr>{head}</tr>{body}</table><p>{notes}</p>"


def comparison_json(run: Run) -> dict[str, Any]:
    """Everything the table says, and what it traces to: study digest, commit, environment, seed."""
    from evopress.latency.clock import fingerprint

    return {
        "study": {"name": run.study.name, "digest": run.study.digest, **run.study.identity},
        "model": run.plan.ref.name,
        "commit": ", ".join(run.commits),
        "environment": fingerprint(),
        "budgets": [{"text": b.text, "field": b.field, "limit": b.limit} for b in run.plan.budgets],
        "search": {
            "evaluations": run.outcome.totals.evaluations,
            "tokens": run.outcome.totals.tokens,
            "seconds": round(run.outcome.totals.seconds, 3),
            "reason": run.outcome.reason,
        },
        "winner": run.best.label,
        "rows": [_row_json(row) for row in run.rows],
    }


def write_result(run: Run, path: Path) -> None:
    """Write the comparison as JSON, whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(comparison_json(run), indent=2) + "\n", encoding="utf-8")
    partial.replace(path)


def _interval_json(found: Interval) -> dict[str, float]:
    return {"mean": found.mean, "low": found.low, "high": found.high, "n": found.n}


def _row_json(row: Row) -> dict[str, Any]:
    about: dict[str, Any] = {
        "label": row.label, "profile": row.profile.digest, "bytes": row.cost.bytes, "params": row.cost.params, "bits": row.bits,
        "kl": _interval_json(row.kl), "perplexity": _interval_json(perplexity(row.nll)), "search_tokens": row.search_tokens,
    }  # fmt: skip
    if row.against_uniform is not None:
        gain = row.against_uniform
        about["against_uniform"] = {"difference": gain.difference, "low": gain.low, "high": gain.high, "p": gain.p, "n": gain.n}
    about["speed"] = {
        phase: {"tokens_per_second": s.tokens_per_second, "median_seconds": s.median_seconds, "low_seconds": s.low_seconds,
                "high_seconds": s.high_seconds, "samples": s.samples, "kernels": s.kernel, "device": s.device, "threads": s.threads}
        for phase, s in row.speed.items()
    }  # fmt: skip
    return about


def commit() -> str:
    """Commit of the checkout this package runs from, with `+` for local changes; the package version outside a checkout."""
    from importlib.metadata import version

    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return f"evopress {version('evopress')}"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False, env=environment)
        return done.stdout.strip()

    return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
