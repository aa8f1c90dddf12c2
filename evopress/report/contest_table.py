"""The leaderboard of a contest, from its document: where every entrant ended, what that took, and what the bank took for all of them.

Formats only; measures nothing. Called by `evopress study` and by `leaderboard`, which makes Markdown of it.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from evopress.report.comparison import ranged
from evopress.report.contest_document import Document, Entry, asks_nothing, final_values
from evopress.report.statistics import Interval, interval

COLUMNS = ("entrant", "seeds", "token-forwards", "seconds", "evaluations", "bank seconds", "ended by", "searcher")


@dataclass(frozen=True)
class Standing:
    """One entrant. fitness: mean over seeds at the end, with its interval over held-out documents. The rest: medians over seeds.

    seeds: those it ran with; none for one that asks nothing, which is the same for every seed. reason: why it ended, as often as not.
    """

    label: str
    searcher: str
    fitness: Interval
    tokens: float
    seconds: float
    evaluations: float
    seeds: tuple[int, ...]
    reason: str


def standings(document: Document) -> list[Standing]:
    """Every entrant that has a run, best first."""
    runs: dict[str, list[Entry]] = {}
    for run in document["runs"]:
        runs.setdefault(run["label"], []).append(run)
    return sorted((_standing(document, label, found) for label, found in runs.items()), key=lambda row: row.fitness.mean)


def _standing(document: Document, label: str, runs: Sequence[Entry]) -> Standing:
    heldout = document["heldout"]
    values = [statistics.fmean(column) for column in zip(*map(final_values, runs), strict=True)]
    found = interval(values, heldout["weights"], document["contest"]["seed"], heldout["origins"])
    tokens, seconds, evaluations = (statistics.median(run[key] for run in runs) for key in ("tokens", "seconds", "evaluations"))
    seeds = () if asks_nothing(runs[0]) else tuple(run["seed"] for run in runs)
    reasons = ", ".join(sorted({run["reason"] for run in runs}))
    return Standing(label, runs[0]["searcher"], found, tokens, seconds, evaluations, seeds, reasons)


def header(document: Document) -> tuple[str, ...]:
    """Column names; the second is what was measured."""
    return (COLUMNS[0], f"held-out {fitness_name(document)}", *COLUMNS[1:])


def cells(document: Document, row: Standing) -> tuple[str, ...]:
    """One row as text, in the order of `header`."""
    bank = document["bank"]["seconds"]
    spent = (f"{row.tokens:,.0f}", f"{row.seconds:,.1f}", f"{row.evaluations:,.0f}", "unknown" if bank is None else f"{bank:,.1f}")
    seeds = ", ".join(map(str, row.seeds)) or "any"
    return (row.label, ranged(row.fitness), seeds, *spent, row.reason, row.searcher)


def fitness_name(document: Document) -> str:
    """As axes and columns name it."""
    name: str = document["contest"]["fitness"]
    return {"kl": "KL (nats/token)", "perplexity": "NLL (nats/token)"}.get(name, name)


def title(document: Document) -> str:
    """One line above the table."""
    contest, heldout = document["contest"], document["heldout"]
    limits, methods = ", ".join(contest["budgets"]), ", ".join(contest["methods"])
    quick = "quick, no evidence: " if document["quick"] else ""
    return f"{quick}{document['model']['name']} at {limits}, {methods} · {len(set(heldout['origins']))} held-out documents, 95 % intervals"


def notes(document: Document) -> list[str]:
    """What a reader of the table must know."""
    bank = document["bank"]
    seconds = "a time nobody noted" if bank["seconds"] is None else f"{bank['seconds']:,.0f} s"
    commits = ", ".join(dict.fromkeys(run["commit"] for run in document["runs"]))
    return [
        f"the bank, used by every entrant: {bank['calibration_tokens']:,} calibration tokens, {bank['bytes']:,} bytes, built in {seconds}",
        "token-forwards, seconds and evaluations: of the search alone, median over seeds; a backward pass counts as two forward passes",
        f"measured by commit {commits or 'none yet'}",
    ]


def standing_json(row: Standing) -> dict[str, Any]:
    """A row for programs."""
    found = {"mean": row.fitness.mean, "low": row.fitness.low, "high": row.fitness.high, "n": row.fitness.n}
    names = ("label", "searcher", "tokens", "seconds", "evaluations", "reason")
    return {**{name: getattr(row, name) for name in names}, "seeds": list(row.seeds), "fitness": found}
