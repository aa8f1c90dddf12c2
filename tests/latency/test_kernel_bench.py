"""The kernel benchmark: which rows come, how ratios and the floor are computed, with a planted clock and for real."""

from __future__ import annotations

import pytest
import torch
from evopress_kernels import evopress_kernels as torch_kernels

from evopress.api import UsageError
from evopress.latency.bench import Floor, bench_kernels, measure_floor
from evopress.latency.runtime import NO_KERNEL

FLOOR = Floor(1e9, {"float32": 1e9, "bfloat16": 1e9})


def rows(**options):
    kernels = [cls() for cls in torch_kernels()]
    formats = ("absent", "int3-g32", "int8-g16", "bitmask")
    settings = {"shapes": ((32, 64), (16, 48)), "tokens": (1, 3), "formats": formats, "rounds": 3, "max_seconds": 0.0}
    return list(bench_kernels(kernels, torch.Generator().manual_seed(0), floor=FLOOR, working_set_bytes=10000, **(settings | options)))


def test_every_format_gets_a_row_and_dense_comes_first():
    found = rows(dtypes=(torch.bfloat16,))
    assert [(row.format, row.label) for row in found[:5]] == [
        ("dense", "dense"), ("absent", "absent"), ("int3-g32", "torch-int4"), ("int8-g16", NO_KERNEL), ("bitmask@0.5", NO_KERNEL),
    ]  # fmt: skip
    assert len(found) == 2 * 5 + 2 * 4  # 48 columns have no groups of 32
    for row in found:
        assert row.timing.n == row.warm.n == row.ratio_to_dense.n == 3
        assert row.dtype == "bfloat16"
    assert all(row.ratio_to_dense.median == 1 for row in found if row.format == "dense")


def test_numbers_follow_from_the_times():
    class Ticking:
        now = 0.0

        def __call__(self):
            self.now += 2.0
            return self.now

    dense, absent, packed = rows(shapes=((32, 64),), tokens=(2,), formats=("absent", "int4-g32"), dtypes=(torch.float32,), clock=Ticking())
    assert (dense.weight_bytes, packed.weight_bytes, absent.weight_bytes) == (32 * 64 * 4, 32 * 64 // 2 + 32 * 2 * 3, 0)
    moved = 32 * 64 * 4 + 2 * (32 + 64) * 4
    assert dense.gigabytes_per_second == pytest.approx(moved / 2 / 1e9)
    assert dense.floor_seconds == pytest.approx(max(moved, 2 * 2 * 32 * 64) / 1e9)
    assert dense.floor_share == pytest.approx(dense.floor_seconds / 2)
    assert packed.ratio_to_dense.median == 1.0
    assert absent.floor_share == 0


def test_floor_is_measured_and_sensible():
    floor = measure_floor(array_bytes=2**22, matrix=128, max_seconds=0.05)
    assert 1e8 < floor.bytes_per_second < 1e13
    assert all(1e8 < rate < 1e15 for rate in floor.flops_per_second.values())
    assert set(floor.flops_per_second) == {"bfloat16", "float32"}


def test_the_floor_of_a_gpu_is_taken_there_with_larger_arrays_and_waits(monkeypatch):
    """The GPU is planted: arrays are made small and on the CPU, and what was asked for is kept."""
    asked, waits, ones = [], [], torch.ones

    def planted(*shape, device, **options):
        asked.append((shape, device))
        return ones(*[16] * len(shape), **options)

    monkeypatch.setattr(torch, "ones", planted)
    monkeypatch.setattr("torch.cuda.synchronize", waits.append)
    measure_floor([torch.float32], max_seconds=0.0, device="cuda:1")
    assert asked == [((2**28,), "cuda:1"), ((8192, 8192), "cuda:1")]
    assert waits == ["cuda:1"] * 2 * 4  # a warm-up and three samples of each
    asked.clear()
    measure_floor([torch.float32], max_seconds=0.0)
    assert asked == [((2**26,), "cpu"), ((2048, 2048), "cpu")]
    assert len(waits) == 8


def test_other_types_and_no_rounds_are_refused():
    with pytest.raises(UsageError, match="bfloat16 and float32"):
        rows(dtypes=(torch.float16,))
    with pytest.raises(UsageError, match="0 rounds"):
        rows(rounds=0)
