"""Times kernels on single matrices against the dense layer and against the machine's own best. The engine of `evopress kernels bench`.

Does not print and does not store. Called by the command line. Each row names the kernel that ran and its share of the floor: the larger of
(bytes that must be read) / (measured read bandwidth) and (operations) / (measured rate of a large dense multiply of the same type).

Shapes: R rows out, C columns in, T tokens.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle

import torch
from torch import Tensor

from evopress.api import Kernel, UsageError
from evopress.api.formats import fits_format, variant_bytes
from evopress.latency.clock import Clock, Timing, measure, ratio, time_once
from evopress.latency.runtime import DTYPES, choose, label
from evopress.latency.sample import random_variant

DEMO_SHAPES = ((576, 576), (192, 576), (1536, 576), (576, 1536))
"""The four linear shapes of SmolLM2-135M."""
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
    """One format, run by the kernel that `choose` picks, at one shape and number of tokens.

    timing: seconds a call. ratio_to_dense: seconds over those of the dense layer, paired in the same rounds; below 1 is faster.
    weight_bytes: what the kernel keeps in memory. gigabytes_per_second: weights and activations moved, over the median.
    floor_seconds: least time this machine would need for the same bytes and operations; floor_share: that over the median, 1 is perfect
        and 0 means that nothing needs doing (`absent`).
    """

    kernel: str
    label: str
    format: str
    shape: tuple[int, int]
    tokens: int
    dtype: str
    timing: Timing
    ratio_to_dense: Timing
    weight_bytes: int
    gigabytes_per_second: float
    floor_seconds: float
    floor_share: float


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
    tokens: Sequence[int] = DEMO_TOKENS, formats: Sequence[str] = DEMO_FORMATS, dtypes: Sequence[torch.dtype] = DTYPES, rounds: int = 21,
    working_set_bytes: int = 2**26, floor: Floor | None = None, clock: Clock = time.perf_counter,
) -> Iterator[KernelRow]:  # fmt: skip
    """Time every format at every shape, number of tokens and type; yields rows as they are measured.

    In each round every format runs once, dense first, so that drift hits all alike. Each call uses another copy of the weights, as many as
    fill `working_set_bytes`, because a model never finds a layer's weights in the inner caches. Formats that no kernel runs at a shape, or
    whose group does not divide its columns, are left out. Raises UsageError for a type that kernels do not take, or no rounds.
    """
    kernels = list(kernels)
    if rounds < 1 or any(dtype not in DTYPES for dtype in dtypes):
        raise UsageError(f"Cannot time {rounds} rounds in {[_name(dtype) for dtype in dtypes]}.", "Kernels take bfloat16 and float32.")
    floor = measure_floor(dtypes, clock=clock) if floor is None else floor
    for shape in shapes:
        for dtype in dtypes:
            jobs = _jobs(kernels, generator, shape, formats, dtype, working_set_bytes)
            for count in tokens:
                x_TC = torch.randn(count, shape[1], generator=generator).to(dtype)
                yield from _rows(jobs, x_TC, shape, rounds, floor, clock)


@dataclass(frozen=True)
class _Job:
    kernel: Kernel
    format: str
    weight_bytes: int
    run: Callable[[Tensor], Tensor]


def _jobs(
    kernels: list[Kernel], generator: torch.Generator, shape: tuple[int, int], formats: Sequence[str], dtype: torch.dtype, working_set: int
) -> list[_Job]:  # fmt: skip
    jobs = []
    for format in dict.fromkeys(("dense", *formats)):
        if not fits_format(format, shape):
            continue
        kernel = choose(format, shape, "cpu", dtype, kernels)
        packed = kernel.pack(random_variant(format, shape, generator), dtype)
        size = variant_bytes(packed)
        copies = [{key: tensor.clone() for key, tensor in packed.items()} for _ in range(min(1024, max(1, working_set // max(1, size))))]
        turn = cycle(copies if size else copies[:1])
        jobs.append(_Job(kernel, format, size, lambda x, kernel=kernel, turn=turn: kernel.run(x, next(turn))))  # type: ignore[misc]
    return jobs


def _rows(jobs: list[_Job], x_TC: Tensor, shape: tuple[int, int], rounds: int, floor: Floor, clock: Clock) -> Iterator[KernelRow]:
    samples: list[list[float]] = [[] for _ in jobs]
    with torch.no_grad():
        for turn in range(-2, rounds):
            for job, own in zip(jobs, samples, strict=True):
                seconds = time_once(lambda job=job: job.run(x_TC), clock)  # type: ignore[misc]
                if turn >= 0:
                    own.append(seconds)
    timings = [Timing.of(own) for own in samples]
    dtype, tokens = _name(x_TC.dtype), x_TC.shape[0]
    for job, timing in zip(jobs, timings, strict=True):
        moved = job.weight_bytes + tokens * sum(shape) * x_TC.element_size() if job.weight_bytes else 0
        least = floor.seconds(moved, 2 * tokens * math.prod(shape) if moved else 0, dtype)
        yield KernelRow(
            job.kernel.name, label(job.kernel), job.format, shape, tokens, dtype, timing, ratio(timing, timings[0]),
            job.weight_bytes, moved / timing.median / 1e9, least, least / timing.median,
        )  # fmt: skip


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
