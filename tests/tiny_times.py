"""A LatencyTable for the tiny study in a store, of made-up times: what `evopress kernels bench --workload` would have measured.

Not a fixture file: tests write `import tiny_times`. Times are of this machine's environment, so that a run finds them.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from tiny_study import METHODS, Tiny

from evopress.api.workload import Workload
from evopress.hooks.registry import Registry
from evopress.latency.runtime import first_fitting, label
from evopress.models.load import resolve, skeleton
from evopress.models.sites import find_sites
from evopress.pricing import CELLS, KERNEL, KERNELS, PART, environment
from evopress.store import LatencyRow, Store

DENSE_NANOSECONDS, PACKED_NANOSECONDS = 4.0, 1.0
"""Made-up time a dense weight takes, and a stored byte of a packed one with as much again a weight per hundred."""
PART_SECONDS = {"model": 40e-6, "block": 2e-6, "attention": 4e-6, "mlp": 3e-6}


def plant(
    storage: str,
    tiny: Tiny,
    home: Path,
    workload: str = "decode,context=64",
    methods: Any = METHODS,
    dtype: str = "float32",
    scale: float = 1.0,
) -> None:
    """Fill the store with a cell for every level of the tiny study and a part for every kind. scale: multiplies every time."""
    import torch

    registry, asked = Registry.load(), Workload.parse(workload, "a test")
    ref = resolve(str(tiny.model), home, weights=False)
    sites = find_sites(skeleton(ref)).sites
    here = environment("cpu", dtype)
    pick = first_fitting(registry.kernels(), "cpu")
    plain = next(kernel for kernel in registry.kernels() if kernel.name == "dense")
    cells: dict[tuple[str, tuple[int, int]], tuple[str, str, float]] = {}
    for site in sites:
        if site.kind != "linear":
            continue
        cells["dense", site.shape] = ("dense", plain.version, DENSE_NANOSECONDS * site.weights)
        for text in methods:
            method = registry.method(text, "a test")
            if "linear" not in method.kinds:
                continue
            for level in method.levels(site):
                format, cost = method.format(site, level), method.cost(site, level)
                kernel = pick(_Shell(format, site), getattr(torch, dtype))  # type: ignore[arg-type]
                cells[format, site.shape] = (label(kernel), kernel.version, PACKED_NANOSECONDS * cost.bytes + 0.01 * site.weights)
    with Store.open(storage) as store:
        for (format, shape), (name, version, nanoseconds) in cells.items():
            own = {**here, "version": version}
            store.put_latency(_row(name, KERNEL, asked.tokens, scale * nanoseconds / 1e9, format, shape, own))
        about = {**here, "model": ref.config_digest, "workload": str(asked)}
        for kind, seconds in PART_SECONDS.items():
            store.put_latency(_row("transformers", PART, asked.tokens, scale * seconds, kind, (0, 0), about))
        for format in sorted({format for format, _ in cells}):  # within the model as alone
            ran = [[*shape, name, version] for (own, shape), (name, version, _) in cells.items() if own == format]
            store.put_latency(_row("transformers", PART, asked.tokens, 1.0, format, (0, 0), {**about, CELLS: 1.0, KERNELS: ran}))


class _Shell:
    """As much of a variant as choosing a kernel reads."""

    def __init__(self, format: str, site: Any) -> None:
        self.format, self.site = format, site


def _row(kernel: str, phase: str, tokens: int, seconds: float, format: str, shape: tuple[int, int], here: dict[str, Any]) -> LatencyRow:
    assert math.isfinite(seconds)
    assert seconds > 0
    return LatencyRow(
        kernel=kernel, device="cpu", phase=phase, batch=1, tokens=tokens, threads=here["threads"], samples=7, median_seconds=seconds,
        low_seconds=0.9 * seconds, high_seconds=1.1 * seconds, tokens_per_second=tokens / seconds, format=format, shape=shape,
        environment=here,
    )  # fmt: skip
