"""How far a study is, from the store alone. Called by `evopress search status`."""

from __future__ import annotations

from typing import Any

from evopress.store import StepRow, Store


def study_status(store: Store, name: str) -> dict[str, Any]:
    """Runs, the searchers' tracks and the profiles found, as JSON values. Raises NotFound.

    search_trials: different trials the searchers asked for. What the gate, the display and the final comparison measured is not counted.
    """
    study = store.find_study(name)
    tracks: dict[str, list[StepRow]] = {}
    for step in store.trajectory(study.id):
        tracks.setdefault(step.searcher, []).append(step)
    runs = store.runs(study.id)
    return {
        "name": study.name,
        "digest": study.digest,
        "state": study.state or "not started",
        "search_trials": study.trials,
        "runs": study.runs,
        "definition": dict(study.definition),
        "last_error": runs[-1].error if runs else "",
        "tracks": [_track(searcher, steps) for searcher, steps in tracks.items()],
        "results": [
            {"label": row.label, "profile": row.profile, "bytes": row.bytes, "bits": row.bits, **row.details}
            for row in store.results(study.id)
        ],
    }


def _track(searcher: str, steps: list[StepRow]) -> dict[str, Any]:
    # Only the trials of one question share their tokens, so the best is told of the last one: values on other tokens do not compare.
    number = max(step.ordinal for step in steps)
    last = [step for step in steps if step.ordinal == number]
    return {
        "searcher": searcher,
        "generation": max(step.generation for step in steps),
        "evaluations": len(steps),
        "tokens": sum(step.tokens for step in steps),
        "seconds": sum(step.seconds for step in steps),
        "last_best": min(step.mean for step in last),
        "last_tokens": last[0].tokens,
    }
