"""Claims: who is taking which measurement now, so that two processes never take the same one.

A claim belongs to an owner (host, process, worker). It ends when the trial is stored, when the owner releases it, or when the owner
is dead: on the same host that is seen at once from the process table, on another host only by a heartbeat older than the lease.
Called by the store, inside its transactions. Not a queue: the order of work stays with the searcher.
"""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection, delete, select, update
from sqlalchemy.sql.elements import ColumnElement

from evopress.store.database import chunks, insert
from evopress.store.rows import TrialKey
from evopress.store.schema import Claims, Trials

LEASE_SECONDS = 120.0
"""A foreign owner without a heartbeat for this long is taken for dead. Hosts that share a store need clocks that agree within it."""


@dataclass(frozen=True, slots=True)
class Owner:
    """Whoever takes measurements. host: name and process namespace. process: start time, so that a reused pid is not mistaken.

    worker: set it when several threads of one process claim; equal owners share their claims.
    """

    host: str
    pid: int
    process: str
    worker: str = ""

    @staticmethod
    def current(worker: str = "") -> Owner:
        """The calling process."""
        return Owner(_host(), os.getpid(), process_start(os.getpid()) or "", worker)

    def is_dead(self) -> bool:
        """Is this owner of the calling host and surely gone? False for foreign hosts: only the lease can tell."""
        if self.host != _host():
            return False
        start = process_start(self.pid)
        return start is None or bool(start and self.process and start != self.process)


@dataclass(frozen=True, slots=True)
class ClaimResult:
    """claimed: measure these, and store them. done: already in the store. busy: a living owner is taking them; ask again later."""

    claimed: tuple[TrialKey, ...]
    done: tuple[TrialKey, ...]
    busy: tuple[TrialKey, ...]


def _host() -> str:
    # Containers may share a host name but not a process table: a pid then says nothing, so the namespace is part of the name.
    try:
        return f"{socket.gethostname()}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def process_start(pid: int) -> str | None:
    """Start of a process as boot id and clock ticks; None when there is no such process, "" where the system does not tell.

    A killed process that its parent has not yet collected (a zombie) counts as gone: it will not store anything any more.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        fields = stat.rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return None if fields[0] in "ZX" else f"{boot}:{fields[19]}"
    except (OSError, IndexError):
        pass
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        return ""
    return ""


def claim(conn: Connection, keys: Iterable[TrialKey], owner: Owner, now: float, lease_seconds: float) -> ClaimResult:
    """Claim what is neither stored nor being measured. Runs inside a write transaction."""
    wanted = {key.digest: key for key in keys}
    done = _stored(conn, wanted)
    open_keys = wanted.keys() - done
    mine = _take(conn, open_keys, owner, now, lease_seconds)
    # Between the first look and the insert another owner may have stored its trial and dropped its claim: look again, now that ours stands.
    late = _stored(conn, open_keys)
    for chunk in chunks(sorted(late)):
        conn.execute(delete(Claims).where(Claims.key.in_(chunk)))
    done |= late
    mine -= late
    return ClaimResult(
        tuple(key for digest, key in wanted.items() if digest in mine),
        tuple(key for digest, key in wanted.items() if digest in done),
        tuple(key for digest, key in wanted.items() if digest not in mine and digest not in done),
    )


def hold(conn: Connection, work: str, owner: Owner, now: float, lease_seconds: float) -> bool:
    """Claim a piece of work that is no trial, by name (building a bank, timing). False while a living owner has it."""
    return bool(_take(conn, {_work_key(work)}, owner, now, lease_seconds))


def let_go(conn: Connection, work: str, owner: Owner) -> None:
    """Give back what `hold` claimed."""
    conn.execute(delete(Claims).where(_held_by(owner), Claims.key == _work_key(work)))


def _work_key(work: str) -> str:
    return hashlib.sha256(f"work {work}".encode()).hexdigest()


def _take(conn: Connection, open_keys: Iterable[str], owner: Owner, now: float, lease_seconds: float) -> set[str]:
    """Claim what nobody living holds; returns what is the owner's by then."""
    # Sorted, so that two processes claiming overlapping keys lock rows in the same order and cannot deadlock.
    ordered = sorted(open_keys)
    if ordered:
        rows = [_row(key, owner, now) for key in ordered]
        conn.execute(insert(conn, Claims).on_conflict_do_nothing(index_elements=["key"]), rows)
    mine: set[str] = set()
    dead: dict[Owner, bool] = {}  # one look an owner, so that one that dies meanwhile is not half robbed
    for chunk in chunks(ordered):
        for row in conn.execute(select(Claims.__table__).where(Claims.key.in_(chunk))).all():
            holder = Owner(row.host, row.pid, row.process, row.worker)
            if holder not in dead:
                dead[holder] = holder.is_dead()
            lapsed = dead[holder] or (holder.host != owner.host and now - row.heartbeat > lease_seconds)
            if holder == owner or (lapsed and _steal(conn, row.key, holder, owner, row.heartbeat, now)):
                mine.add(row.key)
    return mine


def release(conn: Connection, owner: Owner, keys: Iterable[TrialKey] | None = None) -> None:
    """Give back claims of an owner without a measurement: these keys, or all."""
    if keys is None:
        conn.execute(delete(Claims).where(_held_by(owner)))
        return
    for chunk in chunks(sorted(key.digest for key in keys)):
        conn.execute(delete(Claims).where(_held_by(owner), Claims.key.in_(chunk)))


def beat(conn: Connection, owner: Owner, now: float) -> None:
    """Record a sign of life for every claim of an owner."""
    conn.execute(update(Claims).where(_held_by(owner)).values(heartbeat=now))


def _row(key: str, owner: Owner, now: float) -> dict[str, object]:
    return {"key": key, "host": owner.host, "pid": owner.pid, "process": owner.process, "worker": owner.worker, "heartbeat": now}


def _held_by(owner: Owner) -> ColumnElement[bool]:
    return (Claims.host == owner.host) & (Claims.pid == owner.pid) & (Claims.process == owner.process) & (Claims.worker == owner.worker)


def _stored(conn: Connection, digests: Iterable[str]) -> set[str]:
    found: set[str] = set()
    for chunk in chunks(sorted(digests)):
        found.update(conn.scalars(select(Trials.key).where(Trials.key.in_(chunk))))
    return found


def _steal(conn: Connection, key: str, holder: Owner, owner: Owner, heartbeat: float, now: float) -> bool:
    # Compare and swap: of two thieves, one changes the row and the other finds nothing left to change.
    old = (Claims.key == key) & _held_by(holder) & (Claims.heartbeat == heartbeat)
    return conn.execute(update(Claims).where(old).values(**_row(key, owner, now))).rowcount == 1
