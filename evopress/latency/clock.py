"""Times a function until its median is known well enough, and says on what machine. Knows no kernel and no model.

Called by latency.runtime and latency.bench. Time comes in as `clock`, so tests need no real time.
"""

from __future__ import annotations

import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evopress.api.errors import UsageError

Clock = Callable[[], float]
CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "avx_vnni", "amx_bf16", "amx_int8", "asimd", "bf16", "i8mm", "sve")
"""Processor features that decide which of torch's kernels runs."""
HIGHEST_CLOCK = Path("/sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq")
"""Where Linux tells it, in kHz; many virtual machines do not."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Repeated measurements of one thing, in seconds.

    median: of `samples`. low, high: an interval of the median from order statistics, which assumes no distribution.
    coverage: probability that the interval holds the true median, at least 0.95 from six samples on; with fewer, low and high are the
        extremes and the coverage is what that gives.
    samples: every measurement, in the order taken.
    """

    median: float
    low: float
    high: float
    coverage: float
    samples: tuple[float, ...]

    @property
    def n(self) -> int:
        """Number of measurements."""
        return len(self.samples)

    @property
    def relative_interval(self) -> float:
        """Width of the interval over the median."""
        return (self.high - self.low) / self.median if self.median > 0 else math.inf

    @staticmethod
    def of(samples: Sequence[float], confidence: float = 0.95) -> Timing:
        """Summarise samples. Raises UsageError if there is none or one is not finite."""
        if not samples or not all(math.isfinite(sample) for sample in samples):
            raise UsageError(f"{len(samples)} samples, not all finite, give no timing.", "Measure at least once with a working clock.")
        ranked = sorted(samples)
        skip, coverage = _skip(len(ranked), confidence)
        return Timing(statistics.median(ranked), ranked[skip], ranked[-1 - skip], coverage, tuple(samples))


def _skip(n: int, confidence: float) -> tuple[int, float]:
    """How many samples to leave out at either end so that [x_(skip+1), x_(n-skip)] covers the median, and the coverage.

    The number of samples below the true median is Binomial(n, 1/2), so the interval misses with probability 2·P(count ≤ skip).
    """
    skip, below = 0, 0.5**n
    while 2 * skip + 3 <= n:
        further = below + math.comb(n, skip + 1) / 2**n
        if 1 - 2 * further < confidence:
            break
        skip, below = skip + 1, further
    return skip, max(0.0, 1 - 2 * below)


def measure(
    function: Callable[[], object],
    clock: Clock = time.perf_counter,
    warmup: int = 2,
    min_repeats: int = 7,
    max_seconds: float = 1.0,
    target_relative_interval: float = 0.05,
) -> Timing:
    """Time `function` until the interval of its median is narrow enough or the time is up.

    Stops when at least `min_repeats` samples are there and either (high - low) / median ≤ `target_relative_interval` or `max_seconds` have
    passed since the first sample. Looking at the interval to decide when to stop makes its coverage slightly optimistic.
    """
    if min_repeats < 1 or warmup < 0:
        raise UsageError(f"{min_repeats} repeats after {warmup} warm-up runs cannot be measured.", "Ask for at least one repeat.")
    for _ in range(warmup):
        function()
    samples: list[float] = []
    begin = clock()
    while True:
        samples.append(time_once(function, clock))
        if len(samples) < min_repeats:
            continue
        # Sorting at every sample would cost more than a fast kernel; look again each time a tenth more has come.
        if clock() - begin >= max_seconds:
            break
        due = len(samples) == min_repeats or len(samples) % max(1, len(samples) // 10) == 0
        if due and Timing.of(samples).relative_interval <= target_relative_interval:
            break
    return Timing.of(samples)


def time_once(function: Callable[[], object], clock: Clock = time.perf_counter) -> float:
    """Seconds of one call."""
    begin = clock()
    function()
    return clock() - begin


def ratio(numerator: Timing, denominator: Timing) -> Timing:
    """Sample-by-sample ratio of two timings taken in turns: a unitless median with its interval, free of drift that hit both.

    Raises UsageError when they do not have equally many samples.
    """
    if numerator.n != denominator.n:
        raise UsageError(f"Timings of {numerator.n} and {denominator.n} samples are not paired.", "Take them in turns.")
    return Timing.of([a / b for a, b in zip(numerator.samples, denominator.samples, strict=True)])


def fingerprint(device: str = "cpu") -> dict[str, Any]:
    """Hardware and versions that a time depends on: processor, clock, features, cores, threads, GPU, libraries, Python. JSON-ready."""
    from importlib.metadata import version

    import torch

    cpu = _cpuinfo()
    flags = set(cpu.get("flags", cpu.get("Features", "")).split())
    affinity = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    return {
        "device": device,
        **({"gpu": torch.cuda.get_device_name(device)} if torch.device(device).type == "cuda" else {}),
        "cpu": cpu.get("model name", platform.processor() or platform.machine()),
        "megahertz": _megahertz(cpu),
        "machine": platform.machine(),
        "flags": [flag for flag in CPU_FLAGS if flag in flags],
        "capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "usable_cores": affinity,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "python": platform.python_version(),
        "system": platform.system(),
    }


def _megahertz(cpu: Mapping[str, str]) -> int | None:
    """The highest clock, where the system tells it, else the one it says it has; None where it says none."""
    if HIGHEST_CLOCK.is_file():
        return round(int(HIGHEST_CLOCK.read_text()) / 1000)
    return round(float(cpu["cpu MHz"])) if "cpu MHz" in cpu else None


def _cpuinfo() -> dict[str, str]:
    """First processor of /proc/cpuinfo; empty on systems without it."""
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return {}
    first = path.read_text().split("\n\n", 1)[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}
