"""Trials and trajectories: measured profiles with their per-document values, and the order in which a searcher asked for them.

Functions run inside a transaction of the caller (`evopress.store.store`). Claims, which say who may measure, are in `claims.py`.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, case, delete, select, update

from evopress.api import SLOPE_FORWARDS, Cost, NumericalError, StorageError, Trial
from evopress.store import catalog
from evopress.store.database import chunks, insert
from evopress.store.rows import StepRow, StoredTrial, TrialKey
from evopress.store.schema import Claims, DocumentValues, Profiles, RunTrials, Slices, Slopes, Trials


def find(conn: Connection, keys: Iterable[TrialKey]) -> dict[TrialKey, StoredTrial]:
    """The stored trials among `keys`."""
    wanted = {key.digest: key for key in keys}
    columns = (Trials.id, Trials.key, Trials.profile_id, Trials.mean, Trials.seconds, Profiles.bytes, Profiles.params)
    rows: list[Any] = []
    for chunk in chunks(list(wanted)):
        rows += conn.execute(select(*columns).join(Profiles).where(Trials.key.in_(chunk))).all()
    values = document_values(conn, [row.id for row in rows])
    slopes: dict[int, tuple[float, ...]] = {}
    for ids in chunks(list(values)):
        for number, changes in conn.execute(select(Slopes.trial_id, Slopes.changes).where(Slopes.trial_id.in_(ids))):
            slopes[number] = tuple(changes)
    found = {}
    for row in rows:
        key, (scores, weights) = wanted[row.key], values[row.id]
        own = slopes.get(row.id, ())
        found[key] = StoredTrial(row.id, row.profile_id, key, scores, weights, Cost(row.bytes, row.params), row.mean, row.seconds, own)
    return found


def document_values(conn: Connection, trial_ids: Sequence[int]) -> dict[int, tuple[tuple[float, ...], tuple[int, ...]]]:
    """Trial id -> (values, weights), in the order of the slice."""
    scores: dict[int, list[float]] = defaultdict(list)
    weights: dict[int, list[int]] = defaultdict(list)
    columns = select(DocumentValues.trial_id, DocumentValues.value, DocumentValues.weight)
    order = (DocumentValues.trial_id, DocumentValues.position)
    for chunk in chunks(sorted(trial_ids)):
        for number, value, weight in conn.execute(columns.where(DocumentValues.trial_id.in_(chunk)).order_by(*order)):
            scores[number].append(value)
            weights[number].append(weight)
    return {number: (tuple(scores[number]), tuple(weights[number])) for number in trial_ids}


def check(key: TrialKey, trial: Trial) -> None:
    """Refuse a trial that is not the one its key names (ValueError) or holds a number that is none (NumericalError)."""
    if (key.profile, key.slice) != (trial.profile.digest, trial.slice.digest):
        raise ValueError("the key does not name the profile and the slice of the trial")
    if not len(trial.values) == len(trial.weights) == len(trial.slice.documents):
        raise ValueError("a trial needs one value and one weight a document of its slice")
    if not all(map(math.isfinite, trial.slopes)):
        raise NumericalError(
            f"A slope of fitness {key.fitness!r} at profile {key.profile[:12]} is not a finite number.",
            "Use --dtype float32, or leave out the cheapest levels.",
        )
    for (document, _), value in zip(trial.slice.documents, trial.values, strict=True):
        if not math.isfinite(value):
            raise NumericalError(
                f"Fitness {key.fitness!r} of profile {key.profile[:12]} is {value} on document {document}: not a finite number.",
                "Check the levels of this profile and the type it is computed in.",
            )


def put(conn: Connection, ids: catalog.Ids, key: TrialKey, trial: Trial, bits: float, run_id: int | None, now: float) -> StoredTrial:
    """Store a trial unless its key is there already, drop the claim on it, and return what the store holds."""
    profile_id = catalog.save_profile(conn, ids, catalog.model_id(conn, ids, key.model), trial.profile, trial.cost, bits, key.bank)
    row: dict[str, Any] = {
        "key": key.digest,
        "profile_id": profile_id,
        "slice_id": catalog.save_slice(conn, ids, trial.slice),
        "fitness": key.fitness,
        "numerics": key.numerics,
        "mean": float(trial.fitness),
        "tokens": int(sum(trial.weights)),
        "seconds": float(trial.seconds),
        "estimated_seconds": trial.cost.nanoseconds / 1e9 if trial.cost.nanoseconds > 0 else None,
        "state": "complete",
        "run_id": run_id,
        "created": now,
    }
    fresh = conn.scalar(insert(conn, Trials).values(row).on_conflict_do_nothing(index_elements=["key"]).returning(Trials.id))
    conn.execute(delete(Claims).where(Claims.key == key.digest))
    if fresh is None:
        return find(conn, [key])[key]
    scores, weights = tuple(map(float, trial.values)), tuple(map(int, trial.weights))
    rows = [
        {"trial_id": fresh, "position": position, "document": document, "weight": weight, "value": value}
        for position, ((document, _), value, weight) in enumerate(zip(trial.slice.documents, scores, weights, strict=True))
    ]
    conn.execute(insert(conn, DocumentValues), rows)
    if trial.slopes:
        conn.execute(insert(conn, Slopes), {"trial_id": fresh, "changes": list(trial.slopes)})
    return StoredTrial(fresh, profile_id, key, scores, weights, trial.cost, row["mean"], row["seconds"], trial.slopes, fresh=True)


def estimate(conn: Connection, seconds: Mapping[int, float]) -> None:
    """Give trials their estimated seconds, by id, where they have none."""
    for number, value in sorted(seconds.items()):
        conn.execute(update(Trials).where(Trials.id == number, Trials.estimated_seconds.is_(None)).values(estimated_seconds=value))


def record_step(
    conn: Connection, study_id: int, searcher: str, ordinal: int, trial_ids: Sequence[int], generation: int, stage: int, run_id: int | None
) -> None:
    """Note the trials that answered a question. Repeating it is free; answering it otherwise raises StorageError."""
    rows = [
        {
            "study_id": study_id,
            "searcher": searcher,
            "ordinal": ordinal,
            "position": position,
            "generation": generation,
            "stage": stage,
            "trial_id": trial_id,
            "run_id": run_id,
        }
        for position, trial_id in enumerate(trial_ids)
    ]
    here = (RunTrials.study_id == study_id, RunTrials.searcher == searcher, RunTrials.ordinal == ordinal)
    look = select(RunTrials.trial_id).where(*here).order_by(RunTrials.position)
    stored = list(conn.scalars(look))
    if rows and not stored:
        conn.execute(insert(conn, RunTrials).on_conflict_do_nothing(), rows)
        stored = list(conn.scalars(look))
    if stored != list(trial_ids):
        raise StorageError(
            f"Question {ordinal} of searcher {searcher!r} was answered by trials {_short(stored)} before, and by {_short(trial_ids)} now.",
            "The code, the versions, the machine or its table of latencies changed under this study, so it cannot be replayed:"
            " start a new study (--study NAME).",
        )


def _short(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:4]))
    return f"[{shown}{', …' if len(numbers) > 4 else ''}]"


def trajectory(conn: Connection, study_id: int, searcher: str | None) -> list[StepRow]:
    """Everything the searchers of a study asked for, in order."""
    columns: tuple[Any, ...] = (
        *(RunTrials.searcher, RunTrials.ordinal, RunTrials.position, RunTrials.generation, RunTrials.stage, RunTrials.trial_id),
        *(Profiles.digest.label("profile"), Slices.digest.label("slice"), Trials.fitness, Trials.mean, Profiles.bytes),
        *(case((Slopes.trial_id.is_not(None), SLOPE_FORWARDS), else_=1) * Slices.tokens, Trials.seconds),
    )
    query = (
        select(*columns)
        .join(Trials, Trials.id == RunTrials.trial_id)
        .join(Profiles, Profiles.id == Trials.profile_id)
        .join(Slices, Slices.id == Trials.slice_id)
        .outerjoin(Slopes, Slopes.trial_id == Trials.id)
        .where(RunTrials.study_id == study_id)
        .order_by(RunTrials.searcher, RunTrials.ordinal, RunTrials.position)
    )
    if searcher is not None:
        query = query.where(RunTrials.searcher == searcher)
    return [StepRow(*row) for row in conn.execute(query)]
