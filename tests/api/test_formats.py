"""The weight formats against a bit stream written with Python integers, and their costs against the bytes that are stored."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evopress.api import ZERO, Cost, Level, Site, UsageError
from evopress.api.formats import (
    bitmask_cost,
    bitmask_variant,
    column_step,
    decode,
    fits_format,
    group_width,
    int_cost,
    int_format,
    int_variant,
    minmax_grid,
    pack_bitmask,
    pack_bits,
    pack_int,
    parse_gguf_format,
    parse_int_format,
    unpack_bits,
    unpack_int,
    variant_bytes,
)


def _site(rows: int, columns: int) -> Site:
    return Site("layers.0.q_proj", "linear", (rows, columns), 0, None)


@settings(max_examples=80, deadline=None)
@given(bits=st.integers(1, 8), rows=st.integers(1, 4), count=st.integers(1, 70), seed=st.integers(0, 2**31))
def test_packing_is_the_little_endian_bit_stream_and_its_inverse(bits: int, rows: int, count: int, seed: int) -> None:
    values = torch.randint(0, 2**bits, (rows, count), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    packed = pack_bits(values, bits)
    width = -(-count * bits // 8)
    assert packed.shape == (rows, width)
    for row, stream in zip(values.tolist(), packed.tolist(), strict=True):
        number = sum(value << (bits * position) for position, value in enumerate(row))
        assert bytes(stream) == number.to_bytes(width, "little")
    assert torch.equal(unpack_bits(packed, bits, count), values)


def test_packing_takes_views_that_are_not_contiguous() -> None:
    values = torch.randint(0, 8, (24, 13), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    assert torch.equal(pack_bits(values.T.contiguous().T, 3), pack_bits(values, 3))
    packed = pack_bits(values, 3)
    assert torch.equal(unpack_bits(packed.T.contiguous().T, 3, 13), values)


@settings(max_examples=60, deadline=None)
@given(bits=st.integers(1, 8), rows=st.integers(1, 5), groups=st.integers(1, 5), group=st.integers(1, 20), seed=st.integers(0, 2**31))
def test_int_cost_is_exact_and_decode_is_the_formula(bits: int, rows: int, groups: int, group: int, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    shape = (rows, groups * group)
    codes = torch.randint(0, 2**bits, shape, generator=rng)
    zeros = torch.randint(0, 2**bits, (rows, groups), generator=rng)
    scales = torch.rand(rows, groups, generator=rng).half().float()
    variant = int_variant(_site(*shape), Level.of("rtn", bits=bits), codes, scales, zeros, bits)
    assert variant.format == int_format(bits, group)
    assert parse_int_format(variant.format) == (bits, group)
    assert variant.cost == int_cost(shape, bits, group) == Cost(variant_bytes(variant.tensors), shape[0] * shape[1])
    unpacked = unpack_int(variant.tensors, shape, bits, group)
    assert torch.equal(unpacked[0], codes.to(torch.uint8))
    assert torch.equal(unpacked[1], scales)
    assert torch.equal(unpacked[2], zeros.to(torch.uint8))
    weight = decode(variant.format, variant.tensors, shape)
    for row in range(rows):
        for column in range(shape[1]):
            at = column // group
            want = (int(codes[row, column]) - int(zeros[row, at])) * float(scales[row, at])
            assert float(weight[row, column]) == pytest.approx(want, rel=1e-6, abs=0)


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(1, 6), columns=st.integers(1, 40), share=st.floats(0, 1), seed=st.integers(0, 2**31))
def test_bitmask_cost_is_exact_and_kept_zeros_count(rows: int, columns: int, share: float, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=rng).half().float()
    keep = torch.rand(rows, columns, generator=rng) < share
    weight[0, 0] = 0
    keep[0, 0] = True
    variant = bitmask_variant(_site(rows, columns), Level("magnitude"), weight, keep)
    nonzeros = int(keep.sum())
    assert variant.cost == bitmask_cost((rows, columns), nonzeros) == Cost(variant_bytes(variant.tensors), nonzeros)
    assert torch.equal(decode("bitmask", variant.tensors, (rows, columns)), weight * keep)


def test_bitmask_keeps_row_major_order_and_clips_to_float16() -> None:
    weight = torch.tensor([[0.0, 2.0, -1e9], [3.0, 0.0, 4.0]])
    tensors = pack_bitmask(weight)
    assert tensors["values"].tolist() == [2.0, -65504.0, 3.0, 4.0]
    assert tensors["mask"].tolist() == [[0b110], [0b101]]


def test_costs_by_hand() -> None:
    assert int_cost((2, 128), 3, 64) == Cost(2 * (48 + 2 * 2 + 1), 256)
    assert int_cost((1, 5), 3, 5) == Cost(2 + 2 + 1, 5)
    assert bitmask_cost((3, 9), 4) == Cost(3 * 2 + 8, 4)


def test_absent_and_dense() -> None:
    assert torch.equal(decode("absent", {}, (2, 3)), torch.zeros(2, 3))
    assert variant_bytes({}) == ZERO.bytes
    stored = torch.randn(2, 3).half()
    got = decode("dense", {"weight": stored}, (2, 3))
    assert got.dtype == torch.float32
    assert torch.equal(got, stored.float())
    full = torch.ones(2, 2)
    decode("dense", {"weight": full}, (2, 2)).zero_()
    assert full.sum() == 4, "decode must not hand out the stored tensor itself"


@pytest.mark.parametrize("name", ["int9-g64", "int0-g64", "int3-g0", "int3", "int3-g-1", "int3-g64 ", "sparse"])
def test_unknown_format_lists_the_known_ones(name: str) -> None:
    assert parse_int_format(name) is None
    with pytest.raises(UsageError, match=r"Unknown weight format .*Known: absent, bitmask, dense, gguf-\{type\}, int\{bits\}-g\{group\}"):
        decode(name, {}, (1, 1))


def test_int_tensors_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UsageError, match=r"do not fit scales"):
        pack_int(torch.zeros(2, 8), torch.ones(2, 3), torch.zeros(2, 3), 4, 4)


def test_k_quants_are_named_by_their_type_and_come_in_blocks_of_256() -> None:
    assert parse_gguf_format("gguf-q4_k") == "q4_k"
    assert [parse_gguf_format(name) for name in ("q4_k", "gguf-q7_k", "gguf-q4_0", "gguf-Q4_K", "gguf-")] == [None] * 5
    assert [fits_format("gguf-q2_k", (1, columns)) for columns in (256, 512, 128, 300)] == [True, True, False, False]
    steps = {"gguf-q6_k": 256, "int3-g48": 48, "sparse-2:4": 4, "bitmask": 1, "lowrank-r3": 1, "somebody's": 1}
    assert {name: column_step(name) for name in steps} == steps


def test_a_k_quant_is_decoded_by_the_formula() -> None:
    """q4_k by hand: weight = d · scale · code - dmin · min, scales and mins in 6 bits for 32 columns each, the first four plain."""
    block = torch.zeros(1, 144, dtype=torch.uint8)
    block[0, :4] = torch.tensor([0.5, 0.25], dtype=torch.float16).view(torch.uint8)
    block[0, 4], block[0, 8] = 3, 2  # scale and min of columns 0..31
    block[0, 16:48] = torch.arange(32) % 16 + 16 * 5  # codes of columns 0..31 low, of 32..63 high
    weight = decode("gguf-q4_k", {"data": block}, (1, 256))
    assert weight.dtype == torch.float32
    assert weight[0, :32].tolist() == [0.5 * 3 * (column % 16) - 0.25 * 2 for column in range(32)]
    assert not weight[0, 32:].any()


def test_group_width() -> None:
    assert group_width(64, 128) == 64
    assert group_width(64, 100) is None
    assert group_width(-1, 100) == 100


@settings(max_examples=80, deadline=None)
@given(
    exponent=st.integers(-12, 9), bits=st.integers(2, 8), low=st.floats(-1, 1), high=st.floats(-1, 1),
)  # fmt: skip
def test_grid_is_float16_contains_zero_and_spans_the_range(exponent: int, bits: int, low: float, high: float) -> None:
    low, high = sorted((low * 10.0**exponent, high * 10.0**exponent))
    top = 2**bits - 1
    scale, zero = minmax_grid(torch.tensor([low]), torch.tensor([high]), top)
    assert float(scale) > 0
    assert float(scale.half()) == float(scale)
    assert zero == zero.round()
    assert 0 <= float(zero) <= top
    if 2.0**-14 < float(scale) < 65504:
        # One step of slack: the zero point and the float16 scale are both rounded.
        assert float((0 - zero) * scale) <= min(low, 0) + 1.01 * float(scale)
        assert float((top - zero) * scale) >= max(high, 0) - 1.01 * float(scale)


def test_grid_of_an_empty_range_has_scale_one() -> None:
    scale, zero = minmax_grid(torch.zeros(1), torch.zeros(1), 7)
    assert (float(scale), float(zero)) == (1.0, 0.0)


def test_formats_and_methods_import_without_torch() -> None:
    names = "evopress.api.formats, evopress.api.sparsity, evopress.api.linalg, evopress.testing.methods, evopress_rtn, evopress_gptq, "
    names += "evopress_magnitude, evopress_sparsegpt, evopress_wanda, evopress_drop"
    subprocess.run([sys.executable, "-c", f"import sys, {names}; sys.exit('torch' in sys.modules)"], check=True)
