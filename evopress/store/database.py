"""A connection to SQLite or PostgreSQL: URLs, pragmas, short transactions with retries, and errors in words.

Knows nothing of the tables. `Database.read` and `Database.write` run a function inside one transaction and run it again when the
database says that somebody else was in the way, so the function must have no effect outside the connection. Called by the other files
of this package.
"""

from __future__ import annotations

import json
import math
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

from sqlalchemy import URL, Connection, create_engine, event, make_url
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, DBAPIError

from evopress.api import EvopressError, MissingDependency, NotFound, StorageError, UsageError
from evopress.home import elsewhere

T = TypeVar("T")
BUSY_SECONDS = 30
CONNECT_SECONDS = 10
CHECK_BYTES = 32 * 2**20
"""SQLite files up to this size are checked whole when opened; larger ones by `Store.check`, because the check reads every page."""
_PAUSES: Final = (0.05, 0.1, 0.2, 0.4, 0.8)
_CHUNK = 500
_SECRETS = ("password", "sslpassword", "passfile")
_TRANSIENT_STATES = {"40001", "40P01", "55P03"}
_SCHEMES = {"sqlite": "sqlite", "sqlite+pysqlite": "sqlite", "postgres": "pg", "postgresql": "pg", "postgresql+psycopg": "pg"}


def chunks(items: Sequence[T]) -> Iterator[Sequence[T]]:
    """Split a list so that one `IN (…)` stays under the variable limit of old SQLite builds (999)."""
    for start in range(0, len(items), _CHUNK):
        yield items[start : start + _CHUNK]


def insert(conn: Connection, table: type[Any]) -> sqlite.Insert:
    """An INSERT of the connection's dialect, which has `on_conflict_do_nothing` and `on_conflict_do_update`."""
    # Both dialects offer the same two methods and no common base class; the type of one stands for both.
    return postgresql.insert(table) if conn.dialect.name == "postgresql" else sqlite.insert(table)  # type: ignore[return-value]


def plain(value: object) -> Any:
    """A value as JSON has it: mappings and sequences become dicts and lists, and a NaN or an infinity becomes null.

    Raises TypeError for anything else.
    """
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    raise TypeError(f"{type(value).__name__} cannot be stored as JSON")


def _compact(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def parse_url(text: str) -> URL:
    """Read a storage URL; PostgreSQL always means psycopg 3. Raises UsageError, without ever repeating a password."""
    allowed = "Write sqlite:///path/to/file.db or postgresql://user:password@host/database."
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        kind = text.partition("://")[0] if "://" in text else "no scheme"
        raise UsageError(f"Cannot read the storage URL ({kind}).", allowed) from None
    if url.drivername not in _SCHEMES:
        raise UsageError(f"Storage URL scheme {url.drivername!r} is not supported.", allowed)
    if _SCHEMES[url.drivername] == "pg":
        return url.set(drivername="postgresql+psycopg")
    if url.host or not url.database or url.database == ":memory:" or url.database.startswith("file:"):
        raise UsageError(f"Storage URL {describe(url)} does not name a file: a store must outlive the process.", allowed)
    return url.set(drivername="sqlite", database=str(Path(url.database).expanduser()))


def describe(url: URL) -> str:
    """The URL as it may be printed: no password, neither in its place nor in the query."""
    query = {key: "***" if key in _SECRETS else value for key, value in url.query.items()}
    return url.set(query=query).render_as_string(hide_password=True)


class Database:
    """One database. `file` is the SQLite file, None for PostgreSQL. sleep: how a retry waits."""

    def __init__(self, text: str, *, create: bool, sleep: Callable[[float], None] = time.sleep) -> None:
        self.url = parse_url(text)
        self.file = Path(str(self.url.database)) if self.url.drivername == "sqlite" else None
        self._sleep = sleep
        if self.file is not None:
            _prepare_file(self.file, create)
        options: dict[str, Any] = {"connect_args": {"timeout": BUSY_SECONDS}}
        if self.file is None:
            wait = {} if "connect_timeout" in self.url.query else {"connect_timeout": CONNECT_SECONDS}
            options = {"connect_args": wait, "pool_pre_ping": True}
        try:
            self.engine = create_engine(self.url, json_serializer=_compact, **options)
        except ImportError as error:
            raise MissingDependency(
                f"Storage {self.describe()} needs the package psycopg.", "Install it: pip install 'evopress[postgres]'."
            ) from error
        if self.file is not None:
            event.listen(self.engine, "connect", _set_pragmas)
            event.listen(self.engine, "begin", _begin)

    def describe(self) -> str:
        """The URL without any password."""
        return describe(self.url)

    def close(self) -> None:
        """Close every connection."""
        self.engine.dispose()

    def read(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in a transaction that only reads. Raises StorageError."""
        return self._run(work, write=False)

    def write(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in a transaction that is committed whole or not at all. Raises StorageError."""
        return self._run(work, write=True)

    def rebuild(self, work: Callable[[Connection], T]) -> T:
        """As `write`, for a change of the schema: SQLite alters a table by copying it, which foreign keys would forbid meanwhile.

        They are checked as a whole before the commit. Raises StorageError.
        """

        def checked(conn: Connection) -> T:
            result = work(conn)
            if self.file is not None and conn.exec_driver_sql("PRAGMA foreign_key_check").first() is not None:
                raise self._damaged("a row refers to another that does not exist")
            return result

        return self._run(checked, write=True, foreign_keys=False)

    def _run(self, work: Callable[[Connection], T], *, write: bool, foreign_keys: bool = True) -> T:
        for pause in (*_PAUSES, None):
            try:
                options = {"evo_write": write, "evo_foreign_keys": foreign_keys}
                with self.engine.connect().execution_options(**options) as conn, conn.begin():
                    return work(conn)
            except (DBAPIError, sqlite3.Error) as error:
                if pause is None or not _is_transient(error):
                    raise self.explain(error) from error
                self._sleep(pause)
        raise AssertionError("the last attempt either returns or raises")

    def check(self) -> None:
        """Verify every page of a SQLite file; PostgreSQL checks itself. Raises StorageError."""
        if self.file is None:
            return
        report = self.read(lambda conn: list(conn.exec_driver_sql("PRAGMA quick_check(1)").scalars()))
        if report != ["ok"]:
            raise self._damaged("; ".join(report).replace("\n", " "))

    def explain(self, error: DBAPIError | sqlite3.Error) -> EvopressError:
        """The error of a driver as one of ours: what happened, to which store, and the next step."""
        cause = error.orig if isinstance(error, DBAPIError) else error
        text = str(cause).strip().replace("\n", " ")
        for secret in (self.url.password, *(self.url.query.get(key) for key in _SECRETS)):
            text = text.replace(str(secret), "***") if secret else text
        return self._explain_sqlite(text) if self.file is not None else self._explain_postgres(text, getattr(cause, "sqlstate", None))

    def _explain_sqlite(self, text: str) -> EvopressError:
        file = self.file
        assert file is not None
        if "not a database" in text or "malformed" in text:
            return self._damaged(text)
        if "readonly" in text or "read-only" in text:
            advice = elsewhere(file, "Make the file and its folder writable, or name another: --storage.")
            return StorageError(f"The store {file} cannot be written: {text}.", advice)
        if "disk is full" in text:
            return StorageError(
                f"The store {file} cannot grow: the disk is full.",
                "Nothing stored so far is lost. Free space, then run the same command again.",
            )
        if "unable to open" in text:
            advice = elsewhere(file, "Check the folder and its permissions, or name another file: --storage.")
            return StorageError(f"The store {file} cannot be opened: {text}.", advice)
        if "locked" in text or "busy" in text:
            return StorageError(
                f"The store {file} stayed locked by another program for more than {BUSY_SECONDS} s.",
                "Close what holds it open (a database browser, a backup), then run the same command again.",
            )
        return StorageError(
            f"The store {file} failed: {text}.", "Check the disk, then run the same command again; see also evopress doctor."
        )

    def _explain_postgres(self, text: str, state: str | None) -> EvopressError:
        where = self.describe()
        if state is None and "does not exist" in text and "database" in text:
            return StorageError(f"The database of {where} does not exist: {text}.", f"Create it: createdb {self.url.database}.")
        if state is None or state.startswith(("08", "57P", "28")):
            return StorageError(
                f"Cannot reach PostgreSQL at {where}: {text}.", "Check that the server runs, its address, and user and password."
            )
        if state == "53100":
            return StorageError(
                f"The disk of {where} is full.", "Nothing stored so far is lost. Free space, then run the same command again."
            )
        if state in ("25006", "42501"):
            return StorageError(f"The store {where} cannot be written: {text}.", "Give the user the right to create and write tables.")
        if state in _TRANSIENT_STATES:
            return StorageError(f"The store {where} stayed busy: {text}.", "Run the same command again.")
        return StorageError(f"The store {where} failed: {text}.", "Check the server, then run the same command again.")

    def _damaged(self, text: str) -> StorageError:
        return StorageError(
            f"The store {self.file} is damaged: {text}.",
            f"Move it away together with {self.file}-wal and {self.file}-shm and start anew, restore a backup, "
            f"or save what can be read: sqlite3 {self.file} .recover",
        )


def _prepare_file(file: Path, create: bool) -> None:
    if file.is_dir():
        raise StorageError(f"The store {file} is a folder, not a file.", "Name a file inside it, e.g. evopress.db.")
    if file.exists():
        return
    if not create:
        raise NotFound(f"There is no store at {file}.", "Run a search first, or name the store: --storage sqlite:///path/to/file.db.")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"Cannot make the folder {file.parent} of the store: {error.strerror or error}.",
            elsewhere(file, "Name a writable place: --storage sqlite:///path/to/file.db."),
        ) from error


def _is_transient(error: DBAPIError | sqlite3.Error) -> bool:
    cause = error.orig if isinstance(error, DBAPIError) else error
    if isinstance(cause, sqlite3.OperationalError):
        return "locked" in str(cause) or "busy" in str(cause)
    return getattr(cause, "sqlstate", None) in _TRANSIENT_STATES


def _set_pragmas(connection: sqlite3.Connection, _record: object) -> None:
    # The driver's own implicit transactions are switched off; `_begin` opens them, so that DDL is transactional and writers queue at BEGIN.
    connection.isolation_level = None
    connection.execute(f"PRAGMA busy_timeout = {BUSY_SECONDS * 1000}")
    if connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
        connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")


def _begin(conn: Connection) -> None:
    options = conn.get_execution_options()
    # Only outside a transaction does this setting take effect; a connection from the pool may carry the other one.
    conn.exec_driver_sql(f"PRAGMA foreign_keys = {'ON' if options.get('evo_foreign_keys', True) else 'OFF'}")
    conn.exec_driver_sql("BEGIN IMMEDIATE" if options.get("evo_write") else "BEGIN")
