"""The command line: one file per noun; a command parses, calls, prints. `main` is the console script."""

from __future__ import annotations

import os
import sys
from typing import Any

import typer

from evopress.api.errors import EvopressError, UsageError
from evopress.cli import db, doctor, kernels, leaderboard, plugins, profile, search, study
from evopress.cli.output import fail, say

app = typer.Typer(
    name="evopress",
    help="Finds which compression each part of a language model should get, under one exact global budget.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(search.app, name="search")
app.add_typer(study.app, name="study")
app.add_typer(profile.app, name="profile")
app.add_typer(kernels.app, name="kernels")
app.add_typer(plugins.app, name="plugins")
app.add_typer(db.app, name="db")
app.command("leaderboard")(leaderboard.leaderboard)
app.command("doctor")(doctor.doctor)


def _version(show: bool) -> None:
    if show:
        from importlib.metadata import version

        print(version("evopress"))
        raise typer.Exit


@app.callback()
def _root(show: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version.")) -> None:
    pass


PARSING_ERROR: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")
"""What the parser of options raises: typer brings its own copy of click or uses the installed one, so the class is found through typer."""


def main() -> None:
    """Run the command line; a deliberate error, or one in the options, becomes one message and its exit code."""
    # OpenMP threads spin for milliseconds at every barrier by default, which beside any other busy process stalls everything. A short spin
    # keeps the speed of an idle machine (measured: 1650 against 1700 tokens/s) and is 2 to 5 times faster on a crowded one.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    as_json = "--json" in sys.argv
    try:
        code = app(prog_name="evopress", standalone_mode=False)
    except EvopressError as error:
        code = fail(error, as_json)
    except PARSING_ERROR as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            error.show()
            code = error.exit_code
        else:
            code = fail(_usage(error), as_json)
    except typer.Abort:
        say("interrupted; what was measured is stored, and the same command goes on from there")
        code = 130
    sys.exit(code or 0)


def _usage(error: Any) -> UsageError:
    """An error of the parser in our words: with what came, where one option is to blame."""
    message = " ".join(error.format_message().split())
    parameter, context = getattr(error, "param", None), getattr(error, "ctx", None)
    came = _given(parameter.opts) if parameter is not None and not parameter.multiple else None
    if came is not None:
        rule = error.message.partition(", unable to parse")[0].replace("Input should be", "It must be", 1)
        message = f"Option {came[0]} is {came[1]!r}. {rule}"
    return UsageError(message.rstrip(".") + "." * (message[-1] != "?"), f"See: {context.command_path if context else 'evopress'} --help")


def _given(flags: list[str]) -> tuple[str, str] | None:
    """The flag and the value that the command line has for one option, None when it has none (the value came from elsewhere)."""
    for word, following in zip(sys.argv[1:], [*sys.argv[2:], ""], strict=True):
        flag, equals, value = word.partition("=")
        if flag in flags:
            return flag, value if equals else following
    return None
