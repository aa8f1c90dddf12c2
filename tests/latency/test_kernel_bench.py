"""The kernel benchmark: which rows come, how ratios and the floor are computed, with a planted clock and for real."""

from __future__ import annotations

import pytest
import torch
from evopress_kernels import evopress_kernels as torch_kernels

from evopress.api import UsageError
from evopress.latency.bench import Floor, bench_kernels, measure_floor
from evopress.latency.runtime import NO_KERNEL

FLOOR = Floor(1e9, {"float32": 1e9, "bfloat16": 1e9})


def kernels():
    return [cls() for cls in torch_kernels()]


def rows(**options):
    formats = ("absent", "int3-g32", "int8-g16", "bitmask")
    settings = {"shapes": ((32, 64), (16, 48)), "tokens": (1, 3), "formats": formats, "rounds": 3, "max_seconds": 0.0}
    return list(bench_kernels(kernels(), torch.Generator().manual_seed(0), floor=FLOOR, working_set_bytes=10000, **(settings | options)))


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


def test_a_format_that_no_kernel_runs_is_left_out_and_a_sparse_one_multiplies_less():
    dense = [kernel for kernel in kernels() if kernel.name in ("dense", "lowrank")]
    found = list(bench_kernels(dense, torch.Generator().manual_seed(0), [(64, 64)], [64], ["int4-g32", "lowrank-r4"], [torch.float32],
                               floor=FLOOR, working_set_bytes=10000, rounds=1, max_seconds=0))  # fmt: skip
    assert [row.kernel for row in found] == ["dense", "lowrank"]
    assert found[0].floor_seconds == pytest.approx(2 * 64 * 64 * 64 / 1e9)
    assert found[1].floor_seconds == pytest.approx(max(2 * 64 * 4 * 128, 4 * (4 * 128 + 64 * 128)) / 1e9)


def test_large_weights_are_held_against_the_fastest_reading_of_their_rounds(monkeypatch):
    """The floor is a byte a second; reading beside the kernels shows that the machine can do more."""
    monkeypatch.setattr("evopress.latency.bench.PROBE_BYTES", 10000)
    monkeypatch.setattr("evopress.latency.bench.PROBE_PART_BYTES", 4000)
    slow = Floor(1.0, {"float32": 1e18})
    found = list(bench_kernels(kernels(), torch.Generator().manual_seed(0), [(64, 64)], [1], ["int4-g32"], [torch.float32], floor=slow,
                               working_set_bytes=10000, rounds=3, max_seconds=0))  # fmt: skip
    assert all(0 < row.floor_share < 1 + 1e-9 for row in found)
    assert any(row.floor_share > 1e-3 for row in found)
