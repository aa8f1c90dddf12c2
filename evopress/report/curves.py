"""Quality on the way: per entrant the held-out mean against what was spent, as a median over seeds with a band from best to worst.

Pure functions of a contest's document; draws nothing. Called by `contest_png` and `contest_html`.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from evopress.report.contest_document import Document, Entry, asks_nothing, mean

Spent = Literal["tokens", "seconds"]


LOGARITHMIC = 4.0
"""Worst over best from which on the vertical axis is logarithmic."""


@dataclass(frozen=True)
class Curve:
    """One entrant. x: what was spent, rising. middle, low, high: median, best and worst over seeds of the held-out mean there.

    A value holds until the next: curves are steps. level: True for an entrant that asks nothing, whose one value holds everywhere.
    """

    label: str
    x: tuple[float, ...]
    middle: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    seeds: int
    level: bool


def curves(document: Document, spent: Spent) -> list[Curve]:
    """A curve for every entrant with a run, in the order of the document."""
    runs: dict[str, list[Entry]] = {}
    for run in document["runs"]:
        runs.setdefault(run["label"], []).append(run)
    return [_curve(document, label, found, spent) for label, found in runs.items()]


def _curve(document: Document, label: str, runs: Sequence[Entry], spent: Spent) -> Curve:
    paths = [[(float(mark[spent]), mean(document, run, mark["profile"])) for mark in run["marks"]] for run in runs]
    # A median over all seeds needs a value of each; the shortest search is drawn on at where it ended.
    start, end = max(path[0][0] for path in paths), max(path[-1][0] for path in paths)
    x = sorted({at for path in paths for at, _ in path if start <= at <= end} | {start})
    values = [[_at(path, place) for path in paths] for place in x]
    middle, low, high = tuple(map(statistics.median, values)), tuple(map(min, values)), tuple(map(max, values))
    return Curve(label, tuple(x), middle, low, high, len(runs), all(map(asks_nothing, runs)))


def _at(path: Sequence[tuple[float, float]], x: float) -> float:
    """The value of the last mark at or before x."""
    return [value for at, value in path if at <= x][-1]


def extent(found: Sequence[Curve], bank: float | None) -> tuple[float, float]:
    """Ends of a logarithmic axis that shows what every entrant spent who searched, and what the bank took, with a little room."""
    places = [at for curve in found if not curve.level for at in curve.x if at > 0] + ([bank] if bank else [])
    if not places:
        return 1.0, 10.0
    return min(places) / 1.6, max(places) * 1.15


def heights(found: Sequence[Curve]) -> tuple[float, float, bool]:
    """Ends of the vertical axis with a little room, and whether it is logarithmic: where the worst is several times the best."""
    low, high = min(min(curve.low) for curve in found), max(max(curve.high) for curve in found)
    if low > 0 and high / low > LOGARITHMIC:
        room = (high / low) ** 0.05
        return low / room, high * room, True
    room = 0.06 * ((high - low) or abs(high) or 1.0)
    return low - room, high + room, False


def bank_spent(document: Document, spent: Spent) -> float | None:
    """What the bank took, in the unit of the axis; None where it is not known."""
    bank: Mapping[str, Any] = document["bank"]
    found = bank["calibration_tokens"] if spent == "tokens" else bank["seconds"]
    return None if found is None else float(found)


AXES: Mapping[Spent, str] = {"tokens": "token-forwards of the search", "seconds": "seconds of the search (measuring and thinking)"}
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#8A6D00", "#7F3C8D", "#5A5A5A")
"""Okabe and Ito (2008), which the colour-blind tell apart, without their yellow, too pale on white; then three darker ones."""
DASHES = ("", "6 3", "2 2", "8 2 2 2")
"""Told apart by more than colour once the colours run out, as SVG dash arrays."""


def style(number: int) -> tuple[str, str]:
    """Colour and dashes of the so-many-th entrant."""
    return COLOURS[number % len(COLOURS)], DASHES[(number // len(COLOURS)) % len(DASHES)]
