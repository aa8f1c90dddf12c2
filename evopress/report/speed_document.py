"""The result of a speed study as tables: kernels on single matrices, or a frontier of whole models. Reads documents, computes only rates.

Their keys are told in results/README.md. Called by `evopress study compare` and by `leaderboard`, so a file and a screen never differ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Document = Mapping[str, Any]
KERNELS_HEADER = (
    "format",
    "shape",
    "kernel",
    "tokens",
    "µs",
    "95% interval",
    "n",
    "of read bandwidth",
    "times torch's dense",
    "fastest other",
    "times as fast",
)
FRONTIER_HEADER = ("profile", "bits", "held-out KL", "tokens/s", "ms", "95% interval", "n", "by the table", "of dense")


def is_speed(document: object) -> bool:
    """Is it the result of a speed study?"""
    return isinstance(document, dict) and "digest" in document and ("kernels" in document or "frontier" in document)


def title(document: Document) -> str:
    """What was timed, and where."""
    about = document["environment"]
    what = document["kernels"]["name"] if "kernels" in document else f"{document['frontier']['name']}: {document['workload']}"
    return f"{what}; {about.get('gpu') or about['cpu']}, {about['threads']} thread{'s' * (about['threads'] != 1)}, {about['dtype']}"


def header(document: Document) -> tuple[str, ...]:
    """The columns of its table."""
    return KERNELS_HEADER if "kernels" in document else FRONTIER_HEADER


def rows(document: Document) -> list[tuple[str, ...]]:
    """Cells under `header`: matrices in the order they were timed, profiles slowest first."""
    if "kernels" in document:
        duels = {_cell(duel): duel for duel in reversed(document["against_peers"])}  # of a cell's others the first, which is the fastest
        return [_kernel(row, duels.get(_cell(row))) for row in document["rows"]]
    dense = next(row["median_seconds"] for row in document["rows"] if row["kind"] == "dense")
    return [_profile(row, dense) for row in sorted(document["rows"], key=lambda row: -row["median_seconds"])]


def notes(document: Document) -> list[str]:
    """What a reader must know beside the table."""
    about = document["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in {"torch": about["torch"], **about.get("peers", {})}.items())
    found = [f"{versions}; commit {about.get('commit') or document['commit']}"]
    rounded = {row["kernel"]: row["rounding"] for row in document.get("beside_peers", ()) if row["rounding"]}
    if rounded:
        found.append("these round the activations, by a relative error of " + ", ".join(f"{k}: {v:g}" for k, v in sorted(rounded.items())))
    if document.get("check"):
        found.append(
            f"the table's sum against {len(document['check'])} random whole models: median error {document['check_median_error']:.1%}"
        )
    return found


def _cell(row: Document) -> tuple[Any, ...]:
    return (tuple(row["shape"]), row["format"], row["tokens"], row["dtype"])


def _kernel(row: Document, duel: Document | None) -> tuple[str, ...]:
    faster = duel["times_as_fast"] if duel else None
    return (
        row["format"], f"{row['shape'][0]}x{row['shape'][1]}", row["kernel"], str(row["tokens"]),
        f"{1e6 * row['median_seconds']:.0f}",
        f"{1e6 * row['low_seconds']:.0f}-{1e6 * row['high_seconds']:.0f}", str(row["samples"]), f"{row['floor_share']:.0%}",
        f"{1 / row['ratio_to_dense']['median']:.2f}", duel["peer"] if duel else "-",
        f"{faster['median']:.2f} [{faster['low']:.2f}, {faster['high']:.2f}]" if faster else "-",
    )  # fmt: skip


def _profile(row: Document, dense_seconds: float) -> tuple[str, ...]:
    span = f"{1e3 * row['low_seconds']:.2f}-{1e3 * row['high_seconds']:.2f}"
    times: Sequence[str] = (f"{row['tokens_per_second']:.1f}", f"{1e3 * row['median_seconds']:.2f}", span, str(row["samples"]))
    return (
        row["label"], f"{row['bits']:.2f}", f"{row['kl']['mean']:.4f}", *times, f"{row['error']:+.1%}",
        f"{row['median_seconds'] / dense_seconds:.3f}",
    )  # fmt: skip
