"""`evopress search bench`: how fast candidates are measured here, beside a bare forward pass. Parses, calls, prints; keeps nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from evopress.api.errors import UsageError
from evopress.cli.options import Device, Dtype, Json, Storage
from evopress.cli.output import print_json, print_table, say, storage_url
from evopress.home import home


def bench(
    study_file: Annotated[Path | None, typer.Argument(metavar="[STUDY.toml]", help="Study file; default: the default study.")] = None,
    tokens: Annotated[int, typer.Option("--tokens", min=2, help="Tokens a candidate is measured on.")] = 4096,
    candidates: Annotated[int, typer.Option("--candidates", min=1, help="Candidates of a round: one profile and its neighbours.")] = 8,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Times that both are timed, in turns.")] = 7,
    device: Device = None,
    dtype: Dtype = None,
    storage: Storage = None,
    as_json: Json = False,
) -> None:
    """Time the measuring of candidates against a bare forward pass of the same tokens; say what is reused and what the floor is."""
    from dataclasses import asdict

    from evopress.api.study import Study
    from evopress.events import Progress
    from evopress.hooks.registry import Registry
    from evopress.latency.clock import Timing, fingerprint
    from evopress.plan import make_plan, with_weights
    from evopress.precision import check_device
    from evopress.store import Store
    from evopress.texts import Texts
    from evopress.throughput import measure_throughput
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
        found = measure_throughput(
            Workbench(plan, texts, registry, store, home(), listen, device or "cpu", dtype or "auto"), candidates, tokens, rounds
        )
    about = fingerprint(device or "cpu")
    if as_json:
        print_json({"environment": about, **asdict(found)})
        return

    def speed(timing: Timing) -> str:
        return f"{found.tokens / timing.median:,.0f} [{found.tokens / timing.high:,.0f}, {found.tokens / timing.low:,.0f}]"

    machine = f"{about['threads']} threads, {about['cpu']}"
    print(f"{found.candidates} candidates on {tokens:,} tokens each; n = {found.bare.n} rounds in turns; {machine}")
    print_table(
        ("what", "tokens/s"),
        [
            ("floor: a bare pass at the speed of a bare matrix product", f"{found.tokens / found.floor_seconds:,.0f}"),
            ("bare forward pass with logits", speed(found.bare)),
            ("candidates measured", speed(found.engine)),
        ],
    )
    print(f"measuring reaches {found.ratio.median:.2f}x [{found.ratio.low:.2f}, {found.ratio.high:.2f}] of a bare pass, "
          f"with {found.reused:.0%} of the blocks reused and {found.matmul:.0%} of its time inside matrix products; "
          f"peak memory {found.peak_bytes / 2**30:.2f} GiB")  # fmt: skip
