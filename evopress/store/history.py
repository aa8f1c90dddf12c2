"""Studies and runs: what was asked for, and each time it was executed.

Functions run inside a transaction of the caller (`evopress.store.store`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sqlalchemy import Connection, delete, func, select, update

from evopress.api import NotFound, UsageError, unknown
from evopress.store.claims import Owner
from evopress.store.database import insert, plain
from evopress.store.rows import RunRow, RunState, StudyRow
from evopress.store.schema import Latencies, Results, Runs, RunTrials, Studies, TaskScores, Trials


def study(conn: Connection, name: str, definition: Mapping[str, Any], digest: str, now: float) -> StudyRow:
    """Get or create a study. Raises UsageError when the name stands for another definition, listing what differs."""
    row = {"name": name, "digest": digest, "definition": plain(definition), "created": now}
    conn.execute(insert(conn, Studies).values(row).on_conflict_do_nothing(index_elements=["name"]))
    found = find_study(conn, name)
    held = conn.scalar(select(func.count()).select_from(Results).where(Results.study_id == found.id))
    if found.digest != digest and not found.trials and not held and found.state == "failed":
        # The old definition failed before its search measured anything (on a typo, say): the new one takes its place.
        conn.execute(update(Studies).where(Studies.name == name).values(digest=digest, definition=row["definition"]))
        return find_study(conn, name)
    if found.digest != digest:
        raise UsageError(
            f"Study {name!r} is in the store with another definition. {_differences(found.definition, plain(definition))}",
            f"Continue it as it is: evopress search resume {name}. Or give the new definition another name (--study NAME).",
        )
    return found


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    before, after = dict(_flat(old)), dict(_flat(new))
    lines = [
        f"{key}: {_show(before, key)} then, {_show(after, key)} now"
        for key in sorted(before.keys() | after.keys())
        if before.get(key, _ABSENT) != after.get(key, _ABSENT)
    ]
    return f"Different: {'; '.join(lines)}." if lines else "Every key is equal; only the digest differs."


_ABSENT = object()


def _show(flat: Mapping[str, Any], key: str) -> str:
    return repr(flat[key]) if key in flat else "absent"


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, item in value.items():
        if isinstance(item, Mapping) and item:
            yield from _flat(item, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", item


def studies(conn: Connection, name: str | None = None) -> list[StudyRow]:
    """Every study, or the one of this name, oldest first, with what happened to it."""
    query = select(Studies.__table__).order_by(Studies.id)
    rows = conn.execute(query if name is None else query.where(Studies.name == name)).all()
    counted = select(RunTrials.study_id, func.count(RunTrials.trial_id.distinct())).group_by(RunTrials.study_id)
    trials: dict[int, int] = {row[0]: row[1] for row in conn.execute(counted)}
    result = []
    for row in rows:
        own = runs(conn, row.id)
        state = own[-1].state if own else None
        result.append(StudyRow(row.id, row.name, row.digest, row.definition, row.created, len(own), trials.get(row.id, 0), state))
    return result


def find_study(conn: Connection, name: str) -> StudyRow:
    """The study of this name. Raises NotFound with the closest names."""
    found = studies(conn, name)
    if not found:
        error = unknown("study", name, conn.scalars(select(Studies.name)), "the store")
        raise NotFound(error.message, f"{error.hint} evopress search list shows them.")
    return found[0]


def delete_study(conn: Connection, name: str, force: bool) -> StudyRow:
    """Remove a study with its runs, trajectory and results; returns what it was. Measurements, scores and times stay.

    Raises NotFound, and UsageError while a run of it is alive. force: also when a run is marked as running on another machine, which cannot
    be seen from here.
    """
    # Where rows can be locked, a run that starts meanwhile waits here and then finds the study gone.
    conn.execute(select(Studies.id).where(Studies.name == name).with_for_update()).all()
    found, here = find_study(conn, name), Owner.current().host
    for run in runs(conn, found.id):
        if run.state == "running" and not (force and run.host != here):
            stop = "Stop it with Ctrl-C or a signal." if run.host == here else "Stop it there; --force where that machine is gone."
            raise UsageError(
                f"Study {name!r} is not deleted: its run {run.id} is going on, process {run.pid} on {run.host.partition('/')[0]}.", stop
            )
    conn.execute(delete(RunTrials).where(RunTrials.study_id == found.id))
    conn.execute(delete(Results).where(Results.study_id == found.id))
    ours = select(Runs.id).where(Runs.study_id == found.id)
    for table in (Trials, TaskScores, Latencies, Results, RunTrials):
        conn.execute(update(table).where(table.run_id.in_(ours)).values(run_id=None))
    conn.execute(delete(Runs).where(Runs.study_id == found.id))
    conn.execute(delete(Studies).where(Studies.id == found.id))
    return found


def start_run(
    conn: Connection, study_id: int, seed: int, command: str, environment: Mapping[str, Any], code_version: str, owner: Owner, now: float
) -> int:
    """Note that an execution begins; returns its id."""
    row = {
        "study_id": study_id,
        "seed": seed,
        "command": command,
        "environment": plain(environment),
        "code_version": code_version,
        "host": owner.host,
        "pid": owner.pid,
        "process": owner.process,
        "started": now,
        "state": "running",
        "stop_reason": "",
        "error": "",
    }
    return int(conn.execute(insert(conn, Runs).values(row).returning(Runs.id)).scalar_one())


def finish_run(conn: Connection, run_id: int, state: RunState, stop_reason: str, error: str, now: float) -> None:
    """Note how an execution ended. Raises NotFound."""
    row = {"finished": now, "state": state, "stop_reason": stop_reason, "error": error}
    if conn.execute(update(Runs).where(Runs.id == run_id).values(row)).rowcount != 1:
        raise NotFound(f"The store has no run {run_id}.", "Start it first.")


def runs(conn: Connection, study_id: int) -> list[RunRow]:
    """Executions of a study, oldest first; one whose process on this host is gone shows as killed."""
    found = []
    for row in conn.execute(select(Runs.__table__).where(Runs.study_id == study_id).order_by(Runs.id)):
        dead = row.state == "running" and Owner(row.host, row.pid, row.process).is_dead()
        found.append(
            RunRow(
                *(row.id, row.study_id, row.seed, row.command, row.environment, row.code_version, row.host, row.pid),
                *(row.started, row.finished, "killed" if dead else row.state, row.stop_reason, row.error),
            )
        )
    return found
