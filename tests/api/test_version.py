"""The version of a plugin's code: its files and its libraries."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from evopress.api import Kernel, version
from evopress.api.version import code_version, library_version


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An importable package with a module below it."""
    folder = tmp_path / "planted_package"
    (folder / "inner").mkdir(parents=True)
    for name in ("__init__.py", "inner/__init__.py", "kernel.c"):
        (folder / name).write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    __import__("planted_package.inner")
    yield folder
    for name in ("planted_package", "planted_package.inner"):
        del sys.modules[name]


@pytest.mark.parametrize("name", ["__init__.py", "inner/__init__.py", "kernel.c"])
def test_any_source_of_the_package_makes_another_version(package: Path, name: str) -> None:
    version._digest.cache_clear()
    before = code_version("planted_package.inner")
    assert before == code_version("planted_package")
    (package / "notes.txt").write_text("no source")
    version._digest.cache_clear()
    assert code_version("planted_package.inner") == before
    (package / name).write_text("# changed")
    version._digest.cache_clear()
    assert code_version("planted_package.inner") != before


def test_libraries_that_are_installed_stand_behind_the_code() -> None:
    assert code_version("tests_of_nothing") == "interactive"
    assert code_version(__name__, ["pytest", "no-such-library"]) == f"{code_version(__name__)} pytest-{pytest.__version__}"
    assert library_version("no-such-library") == ""


def test_a_kernel_is_of_the_version_of_its_code_and_libraries() -> None:
    class Planted(Kernel):
        libraries = ("pytest",)

    Planted.__abstractmethods__ = frozenset()
    assert Planted().version == code_version(__name__, ["pytest"])  # type: ignore[abstract]
