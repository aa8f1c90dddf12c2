"""`evopress kernels`: which kernels there are, and how fast they run on this machine."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from evopress.api.errors import UsageError, unknown
from evopress.cli.options import Json, Storage
from evopress.cli.output import print_json, print_table, say, storage_url

if TYPE_CHECKING:
    from evopress.api import Kernel
    from evopress.latency.bench import Floor, KernelRow
    from evopress.store import LatencyRow

app = typer.Typer(help="List kernels that run packed weights; time them on this machine.", no_args_is_help=True, rich_markup_mode=None)
DEVICES = ("cpu", "cuda", "mps", "xpu")
MOST_WEIGHTS = 2**30
"""Largest matrix that is timed: 4 GiB in float32."""
_SHAPE = re.compile(r"([1-9]\d*)[xX×]([1-9]\d*)")


@app.command("list")
def list_(as_json: Json = False) -> None:
    """List kernels: the formats they run, on which devices, and whether they run them packed."""
    from evopress.hooks.registry import Registry

    kernels = [(kernel, supported_devices(kernel)) for kernel in Registry.load().kernels()]
    if as_json:
        print_json([{"name": k.name, "formats": list(k.formats), "packed": k.packed, "devices": devices} for k, devices in kernels])
        return
    kinds = {True: "packed", False: "stand-in: dequantised"}
    header = ("name", "kind", "devices", "formats")
    print_table(header, [(k.name, kinds[k.packed], " ".join(devices) or None, " ".join(k.formats)) for k, devices in kernels])
    print("\nFormats are regular expressions. The first packed kernel that supports a format and shape runs it; else a stand-in.")


def supported_devices(kernel: Kernel) -> list[str]:
    """Devices on which a kernel says it supports one of the formats and shapes that the conformance check tries."""
    from evopress.testing.kernels import DTYPES, FORMATS, SHAPES

    return [
        device
        for device in DEVICES
        if any(
            kernel.supports(format, shape, device, dtype)
            for format in FORMATS
            if any(re.fullmatch(pattern, format) for pattern in kernel.formats)
            for shape in SHAPES
            for dtype in DTYPES
        )
    ]


@app.command()
def bench(
    shape: Annotated[list[str] | None, typer.Option(metavar="RxC", help="Rows out x columns in; repeatable. Default: the demo's.")] = None,
    tokens: Annotated[list[int] | None, typer.Option(min=1, help="Tokens a call; repeatable. Default: 1 and 512.")] = None,
    format: Annotated[list[str] | None, typer.Option(help="Weight format such as int4-g64; repeatable. Default: all.")] = None,
    dtype: Annotated[list[str] | None, typer.Option(help="bfloat16 or float32; repeatable. Default: both.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Timings of each kernel.")] = 21,
    seconds: Annotated[float | None, typer.Option(min=0, help="Begin no further shape after so many seconds.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads; default: torch's choice.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the random weights.")] = 0,
    as_json: Json = False,
    storage: Storage = None,
) -> None:
    """Time every format at every shape, next to the dense layer and to what this machine can do at best; keep the times."""
    shapes = [read_shape(text) for text in shape or []]
    names = dtype or ["bfloat16", "float32"]
    for name in names:
        if name not in ("bfloat16", "float32"):
            raise unknown("type", name, ("bfloat16", "float32"), "--dtype")

    import torch

    from evopress.hooks.registry import Registry
    from evopress.latency.bench import DEMO_FORMATS, DEMO_SHAPES, DEMO_TOKENS, measure_floor
    from evopress.latency.clock import fingerprint
    from evopress.store import Store

    kernels = Registry.load().kernels()
    for text in format or []:
        check_format(text, kernels)
    if threads is not None:
        torch.set_num_threads(threads)
    about = fingerprint()
    dtypes = [getattr(torch, name) for name in names]
    say("measuring memory bandwidth and dense multiplication")
    with Store.open(storage_url(storage)) as store:
        floor = measure_floor(dtypes)
        rows: list[KernelRow] = []
        wanted = (shapes or list(DEMO_SHAPES), tokens or list(DEMO_TOKENS), format or list(DEMO_FORMATS), dtypes)
        for row in _measure(kernels, *wanted, rounds, seconds, seed, floor):
            store.put_latency(latency_row(row, about))
            rows.append(row)
        where = store.describe()
    if as_json:
        rates = {"gigabytes_per_second": floor.bytes_per_second / 1e9, "gigaflops": {k: v / 1e9 for k, v in floor.flops_per_second.items()}}
        print_json({"environment": about, "floor": rates, "storage": where, "rows": [_row_json(row) for row in rows]})
        return
    _print_bench(rows, floor, about)
    say(f"{len(rows)} timings kept in {where}")


def read_shape(text: str) -> tuple[int, int]:
    """`1536x576` as (rows out, columns in). Raises UsageError."""
    match = _SHAPE.fullmatch(text.strip())
    if not match:
        raise UsageError(f"Cannot read shape {text!r}.", "Write rows out x columns in: --shape 1536x576.")
    shape = int(match.group(1)), int(match.group(2))
    if shape[0] * shape[1] > MOST_WEIGHTS:
        raise UsageError(f"Shape {text.strip()} has {shape[0] * shape[1]:,} weights.", f"At most {MOST_WEIGHTS:,} are timed.")
    return shape


def check_format(text: str, kernels: Sequence[Kernel]) -> None:
    """Raise UsageError for a weight format that no kernel names."""
    if not any(re.fullmatch(pattern, text) for kernel in kernels for pattern in kernel.formats):
        known = sorted({pattern for kernel in kernels for pattern in kernel.formats})
        raise UsageError(f"No kernel runs the format {text!r} of --format.", f"Known, as regular expressions: {', '.join(known)}.")


def _measure(
    kernels: Sequence[Kernel], shapes: Sequence[tuple[int, int]], tokens: Sequence[int], formats: Sequence[str], dtypes: Sequence[Any],
    rounds: int, seconds: float | None, seed: int, floor: Floor,
) -> Iterator[KernelRow]:  # fmt: skip
    import torch

    from evopress.latency.bench import bench_kernels

    started, generator = time.monotonic(), torch.Generator().manual_seed(seed)
    for number, shape in enumerate(shapes):
        if number and seconds is not None and time.monotonic() - started > seconds:
            left = ", ".join(f"{rows}x{columns}" for rows, columns in shapes[number:])
            say(f"{seconds:g} s are over; not measured: {left}")
            return
        say(f"timing {shape[0]}x{shape[1]}")
        yield from bench_kernels(kernels, generator, [shape], tokens, formats, dtypes, rounds, floor=floor)


def latency_row(row: KernelRow, environment: dict[str, Any]) -> LatencyRow:
    """A timing as the store keeps it. The label is kept as the kernel, so that a stand-in is never read as one."""
    from evopress.store import LatencyRow

    timing = row.timing
    extra = {"dtype": row.dtype, "ratio_to_dense": row.ratio_to_dense.median, "floor_seconds": row.floor_seconds}
    return LatencyRow(
        kernel=row.label, device="cpu", phase="kernel", batch=1, tokens=row.tokens, threads=environment["threads"], samples=timing.n,
        median_seconds=timing.median, low_seconds=timing.low, high_seconds=timing.high, tokens_per_second=row.tokens / timing.median,
        format=row.format, shape=row.shape, environment={**environment, **extra},
    )  # fmt: skip


def _row_json(row: KernelRow) -> dict[str, Any]:
    timing, ratio = row.timing, row.ratio_to_dense
    return {
        "kernel": row.label, "format": row.format, "shape": list(row.shape), "tokens": row.tokens, "dtype": row.dtype,
        "median_seconds": timing.median, "low_seconds": timing.low, "high_seconds": timing.high, "samples": timing.n,
        "ratio_to_dense": {"median": ratio.median, "low": ratio.low, "high": ratio.high}, "weight_bytes": row.weight_bytes,
        "gigabytes_per_second": row.gigabytes_per_second, "floor_seconds": row.floor_seconds, "floor_share": row.floor_share,
    }  # fmt: skip


def _print_bench(rows: Sequence[KernelRow], floor: Floor, about: dict[str, Any]) -> None:
    rates = ", ".join(f"{rate / 1e9:,.0f} GFLOP/s in {name}" for name, rate in floor.flops_per_second.items())
    print(f"{about['cpu']}, {about['threads']} threads, torch {about['torch']}")
    print(f"floor: {floor.bytes_per_second / 1e9:.1f} GB/s read, {rates}\n")
    header = ("shape", "dtype", "tokens", "format", "kernel", "median µs", "95% interval", "x dense", "GB/s", "of floor")
    print_table(header, [_cells(row) for row in rows], "no kernel runs these formats at these shapes")


def _cells(row: KernelRow) -> tuple[str, ...]:
    timing = row.timing
    span = f"{1e6 * timing.low:.1f}-{1e6 * timing.high:.1f}"
    share = f"{row.floor_share:.0%}" if row.weight_bytes else "-"
    speed = f"{row.gigabytes_per_second:.1f}" if row.weight_bytes else "-"
    where = (f"{row.shape[0]}x{row.shape[1]}", row.dtype, str(row.tokens), row.format, row.label)
    return (*where, f"{1e6 * timing.median:.1f}", span, f"{row.ratio_to_dense.median:.2f}", speed, share)
