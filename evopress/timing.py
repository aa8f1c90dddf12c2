"""What `evopress kernels bench` does: what to time, in what order, and into which rows of the store. Prints nothing."""

from __future__ import annotations

import contextlib
import math
import re
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from evopress.api import Kernel, Site, UsageError
from evopress.api.formats import GGUF_BLOCKS, fits_format, parse_int_format
from evopress.api.version import library_version
from evopress.api.workload import Workload
from evopress.latency.bench import (
    DEMO_FORMATS,
    DEMO_SHAPES,
    DEMO_TOKENS,
    Floor,
    KernelRow,
    bench_kernels,
    cell_text,
    measure_floor,
    split_cell,
)
from evopress.latency.check import check_profiles, check_table
from evopress.latency.clock import Timing, ratio
from evopress.latency.mixed import run_profiles
from evopress.latency.parts import part_profiles, parts_of
from evopress.latency.runtime import PLAIN, fastest
from evopress.latency.table import OURS
from evopress.models.load import ModelRef, resolve
from evopress.pricing import CELLS, KERNEL, KERNELS, PART, WORKING_SET_BYTES, environment, read_table, runnable
from evopress.provenance import commit
from evopress.store import LatencyRow, Owner, Store
from evopress.testing.kernels import check_kernel

if TYPE_CHECKING:
    from evopress.api.speed_study import KernelStudy

STUDY_ROUNDS, STUDY_SECONDS = 41, 30.0
"""Of a study: timings of a kernel at least, and seconds for one shape at most."""
LARGE_SHAPES = (
    (512, 2048), (2048, 2048), (8192, 2048), (2048, 8192), (1024, 4096), (4096, 4096), (14336, 4096), (4096, 14336),
    (1024, 8192), (8192, 8192), (28672, 8192), (8192, 28672),
)  # fmt: skip
"""Layers of Llama 3 with 1B, 8B and 70B parameters: of each the keys and values, queries and output, up and gate, down."""
CHECK_SHAPE = (64, 768)
"""At which a kernel must be right before it may be chosen: 768 columns hold whole groups of 32 to 256, and of 96."""
LARGE_BYTES = 2**30
"""Weights that are cycled through for them: more than any last-level cache here."""


@dataclass(frozen=True)
class Wanted:
    """The options of the command, as given; empty for their defaults."""

    shapes: Sequence[tuple[int, int]] = ()
    tokens: Sequence[int] = ()
    formats: Sequence[str] = ()
    dtypes: Sequence[str] = ()
    workload: str | None = None
    model: str = ""
    device: str = "cpu"
    check: int = 0
    peers: bool = False
    large: bool = False
    rounds: int = 7
    most_seconds: float = 3.0
    seconds: float | None = None
    seed: int = 0
    working_set_bytes: int = WORKING_SET_BYTES


def run_bench(wanted: Wanted, kernels: Sequence[Kernel], storage: str, home: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Time, store every row at once, and return the document that `--json` prints."""
    with Store.open(storage) as store, _alone(store, say):
        bench = _Bench(wanted, kernels, store, home, say)
        document = bench.shapes() if wanted.workload is None else bench.model()
        return {**document, "storage": store.describe()}


@contextlib.contextmanager
def _alone(store: Store, say: Callable[[str], None]) -> Iterator[None]:
    """While no other process of this machine and store is timing: two at once would both be slow."""
    owner, told = Owner.current(), False

    def wait(seconds: float) -> None:
        nonlocal told
        if not told:
            say("another process is timing on this machine; waiting until it is done")
        told = True
        time.sleep(seconds)

    with store.heartbeating(owner), store.holding(f"timing on {owner.host}", owner, sleep=wait):
        yield


def check_formats(formats: Iterable[str], kernels: Sequence[Kernel], where: str) -> None:
    """Raise UsageError for a weight format that no kernel names."""
    for text in formats:
        format = split_cell(text)[0]
        if not any(re.fullmatch(pattern, format) for kernel in kernels for pattern in kernel.formats):
            known = sorted({pattern for kernel in kernels for pattern in kernel.formats})
            raise UsageError(f"No kernel runs the format {text!r} of {where}.", f"Known, as regular expressions: {', '.join(known)}.")


def run_study(study: KernelStudy, kernels: Sequence[Kernel], storage: str, home: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure all that a kernel study is about, and return its document.

    Ours and dense are timed in turns with each other, for their ratios; and each format once more beside all other kernels.
    """
    shapes = [(int(rows), int(columns)) for rows, columns in (text.split("x") for text in study.shapes)]
    check_formats((*study.formats, *study.table_formats), kernels, study.name)
    if study.profiles:  # before hours of timing
        Workload.parse(study.workload, study.name)
        resolve(study.model or None, home)
    single = Wanted(
        shapes, study.tokens, study.formats, [study.dtype], rounds=STUDY_ROUNDS, most_seconds=STUDY_SECONDS, seed=study.seed,
        working_set_bytes=LARGE_BYTES,
    )  # fmt: skip
    with Store.open(storage) as store, _alone(store, say):
        ours = _Bench(single, kernels, store, home, say).shapes()
        duels = {}
        for format in map(cell_text, study.formats):
            say(f"{format} beside all other kernels")
            alone = replace(single, formats=[format], peers=True)
            duels[format] = _Bench(alone, kernels, store, home, say).shapes()
        whole: dict[str, Any] = {}
        if study.profiles:
            wanted = Wanted(
                formats=study.table_formats, dtypes=[study.dtype], workload=study.workload, model=study.model, check=study.profiles,
                rounds=STUDY_ROUNDS, seed=study.seed,
            )  # fmt: skip
            whole = _Bench(wanted, kernels, store, home, say).model()
    return {
        "kernels": study.model_dump(mode="json", exclude={"claims"}), "digest": study.digest, "environment": ours["environment"],
        "floor": ours["floor"], "rows": ours["rows"], "beside_peers": [_brief(row) for duel in duels.values() for row in duel["rows"]],
        "against_peers": [row for format, duel in duels.items() for row in duel["against_peers"] if row["format"] == format],
        **{key: whole[key] for key in ("workload", "parts", "within", "check", "check_median_error") if key in whole},
        "table": [_brief(row) for row in whole.get("rows", [])],
    }  # fmt: skip


@dataclass(frozen=True)
class _Bench:
    wanted: Wanted
    kernels: Sequence[Kernel]
    store: Store
    home: Path
    say: Callable[[str], None]

    def shapes(self) -> dict[str, Any]:
        """Single matrices: those asked for, the demo's, or with --large those of large models."""
        shapes = [*self.wanted.shapes, *((*DEMO_SHAPES, *LARGE_SHAPES) if self.wanted.large else ())] or DEMO_SHAPES
        formats = self.wanted.formats or DEMO_FORMATS
        # Prompts and float32 of large layers take hours: for them one asks.
        tokens, dtypes = ((1,), ("bfloat16",)) if self.wanted.large else (DEMO_TOKENS, ("bfloat16", "float32"))
        if self.wanted.peers:
            formats = [*formats, *(blocks for format in formats for blocks in _blocks_of(format))]
        counts, names = self.wanted.tokens or tokens, self.wanted.dtypes or dtypes
        kernels = self._conforming(shapes, formats, [getattr(torch, name) for name in names])
        return replace(self, kernels=kernels)._timed(shapes, counts, formats, names, every=self.wanted.peers)

    def model(self) -> dict[str, Any]:
        """All that a latency budget on a model needs: its shapes at the workload's tokens, and its parts."""
        from evopress.models.load import load
        from evopress.models.sites import find_sites
        from evopress.precision import remembered_dtype

        wanted, workload = self.wanted, Workload.parse(self.wanted.workload or "", "--workload")
        ref = resolve(wanted.model or None, self.home)
        name = (
            wanted.dtypes[0] if wanted.dtypes else str(remembered_dtype(self.home, wanted.device, time.perf_counter)).removeprefix("torch.")
        )
        self.say(f"loading {ref.name}")
        model = load(ref, getattr(torch, name), wanted.device)[0]
        sites = find_sites(model).sites
        shapes = sorted({site.shape for site in sites if site.kind == "linear"})
        formats = [format for format in map(cell_text, ("dense", *(wanted.formats or DEMO_FORMATS[1:]))) if format != "absent"]
        kernels = self._conforming(shapes, formats, [getattr(torch, name)])  # no other may be chosen
        passing = replace(self, kernels=kernels)
        return passing._timed(shapes, [workload.tokens], formats, [name], every=True) | passing._whole(ref, model, sites, formats, name)

    def _whole(self, ref: ModelRef, model: nn.Module, sites: Sequence[Site], formats: Sequence[str], name: str) -> dict[str, Any]:
        """Whole models in turns: parts, formats within the model, and random profiles to check the table's sum with."""
        wanted, workload = self.wanted, Workload.parse(self.wanted.workload or "", "--workload")
        told, drawn = part_profiles(sites, formats), check_profiles(sites, formats, wanted.check, wanted.seed)
        self.say(f"timing {len(told) + len(drawn)} whole models of {ref.name} in turns: {workload}")
        table = runnable(read_table(self.store, wanted.device, name), self.kernels)
        passes = run_profiles(model, sites, told | drawn, fastest(self.kernels, table, workload.tokens), workload, wanted.seed)
        parts, within = parts_of(sites, told, passes, table, workload)
        here = {**environment(wanted.device, name), "model": ref.config_digest, "workload": str(workload)}
        for kind, timing in parts.items():
            self.store.put_latency(_part_row(kind, timing, workload, here))
        for format, one in within.items():
            ran = [[*shape, *kernel] for shape, kernel in one.kernels.items()]
            self.store.put_latency(_part_row(format, one.taken, workload, here | {CELLS: one.cells, KERNELS: ran}))
        document: dict[str, Any] = {
            "workload": str(workload), "parts": {kind: _timing_json(timing) for kind, timing in parts.items()},
            "within": {format: {"cells_seconds": one.cells, **_timing_json(one.taken)} for format, one in within.items()},
        }  # fmt: skip
        if drawn:
            table = runnable(read_table(self.store, wanted.device, name), self.kernels)
            found = check_table(drawn, passes, sites, table, ref.config_digest, workload)
            document["check"] = [{"estimated_seconds": one.estimated, "error": one.error, **_timing_json(one.measured)} for one in found]
            document["check_median_error"] = statistics.median(abs(one.error) for one in found)
        return document

    def _conforming(self, shapes: Sequence[tuple[int, int]], formats: Sequence[str], dtypes: Sequence[torch.dtype]) -> list[Kernel]:
        """The kernels that compute what these formats stand for, by the conformance check at one shape; says which do not."""
        device, passing = torch.device(self.wanted.device).type, []
        small = (CHECK_SHAPE, *sorted(shapes, key=math.prod))
        at = {
            format: next((shape for shape in small if fits_format(format, shape)), CHECK_SHAPE)
            for format in sorted({split_cell(text)[0] for text in (PLAIN, *formats)})
        }
        for kernel in self.kernels:
            asked: dict[tuple[int, int], list[str]] = {}
            for format, shape in at.items():
                if any(kernel.supports(format, shape, device, dtype) for dtype in dtypes):
                    asked.setdefault(shape, []).append(format)
            try:
                for shape, own in asked.items():
                    check_kernel(kernel, formats=own, shapes=(shape,), device=self.wanted.device)
            # A plugin may fail in any way, and must not keep the others from being timed.
            except Exception as error:
                reason = str(error) if isinstance(error, AssertionError) else f"{kernel.name}: {type(error).__name__}: {error}"
                self.say(f"left out, since it does not compute its weights: {reason}")
                continue
            passing.append(kernel)
        return passing

    def _timed(
        self, shapes: Sequence[tuple[int, int]], tokens: Sequence[int], formats: Sequence[str], names: Sequence[str], every: bool
    ) -> dict[str, Any]:
        self.say("measuring memory bandwidth and dense multiplication")
        dtypes = [getattr(torch, name) for name in names]
        floor, rounds = measure_floor(dtypes, device=self.wanted.device), list[list[KernelRow]]()
        for together in self._measured(shapes, tokens, formats, dtypes, floor, every):
            rounds.append([])
            for row in together:
                here = {**environment(self.wanted.device, row.dtype), "working_set_bytes": self._working_set(row.shape)}
                self.store.put_latency(latency_row(row, here))
                rounds[-1].append(row)
        rates = {"gigabytes_per_second": floor.bytes_per_second / 1e9, "gigaflops": {k: v / 1e9 for k, v in floor.flops_per_second.items()}}
        about = {**environment(self.wanted.device, " ".join(names)), "commit": commit(), "peers": peer_versions(self.kernels)}
        where = {"device": about["device"], "threads": about["threads"]}
        told = [_row_json(row) | where for rows in rounds for row in rows]
        return {
            "environment": about,
            "floor": rates,
            "rows": told,
            "against_peers": [duel for rows in rounds for duel in against_peers(rows)],
        }

    def _measured(
        self,
        shapes: Sequence[tuple[int, int]],
        tokens: Sequence[int],
        formats: Sequence[str],
        dtypes: Sequence[torch.dtype],
        floor: Floor,
        every: bool,
    ) -> Iterator[Iterator[KernelRow]]:
        """Rows of those that take turns with each other."""
        wanted, started, generator = self.wanted, time.monotonic(), torch.Generator().manual_seed(self.wanted.seed)
        for number, shape in enumerate(shapes):
            if number and wanted.seconds is not None and time.monotonic() - started > wanted.seconds:
                left = ", ".join(f"{rows}x{columns}" for rows, columns in shapes[number:])
                self.say(f"{wanted.seconds:g} s are over; not measured: {left}")
                return
            self.say(f"timing {shape[0]}x{shape[1]}")
            working_set = self._working_set(shape)
            # Large copies of one format at a time, or the memory does not hold them; the dense layer is timed beside each.
            apart = working_set > wanted.working_set_bytes
            for some in families(formats) if apart else [list(formats)]:
                options = (wanted.rounds, wanted.most_seconds, working_set, every, wanted.peers, floor, wanted.device)
                yield bench_kernels(self.kernels, generator, [shape], tokens, some, dtypes, *options)

    def _working_set(self, shape: tuple[int, int]) -> int:
        return LARGE_BYTES if self.wanted.large and shape in LARGE_SHAPES else self.wanted.working_set_bytes


def latency_row(row: KernelRow, here: dict[str, Any]) -> LatencyRow:
    """A timing as the store keeps it. The label is kept as the kernel, so that a stand-in is never read as one."""
    timing = row.timing
    extra = {
        "ratio_to_dense": row.ratio_to_dense.median, "floor_seconds": row.floor_seconds, "warm_seconds": row.warm.median,
        "read_bytes": row.read_bytes, "rounding": row.rounding,
        "version": row.version,
    }  # fmt: skip
    return LatencyRow(
        kernel=row.label, device=here["device"], phase=KERNEL, batch=1, tokens=row.tokens, threads=here["threads"], samples=timing.n,
        median_seconds=timing.median, low_seconds=timing.low, high_seconds=timing.high, tokens_per_second=row.tokens / timing.median,
        format=row.format, shape=row.shape, environment={**here, **extra},
    )  # fmt: skip


def _part_row(kind: str, timing: Timing, workload: Workload, here: dict[str, Any]) -> LatencyRow:
    # The store keeps no time of zero; a nanosecond is nothing here.
    median, low, high = (max(value, 1e-9) for value in (timing.median, timing.low, timing.high))
    return LatencyRow(
        kernel="transformers", device=here["device"], phase=PART, batch=workload.batch, tokens=workload.tokens, threads=here["threads"],
        samples=timing.n, median_seconds=median, low_seconds=low, high_seconds=high, tokens_per_second=workload.tokens / median,
        format=kind, environment=here,
    )  # fmt: skip


def _blocks_of(format: str) -> list[str]:
    """llama.cpp's own blocks of the bits of an integer format: what its users would run instead."""
    grid = parse_int_format(format)
    name = f"q{grid[0]}_k" if grid else ""
    return [f"gguf-{name}"] if name in GGUF_BLOCKS else []


def families(formats: Sequence[str]) -> list[list[str]]:
    """The formats but dense, each with llama.cpp's blocks of the same bits where these are among them: what is to be compared."""
    blocks = {format: [one for one in _blocks_of(format) if one in formats] for format in dict.fromkeys(formats) if format != PLAIN}
    below = {one for own in blocks.values() for one in own}
    return [[format, *own] for format, own in blocks.items() if format not in below] or [[PLAIN]]


def against_peers(rows: Sequence[KernelRow]) -> list[dict[str, Any]]:
    """For every cell that ours and others ran: seconds of each other of the same bits over those of ours, paired in their rounds.

    rows: of kernels that took turns with each other. The fastest other of a cell stands first.
    """
    found = []
    for cell in dict.fromkeys((row.shape, row.dtype, row.tokens, row.format) for row in rows):
        same = (cell[3], *_blocks_of(cell[3]))
        here = [row for row in rows if (row.shape, row.dtype, row.tokens) == cell[:3] and row.format in same]
        ours = [row for row in here if row.kernel.startswith(OURS)]
        others = [row for row in here if not row.kernel.startswith(OURS)]
        for other in sorted(others, key=lambda row: row.timing.median) if ours else ():
            faster = ratio(other.timing, ours[0].timing)
            found.append({
                "shape": list(cell[0]), "dtype": cell[1], "tokens": cell[2], "format": cell[3], "kernel": ours[0].label,
                "peer": other.label if other.format == cell[3] else f"{other.label} {other.format}",
                "peer_rounding": other.rounding, "times_as_fast": {"median": faster.median, "low": faster.low, "high": faster.high},
                "samples": faster.n,
            })  # fmt: skip
    return found


def peer_versions(kernels: Iterable[Kernel]) -> dict[str, str]:
    """Versions of the installed libraries behind peer kernels."""
    names = sorted({name for kernel in kernels if kernel.peer for name in kernel.libraries})
    return {name: found for name in names if (found := library_version(name))}


def _row_json(row: KernelRow) -> dict[str, Any]:
    ratio = row.ratio_to_dense
    return {
        "kernel": row.label, "format": row.format, "shape": list(row.shape), "tokens": row.tokens, "dtype": row.dtype,
        **_timing_json(row.timing), "seconds": [round(sample, 9) for sample in row.timing.samples], "warm_seconds": row.warm.median,
        "ratio_to_dense": {"median": ratio.median, "low": ratio.low, "high": ratio.high}, "weight_bytes": row.weight_bytes,
        "read_bytes": row.read_bytes, "gigabytes_per_second": row.gigabytes_per_second, "floor_seconds": row.floor_seconds,
        "floor_share": row.floor_share, "bits_a_weight": 8 * row.weight_bytes / math.prod(row.shape), "rounding": row.rounding,
        "version": row.version,
    }  # fmt: skip


def _brief(row: dict[str, Any]) -> dict[str, Any]:
    """A row without its samples, where its median and interval do."""
    return {key: value for key, value in row.items() if key != "seconds"}


def _timing_json(timing: Timing) -> dict[str, Any]:
    return {"median_seconds": timing.median, "low_seconds": timing.low, "high_seconds": timing.high, "samples": timing.n}
