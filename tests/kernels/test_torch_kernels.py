"""The packed kernels against brute force in float64, their shape guards, and the byte order of torch's 4-bit weights."""

from __future__ import annotations

import pytest
import torch
from evopress_kernels import evopress_kernels, nibbles
from evopress_kernels.lowrank import LowrankKernel
from evopress_kernels.torch_int4 import TorchInt4Kernel
from evopress_kernels.torch_int4x2 import TorchInt4x2Kernel
from evopress_kernels.torch_int8 import TorchInt8Kernel
from hypothesis import given, settings
from hypothesis import strategies as st

from evopress.api.formats import unpack_int
from evopress.latency.sample import random_variant


def brute_force(x, variant, bits, group):
    codes, scale, zero = unpack_int(variant.tensors, variant.site.shape, bits, group)
    out = torch.zeros(x.shape[0], codes.shape[0], dtype=torch.float64)
    for column in range(codes.shape[1]):
        weight = (codes[:, column].double() - zero[:, column // group].double()) * scale[:, column // group].double()
        out += x[:, column].double()[:, None] * weight[None, :]
    return out


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("tokens", [1, 3, 100])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_packed_kernels_against_brute_force(bits, tokens, dtype):
    generator = torch.Generator().manual_seed(bits)
    x = torch.randn(tokens, 64, generator=generator).to(dtype)
    for kernel, group in ((TorchInt4Kernel() if bits <= 4 else TorchInt4x2Kernel(), 32), (TorchInt8Kernel(), 64)):
        variant = random_variant(f"int{bits}-g{group}", (80, 64), generator)
        assert kernel.supports(variant.format, (80, 64), "cpu", dtype)
        expected = brute_force(x, variant, bits, group)
        error = (kernel.run(x, kernel.pack(variant, x.dtype)).double() - expected).norm() / expected.norm()
        assert error < (0.006 if dtype == torch.bfloat16 else 2e-6)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 12), st.integers(1, 6), st.integers(0, 2**31))
def test_nibbles_read_back_what_torch_packed(blocks, pairs, seed):
    codes = torch.randint(16, (16 * blocks, 32 * pairs), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    packed = nibbles.pack(codes)
    assert torch.equal(nibbles.unpack(packed), codes)
    assert packed.numel() * 2 == codes.numel()


def test_unknown_byte_order_is_refused_not_misread(monkeypatch):
    monkeypatch.setattr(nibbles, "byte_order", lambda: None)
    assert not TorchInt4Kernel().supports("int4-g32", (16, 32), "cpu", torch.bfloat16)
    assert not TorchInt4x2Kernel().supports("int8-g32", (16, 32), "cpu", torch.bfloat16)
    with pytest.raises(RuntimeError, match="byte order"):
        nibbles.unpack(nibbles.pack(torch.zeros(64, 32, dtype=torch.uint8)))


@pytest.mark.parametrize("wrong", nibbles._ORDERS)
def test_wrong_byte_order_is_noticed(wrong):
    if wrong == nibbles.byte_order():
        pytest.skip("this processor uses that order")
    codes = torch.arange(64 * 32, dtype=torch.int64).view(64, 32).mul(7).remainder(16).to(torch.uint8)
    assert not torch.equal(nibbles.unpack(nibbles.pack(codes), wrong), codes)


@pytest.mark.parametrize(
    ("kernel", "format", "shape", "device", "answer"),
    [
        (TorchInt4Kernel, "int4-g32", (16, 32), "cpu", True),
        (TorchInt4Kernel, "int4-g32", (24, 32), "cpu", False),
        (TorchInt4Kernel, "int4-g32", (16, 48), "cpu", False),
        (TorchInt4Kernel, "int4-g16", (16, 32), "cpu", False),
        (TorchInt4Kernel, "int1-g32", (16, 32), "cpu", False),
        (TorchInt4Kernel, "int5-g32", (16, 32), "cpu", False),
        (TorchInt4Kernel, "int4-g32", (16, 32), "cuda", False),
        (TorchInt4x2Kernel, "int5-g64", (32, 128), "cpu", True),
        (TorchInt4x2Kernel, "int4-g64", (32, 128), "cpu", False),
        (TorchInt8Kernel, "int8-g48", (5, 48), "cpu", True),
        (TorchInt8Kernel, "int8-g48", (5, 96), "cpu", False),
        (TorchInt8Kernel, "int8-g40", (5, 40), "cpu", False),
        (TorchInt8Kernel, "bitmask", (5, 48), "cpu", False),
    ],
)
def test_shape_guards(kernel, format, shape, device, answer):
    assert kernel().supports(format, shape, device, torch.bfloat16) is answer


def test_packed_memory_is_what_the_table_says():
    generator = torch.Generator().manual_seed(0)
    rows, columns, group = 32, 256, 64
    for kernel, bits, code_bytes, group_bytes in ((TorchInt4Kernel(), 3, 0.5, 7), (TorchInt4x2Kernel(), 8, 1, 11)):
        packed = kernel.pack(random_variant(f"int{bits}-g{group}", (rows, columns), generator), torch.bfloat16)
        size = sum(t.numel() * t.element_size() for t in packed.values())
        assert size == rows * columns * code_bytes + rows * (columns // group) * group_bytes


def test_names_are_distinct_and_only_the_last_is_not_packed():
    kernels = evopress_kernels()
    assert len({kernel.name for kernel in kernels}) == len(kernels)
    assert [kernel.name for kernel in kernels if not kernel.packed] == ["dequantised"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_low_rank_is_the_product_of_its_factors(dtype):
    generator = torch.Generator().manual_seed(0)
    variant = random_variant("lowrank-r5", (24, 40), generator)
    x = torch.randn(7, 40, generator=generator).to(dtype)
    packed = LowrankKernel().pack(variant, dtype)
    expected = x.double() @ variant.tensors["right"].double().T @ variant.tensors["left"].double().T
    error = (LowrankKernel().run(x, packed).double() - expected).norm() / expected.norm()
    assert error < (0.006 if dtype == torch.bfloat16 else 1e-6)
    assert LowrankKernel().read_bytes(packed, 7) == 5 * (24 + 40) * x.element_size()
