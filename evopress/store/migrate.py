"""Schema revisions: what revision a database has, whether this program can use it, and how it gets to the newest.

The steps themselves are in `migrations/versions`. Alembic is imported only when a step has to be taken, so that opening a current
store stays quick.
"""

from __future__ import annotations

from importlib import resources

from sqlalchemy import Connection, inspect, text

from evopress.api import NotFound, StorageError
from evopress.store.database import CHECK_BYTES, Database
from evopress.store.schema import REVISIONS, VERSION_TABLE

_LOCK = 0x65766F70  # an arbitrary number of our own for PostgreSQL's advisory locks: "evop"


def revision(url: str) -> str | None:
    """Revision of the database at `url`, None when it holds no store. Raises NotFound (no such file), StorageError, UsageError."""
    database = Database(url, create=False)
    try:
        return database.read(current)
    finally:
        database.close()


def upgrade(url: str) -> tuple[str | None, str]:
    """Bring a database to the newest revision, in one transaction; returns the revisions before and after.

    Raises StorageError when the database is newer than this program, damaged, or cannot be written.
    """
    database = Database(url, create=True)
    try:
        before = database.read(current)
        if before is not None and before not in REVISIONS:
            raise _newer(database, before)
        database.rebuild(migrate)
        return before, REVISIONS[-1]
    finally:
        database.close()


def ensure_current(database: Database, *, create: bool) -> None:
    """Create the tables of a fresh database; refuse one that is older or newer than this program, or damaged."""
    found = database.read(current)
    if found is None:
        if not create:
            raise NotFound(f"There is no store in {database.describe()}.", "Run a search first, or name another store: --storage.")
        database.rebuild(migrate)
        return
    if found not in REVISIONS:
        raise _newer(database, found)
    if found != REVISIONS[-1]:
        raise StorageError(
            f"The store {database.describe()} has the older schema {found}; this evopress needs {REVISIONS[-1]}.",
            f"Back it up, then run: evopress db upgrade --storage {database.describe()}",
        )
    if database.file is not None and database.file.stat().st_size <= CHECK_BYTES:
        database.check()


def current(conn: Connection) -> str | None:
    """Revision of the connected database, None when it holds no store."""
    if not inspect(conn).has_table(VERSION_TABLE):
        return None
    found = conn.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar()
    return None if found is None else str(found)


def migrate(conn: Connection, target: str = "head") -> None:
    """Run the missing steps inside the transaction of `conn`. Two processes that create one store at once take turns."""
    from alembic import command
    from alembic.config import Config

    if conn.dialect.name == "postgresql":
        conn.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": _LOCK})
    with resources.as_file(resources.files("evopress.store") / "migrations") as folder:
        config = Config()
        config.set_main_option("script_location", str(folder).replace("%", "%%"))
        config.attributes["connection"] = conn
        if target == "base":
            command.downgrade(config, target)
        else:
            command.upgrade(config, target)


def _newer(database: Database, found: str) -> StorageError:
    return StorageError(
        f"The store {database.describe()} was written by a newer evopress (schema {found}; this one knows up to {REVISIONS[-1]}).",
        "Upgrade evopress: pip install -U evopress. Nothing was changed.",
    )
