"""A contest as a page: the panels of `contest_png` to look into, and its leaderboard. One file that needs nothing else.

Drawn as SVG by hand with a few lines of script: a plotting library inlined makes every page several megabytes. Without scripts the page
still shows everything, but hides no entrant. Computes nothing (`curves` does). Called by `evopress study compare`.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from evopress.api import StorageError
from evopress.report.contest_document import Document
from evopress.report.contest_table import cells, fitness_name, header, notes, standings, title
from evopress.report.curves import AXES, Curve, Spent, bank_spent, curves, extent, heights, style
from evopress.report.labels import spread

WIDTH, HEIGHT = 640, 460
LEFT, RIGHT, TOP, BOTTOM = 58, 128, 26, 44
LABEL_PIXELS = 14.0
STYLE = """
body{font:14px system-ui,sans-serif;color:#222;margin:1.5em;max-width:1340px}h1{font-size:1.1em}svg{width:49%;min-width:420px;height:auto}
svg text{font-size:12px}.grid{stroke:#ddd}.faint{fill:#777}.off{display:none}table{border-collapse:collapse;font-size:13px}
td,th{padding:.25em .7em;text-align:right;border-bottom:1px solid #ddd}
td:first-child,th:first-child,td:last-child,th:last-child{text-align:left}button svg{width:26px;height:10px;min-width:0}
button{font:inherit;font-size:13px;border:1px solid #ccc;background:#fff;border-radius:4px;margin:.15em;padding:.2em .6em;cursor:pointer}
button.hidden{opacity:.35}#tip{position:fixed;background:#222;color:#fff;padding:.3em .6em;border-radius:4px;font-size:12px;display:none;
white-space:pre;pointer-events:none}circle{cursor:crosshair}p{max-width:75em}
"""
SCRIPT = """
const tip=document.getElementById("tip");
for(const mark of document.querySelectorAll("[data-tip]")){
 mark.querySelector("title")?.remove();
 mark.onmousemove=e=>{tip.textContent=mark.dataset.tip;tip.style.display="block";tip.style.left=Math.min(e.clientX+12,innerWidth-260)+"px";
  tip.style.top=e.clientY+12+"px"};
 mark.onmouseleave=()=>tip.style.display="none"}
for(const button of document.querySelectorAll("button"))button.onclick=()=>{
 const off=button.classList.toggle("hidden");
 for(const drawn of document.querySelectorAll(`[data-entrant="${button.dataset.shows}"]`))drawn.classList.toggle("off",off)}
"""


@dataclass(frozen=True)
class Panel:
    """Where values stand on the page. x, y: value -> pixel."""

    x: Callable[[float], float]
    y: Callable[[float], float]
    x_ticks: Sequence[float]
    y_ticks: Sequence[float]


def write_html(document: Document, path: Path) -> None:
    """Write the page. Raises StorageError."""
    try:
        path.write_text(page(document), encoding="utf-8")
    except OSError as error:
        raise StorageError(f"The page cannot be written to {path}: {error.strerror}.", "Name another folder with --out.") from error


def page(document: Document) -> str:
    """The whole page."""
    name = html.escape(document["contest"]["name"])
    found = curves(document, "tokens")
    buttons = "".join(
        f'<button data-shows="{number}"><svg viewBox="0 0 26 10">{_line(number, 0, 5, 26, 5)}</svg> {html.escape(curve.label)}</button>'
        for number, curve in enumerate(found)
    )
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header(document))
    rows = [cells(document, row) for row in standings(document)]
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    told = "<br>".join(map(html.escape, notes(document)))
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{name}</title><style>{STYLE}</style><h1>{name}</h1>'
        f"<p>{html.escape(title(document))}. Lines: median over seeds; bands: best to worst seed; a level line asks nothing. "
        f"Point at a mark for its numbers; a button hides an entrant.</p><div>{buttons}</div>"
        f"{''.join(_panel(document, spent) for spent in AXES)}"
        f"<table><tr>{head}</tr>{body}</table><p>{told}</p><div id=tip></div><script>{SCRIPT}</script></html>\n"
    )


def _panel(document: Document, spent: Spent) -> str:
    found = curves(document, spent)
    bank = bank_spent(document, spent)
    panel = _scales(found, bank)
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    drawn = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="held-out fitness against {spent}">']
    for tick in panel.y_ticks:
        drawn.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{panel.y(tick):.1f}" y2="{panel.y(tick):.1f}"/>')
        drawn.append(f'<text x="{LEFT - 6}" y="{panel.y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for tick in panel.x_ticks:
        drawn.append(f'<line class="grid" y1="{TOP}" y2="{bottom}" x1="{panel.x(tick):.1f}" x2="{panel.x(tick):.1f}"/>')
        drawn.append(f'<text x="{panel.x(tick):.1f}" y="{bottom + 16}" text-anchor="middle">{_short(tick)}</text>')
    if bank:
        at, unit = panel.x(bank), "calibration tokens" if spent == "tokens" else "seconds"
        drawn.append(f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{bottom}" stroke="#888" stroke-dasharray="1 3"/>')
        drawn.append(f'<text class="faint" x="{at:.1f}" y="{TOP - 6}" text-anchor="middle">bank: {bank:,.0f} {unit}</text>')
    drawn += [_entrant(number, curve, panel, spent) for number, curve in enumerate(found)]
    drawn += _labels(found, panel)
    drawn.append(f'<text x="{(LEFT + right) / 2}" y="{HEIGHT - 8}" text-anchor="middle">{AXES[spent]}</text>')
    what = html.escape(f"held-out {fitness_name(document)}, lower is better")
    drawn.append(f'<text transform="translate(13 {(TOP + bottom) / 2}) rotate(-90)" text-anchor="middle">{what}</text></svg>')
    return "".join(drawn)


def _entrant(number: int, curve: Curve, panel: Panel, spent: Spent) -> str:
    colour, dashes = style(number)
    x, y = [panel.x(max(at, 1e-9)) for at in curve.x], [panel.y(value) for value in curve.middle]
    parts = [f'<g data-entrant="{number}">']
    if curve.level:
        tip = _tip(curve, 0, spent)
        line = _line(number, LEFT, y[0], WIDTH - RIGHT, y[0], 1)
        parts.append(f'{line}<circle cx="{LEFT}" cy="{y[0]:.1f}" r="4" fill="{colour}" data-tip="{tip}"><title>{tip}</title></circle></g>')
        return "".join(parts)
    if curve.seeds > 1:
        low, high = (_steps(x, [panel.y(value) for value in side]) for side in (curve.low, curve.high))
        outline = " ".join(f"{a:.1f},{b:.1f}" for a, b in [*low, *reversed(high)])
        parts.append(f'<polygon points="{outline}" fill="{colour}" opacity=".15"/>')
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in _steps(x, y))
    parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2" stroke-dasharray="{dashes}"/>')
    for at in range(len(x)):
        tip = _tip(curve, at, spent)
        size = 4 if at == len(x) - 1 else 2.5
        parts.append(f'<circle cx="{x[at]:.1f}" cy="{y[at]:.1f}" r="{size}" fill="{colour}" data-tip="{tip}"><title>{tip}</title></circle>')
    return "".join([*parts, "</g>"])


def _labels(found: Sequence[Curve], panel: Panel) -> list[str]:
    """Names beside the lines: of level ones inside at the left, of others in a column at the right, joined to their ends."""
    drawn = []
    for level in (True, False):
        rows = [(number, curve) for number, curve in enumerate(found) if curve.level == level]
        wanted = [panel.y(curve.middle[-1]) for _, curve in rows]
        for (number, curve), y in zip(rows, spread(wanted, LABEL_PIXELS, TOP + 10, HEIGHT - BOTTOM - 4), strict=True):
            colour = style(number)[0]
            x = LEFT + 8 if level else WIDTH - RIGHT + 14
            join = "" if level else (
                f'<line x1="{panel.x(max(curve.x[-1], 1e-9)):.1f}" y1="{panel.y(curve.middle[-1]):.1f}" x2="{x - 2}" y2="{y:.1f}" '
                f'stroke="{colour}" stroke-width=".6" opacity=".6"/>'
            )  # fmt: skip
            text = f'<text x="{x}" y="{y - 4 if level else y + 4:.1f}" fill="{colour}">{html.escape(curve.label)}</text>'
            drawn.append(f'<g data-entrant="{number}">{join}{text}</g>')
    return drawn


def _tip(curve: Curve, at: int, spent: Spent) -> str:
    band = f" [{curve.low[at]:.4f}, {curve.high[at]:.4f}] over {curve.seeds} seeds" if curve.seeds > 1 else ""
    unit = "token-forwards" if spent == "tokens" else "seconds"
    return html.escape(f"{curve.label}: {curve.middle[at]:.4f}{band}\n{curve.x[at]:,.{0 if spent == 'tokens' else 1}f} {unit}", quote=True)


def _line(number: int, x1: float, y1: float, x2: float, y2: float, width: float = 2) -> str:
    colour, dashes = style(number)
    ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {ends} stroke="{colour}" stroke-width="{width}" stroke-dasharray="{dashes}"/>'


def _steps(x: Sequence[float], y: Sequence[float]) -> list[tuple[float, float]]:
    """Corners of a line that holds each value until the next."""
    corners = [(x[0], y[0])]
    for at in range(1, len(x)):
        corners += [(x[at], y[at - 1]), (x[at], y[at])]
    return corners


def _scales(found: Sequence[Curve], bank: float | None) -> Panel:
    low, high = extent(found, bank)
    bottom, top, logarithmic = heights(found)

    def x(value: float) -> float:
        share = math.log(max(value, low) / low) / math.log(high / low)
        return LEFT + share * (WIDTH - RIGHT - LEFT)

    def y(value: float) -> float:
        share = math.log(value / bottom) / math.log(top / bottom) if logarithmic else (value - bottom) / (top - bottom)
        return HEIGHT - BOTTOM - share * (HEIGHT - BOTTOM - TOP)

    return Panel(x, y, log_ticks(low, high), log_ticks(bottom, top) if logarithmic else even_ticks(bottom, top))


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten within, and their doubles and halves where there would be fewer than four."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0)):
        ticks = [factor * 10.0**power for power in powers for factor in factors if low <= factor * 10.0**power <= high]
        if len(ticks) >= 4:
            break
    return ticks


def even_ticks(low: float, high: float) -> list[float]:
    """About six round numbers within."""
    step = 10.0 ** math.floor(math.log10((high - low) / 5))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= 7)
    return [round(step * number, 12) for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _short(value: float) -> str:
    """`30k`, `2M`, `0.5`."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"
