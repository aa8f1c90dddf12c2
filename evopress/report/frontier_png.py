"""A frontier as a picture: held-out KL against measured speed, every uniform choice, every winner, and the Pareto front. Draws only.

Needs matplotlib (extra `plots`). Called by `evopress study compare` on a speed study.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evopress.api import StorageError
from evopress.report.contest_png import FAINT, INK, check_plots

Row = Mapping[str, Any]
STYLES = {
    "uniform": ("one level everywhere", "o", "#8A8A8A"),
    "size": ("searched under a size", "s", "#C8741A"),
    "latency": ("searched under a time", "D", "#1F5FA8"),
}


def front(rows: Sequence[Row]) -> list[Row]:
    """Rows that no other beats in both KL and time, slowest first."""
    best: list[Row] = []
    for row in sorted(rows, key=lambda row: (row["median_seconds"], row["kl"]["mean"])):
        if not best or row["kl"]["mean"] < best[-1]["kl"]["mean"]:
            best.append(row)
    return best[::-1]


def write_frontier(document: Mapping[str, Any], path: Path) -> None:
    """Draw the picture. Raises MissingDependency and StorageError."""
    check_plots()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 6.0), dpi=150, facecolor="white")
    axes = figure.subplots()
    rows = [row for row in document["rows"] if row["kind"] in STYLES]
    for kind, (label, marker, colour) in STYLES.items():
        own = [row for row in rows if row["kind"] == kind]
        if not own:
            continue
        speeds = [row["tokens_per_second"] for row in own]
        tokens = [row["tokens_per_second"] * row["median_seconds"] for row in own]
        low = [s - t / row["high_seconds"] for s, t, row in zip(speeds, tokens, own, strict=True)]
        high = [t / row["low_seconds"] - s for s, t, row in zip(speeds, tokens, own, strict=True)]
        means = [row["kl"]["mean"] for row in own]
        axes.errorbar(speeds, means, xerr=[low, high], fmt=marker, color=colour, ms=6, elinewidth=1, label=label, zorder=3)
        for row, speed, mean in zip(own, speeds, means, strict=True):
            # One level's name to the left and a searched profile's to the right: those that are near each other do not meet.
            place, side = ((6, -12), "left") if row["kind"] != "uniform" else ((-6, 5), "right")
            axes.annotate(_name(row), (speed, mean), xytext=place, textcoords="offset points", fontsize=8, color=colour, ha=side)
    best = front(rows)
    axes.plot([row["tokens_per_second"] for row in best], [row["kl"]["mean"] for row in best], color="#1F5FA8", lw=1, alpha=0.5, zorder=1)
    dense = next(row for row in document["rows"] if row["kind"] == "dense")
    axes.axvline(dense["tokens_per_second"], color=FAINT, lw=1, ls="--", zorder=0)
    axes.annotate(
        "dense", (dense["tokens_per_second"], 0.98), xycoords=("data", "axes fraction"), xytext=(4, 0), textcoords="offset points",
        fontsize=8, color=INK, va="top",
    )  # fmt: skip
    axes.margins(x=0.1)
    axes.set_yscale("log")
    axes.set_xlabel(f"measured tokens a second, {document['workload']}", color=INK)
    axes.set_ylabel("held-out KL to the dense model, nats a token (lower is better)", color=INK)
    about = document["environment"]
    where = f"{about['cpu']}, {about['threads']} thread{'s' * (about['threads'] != 1)}, {about['dtype']}"
    axes.set_title(f"{document['model']}: {where}; line: Pareto front", fontsize=10, color=INK)
    axes.grid(True, which="both", color="#EEEEEE", lw=0.7)
    axes.set_axisbelow(True)
    axes.legend(loc="lower right", fontsize=9, frameon=False)
    figure.tight_layout()
    try:
        figure.savefig(path)
    except OSError as error:
        raise StorageError(f"The picture cannot be written to {path}: {error.strerror}.", "Name another folder with --out.") from error


def _name(row: Row) -> str:
    label: str = row["label"].removeprefix("uniform ")
    return label
