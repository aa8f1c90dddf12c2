"""What every command shares: where the store is, how an answer is printed, how an error ends the program. Imports nothing heavy.

Options are declared in `evopress.cli.options`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from evopress.api.errors import EvopressError
from evopress.home import default_store, home


def counted(count: int, noun: str, many: str = "") -> str:
    """`1 run`, `2 runs`; many: the plural where it is no s."""
    return f"{count:,} {noun if count == 1 else many or noun + 's'}"


def storage_url(given: str | None) -> str:
    """The URL as given, or the default SQLite file."""
    return given or default_store(home())


def say(text: str) -> None:
    """A line for people while work goes on: always stderr, so that stdout holds the answer alone."""
    print(text, file=sys.stderr, flush=True)


def at_terminal() -> bool:
    """Is a person there who can answer a question?"""
    return sys.stdin.isatty()


def print_json(document: Any) -> None:
    """The answer as JSON."""
    print(json.dumps(document, indent=2, default=str))


def print_table(header: Sequence[str], rows: Iterable[Sequence[Any]], empty: str = "nothing yet") -> None:
    """The answer as an aligned table; numbers to the right. Plain text, so that it can be piped and grepped."""
    body = [["-" if cell is None else str(cell) for cell in row] for row in rows]
    if not body:
        print(empty)
        return
    widths = [max(len(line[i]) for line in [list(header), *body]) for i in range(len(header))]
    right = [all(_numeric(line[i]) for line in body) for i in range(len(header))]
    for number, line in enumerate([list(header), *body]):
        padded = [cell.rjust(w) if r else cell.ljust(w) for cell, w, r in zip(line, widths, right, strict=True)]
        print("  ".join(padded).rstrip())
        if number == 0:
            print("  ".join("-" * w for w in widths))


def _numeric(cell: str) -> bool:
    return cell == "-" or cell.replace(",", "").replace(".", "", 1).lstrip("+-").rstrip("%").isdigit()


def error_document(error: EvopressError) -> dict[str, Any]:
    """An error as JSON values."""
    return {"error": {"code": error.code, "message": error.message, "hint": error.hint}}


def fail(error: EvopressError, as_json: bool) -> int:
    """Print an error for people or for programs; returns the exit code."""
    if as_json:
        print_json(error_document(error))
    else:
        print(f"error: {error.message}" + (f"\n  {error.hint}" if error.hint else ""), file=sys.stderr)
    return error.exit_code
