"""What `evopress kernels bench` does: what to time, in what order, and into which rows of the store. Prints nothing but progress."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from evopress.api import Kernel
from evopress.api.workload import Workload
from evopress.cli.output import say
from evopress.home import home
from evopress.latency.bench import DEMO_FORMATS, DEMO_SHAPES, DEMO_TOKENS, KernelRow, bench_kernels, measure_floor
from evopress.latency.runtime import fastest
from evopress.pricing import KERNEL, PART, environment, read_table
from evopress.store import LatencyRow, Store

if TYPE_CHECKING:
    from evopress.latency.clock import Timing

LARGE_SHAPES = ((2048, 2048), (8192, 2048), (4096, 4096), (4096, 14336), (14336, 4096), (8192, 8192), (8192, 28672))
"""Layers of Llama 3 with 1B, 8B and 70B parameters: attention and MLP."""
LARGE_BYTES = 2**30
"""Weights that are cycled through for them: more than any last-level cache here."""


@dataclass(frozen=True)
class Wanted:
    """The options of the command, as given."""

    shapes: Sequence[tuple[int, int]]
    tokens: Sequence[int]
    formats: Sequence[str]
    dtypes: Sequence[str]
    workload: str | None
    model: str
    check: int
    peers: bool
    large: bool
    rounds: int
    most_seconds: float
    seconds: float | None
    seed: int


def run_bench(wanted: Wanted, kernels: Sequence[Kernel], storage: str) -> dict[str, Any]:
    """Time, store every row at once, and return the document that `--json` prints."""
    with Store.open(storage) as store:
        document = _for_model(wanted, kernels, store) if wanted.workload is not None else _for_shapes(wanted, kernels, store)
        return {**document, "storage": store.describe()}


def _for_shapes(wanted: Wanted, kernels: Sequence[Kernel], store: Store) -> dict[str, Any]:
    names = list(wanted.dtypes) or ["bfloat16", "float32"]
    shapes = list(wanted.shapes) or list(DEMO_SHAPES)
    if wanted.large:
        shapes = [*wanted.shapes, *LARGE_SHAPES]
    return _timed(
        wanted, kernels, store, shapes, list(wanted.tokens) or list(DEMO_TOKENS), list(wanted.formats) or list(DEMO_FORMATS), names
    )


def _for_model(wanted: Wanted, kernels: Sequence[Kernel], store: Store) -> dict[str, Any]:
    """Everything a latency budget on a model needs: its shapes at the workload's tokens, and its parts."""
    from evopress.latency.check import check_table
    from evopress.latency.parts import measure_parts
    from evopress.models.load import load, resolve
    from evopress.models.sites import find_sites
    from evopress.precision import remembered_dtype

    workload = Workload.parse(wanted.workload or "", "--workload")
    ref = resolve(wanted.model or None, home())
    name = wanted.dtypes[0] if wanted.dtypes else str(remembered_dtype(home(), "cpu", time.perf_counter)).removeprefix("torch.")
    say(f"loading {ref.name}")
    model = load(ref, getattr(torch, name), "cpu")[0]
    sites = find_sites(model).sites
    shapes = sorted({site.shape for site in sites if site.kind == "linear"})
    formats = list(dict.fromkeys(("dense", *(wanted.formats or DEMO_FORMATS))))
    document = _timed(wanted, kernels, store, shapes, [workload.tokens], formats, [name])
    say(f"timing the parts of {ref.name} beside its matrices: {workload}")
    pick = fastest(kernels, read_table(store, "cpu", name), workload.tokens)
    here = {**environment("cpu", name), "model": ref.config_digest, "workload": str(workload)}
    parts = measure_parts(model, sites, formats, read_table(store, "cpu", name), pick, workload, wanted.seed)
    for kind, timing in parts.items():
        store.put_latency(_part_row(kind, timing, workload, here))
    document |= {"workload": str(workload), "parts": {kind: _timing_json(timing) for kind, timing in parts.items()}}
    if wanted.check:
        say(f"running {wanted.check} random profiles as whole models")
        table = read_table(store, "cpu", name)
        # Another seed: the profiles must be others than those that the parts were taken from.
        found = check_table(model, sites, formats, table, ref.config_digest, workload, pick, wanted.check, wanted.seed + 1)
        document["check"] = [{"estimated_seconds": one.estimated, "error": one.error, **_timing_json(one.measured)} for one in found]
        document["check_median_error"] = statistics.median(abs(one.error) for one in found)
    return document


def _timed(
    wanted: Wanted, kernels: Sequence[Kernel], store: Store, shapes: Sequence[tuple[int, int]], tokens: Sequence[int],
    formats: Sequence[str], names: Sequence[str],
) -> dict[str, Any]:  # fmt: skip
    say("measuring memory bandwidth and dense multiplication")
    dtypes = [getattr(torch, name) for name in names]
    floor = measure_floor(dtypes)
    rows = []
    for row in _measured(wanted, kernels, shapes, tokens, formats, dtypes, floor):
        store.put_latency(latency_row(row, environment("cpu", row.dtype)))
        rows.append(row)
    rates = {"gigabytes_per_second": floor.bytes_per_second / 1e9, "gigaflops": {k: v / 1e9 for k, v in floor.flops_per_second.items()}}
    about = environment("cpu", " ".join(names))
    return {"environment": about, "floor": rates, "rows": [_row_json(row) for row in rows], "against_peers": against_peers(rows)}


def _measured(
    wanted: Wanted, kernels: Sequence[Kernel], shapes: Sequence[tuple[int, int]], tokens: Sequence[int], formats: Sequence[str],
    dtypes: Sequence[torch.dtype], floor: Any,
) -> Iterator[KernelRow]:  # fmt: skip
    started, generator = time.monotonic(), torch.Generator().manual_seed(wanted.seed)
    size = LARGE_BYTES if wanted.large else 2**26
    for number, shape in enumerate(shapes):
        if number and wanted.seconds is not None and time.monotonic() - started > wanted.seconds:
            left = ", ".join(f"{rows}x{columns}" for rows, columns in shapes[number:])
            say(f"{wanted.seconds:g} s are over; not measured: {left}")
            return
        say(f"timing {shape[0]}x{shape[1]}")
        # Large copies of one format at a time, or the memory does not hold them; the dense layer is timed beside each.
        for some in [[format] for format in formats if format != "dense"] if wanted.large else [formats]:
            yield from bench_kernels(
                kernels, generator, [shape], tokens, some, dtypes, wanted.rounds, wanted.most_seconds, size, wanted.peers, floor
            )


def latency_row(row: KernelRow, here: dict[str, Any]) -> LatencyRow:
    """A timing as the store keeps it. The label is kept as the kernel, so that a stand-in is never read as one."""
    timing = row.timing
    extra = {
        "ratio_to_dense": row.ratio_to_dense.median, "floor_seconds": row.floor_seconds, "warm_seconds": row.warm.median,
        "read_bytes": row.read_bytes, "rounding": row.rounding,
    }  # fmt: skip
    return LatencyRow(
        kernel=row.label, device="cpu", phase=KERNEL, batch=1, tokens=row.tokens, threads=here["threads"], samples=timing.n,
        median_seconds=timing.median, low_seconds=timing.low, high_seconds=timing.high, tokens_per_second=row.tokens / timing.median,
        format=row.format, shape=row.shape, environment={**here, **extra},
    )  # fmt: skip


def _part_row(kind: str, timing: Timing, workload: Workload, here: dict[str, Any]) -> LatencyRow:
    # The store keeps no time of zero; a nanosecond is nothing here.
    median, low, high = (max(value, 1e-9) for value in (timing.median, timing.low, timing.high))
    return LatencyRow(
        kernel="transformers", device="cpu", phase=PART, batch=workload.batch, tokens=workload.tokens, threads=here["threads"],
        samples=timing.n, median_seconds=median, low_seconds=low, high_seconds=high, tokens_per_second=workload.tokens / median,
        format=kind, environment=here,
    )  # fmt: skip


def against_peers(rows: Sequence[KernelRow]) -> list[str]:
    """For every cell that ours and others ran: the fastest other over ours, in the same rounds."""
    lines = []
    cells = dict.fromkeys((row.shape, row.dtype, row.tokens, row.format) for row in rows)
    for shape, dtype, tokens, format in cells:
        found = [row for row in rows if (row.shape, row.dtype, row.tokens, row.format) == (shape, dtype, tokens, format)]
        ours = [row for row in found if row.kernel.startswith("native-")]
        others = [row for row in found if not row.kernel.startswith("native-") and row.format != "dense"]
        if ours and others:
            best = min(others, key=lambda row: row.timing.median)
            pairs = [a / b for a, b in zip(best.timing.samples, ours[0].timing.samples, strict=True)]
            what = f"{shape[0]}x{shape[1]} {dtype} {tokens} tokens {format}"
            lines.append(f"{what}: {statistics.median(pairs):.2f} times as fast as {best.kernel}, the fastest other")
    return lines


def _row_json(row: KernelRow) -> dict[str, Any]:
    ratio = row.ratio_to_dense
    return {
        "kernel": row.label, "format": row.format, "shape": list(row.shape), "tokens": row.tokens, "dtype": row.dtype,
        **_timing_json(row.timing), "warm_seconds": row.warm.median,
        "ratio_to_dense": {"median": ratio.median, "low": ratio.low, "high": ratio.high}, "weight_bytes": row.weight_bytes,
        "read_bytes": row.read_bytes, "gigabytes_per_second": row.gigabytes_per_second, "floor_seconds": row.floor_seconds,
        "floor_share": row.floor_share, "bits_a_weight": 8 * row.weight_bytes / math.prod(row.shape), "rounding": row.rounding,
    }  # fmt: skip


def _timing_json(timing: Timing) -> dict[str, Any]:
    return {"median_seconds": timing.median, "low_seconds": timing.low, "high_seconds": timing.high, "samples": timing.n}
