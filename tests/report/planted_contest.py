"""Documents of contests with hand-made numbers, for the tests of claims, tables and pictures. Not a fixture file.

Two held-out documents of one position each unless said otherwise, so that a mean is the mean of two numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from evopress.api.contest import Contest

BASE = {"name": "planted", "methods": ["gptq(bits=2..4,group=64)"], "budgets": ["bits=3.0"]}
LABELS = ("slow", "fast", "still")
Step = tuple[int, Sequence[float]]
"""Tokens so far and the values per held-out document there; seconds are a hundredth of the tokens."""


def contest(claims: Sequence[dict[str, Any]] = (), labels: Sequence[str] = LABELS, seeds: Sequence[int] = (0,)) -> Contest:
    """A contest whose entrants are `uniform` under several labels, for nothing of it is run."""
    entrants = dict.fromkeys(labels, "uniform")
    return Contest.make({**BASE, "seeds": list(seeds), "tokens": 1000, "entrants": entrants, "claims": list(claims)})


def claim(metric: str, comparator: str, goal: float, entrant: str = "fast", **more: Any) -> dict[str, Any]:
    """A claim against `slow`."""
    about = {"says": f"{metric} {comparator} {goal}", "metric": metric, "entrant": entrant, "baseline": "slow"}
    return {**about, "comparator": comparator, "goal": goal, **more}


def run(label: str, seed: int, steps: Sequence[Step], reason: str = "tokens", per_token: float = 0.01) -> dict[str, Any]:
    """A run through these steps, each a mark with a profile of its own."""
    size = {"bytes": 1000, "bits": 3.0}
    marks: list[dict[str, Any]] = [
        {"tokens": tokens, "evaluations": tokens // 10, "seconds": tokens * per_token, "profile": f"{label}{at}", **size}
        for at, (tokens, _) in enumerate(steps)
    ]
    end = marks[-1]
    return {
        "label": label, "searcher": "uniform", "seed": seed, "stop_tokens": 1000, "commit": "abc", "environment": {}, "reason": reason,
        "evaluations": end["evaluations"], "tokens": end["tokens"], "seconds": end["seconds"], "marks": marks, "final": "0 1",
        "profiles": {f"{label}{at}": list(values) for at, (_, values) in enumerate(steps)},
    }  # fmt: skip


def document(
    made: Contest, runs: Sequence[dict[str, Any]], weights: Sequence[int] = (1, 1), origins: Sequence[int] | None = None, **changed: Any
) -> dict[str, Any]:
    """The document of these runs; `changed` overrides its keys."""
    return {
        "bank": {"recipe": "r" * 64, "calibration_tokens": 100, "bytes": 5000, "seconds": 1.0},
        "contest": {"name": made.name, "digest": made.digest, "base_digest": made.base_digest, **made.definition},
        "heldout": {
            "slice": "s" * 64, "documents": [weight + 1 for weight in weights],
            "origins": list(range(len(weights))) if origins is None else list(origins), "weights": list(weights),
        },
        "levels": ["dense", "gptq(bits=3,group=64)"], "model": {"name": "Tiny", "digest": "m" * 64}, "quick": False,
        "runs": list(runs), "sites": ["a", "b"], **changed,
    }  # fmt: skip
