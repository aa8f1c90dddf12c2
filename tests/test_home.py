"""Where evopress keeps its things, and what it says where that cannot be."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from evopress.home import default_store, elsewhere, home


def test_home_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EVOPRESS_HOME", str(tmp_path / "h"))
    assert home() == tmp_path / "h"
    assert default_store(home()) == f"sqlite:///{tmp_path / 'h' / 'evopress.db'}"
    monkeypatch.setenv("EVOPRESS_HOME", "~/models")
    assert home() == Path.home() / "models"
    monkeypatch.delenv("EVOPRESS_HOME")
    assert home().name == "evopress"


def test_there_is_one_home() -> None:
    """Nobody else in the package reads the variable or has a function of that name."""
    package = Path(__file__).resolve().parents[1] / "evopress"
    other = re.compile(r"def home\(|environ[^\n]*EVOPRESS_HOME")
    assert [path.name for path in package.rglob("*.py") if other.search(path.read_text())] == ["home.py"]


def test_the_next_step_names_the_home_only_for_what_lies_in_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EVOPRESS_HOME", str(tmp_path / "h"))
    inside = elsewhere(tmp_path / "h" / "evopress.db", "name another: --storage.")
    assert inside == "Set EVOPRESS_HOME to a folder you may write to. Or: name another: --storage."
    assert elsewhere(tmp_path / "x.db", "name another: --storage.") == "name another: --storage."
