"""The command line as a whole: light to start, every command explained, exact exit codes of the real program."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from planted_store import Planted

HEAVY = ("torch", "sqlalchemy", "transformers", "numpy", "scipy", "alembic", "lm_eval")
"""Not pydantic: typer itself uses it to read the values of options."""


def program(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`evopress …` in a process of its own."""
    code = "import sys; sys.argv[0] = 'evopress'; from evopress.cli import main; main()"
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment}, timeout=120)


@pytest.mark.parametrize("arguments", [["--help"], ["profile", "show", "--help"], ["leaderboard", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys; sys.argv = ['evopress', *sys.argv[1:]]; from evopress.cli import main\n"
        "try: main()\n"
        f"finally: print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0
    assert done.stderr.strip() == "[]"


def commands() -> dict[str, Any]:
    """Every command and group by its full name."""
    import typer.main

    from evopress.cli import app

    found: dict[str, Any] = {}

    def walk(name: str, command: Any) -> None:
        found[name] = command
        for key, inner in getattr(command, "commands", {}).items():
            walk(f"{name} {key}", inner)

    walk("evopress", typer.main.get_command(app))
    return found


def test_the_promised_commands_exist() -> None:
    promised = [
        "search",
        "leaderboard",
        "profile show",
        "profile evaluate",
        "kernels list",
        "kernels bench",
        "plugins list",
        "plugins check",
        "doctor",
        "db path",
        "db upgrade",
        "db check",
    ]
    assert {f"evopress {name}" for name in promised} <= set(commands())


@pytest.mark.parametrize("name", sorted(commands()))
def test_every_command_and_option_has_a_help_text(name: str) -> None:
    command = commands()[name]
    assert len((command.help or "").strip()) > 15, f"{name} has no help"
    for parameter in command.params:
        if parameter.param_type_name == "option" and parameter.name != "help":
            assert parameter.help, f"{name} {parameter.opts[0]} has no help"


def test_exit_codes_and_streams_of_the_real_program(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'none.db'}"
    missing = program("leaderboard", "--storage", url)
    assert (missing.returncode, missing.stdout) == (5, "")
    assert missing.stderr.startswith("error: There is no store at")
    assert "Run a search first" in missing.stderr
    document = program("profile", "show", "demo", "--json", EVOPRESS_STORAGE=url)
    assert (document.returncode, document.stderr) == (5, "")
    assert json.loads(document.stdout)["error"]["code"] == "not-found"
    assert program("leaderboard", "--storage", "nonsense").returncode == 2
    assert program("leaderboard", "--limit", "0").returncode == 2
    assert program("no-such-command").returncode == 2


def test_a_planted_store_from_the_real_program(planted: Planted) -> None:
    done = program("profile", "show", "demo/uniform", EVOPRESS_STORAGE=planted.url)
    assert done.returncode == 0
    assert done.stdout.splitlines()[-3:] == ["down_proj  3 3 3       3.312", "", "3  gptq(bits=3,group=64) ×6"]
    assert "\x1b" not in done.stdout
    assert program("profile", "show", "demo/no", EVOPRESS_STORAGE=planted.url).returncode == 5


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo terminal")
@pytest.mark.parametrize(("no_color", "colored"), [("", True), ("1", False)])
def test_colour_only_on_a_terminal_and_not_under_no_color(planted: Planted, no_color: str, colored: bool) -> None:
    import pty

    ours, theirs = pty.openpty()
    code = "import sys; sys.argv[0] = 'evopress'; from evopress.cli import main; main()"
    environment = {**os.environ, "EVOPRESS_STORAGE": planted.url, "NO_COLOR": no_color, "COLUMNS": "100"}
    arguments = [sys.executable, "-c", code, "profile", "show", "demo/uniform"]
    subprocess.run(arguments, stdout=theirs, check=True, env=environment, timeout=120)
    os.close(theirs)
    text = os.read(ours, 65536).decode()
    os.close(ours)
    assert "3.312" in text
    assert ("\x1b[33m3\x1b[0m" in text) is colored
