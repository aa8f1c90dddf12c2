"""The table a search ends in, from the document of `report.result`: every profile of the comparison at one budget, as text and HTML.

Formats only; measures nothing. `leaderboard` makes Markdown from the same cells.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from evopress.report import latency
from evopress.report.statistics import P_VALUE, Interval, accepted, below

HEADER = (
    "profile",
    "bytes",
    "bits",
    "KL (nats/token)",
    "perplexity",
    "vs uniform",
    "prefill tok/s",
    "decode tok/s",
    "evaluations",
    "tokens",
)

Document = Mapping[str, Any]


def header(document: Document) -> tuple[str, ...]:
    """The columns of a document: HEADER, and what is said of time where its study limits it."""
    return (*HEADER, *(latency.header(document["workload"]) if document.get("workload") else ()))


def cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    """One row of the document as text, in the order of `header`. evaluations, tokens: what finding it took."""
    gain = row.get("against_uniform")
    against = "-" if gain is None else f"{gain['difference']:+.4f} (p={gain['p']:.1e})"
    speeds = (speed(row["speed"][phase]) if phase in row["speed"] else "-" for phase in ("prefill", "decode"))
    spent = (f"{row[key]:,}" if row[key] else "-" for key in ("search_evaluations", "search_tokens"))
    sizes = (f"{row['bytes']:,}", f"{row['bits']:.3f}")
    timed = latency.cells(row["latency"]) if "latency" in row else ()
    if timed and row["label"] == "dense":  # what a share is of
        timed = (*timed[:-1], "-")
    return (row["label"], *sizes, span(row["kl"], 4), span(row["perplexity"], 2), against, *speeds, *spent, *timed)


def span(found: Mapping[str, float], digits: int) -> str:
    """`0.4321 [0.4012, 0.4630]`: mean and 95 % interval of the document."""
    return f"{found['mean']:.{digits}f} [{found['low']:.{digits}f}, {found['high']:.{digits}f}]"


def ranged(found: Interval, digits: int = 4) -> str:
    """As `span`, of an interval."""
    return f"{found.mean:.{digits}f} [{found.low:.{digits}f}, {found.high:.{digits}f}]"


def speed(found: Mapping[str, Any]) -> str:
    """`812 [790, 830]`: median tokens a second, and the interval of the median time turned round."""
    rate, median = float(found["tokens_per_second"]), float(found["median_seconds"])
    return f"{rate:,.0f} [{rate * median / found['high_seconds']:,.0f}, {rate * median / found['low_seconds']:,.0f}]"


def title(document: Document) -> str:
    """One line above the table."""
    told = {"nanoseconds": " by the table"}  # what is allowed in the end is a share of what dense was measured at
    limits = ", ".join(
        f"{budget['text']} ({latency.amount(budget['limit'], budget['field'])}{told.get(budget['field'], '')})"
        for budget in document["budgets"]
    )
    return f"{document['model']} at {limits} · {document['rows'][0]['kl']['n']} held-out documents, 95 % intervals"


def verdict(document: Document) -> str:
    """Does the winner beat uniform? And is it better than what takes no search?"""
    winner = document["winner"]
    gain = next((row.get("against_uniform") for row in document["rows"] if row["label"] == winner), None)
    if gain is None:
        return f"verdict: there is no uniform profile to compare {winner} with"
    verb = "beats uniform" if accepted(gain["difference"], gain["p"]) else "is not shown to beat uniform"
    interval = f"{gain['difference']:+.4f} [{gain['low']:+.4f}, {gain['high']:+.4f}] {document['fitness']}"
    test = f"paired over {gain['n']} documents, p = {gain['p']:.1e}, asked for p < {P_VALUE}"
    differences = {row["label"]: row["against_uniform"]["difference"] for row in document["rows"] if "against_uniform" in row}
    lower = below(differences, winner)
    but = f"; but {lower}, which takes no search, is lower by {differences[winner] - differences[lower]:.4f}" if lower else ""
    return f"verdict: {winner} {verb}: {interval} within the same budget ({test}){but}"


def footnotes(document: Document) -> list[str]:
    """The verdict, what is known of a latency budget, the kernels that ran, the cost of the search, and what a reader must know."""
    rows, winner = document["rows"], document["winner"]
    notes = [verdict(document), *latency.notes(document)]
    notes += [f"kernels, {row['label']}: {row['speed']['decode']['kernels']}" for row in rows if "decode" in row["speed"]]
    search = document["search"]
    flops = f" (at most {search['flops'] / 1e12:,.1f} TFLOP)" if "flops" in search else ""
    notes.append(
        f"search: {search['evaluations']:,} evaluations, {search['tokens']:,} token-forwards{flops},"
        f" {search['seconds']:,.0f} s of measuring,"
        f" ended by: {search['reason']}"
        + ("" if search["reason"] == "finished" else f" (the next question would pass it; {_further(search)}, and repeat the command)")
    )
    notes += _before_the_search(document)
    notes += [f"note: {label}: {remark}" for label, remark in document["remarks"].items()]
    best = next(row["profile"] for row in rows if row["label"] == winner)
    same = [row["label"] for row in rows if row["profile"] == best and row["label"] != winner]
    if same:
        notes.append(f"note: {winner} ended at the profile of {' and '.join(same)}; search longer to go beyond it")
    if search["evaluations"] and not search["generations"]:
        notes.append(f"note: the stop came before the first round, so {winner} is the best of what it started from; {_further(search)}")
    if not search["evaluations"] and search["reason"] != "finished":  # a searcher that measures nothing is finished at once
        notes.append(f"note: nothing was measured in the search, because its stop is smaller than its first question; {_further(search)}")
    return notes


def _further(search: Mapping[str, Any]) -> str:
    """How to let the next question through."""
    wanted = search.get("next_tokens")
    return f"raise --max-tokens to {wanted} or more" if wanted else "raise that stop"


def _before_the_search(document: Document) -> list[str]:
    """What was there when it began, and is not counted in it; files of earlier versions do not tell."""
    notes = []
    if bank := document.get("bank"):
        took = "" if bank["seconds"] is None else f", {bank['seconds']:,.0f} s to build"
        notes.append(
            f"bank, beside the search: {bank['bytes'] / 2**20:,.0f} MiB, calibrated on {bank['calibration_tokens']:,} tokens{took}"
        )
    for need, count in document.get("known", {}).items():
        what = {"known_slopes": "backward passes", "known_trials": "trials"}[need]
        notes.append(f"start: from what {count} {what} of earlier searches told, beside the search (--fresh leaves them out)")
    return notes


def comparison_text(document: Document) -> str:
    """The whole table as plain text."""
    rows: list[Sequence[str]] = [header(document), *(cells(row) for row in document["rows"])]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]) for row in rows]
    lines.insert(1, "-" * len(lines[0]))
    best = next(row["profile"] for row in document["rows"] if row["label"] == document["winner"])
    return "\n".join([title(document), *lines, *footnotes(document), f"its map: evopress profile show {best[:12]}"])


def comparison_html(document: Document) -> str:
    """The table for a notebook."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in header(document))
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells(row)) + "</tr>" for row in document["rows"])
    notes = "<br>".join(map(html.escape, footnotes(document)))
    return f"<table><caption>{html.escape(title(document))}</caption><tr>{head}</tr>{body}</table><p>{notes}</p>"
