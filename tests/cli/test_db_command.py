"""`evopress db`: path, upgrade, check, and no password anywhere."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest
from planted_store import Planted, invoke

from evopress.cli.db import app
from evopress.store.schema import REVISIONS, VERSION_TABLE

pytestmark = pytest.mark.usefixtures("own_home")


def test_path_of_the_default_store_lies_in_home(tmp_path: Path) -> None:
    assert invoke(app, "path").stdout.strip() == f"sqlite:///{tmp_path / 'home' / 'evopress.db'}"
    assert not (tmp_path / "home").exists()


def test_path_hides_the_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVOPRESS_STORAGE", "postgresql://me:s3cret@db.example/evo")
    out = invoke(app, "path").output
    assert "s3cret" not in out
    assert "me:***@db.example/evo" in out


def test_path_json(planted: Planted, tmp_path: Path) -> None:
    assert json.loads(invoke(app, "path", "--json", "--storage", planted.url).stdout) == {
        "url": planted.url,
        "exists": True,
        "revision": REVISIONS[-1],
    }
    absent = json.loads(invoke(app, "path", "--json", "--storage", f"sqlite:///{tmp_path}/no.db").stdout)
    assert (absent["exists"], absent["revision"]) == (False, None)


def test_upgrade_makes_then_keeps(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'new.db'}"
    assert invoke(app, "upgrade", "--storage", url).stdout.strip() == f"{url}: empty -> {REVISIONS[-1]}"
    assert "is at the newest revision" in invoke(app, "upgrade", "--storage", url).stdout
    document = json.loads(invoke(app, "upgrade", "--storage", url, "--json").stdout)
    assert document == {"url": url, "before": REVISIONS[-1], "revision": REVISIONS[-1], "changed": False}


def test_check(planted: Planted, tmp_path: Path) -> None:
    assert invoke(app, "check", "--storage", planted.url).stdout.strip() == f"{planted.url} is sound, revision {REVISIONS[-1]}, 2 studies"
    document = json.loads(invoke(app, "check", "--json", "--storage", planted.url).stdout)
    assert (document["ok"], document["studies"]) == (True, 2)
    broken = tmp_path / "broken.db"
    broken.write_bytes(b"this is no database, but long enough to be read as one" * 100)
    result = invoke(app, "check", "--storage", f"sqlite:///{broken}")
    assert result.exception.exit_code == 1
    assert "is damaged" in str(result.exception)


def test_a_newer_store_is_refused(own_store: Planted) -> None:
    with sqlite3.connect(own_store.url.removeprefix("sqlite:///")) as conn:
        conn.execute(f"UPDATE {VERSION_TABLE} SET version_num = '9999'")
    for command in ("upgrade", "check"):
        result = invoke(app, command, "--storage", own_store.url)
        assert "newer evopress (schema 9999" in str(result.exception)


def test_a_malformed_url_is_a_usage_error() -> None:
    assert invoke(app, "path", "--storage", "nonsense").exception.exit_code == 2
