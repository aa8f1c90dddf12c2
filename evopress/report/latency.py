"""What a comparison says of time where its study limits it: estimated by the LatencyTable, measured as a whole model, and the budget.

Formats only; measures nothing. Called by `result`, `comparison` and `dry_run`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evopress.api import Budget, Cost
    from evopress.api.workload import Workload
    from evopress.store import LatencyRow

Document = Mapping[str, Any]


def amount(value: int, field: str) -> str:
    """`31.144 ms` of nanoseconds, `98,432 bytes` of anything else."""
    return f"{value / 1e6:,.3f} ms" if field == "nanoseconds" else f"{value:,} {field}"


def per(workload: Mapping[str, Any]) -> str:
    """What one pass is: `a token` of one sequence that is decoded, `a step of 4 tokens` of several, `a prompt`."""
    if workload["phase"] == "prefill":
        return "a prompt" if workload["batch"] == 1 else f"{workload['batch']} prompts"
    return "a token" if workload["batch"] == 1 else f"a step of {workload['batch']} tokens"


def workload_json(workload: Workload) -> dict[str, Any]:
    """The workload of a study's latency budgets."""
    return {"text": str(workload), "phase": workload.phase, "batch": workload.batch, "context": workload.context}


def latency_json(
    cost: Cost, speed: Mapping[str, LatencyRow], workload: Workload, budgets: Sequence[Budget], dense_cost: Cost,
    dense: Mapping[str, LatencyRow],
) -> dict[str, Any]:  # fmt: skip
    """Seconds of one pass of the workload, estimated and (where the profile was timed) measured.

    error: of the estimate, relative to the measurement; below zero where the table promises too much. limit_seconds: the least that a
    latency budget allows, a share being of the dense model's measured time where there is one. meets_budget: is the measured median within
    it? sure: does the interval of the median lie on that side as a whole? dense: what was timed of the dense model.
    """
    of_dense = _passes(dense.get(workload.phase), workload)
    limits = [one.allowed_seconds(dense_cost.nanoseconds, of_dense and of_dense[1]) for one in budgets if one.field == "nanoseconds"]
    limit, estimated = min(limits), cost.nanoseconds / 1e9
    found: dict[str, Any] = {"estimated_seconds": estimated, "limit_seconds": limit}
    own = _passes(speed.get(workload.phase), workload)
    if own is None:
        return found
    low, median, high = own
    met = median <= limit
    found |= {"measured_seconds": median, "low_seconds": low, "high_seconds": high, "error": estimated / median - 1}
    return found | {"meets_budget": met, "sure": high <= limit if met else low > limit}


def _passes(row: LatencyRow | None, workload: Workload) -> tuple[float, float, float] | None:
    """Seconds of one pass, low, median and high."""
    if row is None:
        return None
    passes = row.tokens if workload.phase == "decode" else 1
    return row.low_seconds / passes, row.median_seconds / passes, row.high_seconds / passes


def header(workload: Mapping[str, Any]) -> tuple[str, ...]:
    """Columns beside those of every comparison."""
    return (f"table, ms {per(workload)}", f"measured, ms {per(workload)}", "table too high by", "in budget")


def cells(latency: Mapping[str, Any]) -> tuple[str, ...]:
    """One row's, in the order of `header`: `31.20`, `32.00 [31.80, 32.30]`, `-2.5%`, `no`; a `?` where the interval holds the limit."""
    estimated = f"{1e3 * latency['estimated_seconds']:,.2f}"
    if "measured_seconds" not in latency:
        return (estimated, "-", "-", "-")
    low, median, high = (f"{1e3 * latency[key]:,.2f}" for key in ("low_seconds", "measured_seconds", "high_seconds"))
    answer = ("yes" if latency["meets_budget"] else "no") + ("" if latency["sure"] else "?")
    return (estimated, f"{median} [{low}, {high}]", f"{latency['error']:+.1%}", answer)


def notes(document: Document) -> list[str]:
    """What the columns are, what the table says of the winner, and a warning where the winner was measured above the budget."""
    workload = document.get("workload")
    if not workload:
        return []
    rows = {row["label"]: row for row in document["rows"]}
    label = document["winner"]
    own = rows[label]["latency"]
    texts = [budget["text"] for budget in document["budgets"] if budget["field"] == "nanoseconds"]
    wanted = ", ".join(texts)
    limit = f"{1e3 * own['limit_seconds']:,.2f} ms {per(workload)} ({wanted})"
    if "measured_seconds" not in own:
        return [
            f"latency, {workload['text']}: the table says {1e3 * own['estimated_seconds']:,.2f} ms of {label}, within {limit}; nothing was"
            " timed, so whether it takes that long is not known"
        ]
    said = f"table says {1e3 * own['estimated_seconds']:,.2f} ms, measured {1e3 * own['measured_seconds']:,.2f} ms ({own['error']:+.1%})"
    turns = f"all are measured in turns as whole models, a share is of dense in these, so the budget is {limit}; ?: the interval holds it"
    found = [f"latency, {workload['text']}: {label}: {said}; {turns}"]
    if not own["sure"]:
        found.append(f"note: the interval of the measured time of {label} holds the budget of {limit}: time it again to be sure")
    if not own["meets_budget"]:
        _, comma, options = texts[0].partition(",")
        ratio = own["measured_seconds"] / own["limit_seconds"]
        dense = rows.get("dense", {}).get("latency", {}).get("measured_seconds")
        beside = "" if dense is None else f", and {own['measured_seconds'] / dense:.3f} times the dense model's, measured in the same turns"
        takes = f"{1e3 * own['measured_seconds']:,.2f} ms, and {limit} is allowed"
        again = f"time the kernels again: evopress kernels bench --workload {document['workload']['text']} with every --format of the study"
        advice = f"Ask for less (latency={_lower(own)}{comma}{options}), or {again}" if own["sure"] else f"On a quiet machine, {again}"
        found.append(
            f"WARNING: {label} takes {ratio:.3f} times its latency budget when measured: {takes}{beside}. {advice}. The exit code does not"
            " tell: --require-gain judges accuracy alone"
        )
    return found


def _lower(own: Mapping[str, Any]) -> str:
    """A budget that the measured time would have met if the table is as far off again, in ms."""
    return f"{1e3 * own['limit_seconds'] * own['estimated_seconds'] / own['measured_seconds']:.3g}ms"
