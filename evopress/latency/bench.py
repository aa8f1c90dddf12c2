"""Times kernels on single matrices against the dense layer and against the machine's own best. The engine of `evopress kernels bench`.

Does not print and does not store. Called by the command line. Each row names the kernel that ran and its share of the floor: the larger of
(bytes that must be read) / (measured read bandwidth) and (operations) / (measured rate of a large dense multiply of the same type).

Shapes: R rows out, C columns in, T tokens.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from evopress.api import Kernel, UsageError
from evopress.api.formats import fits_format, variant_bytes
from evopress.latency.clock import Clock, Timing, measure, ratio, time_once
from evopress.latency.runtime import DTYPES, PLAIN, choose, label
from evopress.latency.sample import random_variant
from evopress.latency.table import cell_format

DEMO_SHAPES = ((576, 576), (192, 576), (1536, 576), (576, 1536))
"""The four linear shapes of SmolLM2-135M."""
MOST_ROUNDS = 400
PROBE_BYTES, PROBE_PART_BYTES = 2**28, 2**26
"""From which working set on reading is timed beside the kernels, and how much of it a round."""
DEMO_TOKENS = (1, 512)
DEMO_FORMATS = ("dense", "absent", "int2-g64", "int3-g64", "int4-g64", "int8-g64", "bitmask")


@dataclass(frozen=True, slots=True)
class Floor:
    """What the machine can do, measured in the same run: bytes a second read from memory, operations a second by type of activation."""

    bytes_per_second: float
    flops_per_second: Mapping[str, float]

    def seconds(self, read_bytes: int, flops: int, dtype: str) -> float:
        """Least time for that much reading and that many operations."""
        return max(read_bytes / self.bytes_per_second, flops / self.flops_per_second[dtype])


@dataclass(frozen=True, slots=True)
class KernelRow:
    """One kernel at one format, shape and number of tokens.

    format: as methods name it; a bitmask with its share of kept weights, `bitmask@0.5`.
    timing: seconds a call with weights that are in no inner cache. warm: with weights that were just used.
    ratio_to_dense: seconds over those of the dense layer, paired in the same rounds; below 1 is faster.
    weight_bytes: what the kernel keeps in memory. read_bytes: what of it a call reads. gigabytes_per_second: weights read and activations
        moved, over the median.
    floor_seconds: least time this machine would need for the same bytes and operations, at the fastest reading known of it: before, by
        the probe in these rounds, or by a kernel in them. floor_share: that over the median, 1 is perfect and 0 means that nothing needs
        doing (`absent`).
    rounding: error the kernel adds on purpose, as it states it. version: of the kernel.
    """

    kernel: str
    label: str
    format: str
    shape: tuple[int, int]
    tokens: int
    dtype: str
    timing: Timing
    warm: Timing
    ratio_to_dense: Timing
    weight_bytes: int
    read_bytes: int
    gigabytes_per_second: float
    floor_seconds: float
    floor_share: float
    rounding: float
    version: str


def measure_floor(
    dtypes: Sequence[torch.dtype] = DTYPES, array_bytes: int | None = None, matrix: int | None = None, clock: Clock = time.perf_counter,
    max_seconds: float = 1.0, device: str = "cpu",
) -> Floor:  # fmt: skip
    """Read bandwidth from summing an array far larger than the inner caches, and the rate of a square dense multiply of each type.

    Takes the fastest sample of each: a floor is what the machine can do, not what its other load leaves of it.
    array_bytes, matrix: by default 256 MiB and 2,048; on a GPU 1 GiB and 8,192, beside which the launch of a kernel is short.
    """
    large = torch.device(device).type != "cpu"
    array_bytes = (2**30 if large else 2**28) if array_bytes is None else array_bytes
    matrix = (8192 if large else 2048) if matrix is None else matrix

    def fastest(work: Callable[[], object]) -> float:
        def whole() -> None:
            work()
            wait(device)

        return min(measure(whole, clock, warmup=1, min_repeats=3, max_seconds=max_seconds).samples)

    array = torch.ones(array_bytes // 4, device=device)
    reading = fastest(array.sum)
    rates = {}
    for dtype in dtypes:
        square = torch.ones(matrix, matrix, dtype=dtype, device=device)
        rates[_name(dtype)] = 2 * matrix**3 / fastest(lambda square=square: square @ square)  # type: ignore[misc]
    return Floor(array.numel() * 4 / reading, rates)


def wait(device: str) -> None:
    """Until the device has done what it was asked to: a GPU answers before that."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def bench_kernels(
    kernels: Iterable[Kernel], generator: torch.Generator, shapes: Sequence[tuple[int, int]] = DEMO_SHAPES,
    tokens: Sequence[int] = DEMO_TOKENS, formats: Sequence[str] = DEMO_FORMATS, dtypes: Sequence[torch.dtype] = DTYPES, rounds: int = 7,
    max_seconds: float = 3.0, working_set_bytes: int = 2**26, every: bool = False, peers: bool = False, floor: Floor | None = None,
    device: str = "cpu", clock: Clock = time.perf_counter,
) -> Iterator[KernelRow]:  # fmt: skip
    """Time formats at every shape, number of tokens and type; yields rows as they are measured, the dense layer's first.

    every: all kernels that support a format; else the one that `choose` picks, and all that take a dense weight. peers: those too that
    only a table may choose. In each round every kernel runs twice, torch's dense layer first, so that drift hits all alike: on weights
    that were not used for `working_set_bytes`, because a model never finds a layer's weights in the inner caches, and on the same
    again. Rounds go on, at least `rounds` of them, until every median is known to 5 % or `max_seconds` are over. Formats that no kernel
    runs at a shape, or that do not fit it, are left out. device: where weights and activations lie; a GPU is waited for after every
    call. Raises UsageError for a type that kernels do not take, or no rounds.
    """
    kernels = list(kernels)
    if rounds < 1 or any(dtype not in DTYPES for dtype in dtypes):
        raise UsageError(f"Cannot time {rounds} rounds in {[_name(dtype) for dtype in dtypes]}.", "Kernels take bfloat16 and float32.")
    floor = measure_floor(dtypes, clock=clock, device=device) if floor is None else floor
    for shape in shapes:
        for dtype in dtypes:
            jobs = list(_jobs(kernels, generator, shape, formats, dtype, working_set_bytes, every, peers, device))
            # What the memory gives changes with the machine's other load, so large weights are timed in turns with plain reading.
            probe = (
                torch.ones(working_set_bytes // PROBE_PART_BYTES * PROBE_PART_BYTES // 4, device=device)
                if working_set_bytes >= PROBE_BYTES
                else None
            )
            for count in tokens:
                x_TC = torch.randn(count, shape[1], generator=generator).to(device, dtype)
                turns = _turns(jobs, x_TC, rounds, max_seconds, probe, device, clock)
                yield from _rows(jobs, turns, x_TC, shape, floor)


@dataclass(frozen=True)
class _Job:
    """params: weights multiplied with, of which a sparse or low-rank format has fewer. packed: copies, so that none stays in a cache."""

    kernel: Kernel
    format: str
    params: int
    packed: tuple[Mapping[str, Tensor], ...]


def _jobs(
    kernels: Sequence[Kernel], generator: torch.Generator, shape: tuple[int, int], formats: Sequence[str], dtype: torch.dtype,
    working_set: int, every: bool, peers: bool, device: str,
) -> Iterator[_Job]:  # fmt: skip
    kind = torch.device(device).type
    for text in dict.fromkeys((PLAIN, *map(cell_text, formats))):
        format, density = split_cell(text)
        if not fits_format(format, shape):
            continue
        fitting = [kernel for kernel in kernels if kernel.supports(format, shape, kind, dtype)]
        if not fitting:
            continue
        packed_ones = [kernel for kernel in fitting if kernel.packed and (peers or not (kernel.rounding or kernel.peer))]
        chosen = packed_ones if packed_ones and (every or format == PLAIN) else [choose(format, shape, kind, dtype, fitting)]
        chosen.sort(key=lambda kernel: kernel.name != PLAIN)  # torch's own layer first: what all others are compared with
        variant = random_variant(format, shape, generator, density)
        for kernel in chosen:
            packed = {key: tensor.to(device) for key, tensor in kernel.pack(variant, dtype).items()}
            count = min(1024, max(1, working_set // max(1, variant_bytes(packed))))
            copies = [{key: tensor.clone() for key, tensor in packed.items()} for _ in range(count - 1)] if variant_bytes(packed) else []
            yield _Job(kernel, text, variant.cost.params, (packed, *copies))


def split_cell(text: str) -> tuple[str, float]:
    """`bitmask@0.3` as format and share of kept weights; a half where none is named. Raises UsageError."""
    format, at, share = text.partition("@")
    if not at:
        return format, 0.5
    try:
        density = float(share)
    except ValueError:
        density = -1.0
    if format != "bitmask" or not 0 <= density <= 1:
        raise UsageError(f"Cannot read the format {text!r}.", "A share of kept weights stands behind bitmask only, as in bitmask@0.3.")
    return format, density


def cell_text(text: str) -> str:
    """A format as a table names it: `bitmask` is `bitmask@0.5`. Raises UsageError as `split_cell` does."""
    return cell_format(*split_cell(text))


@dataclass(frozen=True)
class _Turns:
    """Seconds of every job, on weights not used for long and again at once; and of reading PROBE_PART_BYTES beside them."""

    cold: list[list[float]]
    warm: list[list[float]]
    reading: list[float]


def _turns(
    jobs: Sequence[_Job], x_TC: Tensor, rounds: int, max_seconds: float, probe: Tensor | None, device: str, clock: Clock
) -> _Turns:  # fmt: skip
    found = _Turns([[] for _ in jobs], [[] for _ in jobs], [])

    def run(job: _Job, packed: Mapping[str, Tensor]) -> None:
        job.kernel.run(x_TC, packed)
        wait(device)

    def read(part: Tensor) -> None:
        part.sum()
        wait(device)

    with torch.no_grad():
        for job in jobs:  # a kernel may make something of its weights when it first sees them
            for packed in job.packed:
                run(job, packed)
        begin, turn = clock(), -2
        while turn < rounds or (clock() - begin < max_seconds and not _known(found.cold)):
            for job, cold, warm in zip(jobs, found.cold, found.warm, strict=True):
                call = partial(run, job, job.packed[turn % len(job.packed)])
                pair = time_once(call, clock), time_once(call, clock)
                if turn >= 0:
                    cold.append(pair[0])
                    warm.append(pair[1])
            if probe is not None:
                parts = probe.view(-1, PROBE_PART_BYTES // 4)
                seconds = time_once(partial(read, parts[turn % len(parts)]), clock)
                if turn >= 0:
                    found.reading.append(seconds)
            turn += 1
    return found


def _rows(jobs: Sequence[_Job], turns: _Turns, x_TC: Tensor, shape: tuple[int, int], floor: Floor) -> Iterator[KernelRow]:
    timings = [Timing.of(own) for own in turns.cold]
    dtype, tokens = _name(x_TC.dtype), x_TC.shape[0]
    reads = [job.kernel.read_bytes(job.packed[0], tokens) for job in jobs]
    moves = [read + tokens * sum(shape) * x_TC.element_size() if read else 0 for read in reads]
    if turns.reading:  # large weights: what was read in these rounds can be read
        probed = PROBE_PART_BYTES / statistics.median(turns.reading)
        reached = max(moved / timing.median for moved, timing in zip(moves, timings, strict=True))
        floor = Floor(max(floor.bytes_per_second, probed, reached), floor.flops_per_second)
    for job, timing, again, read, moved in zip(jobs, timings, turns.warm, reads, moves, strict=True):
        least = floor.seconds(moved, 2 * tokens * job.params if moved else 0, dtype)
        yield KernelRow(
            job.kernel.name, label(job.kernel), job.format, shape, tokens, dtype, timing, Timing.of(again), ratio(timing, timings[0]),
            variant_bytes(job.packed[0]), read, moved / timing.median / 1e9, least, least / timing.median, job.kernel.rounding,
            job.kernel.version,
        )  # fmt: skip


def _known(samples: Sequence[Sequence[float]]) -> bool:
    """Are all medians known to 5 %? Looked at every eighth round only, since sorting costs more than a fast kernel."""
    n = len(samples[0])
    return n >= MOST_ROUNDS or (n % 8 == 0 and all(Timing.of(own).relative_interval <= 0.05 for own in samples))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
