"""`evopress plugins`: what is listed, and that a plugin that breaks its contract is found."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import pytest
from planted_store import invoke

from evopress.api import Cost, Kernel, Level, Method, Site, Statistics, Variant
from evopress.cli.plugins import app
from evopress.hooks.registry import Plugin, Registry


def test_list_names_the_built_ins() -> None:
    text = invoke(app, "list").stdout
    lines = [line.split() for line in text.splitlines()]
    assert lines[0] == ["name", "kind", "version", "origin", "paper"]
    assert ["drop", "method"] in [line[:2] for line in lines]
    assert "2210.17323" in next(" ".join(line) for line in lines if line[:2] == ["gptq", "method"])
    kinds = {entry["kind"] for entry in json.loads(invoke(app, "list", "--json").stdout)}
    assert kinds == {"method", "kernel", "fitness", "searcher"}


@dataclass(frozen=True)
class Liar(Method):
    """Promises nothing and yields nothing."""

    name: ClassVar[str] = "liar"

    def levels(self, site: Site) -> Sequence[Level]:
        return [Level.of("liar", bits=3)]

    def cost(self, site: Site, level: Level) -> Cost:
        return Cost(1, 1)

    def format(self, site: Site, level: Level) -> str:
        return "dense"

    def compress(self, site: Site, weight: object, stats: Statistics, levels: Sequence[Level]) -> Iterator[Variant]:
        yield from ()


class Crash(Kernel):
    """Cannot even be made."""

    name: ClassVar[str] = "crash"
    formats: ClassVar[tuple[str, ...]] = ("dense",)

    def __init__(self) -> None:
        raise RuntimeError("no such device")

    def supports(self, format: str, shape: tuple[int, int], device: str, dtype: object) -> bool:
        return True

    def pack(self, variant: Variant, dtype: object) -> Mapping[str, object]:
        return {}

    def run(self, x: object, packed: object) -> object:
        return x

    def read_bytes(self, packed: object, tokens: int) -> int:
        return 0

    def reference(self, x: object, variant: Variant) -> object:
        return x


@pytest.fixture
def odd_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Registry.load()
    classes = {
        "method": {"liar": Liar, "drop": real.classes["method"]["drop"]},
        "kernel": {"crash": Crash},
        "fitness": {"kl": real.classes["fitness"]["kl"]},
        "searcher": {"uniform": real.classes["searcher"]["uniform"]},
    }
    named = [Plugin(kind, name, "1.0", f"odd: {name}") for kind, found in classes.items() for name in found]
    broken = Plugin("", "gone", "2.0", "stranger: gone", error="ModuleNotFoundError: No module named 'gone'")
    registry = Registry(classes, (*named, broken))
    monkeypatch.setattr(Registry, "load", staticmethod(lambda *_: registry))


@pytest.mark.usefixtures("odd_plugins")
def test_list_shows_load_errors() -> None:
    text = invoke(app, "list").stdout
    working, _, broken = text.partition("1 failed to load")
    assert "gone" not in working
    assert "stranger: gone" in broken
    assert "No module named 'gone'" in broken


@pytest.mark.usefixtures("odd_plugins")
def test_check_tells_good_from_bad() -> None:
    result = invoke(app, "check", "--json")
    assert result.exit_code == 6
    found = {entry["name"]: (entry["result"], entry["detail"]) for entry in json.loads(result.stdout)}
    assert found["drop"][0] == "pass"
    assert found["uniform"] == ("pass", found["uniform"][1])
    assert found["kl"] == ("no check", "evopress.testing has no check for a fitness")
    assert found["liar"][0] == "fail"
    assert "yielded []" in found["liar"][1]
    assert found["crash"] == ("fail", "RuntimeError: no such device")
    assert found["gone"] == ("fail", "does not load: ModuleNotFoundError: No module named 'gone'")
    assert "3 of 6 plugins failed: liar, crash, gone." in result.stderr


@pytest.mark.usefixtures("odd_plugins")
def test_check_of_one_plugin() -> None:
    good = invoke(app, "check", "drop")
    assert good.exit_code == 0
    assert good.stdout.splitlines()[2].split()[:3] == ["drop", "method", "pass"]
    assert invoke(app, "check", "liar").exit_code == 6
    unknown = invoke(app, "check", "dropp")
    assert unknown.exception.exit_code == 5
    assert "Did you mean 'drop'?" in str(unknown.exception)
