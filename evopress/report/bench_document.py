"""The result of `evopress search bench` as text: how fast candidates were measured, beside a bare forward pass and the floor.

Reads the document that `evopress.throughput` makes, whose keys are told in results/README.md; computes nothing but rates, measures nothing.
Called by `evopress search bench` and by `leaderboard`, so a file and a screen never differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Document = Mapping[str, Any]
KEYS = frozenset(
    {"bare", "candidates", "commit", "engine", "environment", "floor_seconds", "matmul", "model", "peak_bytes", "ratio", "reused", "study",
     "tokens"}
)  # fmt: skip
HEADER = ("what", "tokens/s")


def is_bench(document: object) -> bool:
    """Has it the keys of a bench's result?"""
    return isinstance(document, dict) and document.keys() >= KEYS


def title(document: Document) -> str:
    """What was timed, how often, and where."""
    machine = document["environment"]
    where = machine.get("gpu") or f"{machine['threads']} threads, {machine['cpu']}"
    each = document["tokens"] // document["candidates"]
    return f"{document['candidates']} candidates on {each:,} tokens each; n = {len(document['bare']['samples'])} rounds in turns; {where}"


def rows(document: Document) -> tuple[tuple[str, str], ...]:
    """Cells under HEADER: the floor, the bare pass, and the candidates, with the interval of their medians."""
    return (
        ("floor: a bare pass at the speed of a bare matrix product", f"{document['tokens'] / document['floor_seconds']:,.0f}"),
        ("bare forward pass with logits", _rate(document["tokens"], document["bare"])),
        ("candidates measured", _rate(document["tokens"], document["engine"])),
    )


def note(document: Document) -> str:
    """How close measuring comes to a bare pass, and what that rests on."""
    ratio = document["ratio"]
    return (
        f"measuring reaches {ratio['median']:.2f}x [{ratio['low']:.2f}, {ratio['high']:.2f}] of a bare pass, "
        f"with {document['reused']:.0%} of the blocks reused and {document['matmul']:.0%} of its time inside matrix products; "
        f"peak memory {document['peak_bytes'] / 2**30:.2f} GiB"
    )


def _rate(tokens: int, timing: Mapping[str, Any]) -> str:
    return f"{tokens / timing['median']:,.0f} [{tokens / timing['high']:,.0f}, {tokens / timing['low']:,.0f}]"
