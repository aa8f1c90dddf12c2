"""`evopress kernels`: which kernels there are, and how fast they run on this machine."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from evopress.api.errors import NotFound, UsageError, unknown
from evopress.cli.options import Device, Json, Storage
from evopress.cli.output import print_json, print_table, say, storage_url

if TYPE_CHECKING:
    from evopress.api import Kernel
    from evopress.store import LatencyRow

app = typer.Typer(help="List kernels that run packed weights; time them on this machine.", no_args_is_help=True, rich_markup_mode=None)
DEVICES = ("cpu", "cuda", "mps", "xpu")
MOST_WEIGHTS = 2**30
"""Largest matrix that is timed: 4 GiB in float32."""
_NUMBERS = ("batch", "tokens", "threads", "samples", "median_seconds", "low_seconds", "high_seconds", "tokens_per_second")
_SHAPE = re.compile(r"([1-9]\d*)[xX×]([1-9]\d*)")


@app.command("list")
def list_(as_json: Json = False) -> None:
    """List kernels: the formats they run, on which devices, and whether they run them packed."""
    from evopress.hooks.registry import Registry

    kernels = [(kernel, supported_devices(kernel)) for kernel in Registry.load().kernels()]
    if as_json:
        print_json([{"name": k.name, "formats": list(k.formats), "packed": k.packed, "devices": devices} for k, devices in kernels])
        return
    header = ("name", "kind", "devices", "formats")
    print_table(header, [(k.name, _kind(k), " ".join(devices) or _needs(k), " ".join(k.formats)) for k, devices in kernels])
    print("\nFormats are regular expressions. The first packed kernel that supports a format and shape runs it, else a stand-in.")
    print("Under a latency budget the fastest of those timed does: peers too, if kernels bench --peers timed them, but none that rounds x.")


def _kind(kernel: Kernel) -> str:
    if not kernel.packed:
        return "stand-in: dequantised"
    return f"{'peer' if kernel.peer else 'packed'}{f', rounds x by {kernel.rounding:g}' if kernel.rounding else ''}"


def _needs(kernel: Kernel) -> str:
    return f"none; {kernel.needs}" if kernel.needs else "none"


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
    shape: Annotated[
        list[str] | None, typer.Option(metavar="RxC", help="Rows out x columns in; repeatable. Default: the demo model's.")
    ] = None,
    tokens: Annotated[list[int] | None, typer.Option(min=1, help="Tokens a call; repeatable. Default: 1 and 512; 1 with --large.")] = None,
    format: Annotated[
        list[str] | None, typer.Option(help="Weight format such as int4-g64 or bitmask@0.3 (share kept); repeatable. Default: all.")
    ] = None,
    dtype: Annotated[list[str] | None, typer.Option(help="bfloat16 or float32; repeatable. Default: both; bfloat16 with --large.")] = None,
    workload: Annotated[
        str | None, typer.Option(help="Fill the table for a model: decode or prefill, with batch=N,context=N. Sets shapes, tokens, type.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("-m", "--model", help="Hub id, folder or .gguf of --workload; default: the demo model.")
    ] = None,
    check: Annotated[int, typer.Option(min=0, help="With --workload: compare the table's sums with so many random whole models.")] = 0,
    device: Device = None,
    peers: Annotated[
        bool, typer.Option("--peers", help="Every kernel that is installed, not the first that fits; --large, unless --shape.")
    ] = False,
    large: Annotated[
        bool, typer.Option("--large", help="Shapes of 1B, 8B and 70B Llama layers too, read from memory; needs 20 GB.")
    ] = False,
    rounds: Annotated[int, typer.Option(min=1, help="Timings of each kernel, at least.")] = 7,
    most_seconds: Annotated[float, typer.Option("--most-seconds", min=0, help="For one shape and number of tokens, at most.")] = 3.0,
    seconds: Annotated[float | None, typer.Option(min=0, help="Begin no further shape after so many seconds.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads; default: torch's choice.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the random weights.")] = 0,
    result: Annotated[Path | None, typer.Option("--result", help="Write the rows to this file as JSON too.")] = None,
    as_json: Json = False,
    storage: Storage = None,
) -> None:
    """Time kernels, next to the dense layer and to what this machine can do at best; keep the times for latency budgets."""
    shapes = [read_shape(text) for text in shape or []]
    if workload is not None and (shape or tokens or large or len(dtype or ()) > 1):
        raise UsageError(
            "--workload sets shapes and tokens, for one type.", "Leave out --shape, --tokens, --large and all but one --dtype."
        )
    if workload is None and (check or model):
        raise UsageError("--check and --model are of a whole model's table.", "Add --workload decode.")
    for name in dtype or ():
        if name not in ("bfloat16", "float32"):
            raise unknown("type", name, ("bfloat16", "float32"), "--dtype")

    import torch

    from evopress.home import home
    from evopress.hooks.registry import Registry
    from evopress.precision import check_device
    from evopress.timing import Wanted, check_formats, run_bench

    if threads is not None:
        torch.set_num_threads(threads)
    kernels = Registry.load().kernels()
    check_formats(format or (), kernels, "--format")
    check_device(device or "cpu")
    large = large or (peers and not shapes and workload is None)
    wanted = Wanted(
        shapes=shapes, tokens=tokens or (), formats=format or (), dtypes=dtype or (), workload=workload, model=model or "",
        device=device or "cpu", check=check, peers=peers, rounds=rounds, most_seconds=most_seconds, seconds=seconds, seed=seed,
        large=large,
    )  # fmt: skip
    document = run_bench(wanted, kernels, storage_url(storage), home(), say)
    if result is not None:
        from evopress.files import write_whole

        write_whole(result, (json.dumps(document, indent=1) + "\n").encode())
    if as_json:
        print_json(document)
        return
    _print_bench(document)
    say(f"{len(document['rows'])} timings kept in {document['storage']}")


def read_shape(text: str) -> tuple[int, int]:
    """`1536x576` as (rows out, columns in). Raises UsageError."""
    match = _SHAPE.fullmatch(text.strip())
    if not match:
        raise UsageError(f"Cannot read shape {text!r}.", "Write rows out x columns in: --shape 1536x576.")
    shape = int(match.group(1)), int(match.group(2))
    if shape[0] * shape[1] > MOST_WEIGHTS:
        raise UsageError(f"Shape {text.strip()} has {shape[0] * shape[1]:,} weights.", f"At most {MOST_WEIGHTS:,} are timed.")
    return shape


def _print_bench(document: Mapping[str, Any]) -> None:
    about, floor = document["environment"], document["floor"]
    rates = ", ".join(f"{rate:,.0f} GFLOP/s in {name}" for name, rate in floor["gigaflops"].items())
    print(f"{about['cpu']}, {about['threads']} threads, torch {about['torch']}")
    print(f"floor: {floor['gigabytes_per_second']:.1f} GB/s read, {rates}\n")
    header = ("shape", "dtype", "tokens", "format", "kernel", "median µs", "95% interval", "n", "warm µs", "x dense", "GB/s", "of floor")
    print_table(header, [_cells(row) for row in _once(document["rows"], "kernel")], "no kernel runs these formats at these shapes")
    if document["against_peers"]:
        print("\nours against every other kernel of the same bits, the fastest first, in the same rounds (above 1: ours is faster)\n")
        duel = ("shape", "dtype", "tokens", "format", "kernel", "other", "times as fast", "95% interval", "n")
        print_table(duel, [_duel(row) for row in _once(document["against_peers"], "peer")])
    for kind, part in document.get("parts", {}).items():
        span = f"{1e6 * part['low_seconds']:.1f}-{1e6 * part['high_seconds']:.1f}"
        print(f"{kind}: {1e6 * part['median_seconds']:.1f} µs ({span}, n {part['samples']})")
    for format, one in document.get("within", {}).items():
        sums = f"{1e3 * one['median_seconds']:.2f} ms within the whole model, {1e3 * one['cells_seconds']:.2f} ms by its cells"
        print(f"{format}: {sums} (factor {one['median_seconds'] / one['cells_seconds']:.3f})")
    for one in document.get("check", []):
        sums = f"{1e3 * one['estimated_seconds']:.2f} ms by the table, {1e3 * one['median_seconds']:.2f} ms run"
        print(f"a random profile: {sums} ({one['error']:+.1%})")
    if "check" in document:
        error = f"{document['check_median_error']:.1%}"
        print(f"median error of the table's sum over {len(document['check'])} profiles: {error}")
    rounded = {row["kernel"]: row["rounding"] for row in document["rows"] if row["rounding"]}
    for name, error in rounded.items():
        print(f"{name} rounds the activations: relative error up to {error:.1e}; it is never chosen for a budget")


def _once(rows: Sequence[Mapping[str, Any]], key: str) -> list[Mapping[str, Any]]:
    """The first of each cell: the dense layer is timed beside every format that is timed apart."""
    first: dict[tuple[Any, ...], Mapping[str, Any]] = {}
    for row in rows:
        first.setdefault((*row["shape"], row["dtype"], row["tokens"], row["format"], row[key]), row)
    return list(first.values())


def _duel(row: Mapping[str, Any]) -> tuple[str, ...]:
    faster = row["times_as_fast"]
    where = (f"{row['shape'][0]}x{row['shape'][1]}", row["dtype"], str(row["tokens"]), row["format"], row["kernel"], row["peer"])
    return (*where, f"{faster['median']:.2f}", f"{faster['low']:.2f}-{faster['high']:.2f}", str(row["samples"]))


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    span = f"{1e6 * row['low_seconds']:.1f}-{1e6 * row['high_seconds']:.1f}"
    share, speed = (f"{row['floor_share']:.0%}", f"{row['gigabytes_per_second']:.1f}") if row["read_bytes"] else ("-", "-")
    where = (f"{row['shape'][0]}x{row['shape'][1]}", row["dtype"], str(row["tokens"]), row["format"], row["kernel"])
    times = (f"{1e6 * row['median_seconds']:.1f}", span, str(row["samples"]), f"{1e6 * row['warm_seconds']:.1f}")
    return (*where, *times, f"{row['ratio_to_dense']['median']:.2f}", speed, share)


@app.command("export")
def export_(
    file: Annotated[Path, typer.Argument(help="JSON file to write.")],
    as_json: Json = False,
    storage: Storage = None,
) -> None:
    """Write the timings of kernels and model parts in the store to a file, to carry a table to another store."""
    from evopress.files import write_whole
    from evopress.pricing import KERNEL, PART
    from evopress.store import Store

    with Store.open(storage_url(storage)) as store:
        rows = [row for phase in (KERNEL, PART) for row in store.latencies(phase=phase)]
    write_whole(file, (json.dumps({"latencies": [asdict(row) for row in rows]}, indent=1) + "\n").encode())
    if as_json:
        print_json({"timings": len(rows), "file": str(file)})
        return
    print(f"{len(rows)} timings written to {file}")


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="A file that `evopress kernels export` wrote.")],
    as_json: Json = False,
    storage: Storage = None,
) -> None:
    """Add the timings of a file to the store. They count where machine, threads, type and libraries are the same."""
    from evopress.store import Store

    try:
        rows = [_stored(row) for row in json.loads(file.read_text())["latencies"]]
    except FileNotFoundError:
        raise NotFound(f"File {file} does not exist.", "Write one with: evopress kernels export FILE.") from None
    except (OSError, ValueError, KeyError, TypeError, UsageError) as error:
        reason = f"key {error} is missing" if isinstance(error, KeyError) else error
        raise UsageError(f"{file} holds no timings: {reason}.", "Write one with: evopress kernels export FILE.") from error
    with Store.open(storage_url(storage)) as store:
        known = set(map(_identity, store.latencies()))
        new = [row for row in rows if _identity(row) not in known]
        store.put_latencies([replace(row, profile_id=None, run_id=None) for row in new])
    if as_json:
        print_json({"added": len(new), "known": len(rows) - len(new)})
        return
    print(f"{len(new)} timings added, {len(rows) - len(new)} known already")


def _stored(values: Mapping[str, Any]) -> LatencyRow:
    """A row as it was written. Raises TypeError and KeyError for what no store wrote."""
    from evopress.api.workload import Workload
    from evopress.pricing import PART
    from evopress.store import LatencyRow

    row = LatencyRow(**{**values, "shape": tuple(values["shape"])})
    if len(row.shape) != 2:
        raise TypeError(f"a shape is two numbers, not {list(row.shape)}")
    for name in (*_NUMBERS, "shape"):
        for value in row.shape if name == "shape" else [getattr(row, name)]:
            if not isinstance(value, int | float):
                raise TypeError(f"{name} is {value!r}, no number")
    if not isinstance(row.environment, dict):
        raise TypeError(f"an environment is a table, not {row.environment!r}")
    if row.phase == PART:  # what a table reads of it
        Workload.parse(row.environment["workload"], f"a timing of {row.environment['model']}")
    return row


def _identity(row: LatencyRow) -> tuple[Any, ...]:
    return (row.kernel, row.phase, row.format, tuple(row.shape), row.tokens, row.samples, row.median_seconds, row.low_seconds)
