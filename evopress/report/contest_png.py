"""A contest as a picture: held-out quality against token-forwards and against seconds. Draws; computes nothing (`curves` does).

Needs matplotlib (extra `plots`). Called by `evopress study compare`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from evopress.api import MissingDependency, StorageError
from evopress.report.contest_document import Document
from evopress.report.contest_table import fitness_name, title
from evopress.report.curves import AXES, Curve, Spent, bank_spent, curves, extent, heights, style
from evopress.report.labels import spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.transforms import Transform

INK, FAINT = "#222222", "#8A8A8A"
LABEL_SHARE = 0.045
"""Height of a label over the height of a panel."""


def check_plots() -> None:
    """Raise MissingDependency where matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingDependency("Drawing a contest needs matplotlib.", "Install it: pip install 'evopress[plots]'.")


def write_png(document: Document, path: Path) -> None:
    """Draw both panels. Raises MissingDependency and StorageError."""
    check_plots()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13.5, 6.4), dpi=150, facecolor="white")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, spent in zip(panels, AXES, strict=True):
        _panel(axes, document, spent)
    panels[0].set_ylabel(f"held-out {fitness_name(document)}, lower is better", color=INK)
    figure.suptitle(f"{document['contest']['name']}: {title(document)}", fontsize=11, color=INK, y=0.985)
    handles, labels = panels[0].get_legend_handles_labels()
    columns = min(len(labels), 8)
    what = "line: median over seeds · band: best to worst seed · diamond and level line: asks nothing · dotted: what the bank took"
    figure.legend(handles, labels, title=what, loc="lower center", ncols=columns, fontsize=8.5, title_fontsize=8.5, frameon=False)
    figure.tight_layout(rect=(0, 0.085 + 0.025 * ((len(labels) - 1) // columns), 1, 0.97), w_pad=2)
    try:
        figure.savefig(path)
    except OSError as error:
        raise StorageError(f"The picture cannot be written to {path}: {error.strerror}.", "Name another folder with --out.") from error


def _panel(axes: Axes, document: Document, spent: Spent) -> None:
    found = curves(document, spent)
    low, high = extent(found, bank_spent(document, spent))
    bottom, top, logarithmic = heights(found)
    axes.set_xscale("log")
    axes.set_yscale("log" if logarithmic else "linear")
    axes.set_xlim(low, high * (high / low) ** 0.22)  # room for the labels at the ends of lines
    axes.set_ylim(bottom, top)
    for number, curve in enumerate(found):
        colour, dashes = style(number)
        line = (0, tuple(map(float, dashes.split()))) if dashes else "solid"
        if curve.level:
            axes.plot([low, high], [curve.middle[0]] * 2, color=colour, linestyle=line, linewidth=1, alpha=0.8, label=curve.label)
            axes.plot([low], [curve.middle[0]], color=colour, marker="D", markersize=5, clip_on=False, zorder=5)
            continue
        x, middle = curve.x, curve.middle
        if curve.seeds > 1:
            axes.fill_between(x, curve.low, curve.high, step="post", color=colour, alpha=0.15, linewidth=0)
        axes.step(x, middle, where="post", color=colour, linestyle=line, linewidth=2, label=curve.label)
        axes.plot(x[-1:], middle[-1:], color=colour, marker="o", markersize=5)
    _bank(axes, document, spent)
    _labels(axes, found, low, high)
    axes.set_xlabel(AXES[spent], color=INK)
    axes.grid(True, which="major", color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK, labelsize=9)
    if logarithmic:
        from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
        axes.yaxis.set_major_formatter(ScalarFormatter())
        axes.yaxis.set_minor_formatter(NullFormatter())


def _bank(axes: Axes, document: Document, spent: Spent) -> None:
    at = bank_spent(document, spent)
    if not at:
        return
    axes.axvline(at, color=FAINT, linestyle=(0, (1, 2)), linewidth=1.2)
    text = f"bank: {at:,.0f} {'calibration tokens' if spent == 'tokens' else 'seconds'}"
    axes.text(at, 1.01, text, va="bottom", ha="center", fontsize=7.5, color=FAINT, transform=axes.get_xaxis_transform())


def _labels(axes: Axes, found: Sequence[Curve], low: float, high: float) -> None:
    """The name of every line beside it: of a level one at the left edge, of another where it ends."""
    levels = [(number, curve) for number, curve in enumerate(found) if curve.level]
    paths = [(number, curve) for number, curve in enumerate(found) if not curve.level]
    up = axes.transData + axes.transAxes.inverted()
    for rows, left in ((levels, True), (paths, False)):
        # The ends of lines crowd at the right: one column of labels there, each joined to its end by a thin line.
        wanted = [up.transform((low, curve.middle[-1]))[1] for _, curve in rows]
        for (number, curve), place in zip(rows, spread(wanted, LABEL_SHARE, 0.02, 0.97), strict=True):
            colour = style(number)[0]
            if left:
                _text(axes, f"  {curve.label}", 0.012, place + 0.004, colour, "bottom", axes.transAxes)
                continue
            at = up.transform((high * (high / low) ** 0.03, bottom_of(axes)))[0]
            end = up.transform((curve.x[-1], curve.middle[-1]))
            axes.plot([end[0], at - 0.004], [end[1], place], color=colour, linewidth=0.6, alpha=0.6, transform=axes.transAxes)
            _text(axes, curve.label, at, place, colour, "center", axes.transAxes)


def bottom_of(axes: Axes) -> float:
    """Lower end of the vertical axis."""
    return float(axes.get_ylim()[0])


def _text(axes: Axes, text: str, x: float, y: float, colour: str, va: str, transform: Transform) -> None:
    back = {"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.6}
    axes.text(x, y, text, color=colour, fontsize=8.5, va=va, ha="left", transform=transform, bbox=back, zorder=6)
