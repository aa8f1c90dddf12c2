"""Schema revisions: a fresh store is at the newest, an older or newer one is refused, and the steps give the declared tables."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import inspect, text
from store_cases import open_together, save_basics

from evopress.api import NotFound, StorageError
from evopress.store import Store, migrate, revision, upgrade
from evopress.store.database import Database
from evopress.store.schema import REVISIONS, VERSION_TABLE, Base

SPAWN = multiprocessing.get_context("spawn")


def test_a_fresh_store_is_at_the_newest_revision(storage_url: str) -> None:
    Store.open(storage_url).close()
    assert revision(storage_url) == REVISIONS[-1]
    assert upgrade(storage_url) == (REVISIONS[-1], REVISIONS[-1])


def test_upgrade_from_an_empty_database(storage_url: str) -> None:
    assert upgrade(storage_url) == (None, REVISIONS[-1])
    with Store.open(storage_url, create=False) as store:
        save_basics(store)


def test_the_steps_give_the_declared_tables_and_go_back(storage_url: str) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    upgrade(storage_url)
    database = Database(storage_url, create=False)
    options = {"version_table": VERSION_TABLE, "compare_type": True}
    assert database.read(lambda conn: compare_metadata(MigrationContext.configure(conn, opts=options), Base.metadata)) == []
    tables = database.read(lambda conn: set(inspect(conn).get_table_names()))
    assert tables == set(Base.metadata.tables) | {VERSION_TABLE}
    assert all(name.startswith("evo_") for name in tables)
    database.rebuild(lambda conn: migrate.migrate(conn, "base"))
    assert database.read(lambda conn: inspect(conn).get_table_names()) == [VERSION_TABLE]
    database.close()
    assert revision(storage_url) is None
    assert upgrade(storage_url) == (None, REVISIONS[-1])


def test_the_known_revisions_are_those_on_disk() -> None:
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(Path(migrate.__file__).parent / "migrations"))
    script = ScriptDirectory.from_config(config)
    assert tuple(step.revision for step in reversed(list(script.walk_revisions()))) == REVISIONS


def _set_revision(url: str, value: str) -> None:
    database = Database(url, create=False)
    database.write(lambda conn: conn.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = :value"), {"value": value}))
    database.close()


def test_a_newer_store_is_left_alone(storage_url: str) -> None:
    Store.open(storage_url).close()
    _set_revision(storage_url, "9999")
    for attempt in (lambda: Store.open(storage_url), lambda: upgrade(storage_url)):
        with pytest.raises(StorageError) as caught:
            attempt()
        assert f"was written by a newer evopress (schema 9999; this one knows up to {REVISIONS[-1]})." in str(caught.value)
        assert "Upgrade evopress: pip install -U evopress. Nothing was changed." in str(caught.value)
    assert revision(storage_url) == "9999"


def test_an_older_store_asks_for_the_upgrade(storage_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Store.open(storage_url).close()
    monkeypatch.setattr(migrate, "REVISIONS", (*REVISIONS, "9000"))
    with pytest.raises(StorageError) as caught:
        Store.open(storage_url)
    assert f"has the older schema {REVISIONS[-1]}; this evopress needs 9000. Back it up, then run: evopress db upgrade --storage" in str(
        caught.value
    )


def test_a_store_of_the_first_schema_keeps_every_row(storage_url: str) -> None:
    database = Database(storage_url, create=True)
    database.rebuild(lambda conn: migrate.migrate(conn, "0001"))
    rows = (
        "INSERT INTO evo_models (id, name, digest, config, params) VALUES (1, 'tiny', 'aa', '{}', 9)",
        "INSERT INTO evo_layouts (id, digest, sites) VALUES (1, 'bb', '[]')",
        "INSERT INTO evo_profiles (id, model_id, digest, layout_id, levels, bytes, params, bits) VALUES (1, 1, 'cc', 1, '[]', 8, 9, 3.0)",
        "INSERT INTO evo_slices (id, digest, token_set, documents, tokens) VALUES (1, 'dd', 'ee', '[]', 4)",
        "INSERT INTO evo_trials (id, key, profile_id, slice_id, fitness, numerics, mean, tokens, seconds, state, created)"
        " VALUES (1, 'ff', 1, 1, 'kl', 'float32/cpu', 0.5, 4, 1.0, 'complete', 1.0)",
    )
    database.write(lambda conn: [conn.execute(text(row)) for row in rows])
    assert upgrade(storage_url) == ("0001", REVISIONS[-1])
    found = database.read(
        lambda conn: conn.execute(
            text("SELECT p.digest, p.bank, t.mean FROM evo_trials t JOIN evo_profiles p ON p.id = t.profile_id")
        ).one()
    )
    assert tuple(found) == ("cc", "", 0.5)
    orphan = "INSERT INTO evo_results (study_id, label, role, profile_id, details, updated) VALUES (7, 'x', '', 7, '{}', 1.0)"
    with pytest.raises(StorageError, match=r"(?i)foreign key"):
        database.write(lambda conn: conn.execute(text(orphan)))
    database.close()


def test_a_store_of_the_fourth_schema_keeps_its_trials_and_takes_estimates(storage_url: str) -> None:
    database = Database(storage_url, create=True)
    database.rebuild(lambda conn: migrate.migrate(conn, "0004"))
    rows = (
        "INSERT INTO evo_models (id, name, digest, config, params) VALUES (1, 'tiny', 'aa', '{}', 9)",
        "INSERT INTO evo_layouts (id, digest, sites) VALUES (1, 'bb', '[]')",
        "INSERT INTO evo_profiles (id, model_id, digest, bank, layout_id, levels, bytes, params, bits)"
        " VALUES (1, 1, 'cc', 'b1', 1, '[]', 8, 9, 3.0)",
        "INSERT INTO evo_slices (id, digest, token_set, documents, tokens) VALUES (1, 'dd', 'ee', '[[0, 4]]', 4)",
        "INSERT INTO evo_trials (id, key, profile_id, slice_id, fitness, numerics, mean, tokens, seconds, state, created)"
        " VALUES (1, 'ff', 1, 1, 'kl', 'float32/cpu', 0.5, 4, 1.25, 'complete', 1.0)",
        "INSERT INTO evo_document_values (trial_id, position, document, weight, value) VALUES (1, 0, 0, 3, 0.5)",
        "INSERT INTO evo_slopes (trial_id, changes) VALUES (1, '[0.25]')",
    )
    database.write(lambda conn: [conn.execute(text(row)) for row in rows])
    with pytest.raises(StorageError, match="has the older schema 0004; this evopress needs"):
        Store.open(storage_url)
    assert upgrade(storage_url) == ("0004", REVISIONS[-1])
    trials = "SELECT t.mean, t.seconds, t.estimated_seconds, v.value FROM evo_trials t JOIN evo_document_values v ON v.trial_id = t.id"
    assert tuple(database.read(lambda conn: conn.execute(text(trials)).one())) == (0.5, 1.25, None, 0.5)
    again = "INSERT INTO evo_trials (id, key, profile_id, slice_id, fitness, numerics, mean, tokens, seconds, state, created) VALUES"
    with pytest.raises(StorageError, match=r"(?i)unique"):  # the constraints are there after the table was copied
        database.write(lambda conn: conn.execute(text(f"{again} (2, 'gg', 1, 1, 'kl', 'float32/cpu', 0.5, 4, 1.0, 'complete', 1.0)")))
    database.close()
    with Store.open(storage_url) as store:
        assert store.profiles([1])[1].bank == "b1"


def test_a_missing_store_is_not_made_by_asking(storage_url: str) -> None:
    with pytest.raises(NotFound, match=r"There is no store (at|in) .*Run a search first"):
        Store.open(storage_url, create=False)
    if storage_url.startswith("sqlite"):
        assert not Path(storage_url.removeprefix("sqlite:///")).exists()
        with pytest.raises(NotFound, match="There is no store at"):
            revision(storage_url)


def test_a_step_that_fails_leaves_nothing(storage_url: str) -> None:
    database = Database(storage_url, create=True)
    database.write(lambda conn: conn.execute(text("CREATE TABLE evo_trials (mine INTEGER)")))  # in the way of the step
    with pytest.raises(StorageError, match="already exists"):
        database.write(migrate.migrate)
    assert database.read(lambda conn: inspect(conn).get_table_names()) == ["evo_trials"]
    database.close()


def test_two_processes_may_create_one_store(storage_url: str) -> None:
    together = SPAWN.Barrier(3)
    children = [SPAWN.Process(target=open_together, args=(storage_url, together)) for _ in range(3)]
    for child in children:
        child.start()
    for child in children:
        child.join(90)
    assert [child.exitcode for child in children] == [0, 0, 0]
    assert revision(storage_url) == REVISIONS[-1]


def test_another_program_may_own_other_tables_and_its_own_alembic_version(storage_url: str) -> None:
    database = Database(storage_url, create=True)
    database.write(lambda conn: conn.execute(text("CREATE TABLE alembic_version (version_num VARCHAR(32))")))
    database.write(lambda conn: conn.execute(text("INSERT INTO alembic_version VALUES ('v3.0.0.d')")))
    database.close()
    Store.open(storage_url).close()
    assert revision(storage_url) == REVISIONS[-1]


def test_the_store_needs_neither_torch_nor_alembic_to_open(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'x.db'}"
    Store.open(url).close()
    code = (
        "import sys; from evopress.store import Store; Store.open(sys.argv[1]).close(); "
        "print([name for name in ('torch', 'alembic', 'psycopg', 'numpy') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code, url], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
