"""Where evopress keeps its things, and what it says where that cannot be."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from evopress.api import StorageError
from evopress.home import default_store, elsewhere, home
from evopress.store import Store


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
    inside = elsewhere(tmp_path / "h" / "evopress.db", "Name another.")
    assert inside == "Set EVOPRESS_HOME to a folder you may write to, or name a store elsewhere: --storage sqlite:///path/to/file.db."
    assert elsewhere(tmp_path / "x.db", "Name another.") == "Name another."


def test_a_home_that_cannot_be_made_is_told_by_its_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("EVOPRESS_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(StorageError) as caught:
        Store.open(default_store(home()))
    assert caught.value.message.startswith(f"Cannot make the folder {tmp_path / 'file' / 'home'} of the store")
    assert caught.value.hint.startswith("Set EVOPRESS_HOME to a folder you may write to")
    with pytest.raises(StorageError) as caught:
        Store.open(f"sqlite:///{tmp_path / 'file' / 'elsewhere' / 'x.db'}")
    assert caught.value.hint.startswith("Name a writable place: --storage")
