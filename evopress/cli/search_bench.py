"""`evopress search bench`: how fast candidates are measured here, beside a bare forward pass. Parses, calls, prints.

Keeps nothing in the store; --result writes what is printed to a file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from evopress.cli.options import Device, Dtype, Json, Result, Storage
from evopress.cli.output import print_json, print_table, storage_url
from evopress.home import home


def bench(
    study_file: Annotated[Path | None, typer.Argument(metavar="[STUDY.toml]", help="Study file; default: the default study.")] = None,
    tokens: Annotated[int, typer.Option("--tokens", min=2, help="Tokens a candidate is measured on.")] = 4096,
    candidates: Annotated[int, typer.Option("--candidates", min=1, help="Candidates of a round: one profile and its neighbours.")] = 8,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Times that both are timed, in turns.")] = 7,
    device: Device = None,
    dtype: Dtype = None,
    result: Result = None,
    storage: Storage = None,
    as_json: Json = False,
) -> None:
    """Time the measuring of candidates against a bare forward pass of the same tokens; say what is reused and what the floor is.

    Builds the study's bank first where it is not there yet.
    """
    from evopress.api.study import Study
    from evopress.cli.live import listening
    from evopress.report.bench_document import HEADER, note, rows, title
    from evopress.report.result import write_json
    from evopress.throughput import bench_study

    definition = Study.read(study_file) if study_file else Study.make({})
    with listening(definition.name) as listen:
        document = bench_study(
            definition, storage_url(storage), home(), listen, device or "cpu", dtype or "auto", candidates, tokens, rounds
        )
    if result is not None:
        write_json(document, result, "Times are kept nowhere else: measure again with another --result.")
    if as_json:
        print_json(document)
        return
    print(title(document))
    print_table(HEADER, rows(document))
    print(note(document))
