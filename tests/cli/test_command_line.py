"""The command line as a whole: light to start, every command explained, exact exit codes of the real program."""

from __future__ import annotations

import ast
import json
import os
import re
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
        *(f"search {verb}" for verb in ("start", "resume", "status", "list", "delete")),
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


def test_the_readme_names_every_command() -> None:
    """`evopress db path | upgrade` names two."""
    text = (Path(__file__).resolve().parents[2] / "README.md").read_text()
    text = re.sub(
        r"(evopress(?: [a-z]+)*) ([a-z]+)((?: \| [a-z]+)+)", lambda m: "\n".join(f"{m[1]} {w}" for w in f"{m[2]}{m[3]}".split(" | ")), text
    )
    visible = [name for name, found in commands().items() if not found.hidden and not hasattr(found, "commands")]
    assert not [name for name in visible if not re.search(rf"{name}\b", text)]


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


WRONG = [
    (["search", "start", "--metod", "gptq"], "No such option: --metod (Possible options: --method", "See: evopress search start --help"),
    (["search", "strat"], "No such command 'strat'. Did you mean 'start'", "See: evopress search --help"),
    (["search", "resume"], "Missing argument 'NAME'.", "See: evopress search resume --help"),
    (["profile", "evaluate", "demo"], "Missing option '--tasks'.", "See: evopress profile evaluate --help"),
    (["search", "start", "--seed"], "Option '--seed' requires an argument.", "See: evopress --help"),
    (["leaderboard", "--limit", "0"], "Option --limit is '0'.", "See: evopress leaderboard --help"),
    (["leaderboard", "--limit=many"], "Option --limit is 'many'.", "See: evopress leaderboard --help"),
    (["search", "start", "--dtype", "float16"], "Unknown type 'float16' in --dtype.",
     "Did you mean 'bfloat16'? Known: auto, bfloat16, float32."),
    (["profile", "evaluate", "demo", "--tasks", "a", "--dtype", "int8"], "Unknown type 'int8' in --dtype.",
     "Known: auto, bfloat16, float32."),
]  # fmt: skip


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """`evopress …` in this process: exit code and both streams."""
    from evopress.cli import main

    def call(*arguments: str) -> tuple[Any, str, str]:
        monkeypatch.setattr("sys.argv", ["evopress", *arguments])
        with pytest.raises(SystemExit) as done:
            main()
        return (done.value.code, *capsys.readouterr())

    return call


@pytest.mark.parametrize(("arguments", "message", "hint"), WRONG, ids=lambda value: " ".join(value) if isinstance(value, list) else None)
def test_wrong_options_are_one_message_or_one_document(command: Any, arguments: list[str], message: str, hint: str) -> None:
    """The parser's own errors look like all others, and none shows what its library calls things."""
    code, out, err = command(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {message}")
    assert err.endswith(f"\n  {hint}\n")
    first = next((place for place, word in enumerate(arguments) if word.startswith("-")), len(arguments))
    code, out, err = command(*arguments[:first], "--json", *arguments[first:])
    assert (code, err) == (2, "")
    error = json.loads(out)["error"]
    assert (error["code"], error["hint"]) == ("usage", hint)
    assert error["message"].startswith(message)
    assert "Input should be" not in error["message"]


@pytest.mark.parametrize("arguments", [[], ["search"]])
def test_no_command_at_all_prints_the_help(command: Any, arguments: list[str]) -> None:
    code, out, err = command(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"Usage: {' '.join(['evopress', *arguments])} [OPTIONS] COMMAND")


def test_no_option_is_declared_twice() -> None:
    """A help text stands once in the source, and a flag that two commands share is the same option unless it is listed here."""
    folder = Path(__file__).resolve().parents[2] / "evopress" / "cli"
    calls = [
        node
        for path in folder.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("typer.Option", "typer.Argument")
    ]
    texts = [ast.unparse(word.value) for call in calls for word in call.keywords if word.arg == "help"]
    assert len(texts) > 40
    assert len(texts) == len(set(texts))
    helps: dict[str, set[str]] = {}
    for item in commands().values():
        for parameter in item.params:
            for flag in (opt for opt in parameter.opts if opt not in ("--help", parameter.name)):
                helps.setdefault(flag, set()).add(parameter.help)
    assert {flag for flag, found in helps.items() if len(found) > 1} == HOMONYMS


HOMONYMS = {"--study", "--model", "-m", "--seed", "--text", "--limit", "--dtype", "--result", "--rounds", "--threads", "--tokens"}
"""Flags that mean another thing in another command."""


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
