"""Arguments and options that several commands take, each declared once. Imports nothing heavy.

An option of one command alone is declared where that command is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from evopress.api.errors import NotFound, UsageError


def _known_type(value: str | None) -> str | None:
    if value is not None:
        from evopress.precision import check_dtype

        check_dtype(value)
    return value


def writable(value: Path | None) -> Path | None:
    """Check --result before anything is measured. Raises UsageError for a folder, NotFound for a file in one that is not there."""
    if value is not None and value.is_dir():
        raise UsageError(f"--result {value} is a folder.", "Name a file, e.g. result.json.")
    if value is not None and not value.absolute().parent.is_dir():
        raise NotFound(f"The folder of --result {value} does not exist.", "Create it first.")
    return value


Storage = Annotated[
    str | None, typer.Option("--storage", envvar="EVOPRESS_STORAGE", help="Database URL; default: one SQLite file in EVOPRESS_HOME.")
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout; logs go to stderr.")]

# Searches -------------------------------------------------------------------------------------------------------------------------------

StudyName = Annotated[str, typer.Argument(metavar="NAME", help="Name of the study.")]
Generations = Annotated[int | None, typer.Option("--generations", min=1, help="Stop after so many generations.")]
MaxTokens = Annotated[int | None, typer.Option("--max-tokens", min=1, help="Stop after so many token-forwards of the search.")]
MaxSeconds = Annotated[float | None, typer.Option("--max-seconds", min=0.001, help="Stop after so many seconds of measuring.")]
Quota = Annotated[str | None, typer.Option("--bank-quota", help="Largest size of the bank on disk, e.g. 2GiB.")]
Gate = Annotated[bool, typer.Option("--require-gain", help="Exit 6 unless the winner beats uniform on held-out text (p < 0.01).")]
Result = Annotated[Path | None, typer.Option("--result", callback=writable, help="Also write the result as JSON to this file.")]
NoSpeed = Annotated[bool, typer.Option("--no-speed", help="Do not measure prefill and decode speed.")]

# Where a model runs ---------------------------------------------------------------------------------------------------------------------

Device = Annotated[
    str | None, typer.Option("--device", help="cpu, cuda, cuda:1 and so on. Default: that of the study's last run on resuming, else cpu.")
]
Dtype = Annotated[
    str | None,
    typer.Option(
        "--dtype",
        callback=_known_type,
        help="auto (the faster, measured), bfloat16 or float32. Default: that of the study's last run on resuming, else auto.",
    ),
]
