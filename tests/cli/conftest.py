"""Fixtures of the command tests: planted stores and an empty home."""

from __future__ import annotations

from pathlib import Path

import pytest
from planted_store import Planted, plant


@pytest.fixture(scope="session")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    """A filled store that tests only read."""
    return plant(f"sqlite:///{tmp_path_factory.mktemp('store') / 'planted.db'}")


@pytest.fixture
def own_store(tmp_path: Path) -> Planted:
    """A filled store that a test may write to."""
    return plant(f"sqlite:///{tmp_path / 'own.db'}")


@pytest.fixture
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty EVOPRESS_HOME, and no storage from outside."""
    monkeypatch.setenv("EVOPRESS_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("EVOPRESS_STORAGE", raising=False)
