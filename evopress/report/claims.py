"""Does a contest show what is claimed of it? Pure functions of its document; every number is computed anew from per-document values.

`tokens`, `seconds`: what the baseline had spent at its end over what the entrant had spent at the first mark where its held-out mean is no
higher than the baseline's at its end. What the baseline reached and spent are means over its seeds, because a seed of one searcher has
nothing in common with the same seed of another; the value is the median over the entrant's seeds, the interval their range. An entrant
that never gets there counts 0. `fitness`: per held-out document, mean over seeds of entrant minus baseline; paired test over documents.
Called by the command line and the tests.
"""

from __future__ import annotations

import math
import operator
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from evopress.report.contest_document import Document, Entry, final_values, mean, runs_of
from evopress.report.statistics import paired

if TYPE_CHECKING:
    from evopress.api.contest import Claim, Contest

State = Literal["holds", "fails", "not measured yet", "quick, no evidence", "not on one machine"]
COMPARE: Mapping[str, Callable[[float, float], bool]] = {">=": operator.ge, ">": operator.gt, "<=": operator.le, "<": operator.lt}


@dataclass(frozen=True)
class Verdict:
    """A claim with what was found. low, high: of the interval. n: seeds, or independent held-out documents.

    with_bank: the value where entrant and baseline both pay for the bank too (None: its cost is not known, or it is a fitness).
    missing: runs that are not there yet, as `label seed`; machines, where seconds were taken on several. note: what a reader must know.
    """

    claim: Claim
    state: State
    value: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0
    p: float | None = None
    with_bank: float | None = None
    missing: tuple[str, ...] = ()
    note: str = ""


def judge(document: Document, contest: Contest) -> list[Verdict]:
    """Every claim of the contest, in order."""
    return [_verdict(document, contest, claim) for claim in contest.claims]


def all_hold(verdicts: Sequence[Verdict]) -> bool:
    """Is every claim measured and true?"""
    return all(verdict.state == "holds" for verdict in verdicts)


def _verdict(document: Document, contest: Contest, claim: Claim) -> Verdict:
    entrants, baselines = (runs_of(document, contest, label) for label in (claim.entrant, claim.baseline))
    missing = tuple(
        f"{label} seed {seed}"
        for label, runs in ((claim.entrant, entrants), (claim.baseline, baselines))
        for seed in contest.seeds
        if seed not in runs
    )
    if missing:
        return Verdict(claim, "not measured yet", missing=missing)
    pairs = [(entrants[seed], baselines[seed]) for seed in contest.seeds]
    machines = {_machine(run) for pair in pairs for run in pair if run["tokens"]}
    if claim.metric == "seconds" and len(machines) > 1:
        return Verdict(claim, "not on one machine", missing=tuple(sorted(machines)))
    found = _difference(document, contest, claim, pairs) if claim.metric == "fitness" else _ratio(document, claim, pairs)
    return replace(found, state="quick, no evidence") if document["quick"] else found


def _machine(run: Entry) -> str:
    """What seconds depend on beside the search: times taken on two machines are not set side by side."""
    about = run["environment"]
    return ", ".join(str(about[key]) for key in ("cpu", "gpu", "device", "threads", "arithmetic") if key in about)


def _difference(document: Document, contest: Contest, claim: Claim, pairs: Sequence[tuple[Entry, Entry]]) -> Verdict:
    ours, theirs = (
        [statistics.fmean(column) for column in zip(*map(final_values, side), strict=True)] for side in zip(*pairs, strict=True)
    )
    test = paired(ours, theirs, document["heldout"]["weights"], contest.study.seed, document["heldout"]["origins"])
    held = _held(claim, test.low, test.high) and (claim.p is None or test.p < claim.p)
    return Verdict(claim, "holds" if held else "fails", test.difference, test.low, test.high, test.n, test.p)


def _ratio(document: Document, claim: Claim, pairs: Sequence[tuple[Entry, Entry]]) -> Verdict:
    bank = document["bank"]["calibration_tokens" if claim.metric == "tokens" else "seconds"]
    target = statistics.fmean(mean(document, baseline, baseline["marks"][-1]["profile"]) for _, baseline in pairs)
    whole = statistics.fmean(baseline[claim.metric] for _, baseline in pairs)
    marks = [first_mark(document, entrant, target) for entrant, _ in pairs]
    spent = [None if mark is None else mark[claim.metric] for mark in marks]
    never = spent.count(None)
    ratios = [_times(whole, own) for own in spent]
    priced = [] if bank is None else [_times(whole + bank, None if own is None else own + bank) for own in spent]
    low, high = min(ratios), max(ratios)
    note = f"not reached with {never} of {len(pairs)} seeds" if never else ""
    value, dearer = statistics.median(ratios), statistics.median(priced) if priced else None
    state: State = "holds" if _held(claim, low, high) else "fails"
    return Verdict(claim, state, value, low, high, len(pairs), None, dearer, note=note)


def _times(baseline: float, entrant: float | None) -> float:
    """How many times less the entrant spent; 0 where it never got there, infinite where it spent nothing."""
    if entrant is None:
        return 0.0
    return baseline / entrant if entrant else math.inf


def first_mark(document: Document, run: Entry, target: float) -> Mapping[str, Any] | None:
    """The first mark of a run at which its held-out mean is at or below `target`; None where there is none."""
    return next((mark for mark in run["marks"] if mean(document, run, mark["profile"]) <= target), None)


def _held(claim: Claim, low: float, high: float) -> bool:
    """Does the end of the interval that is nearest to failing meet the goal?"""
    return COMPARE[claim.comparator](low if claim.comparator in (">=", ">") else high, claim.goal)


# Printing -------------------------------------------------------------------------------------------------------------------------------

HEADER = ("claim", "value", "interval", "n", "goal", "with bank", "verdict")


def claim_cells(verdict: Verdict) -> tuple[str, ...]:
    """A verdict as text, in the order of HEADER."""
    claim = verdict.claim
    goal = f"{claim.comparator} {claim.goal:g}" + (f", p < {claim.p:g}" if claim.p is not None else "")
    if verdict.value is None or verdict.low is None or verdict.high is None:
        return (claim.says, "-", "-", "-", goal, "-", f"{verdict.state}: {_listed(verdict.missing)}")
    digits = 4 if claim.metric == "fitness" else 1
    sign = "+" if claim.metric == "fitness" else ""
    unit = "" if claim.metric == "fitness" else "x"
    value, low, high = (f"{number:{sign}.{digits}f}{unit}" for number in (verdict.value, verdict.low, verdict.high))
    # p is of "the entrant is lower"; beside a claim of another kind it would only mislead.
    says_lower = verdict.p is not None and claim.comparator in ("<", "<=") and claim.goal <= 0
    state = verdict.state + (f", {verdict.note}" if verdict.note else "") + (f", p = {verdict.p:.1e}" if says_lower else "")
    bank = "-" if verdict.with_bank is None else f"{verdict.with_bank:.1f}x"
    n = f"{verdict.n} {'documents' if claim.metric == 'fitness' else 'seeds'}"
    return (claim.says, value, f"[{low}, {high}]", n, goal, bank, state)


def claim_json(verdict: Verdict) -> dict[str, Any]:
    """A verdict for programs; an infinite number as text, for JSON has none."""
    names = ("state", "value", "low", "high", "n", "p", "with_bank", "note")
    found = {name: getattr(verdict, name) for name in names}
    shown = {name: str(value) if isinstance(value, float) and math.isinf(value) else value for name, value in found.items()}
    return {"claim": verdict.claim.model_dump(), **shown, "missing": list(verdict.missing)}


def _listed(missing: Sequence[str]) -> str:
    shown = ", ".join(missing[:4])
    return shown + (f" and {len(missing) - 4} more" if len(missing) > 4 else "")
