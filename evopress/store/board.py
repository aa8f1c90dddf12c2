"""What a study ended with, how fast it ran, how it scored, and the leaderboard over all of it.

Functions run inside a transaction of the caller (`evopress.store.store`). Reported numbers of others are not here: see `reference.py`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Row, delete, select

from evopress.api import NumericalError, UsageError, unknown
from evopress.store.database import insert, plain
from evopress.store.rows import COLUMNS, BoardRow, LatencyRow, ResultRow, Role, TaskScore
from evopress.store.schema import Latencies, Models, Profiles, Results, Slices, Studies, TaskScores, TokenSets, Trials
from evopress.store.where import parse_where


def put_result(
    conn: Connection, study_id: int, label: str, profile_id: int, role: str, details: Mapping[str, Any], run_id: int | None, now: float
) -> None:
    """Keep a profile under a label of a study; the last one stays."""
    row = {"profile_id": profile_id, "role": role, "details": plain(details), "run_id": run_id, "updated": now}
    query = insert(conn, Results).values(study_id=study_id, label=label, **row)
    conn.execute(query.on_conflict_do_update(index_elements=["study_id", "label"], set_=row))


def forget_results(conn: Connection, study_id: int, role: str) -> None:
    """Take the labels of one role from a study; profiles and trials stay."""
    conn.execute(delete(Results).where(Results.study_id == study_id, Results.role == role))


def results(conn: Connection, study_id: int | None) -> list[ResultRow]:
    """Labelled profiles of a study, or of all, in the order they were first kept."""
    columns = (
        *(Studies.name, Results.label, Results.role, Results.profile_id, Profiles.digest),
        *(Profiles.bytes, Profiles.params, Profiles.bits, Results.details),
    )
    query = select(*columns).select_from(Results).join(Studies).join(Profiles, Profiles.id == Results.profile_id).order_by(Results.id)
    return [ResultRow(*row) for row in conn.execute(query if study_id is None else query.where(Results.study_id == study_id))]


def put_task_scores(conn: Connection, profile_id: int, scores: Sequence[TaskScore], run_id: int | None, now: float) -> None:
    """Store benchmark scores; one of the same task, metric, filter, shots, samples and version replaces the old value."""
    unique = ["profile_id", "task", "metric", "filter", "shots", "samples", "version"]
    for score in scores:
        row = {
            "value": float(score.value),
            "stderr": score.stderr,
            "environment": plain(score.environment),
            "run_id": run_id,
            "created": now,
        }
        same = {"profile_id": profile_id, **{name: getattr(score, name) for name in unique[1:]}}
        conn.execute(insert(conn, TaskScores).values(**same, **row).on_conflict_do_update(index_elements=unique, set_=row))


def task_scores(conn: Connection, profile_id: int) -> list[TaskScore]:
    """Benchmark scores of a profile, by task."""
    query = (
        select(TaskScores.__table__).where(TaskScores.profile_id == profile_id).order_by(TaskScores.task, TaskScores.metric, TaskScores.id)
    )
    return [
        TaskScore(row.task, row.metric, row.value, row.stderr, row.samples, row.shots, row.filter, row.version, row.environment)
        for row in conn.execute(query)
    ]


def put_latency(conn: Connection, row: LatencyRow, now: float) -> int:
    """Append a measured time; returns its id. Raises NumericalError when its spread does not hold the median."""
    if not 0 < row.low_seconds <= row.median_seconds <= row.high_seconds < float("inf"):
        spread = f"{row.low_seconds} ≤ {row.median_seconds} ≤ {row.high_seconds}"
        raise NumericalError(
            f"The time of kernel {row.kernel!r} is no positive interval around its median: {spread} s.", "Measure it again."
        )
    names = ("profile_id", "kernel", "format", "device", "phase", "batch", "tokens", "threads", "samples", "median_seconds", "low_seconds")
    values = {name: getattr(row, name) for name in (*names, "high_seconds", "tokens_per_second", "run_id")}
    values |= {"rows": row.shape[0], "columns": row.shape[1], "environment": plain(row.environment), "created": row.created or now}
    return int(conn.execute(insert(conn, Latencies).values(values).returning(Latencies.id)).scalar_one())


def latencies(conn: Connection, profile_id: int | None, kernel: str | None, phase: str | None) -> list[LatencyRow]:
    """Measured times, oldest first, of a profile, a kernel, a phase, or all."""
    query = select(Latencies.__table__).order_by(Latencies.id)
    for column, value in ((Latencies.profile_id, profile_id), (Latencies.kernel, kernel), (Latencies.phase, phase)):
        query = query if value is None else query.where(column == value)
    return [
        LatencyRow(
            *(row.kernel, row.device, row.phase, row.batch, row.tokens, row.threads, row.samples, row.median_seconds, row.low_seconds),
            *(row.high_seconds, row.tokens_per_second, row.profile_id, row.format, (row.rows, row.columns), row.environment),
            *(row.run_id, row.created),
        )
        for row in conn.execute(query)
    ]


@dataclass
class _Measured:
    """Everything measured of one profile, while the leaderboard is put together."""

    values: dict[str, float] = field(default_factory=dict)
    trials: dict[str, int] = field(default_factory=dict)
    slices: dict[str, str] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    estimated_seconds: float | None = None


def leaderboard(
    conn: Connection,
    *,
    fitness: str,
    role: Role,
    slice: str | None,
    model: str | None,
    study: str | None,
    where: str | None,
    sort: str | None,
    limit: int | None,
) -> list[BoardRow]:
    """Profiles a study holds under a label, and those measured on documents of the role. Raises UsageError."""
    fitnesses = set(conn.scalars(select(Trials.fitness).distinct()))
    clash = fitnesses & set(COLUMNS)
    if clash:
        raise UsageError(f"A fitness is called like a column of the leaderboard: {', '.join(sorted(clash))}.", "Rename it.")
    columns = {*COLUMNS, *fitnesses, fitness}
    keep = parse_where(where, columns) if where else None
    key = sort or fitness
    descending, name = key.startswith("-"), key.removeprefix("-")
    if name not in columns:
        raise unknown("column", name, columns, "sort")
    rows = _rows(conn, _measured(conn, role, slice), model, study)
    if keep is not None:
        rows = [row for row in rows if keep(row.columns)]
    return _sorted(rows, name, descending)[:limit]


def _sorted(rows: list[BoardRow], name: str, descending: bool) -> list[BoardRow]:
    # Rows without the value come last in either direction; ties go by size, then by identity, so that the order never wavers.
    ranked = sorted(rows, key=lambda row: (row.bytes, row.profile, row.study or "", row.label or ""))
    have = [row for row in ranked if row.columns.get(name) is not None]
    have.sort(key=lambda row: row.columns[name], reverse=descending)  # type: ignore[arg-type, return-value]
    return have + [row for row in ranked if row.columns.get(name) is None]


def _measured(conn: Connection, role: Role, slice: str | None) -> dict[int, _Measured]:
    of_role = select(TokenSets.digest).where(TokenSets.role == role)
    query = (
        select(Trials.id, Trials.profile_id, Trials.fitness, Trials.mean, Trials.tokens, Slices.digest, Trials.estimated_seconds)
        .join(Slices, Slices.id == Trials.slice_id)
        .where(Slices.token_set.in_(of_role))
        # The longest slice wins, then the latest measurement: later rows overwrite earlier ones below.
        .order_by(Trials.tokens, Trials.id)
    )
    if slice is not None:
        query = query.where(Slices.digest.startswith(slice, autoescape=True))
    found: dict[int, _Measured] = defaultdict(_Measured)
    latest: dict[int, int] = {}
    for number, profile_id, fitness, mean, tokens, digest, estimated in conn.execute(query):
        own = found[profile_id]
        if estimated is not None and number > latest.get(profile_id, 0):
            own.estimated_seconds, latest[profile_id] = estimated, number
        own.values[fitness], own.trials[fitness], own.slices[fitness], own.tokens[fitness] = mean, number, digest, tokens
    return found


Speeds = Mapping[int, Mapping[str, Row[Any]]]
"""Profile -> phase -> its measured time."""


def _speeds(conn: Connection) -> list[tuple[int, Speeds]]:
    """Whole-model times by the run that took them, oldest run first: only times of one run were taken in turns, against drift."""
    runs: dict[int, dict[int, dict[str, Row[Any]]]] = {}
    query = select(Latencies.__table__).where(Latencies.profile_id.is_not(None)).order_by(Latencies.id)
    for row in conn.execute(query):
        # Times whose study was deleted have no run any more: each stands by itself, so that those of two runs never stand together.
        runs.setdefault(row.run_id or -row.profile_id, {}).setdefault(row.profile_id, {})[row.phase] = row
    return sorted(runs.items())


def _of_one_run(runs: Sequence[tuple[int, Speeds]], profiles: Collection[int]) -> Speeds:
    """The times of the run that timed most of the profiles; of several, the latest."""
    return max(runs, key=lambda run: (len(run[1].keys() & set(profiles)), run[0]), default=(0, {}))[1]


def _rows(conn: Connection, measured: Mapping[int, _Measured], model: str | None, study: str | None) -> list[BoardRow]:
    labels: dict[int, list[tuple[str | None, str | None, str | None]]] = defaultdict(list)
    for held in results(conn, None):
        if study is None or held.study == study:
            labels[held.profile_id].append((held.study, held.label, held.role))
    columns = (Profiles.id, Profiles.digest, Profiles.bank, Models.name, Profiles.bytes, Profiles.params, Profiles.bits)
    query = select(*columns).join(Models)
    if model is not None:
        query = query.where((Models.name == model) | (Models.digest == model))
    wanted = labels.keys() if study is not None else labels.keys() | measured.keys()
    runs = _speeds(conn)
    held_by: dict[str | None, set[int]] = defaultdict(set)
    for profile_id, holders in labels.items():
        for study_name, _, _ in holders:
            held_by[study_name].add(profile_id)
    by_study = {study_name: _of_one_run(runs, profiles) for study_name, profiles in held_by.items()}
    rows = []
    for row in conn.execute(query.order_by(Profiles.id)):
        if row.id not in wanted:
            continue
        own = measured.get(row.id, _Measured())
        for study_name, label, kept_as in labels.get(row.id) or [(None, None, None)]:
            speed = (by_study[study_name] if study_name else _of_one_run(runs, [row.id])).get(row.id, {})
            rates = {phase: timing.tokens_per_second for phase, timing in speed.items()}
            last = speed.get("decode") or speed.get("prefill")
            rows.append(
                BoardRow(
                    *(row.id, row.digest, row.name, study_name, label, kept_as, row.bytes, row.params, row.bits),
                    *(own.values, own.trials, own.slices, max(own.tokens.values(), default=0)),
                    *(rates.get("prefill"), rates.get("decode"), last.kernel if last else None, last.device if last else None),
                    *(row.bank, own.estimated_seconds),
                )
            )
    return rows
