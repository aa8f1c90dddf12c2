"""`evopress search bench`: how fast candidates are measured here, beside a bare forward pass. Parses, calls, prints.

Keeps nothing in the store; --result writes what is printed to a file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from evopress.api.errors import UsageError
from evopress.cli.options import Device, Dtype, Json, Result, Storage
from evopress.cli.output import print_json, print_table, say, storage_url
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
    """Time the measuring of candidates against a bare forward pass of the same tokens; say what is reused and what the floor is."""
    from evopress.api.study import Study
    from evopress.events import Progress
    from evopress.hooks.registry import Registry
    from evopress.plan import make_plan, with_weights
    from evopress.precision import check_device
    from evopress.report.bench_document import HEADER, note, rows, title
    from evopress.report.result import write_json
    from evopress.store import Store
    from evopress.texts import Texts
    from evopress.throughput import measure_throughput, throughput_json
    from evopress.workbench import Workbench

    def listen(progress: Progress) -> None:
        say(str(progress))

    definition = Study.read(study_file) if study_file else Study.make({})
    if tokens > definition.search_tokens:
        raise UsageError(
            f"The search set of the study holds {definition.search_tokens:,} tokens.", f"Write --tokens {definition.search_tokens} or less."
        )
    registry = Registry.load()
    check_device(device or "cpu")
    plan = make_plan(definition, registry, home())
    texts = Texts(plan, listen)
    plan = with_weights(plan, home())
    with Store.open(storage_url(storage)) as store:
        workbench = Workbench(plan, texts, registry, store, home(), listen, device or "cpu", dtype or "auto")
        document = throughput_json(workbench, measure_throughput(workbench, candidates, tokens, rounds))
    if result is not None:
        write_json(document, result, "Times are kept nowhere else: measure again with another --result.")
    if as_json:
        print_json(document)
        return
    print(title(document))
    print_table(HEADER, rows(document))
    print(note(document))
