"""Bad storage of every kind gives one clear message with the next step, and loses nothing."""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import event, text
from store_cases import key, numbered, save_basics, slice_of, trial

from evopress.api import EvopressError, MissingDependency, StorageError, UsageError
from evopress.store import Store
from evopress.store import database as database_module
from evopress.store.database import Database, parse_url, plain


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "evopress.db"


@pytest.fixture
def store(file: Path) -> Iterator[Store]:
    with Store.open(f"sqlite:///{file}") as opened:
        save_basics(opened)
        yield opened


def _put(store: Store, number: int) -> None:
    of, name = numbered(number)
    store.put_trial(name, trial(of, slice_of(documents=3), (1.0, 2.0, 3.0)), bits=2.0)


def _fail(url: str, kind: type[EvopressError] = StorageError) -> str:
    with pytest.raises(kind) as caught:
        Store.open(url)
    assert caught.value.hint
    return str(caught.value)


def test_a_file_that_is_no_database(file: Path) -> None:
    file.write_bytes(b"this is a text file, and it is long enough to be looked at " * 100)
    before = file.read_bytes()
    message = _fail(f"sqlite:///{file}")
    assert f"The store {file} is damaged: file is not a database." in message
    assert f"Move it away together with {file}-wal and {file}-shm and start anew, restore a backup" in message
    assert file.read_bytes() == before


@pytest.mark.parametrize("share", [0.3, 0.7])
def test_a_truncated_file(store: Store, file: Path, share: float) -> None:
    for number in range(200):
        _put(store, number)
    store.close()
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])
    assert f"The store {file} is damaged: " in _fail(f"sqlite:///{file}")


def test_a_page_of_garbage(store: Store, file: Path) -> None:
    for number in range(200):
        _put(store, number)
    store.close()
    content = bytearray(file.read_bytes())
    middle = len(content) // 2 // 4096 * 4096
    content[middle : middle + 4096] = bytes(range(256)) * 16
    file.write_bytes(content)
    assert f"The store {file} is damaged: " in _fail(f"sqlite:///{file}")


def test_a_full_disk_loses_nothing(store: Store, file: Path) -> None:
    _put(store, 0)
    pages = store.database.read(lambda conn: conn.execute(text("PRAGMA page_count")).scalar())

    def limit(connection: sqlite3.Connection, _record: object) -> None:
        connection.execute(f"PRAGMA max_page_count = {pages + 2}")

    event.listen(store.database.engine, "connect", limit)
    store.close()
    stored = 1

    def fill() -> None:
        nonlocal stored
        while stored < 2000:
            _put(store, stored)
            stored += 1

    with pytest.raises(StorageError) as caught:
        fill()
    assert str(caught.value) == (
        f"The store {file} cannot grow: the disk is full. Nothing stored so far is lost. Free space, then run the same command again."
    )
    event.remove(store.database.engine, "connect", limit)
    store.close()
    store.check()
    assert len(store.find_trials(numbered(number)[1] for number in range(stored))) == stored
    _put(store, stored)  # the one that failed, again


def test_a_read_only_file(store: Store, file: Path) -> None:
    _put(store, 0)
    # query_only gives the driver's own error also to a superuser, whom file permissions do not stop.
    event.listen(store.database.engine, "connect", lambda connection, _record: connection.execute("PRAGMA query_only = ON"))
    store.close()
    with pytest.raises(StorageError) as caught:
        _put(store, 1)
    assert f"The store {file} cannot be written: attempt to write a readonly database." in str(caught.value)
    assert "Make the file and its folder writable, or name another: --storage." in str(caught.value)
    assert len(store.find_trials([numbered(0)[1]])) == 1


def test_a_folder_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", refuse)
    message = _fail(f"sqlite:///{tmp_path}/sub/x.db")
    assert f"Cannot make the folder {tmp_path}/sub of the store: Read-only file system. Name a writable place" in message


def test_a_folder_where_the_file_should_be(tmp_path: Path) -> None:
    assert f"The store {tmp_path} is a folder, not a file." in _fail(f"sqlite:///{tmp_path}")
    (tmp_path / "plain").write_text("x")
    assert "Cannot make the folder" in _fail(f"sqlite:///{tmp_path}/plain/sub/x.db")


def test_parents_are_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Store.open(f"sqlite:///{tmp_path}/a/b/c.db").close()
    assert (tmp_path / "a/b/c.db").is_file()
    monkeypatch.setenv("HOME", str(tmp_path))
    with Store.open("sqlite:///~/home.db") as store:
        assert store.describe() == f"sqlite:///{tmp_path}/home.db"


def test_a_lock_held_by_another_program(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database_module, "BUSY_SECONDS", 0)
    pauses: list[float] = []
    database = Database(f"sqlite:///{file}", create=True, sleep=pauses.append)
    other = sqlite3.connect(file, isolation_level=None)
    database.write(lambda conn: conn.execute(text("CREATE TABLE evo_x (a INTEGER)")))
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StorageError, match="stayed locked by another program"):
        database.write(lambda conn: conn.execute(text("INSERT INTO evo_x VALUES (1)")))
    assert len(pauses) == 5
    # The lock goes away while it waits: the write succeeds, once.
    database._sleep = lambda _: other.rollback() if other.in_transaction else None
    database.write(lambda conn: conn.execute(text("INSERT INTO evo_x VALUES (1)")))
    assert database.read(lambda conn: conn.execute(text("SELECT count(*) FROM evo_x")).scalar()) == 1
    database.close()
    other.close()


def test_sqlite_is_set_up(store: Store) -> None:
    pragmas = {"journal_mode": "wal", "foreign_keys": 1, "busy_timeout": 30000, "synchronous": 1}
    found = store.database.read(lambda conn: {name: conn.execute(text(f"PRAGMA {name}")).scalar() for name in pragmas})
    assert found == pragmas


@pytest.mark.parametrize(
    "url",
    ["mysql://user:hunter2@host/db", "evopress.db", "sqlite://", "sqlite:///:memory:", "sqlite:///file:x?mode=ro", "postgresql+asyncpg://u:hunter2@h/d",
     "", "postgresql://u:hunter2@h:notaport/d", "redis://x"],
)  # fmt: skip
def test_urls_that_name_no_store(url: str) -> None:
    message = _fail(url, UsageError)
    assert "Write sqlite:///path/to/file.db or postgresql://user:password@host/database." in message
    assert "hunter2" not in message


def test_postgresql_urls_mean_psycopg_3() -> None:
    for scheme in ("postgres", "postgresql", "postgresql+psycopg"):
        assert parse_url(f"{scheme}://u@h/d").drivername == "postgresql+psycopg"


def test_a_password_is_never_printed() -> None:
    for url in ("postgresql://me:hunter2@127.0.0.1:1/evo", "postgresql://me@127.0.0.1:1/evo?password=hunter2&sslpassword=hunter2"):
        database = Database(url, create=True)
        assert "hunter2" not in database.describe()
        assert "127.0.0.1" in database.describe()
        message = _fail(url)
        assert "Cannot reach PostgreSQL at postgresql+psycopg://me" in message
        assert "Check that the server runs, its address, and user and password." in message
        assert "hunter2" not in message


def test_a_postgresql_database_that_does_not_exist(postgres_url: str) -> None:
    message = _fail(postgres_url.replace("/postgres?", "/nowhere?"))
    assert "does not exist" in message
    assert "Create it: createdb nowhere." in message


def test_a_postgresql_that_may_not_be_written(postgres_database: str) -> None:
    with Store.open(postgres_database) as store:
        save_basics(store)
        _put(store, 0)
    with Store.open(postgres_database + "&options=-c%20default_transaction_read_only%3Don") as store:
        assert len(store.find_trials([numbered(0)[1]])) == 1
        with pytest.raises(StorageError, match=r"cannot be written: .*read-only transaction.*Give the user the right"):
            _put(store, 1)


def test_a_postgresql_connection_that_was_cut_is_made_anew(postgres_database: str, postgres_url: str) -> None:
    import psycopg

    with Store.open(postgres_database) as store:
        save_basics(store)
        with psycopg.connect(postgres_url, autocommit=True) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s",
                [postgres_database.split("/")[-1].split("?")[0]],
            )
        _put(store, 0)
        assert len(store.find_trials([key(numbered(0)[0], slice_of())])) == 1


def test_postgresql_without_psycopg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    message = _fail("postgresql://u:hunter2@h/d", MissingDependency)
    assert message == ("Storage postgresql+psycopg://u:***@h/d needs the package psycopg. Install it: pip install 'evopress[postgres]'.")


def test_plain_values() -> None:
    assert plain({"a": (1, float("nan")), 2: {"b": None}}) == {"a": [1, None], "2": {"b": None}}
    with pytest.raises(TypeError, match="object cannot be stored as JSON"):
        plain({"a": object()})
