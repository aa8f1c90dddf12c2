"""Fixtures of the end-to-end tests: one tiny model for the session, its uninterrupted run, and a server that forks runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tiny_study
from fork_server import Forks
from tiny_study import Answer, Tiny, Whole


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """The model and the text; tests only read them."""
    return tiny_study.make(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """Runs in processes of their own."""
    with Forks() as server:
        yield server


@pytest.fixture(scope="session")
def whole(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """The standard study from beginning to end, without speed; tests only read its home."""
    home = tmp_path_factory.mktemp("whole")
    run = tiny_study.run(tiny, home)
    return Whole(run, home, tiny_study.contents(tiny_study.url(home)))


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading a model fails the test."""
    monkeypatch.setattr("evopress.workbench.load", lambda *_: pytest.fail("the model was loaded"))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty EVOPRESS_HOME, and no storage from outside."""
    monkeypatch.setenv("EVOPRESS_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("EVOPRESS_STORAGE", raising=False)
    return tmp_path / "home"


@pytest.fixture
def evopress_command(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """`evopress …` in this process, through the console script's own function, in the home of the test."""
    from evopress.cli import main

    def call(*arguments: str) -> Answer:
        monkeypatch.setattr("sys.argv", ["evopress", *arguments])
        capsys.readouterr()
        try:
            main()
        except SystemExit as done:
            code = done.code
        else:
            code = 0
        out, err = capsys.readouterr()
        assert isinstance(code, int | None)
        return Answer(code or 0, out, err)

    return call
