"""Does a speed study show what is claimed of it? Pure functions of its document.

Ratios of formats, times and KL are computed anew from samples; duels with peers and floors are those that the bench took of its own. A
claim on kernels must hold at every shape: the value is the worst of them, and its interval decides. Called by the command line and tests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from evopress.latency.clock import Timing
from evopress.latency.table import OURS
from evopress.report.claims import COMPARE
from evopress.report.statistics import paired

if TYPE_CHECKING:
    from evopress.api.speed_study import SpeedClaim

Document = Mapping[str, Any]
State = Literal["holds", "fails", "not measured yet"]
HEADER = ("claim", "value", "95% interval", "n", "goal", "verdict")


@dataclass(frozen=True)
class Finding:
    """A claim with what was found. low, high: interval of the value. n: samples, profiles or documents. note: where it is from."""

    claim: SpeedClaim
    state: State
    value: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0
    note: str = ""


def judge_speed(document: Document, claims: Sequence[SpeedClaim]) -> list[Finding]:
    """Every claim, in order."""
    return [_verdict(claim, _found(document, claim)) for claim in claims]


Found = tuple[float, float, float, int, str]


def _verdict(claim: SpeedClaim, found: Sequence[Found] | Finding) -> Finding:
    if isinstance(found, Finding):
        return found
    if not found:
        return Finding(claim, "not measured yet")
    upward = claim.comparator in (">=", ">")
    value, low, high, n, note = min(found, key=lambda one: one[1]) if upward else max(found, key=lambda one: one[2])
    state: State = "holds" if COMPARE[claim.comparator](low if upward else high, claim.goal) else "fails"
    return Finding(claim, state, value, low, high, n, note)


def _found(document: Document, claim: SpeedClaim) -> list[Found] | Finding:
    """What bears on the claim; the finding itself where there is nothing to compare."""
    if claim.metric == "peers":
        return [
            (*_span(duel["times_as_fast"]), duel["samples"], f"{_shape(duel)} against {duel['peer']}")
            for duel in document.get("against_peers", ())
            if duel["format"] == claim.of
        ]
    if claim.metric in ("floor", "times"):
        return _of_rows(document.get("rows", ()), claim)
    if claim.metric == "table":
        errors = [abs(one["error"]) for one in document.get("check", ())]
        if not errors:
            return []
        spread = Timing.of(errors)
        return [(spread.median, spread.low, spread.high, spread.n, f"largest {max(errors):.3f}")]
    return _of_frontier(document, claim)


def _of_rows(rows: Sequence[Document], claim: SpeedClaim) -> list[Found]:
    found: list[Found] = []
    for row in rows:
        if row["format"] != claim.of or not row["kernel"].startswith(OURS):
            continue
        if claim.metric == "floor":
            floor, times = row["floor_seconds"], row
            found.append((
                floor / times["median_seconds"], floor / times["high_seconds"], floor / times["low_seconds"], row["samples"], _shape(row)
            ))  # fmt: skip
            continue
        for other in rows:
            same = all(other[key] == row[key] for key in ("shape", "tokens", "dtype")) and other["format"] == claim.than
            if same and (other["kernel"].startswith(OURS) or claim.than == "dense"):
                found.append((*_ratio(other["seconds"], row["seconds"]), len(row["seconds"]), _shape(row)))
    return found


def _of_frontier(document: Document, claim: SpeedClaim) -> list[Found] | Finding:
    rows = {row["label"]: row for row in document.get("rows", ())}
    own, dense = rows.get(claim.of), rows.get("dense")
    if own is None or dense is None:
        return []
    if claim.metric == "time":
        return [(*_ratio(own["seconds"], dense["seconds"]), len(own["seconds"]), "of the dense model, in the same rounds")]
    limit = claim.within or 1.0
    taken = _ratio(own["seconds"], dense["seconds"])[0]
    if taken > limit:
        return Finding(claim, "fails", n=len(own["seconds"]), note=f"it takes {taken:.3f} of the dense model's time itself")
    # A rival is whatever may keep the time by the interval of its own measurement.
    kind = [row for row in rows.values() if row["kind"] == claim.than]
    rivals = [row for row in kind if _ratio(row["seconds"], dense["seconds"])[1] <= limit]
    if not kind:
        return []
    if not rivals:
        return Finding(claim, "holds", n=len(kind), note=f"none of {len(kind)} is as fast")
    best = min(rivals, key=lambda row: row["kl"]["mean"])
    test = paired(own["kl"]["values"], best["kl"]["values"], document["heldout"]["weights"], 0, document["heldout"]["origins"])
    return [(test.difference, test.low, test.high, test.n, f"against {best['label']} at {best['kl']['mean']:.4f}, p {test.p:.1e}")]


def _ratio(numerator: Sequence[float], denominator: Sequence[float]) -> tuple[float, float, float]:
    found = Timing.of([a / b for a, b in zip(numerator, denominator, strict=True)])
    return found.median, found.low, found.high


def _span(found: Mapping[str, float]) -> tuple[float, float, float]:
    return found["median"], found["low"], found["high"]


def _shape(row: Document) -> str:
    return f"{row['shape'][0]}x{row['shape'][1]}"


def speed_cells(finding: Finding) -> tuple[str, ...]:
    """A finding as text, in the order of HEADER."""
    claim = finding.claim
    goal = f"{claim.comparator} {claim.goal:g}"
    if finding.value is None or finding.low is None or finding.high is None:
        return (claim.says, "-", "-", str(finding.n or "-"), goal, "; ".join(filter(None, (finding.state, finding.note))))
    digits = ".5f" if claim.metric == "kl" else ".3f" if claim.metric in ("table", "time") else ".2f"
    value, low, high = (f"{number:{digits}}" for number in (finding.value, finding.low, finding.high))
    return (claim.says, value, f"[{low}, {high}]", str(finding.n), goal, f"{finding.state}; {finding.note}")


def speed_json(finding: Finding) -> dict[str, Any]:
    """A finding for programs."""
    return {"claim": finding.claim.model_dump(), **{key: getattr(finding, key) for key in ("state", "value", "low", "high", "n", "note")}}
