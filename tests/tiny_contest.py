"""A whole contest in seconds, on the tiny model of `tiny_study`: its keys, and how it is run in this process.

Not a fixture file: tests write `from tiny_contest import …`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tiny_study
from tiny_study import Tiny

ENTRANTS: dict[str, Any] = {
    "uniform": "uniform",
    "knapsack": "knapsack",
    "evolve": "evolve(generations=50,offspring=4,rungs=2x64|1x160)",
    "random": {"searcher": "random(rungs=1x64|1x160,candidates=4,rounds=1000)", "tokens": 4096},
}


def values(tiny: Tiny, **changed: Any) -> dict[str, Any]:
    """Keys of a contest; `changed` overrides them. `evolve` passes two marks, `random` none but its end."""
    study = {key: value for key, value in tiny_study.values(tiny, name="tiny").items() if key != "searcher"}
    return {**study, "seeds": [0, 1], "tokens": 8192, "entrants": ENTRANTS, **changed}


def inline(value: Any) -> str:
    """A text, number or table as TOML."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {json.dumps(item)}" for key, item in value.items()) + "}"
    return json.dumps(value)


def contest(tiny: Tiny, **changed: Any) -> Any:
    """The Contest of these keys."""
    from evopress.api.contest import Contest

    return Contest.make(values(tiny, **changed))


def run(tiny: Tiny, home: Path, changed: dict[str, Any] | None = None, **options: Any) -> Any:
    """Run a contest in this process, in float32, with the default store and a clock that stands still; returns its document."""
    from evopress.contest import compete

    return compete(contest(tiny, **(changed or {})), tiny_study.url(home), home, **{"dtype": "float32", "clock": lambda: 0.0, **options})
