"""The native kernels against brute force in float64, on every engine that this processor can run, and the shipped check."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from evopress_native import native
from evopress_native.bitmask import NativeBitmaskKernel
from evopress_native.dense import MOST_TOKENS, NativeDenseKernel
from evopress_native.integers import NativeIntKernel
from evopress_native.layout import HEADER
from evopress_native.machine import Machine, this_machine
from evopress_native.toolchain import compiler

from evopress.api.formats import decode, int_variant, unpack_int, variant_bytes
from evopress.hooks.registry import Registry
from evopress.latency.runtime import choose
from evopress.latency.sample import random_variant
from evopress.testing.kernels import DTYPES, check_kernel, tolerance

HERE = this_machine() or Machine(256, False, False)
OTHERS = (Machine(512, True, False, quick_dot=True), Machine(512, True, False), Machine(512, False, False), Machine(256, False, False))
TOKENS = (1, 2, 3, 5, 16, 17, 33, 65, 300)
GROUPS = {(1, 1): 1, (7, 33): 33, (33, 145): 29, (40, 192): 32, (80, 8192): 8192}
"""Shape -> group: with one weight, with rows and groups to be padded, with more groups than are in flight, and with one to be split."""


def can_run(machine):
    has = this_machine()
    return (
        has is not None and compiler() is not None and has.width >= machine.width and has.dot >= machine.dot and has.tiles >= machine.tiles
    )


def engine(machine):
    reason = f"needs a C compiler and a processor with {machine}; here: {compiler()}, {this_machine()}"
    return pytest.param(machine, marks=pytest.mark.skipif(not can_run(machine), reason=reason), id=str(machine))


def widths(machine):
    """All on this machine; where others are emulated, one that leaves bits over and the one in two halves."""
    return range(1, 9) if machine == HERE else (3, 8)


engines = pytest.mark.parametrize("machine", [engine(machine) for machine in dict.fromkeys((HERE, *OTHERS))])
here = pytest.mark.skipif(not can_run(HERE), reason="needs a C compiler and an x86-64 processor with AVX2 under Linux")
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=["bfloat16", "float32"])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def weight_of(variant):
    """Dense float64 weight, by the format's definition alone."""
    rows, columns = variant.site.shape
    if variant.format == "bitmask":
        keep = np.unpackbits(variant.tensors["mask"].numpy(), axis=1, count=columns, bitorder="little").astype(bool)
        weight = np.zeros((rows, columns))
        weight[keep] = variant.tensors["values"].double().numpy()
        return torch.from_numpy(weight)
    bits, group = map(int, variant.format.removeprefix("int").split("-g"))
    codes, scale, zero = unpack_int(variant.tensors, (rows, columns), bits, group)
    each = [values.double().repeat_interleave(group, 1) for values in (scale, zero)]
    return (codes.double() - each[1]) * each[0]


def check(kernel, variant, packed, dtype, tokens, weight=None):
    """Run, and compare with the product in float64; returns the result."""
    weight = weight_of(variant) if weight is None else weight
    x = torch.randn(tokens, weight.shape[1], generator=generator(1000 + tokens)).to(dtype)
    result = kernel.run(x, packed)
    assert (result.dtype, tuple(result.shape)) == (dtype, (tokens, weight.shape[0]))
    room = x.double().norm(dim=1)[:, None] / weight.shape[1] ** 0.5 * weight.norm(dim=1)
    error = (result.double() - x.double() @ weight.T).abs() / room.clamp(min=1e-30)
    where = f"{variant.format} {tuple(weight.shape)}, {tokens} tokens"
    assert error.max() <= 3 * tolerance(dtype, weight.shape[1]), where
    assert error.square().mean().sqrt() <= tolerance(dtype, weight.shape[1]) / 2, where
    return result


# Against brute force --------------------------------------------------------------------------------------------------------------------


@engines
@dtypes
@pytest.mark.parametrize("shape", GROUPS, ids=str)
def test_integers(machine, dtype, shape):
    kernel = NativeIntKernel(machine)
    for bits in widths(machine):
        variant = random_variant(f"int{bits}-g{GROUPS[shape]}", shape, generator(bits))
        packed, weight = kernel.pack(variant, dtype), weight_of(variant)
        for tokens in TOKENS:
            check(kernel, variant, packed, dtype, tokens, weight)


@engines
@dtypes
@pytest.mark.parametrize("density", [0.0, 0.05, 0.5, 1.0])
def test_bitmasks(machine, dtype, density):
    kernel = NativeBitmaskKernel(machine)
    for shape in GROUPS:
        variant = random_variant("bitmask", shape, generator(1), density)
        packed, weight = kernel.pack(variant, dtype), weight_of(variant)
        for tokens in TOKENS:
            result = check(kernel, variant, packed, dtype, tokens, weight)
            assert density or not result.any()


@engines
@dtypes
def test_dense_weights(machine, dtype):
    kernel = NativeDenseKernel(machine)
    for shape in GROUPS:
        variant = random_variant("dense", shape, generator(7))
        packed = kernel.pack(variant, dtype)
        for tokens in (*range(1, MOST_TOKENS + 2), 17):
            check(kernel, variant, packed, dtype, tokens, packed["weight"].double())


@engines
@dtypes
def test_unpacking_is_exact(machine, dtype):
    """Code minus zero times scale has 8 + 11 bits: float32 holds it, and bfloat16 is it rounded once."""
    for kernel, formats in (
        (NativeIntKernel(machine), [f"int{bits}-g29" for bits in widths(machine)]),
        (NativeBitmaskKernel(machine), ["bitmask"]),
    ):
        for format in formats:
            variant = random_variant(format, (37, 145), generator(5))
            packed = kernel.pack(variant, dtype)
            unpack = kernel._functions(packed["form"].shape[1], dtype)[1]
            for first, last in ((0, 3), (1, 2), (2, 3)):
                out = torch.full((min(37, 16 * last) - 16 * first, 145), float("nan"), dtype=dtype)
                unpack(packed["data"].data_ptr(), out.data_ptr(), first, last, 1)
                assert torch.equal(out, decode(format, variant.tensors, (37, 145))[16 * first : 16 * last].to(dtype))


@engines
@dtypes
def test_threads_change_no_bit(machine, dtype):
    before = torch.get_num_threads()
    kernels = ((NativeIntKernel(machine), "int3-g64"), (NativeBitmaskKernel(machine), "bitmask"), (NativeDenseKernel(machine), "dense"))
    for kernel, format in kernels:
        variant = random_variant(format, (80, 8192), generator(2))
        packed = kernel.pack(variant, dtype)
        weight = weight_of(variant) if format != "dense" else packed["weight"].double()
        alone, others = [], []
        try:
            for threads, results in ((1, alone), (3, others), (16, others)):  # more than the five blocks of rows too
                torch.set_num_threads(threads)
                results += [check(kernel, variant, packed, dtype, tokens, weight) for tokens in (1, 17, 33)]
        finally:
            torch.set_num_threads(before)
        # For many tokens torch multiplies the unpacked weight, or the dense one.
        last = 1 if format == "dense" else 3 if machine.tiles and dtype == torch.bfloat16 else 2
        assert all(torch.equal(one, other) for i in (0, 3) for one, other in zip(alone[:last], others[i:], strict=False))


@engines
def test_an_unpacked_weight_goes_by_chunks_of_rows(machine, monkeypatch):
    kernel, chunks = NativeIntKernel(machine), []
    variant = random_variant("int3-g32", (40, 192), generator(3))
    packed = kernel.pack(variant, torch.float32)
    monkeypatch.setattr(native, "CHUNK_BYTES", 2 * 16 * 192 * 4)
    multiply, unpack, most = kernel._known[3, torch.float32]
    kernel._known[3, torch.float32] = (multiply, lambda *args: (chunks.append(args[2:4]), unpack(*args)), most)
    check(kernel, variant, packed, torch.float32, native.UNPACK_TOKENS)
    assert not chunks
    check(kernel, variant, packed, torch.float32, native.UNPACK_TOKENS + 1)
    assert chunks == [(0, 2), (2, 3)]


# Long groups ----------------------------------------------------------------------------------------------------------------------------


@here
@dtypes
@pytest.mark.parametrize("bits", [3, 8])
def test_a_long_group_is_packed_as_short_ones_with_its_scale(bits, dtype):
    kernel = NativeIntKernel()
    whole = random_variant(f"int{bits}-g8192", (7, 8192), generator(4))
    codes, scale, zero = unpack_int(whole.tensors, (7, 8192), bits, 8192)
    split = int_variant(whole.site, whole.level, codes, scale.repeat_interleave(32, 1), zero.repeat_interleave(32, 1), bits)
    assert split.format == f"int{bits}-g256"
    assert torch.equal(kernel.pack(whole, dtype)["data"], kernel.pack(split, dtype)["data"])


@engines
@dtypes
@pytest.mark.parametrize("group", [1000, 4099])
def test_long_groups_that_cannot_be_split_stay_exact(machine, dtype, group):
    variant = random_variant(f"int8-g{group}", (33, 2 * group), generator(6))
    packed = NativeIntKernel(machine).pack(variant, dtype)
    for tokens in (1, 4, 17):
        check(NativeIntKernel(machine), variant, packed, dtype, tokens)


# What is kept, and where they run -------------------------------------------------------------------------------------------------------


@here
@pytest.mark.parametrize("bits", range(1, 9))
def test_packed_integers_take_the_bits_of_the_format(bits):
    packed = NativeIntKernel().pack(random_variant(f"int{bits}-g64", (48, 192), generator()), torch.bfloat16)
    assert variant_bytes(packed) == HEADER + 48 * 192 * bits // 8 + 48 * 3 * (2 + 1)
    assert NativeIntKernel().read_bytes(packed, 1) == variant_bytes(packed)


@here
@dtypes
def test_a_packed_bitmask_takes_a_bit_a_weight_and_the_values(dtype):
    variant = random_variant("bitmask", (48, 192), generator())
    packed = NativeBitmaskKernel().pack(variant, dtype)
    room = 3 * 8 + 64 + 8  # starts of row blocks, and what a whole vector reads beyond the last value
    held = variant_bytes(packed) - (HEADER + 48 * 192 // 8 + 2 * variant.tensors["values"].numel())
    assert 0 < held <= room


@here
def test_a_dense_weight_stays_where_it_is():
    variant = random_variant("dense", (5, 64), generator())
    weight = variant.tensors["weight"].to(torch.bfloat16)
    own = dataclasses.replace(variant, tensors={"weight": weight})
    assert NativeDenseKernel().pack(own, torch.bfloat16)["weight"].data_ptr() == weight.data_ptr()
    assert NativeDenseKernel().pack(own, torch.float32)["weight"].dtype == torch.float32


@here
@pytest.mark.parametrize(("cls", "format"), [(NativeIntKernel, "int4-g32"), (NativeBitmaskKernel, "bitmask"), (NativeDenseKernel, "dense")])
def test_activations_of_another_width_or_type_are_refused(cls, format):
    kernel = cls()
    packed = kernel.pack(random_variant(format, (32, 64), generator()), torch.bfloat16)
    for x in (torch.zeros(1, 32, dtype=torch.bfloat16), torch.zeros(1, 64), torch.zeros(1, 64, dtype=torch.float16)):
        with pytest.raises(ValueError, match=f"kernel {kernel.name} is packed for 64 columns of torch.bfloat16, not "):
            kernel.run(x, packed)


@here
@dtypes
def test_no_tokens_give_no_rows(dtype):
    for kernel, format in ((NativeIntKernel(), "int4-g32"), (NativeBitmaskKernel(), "bitmask"), (NativeDenseKernel(), "dense")):
        packed = kernel.pack(random_variant(format, (5, 64), generator()), dtype)
        assert kernel.run(torch.empty(0, 64, dtype=dtype), packed).shape == (0, 5)


@here
def test_they_come_first_and_take_any_shape_on_the_cpu_only():
    kernels = Registry.load().kernels()
    for format, shape, name in (
        ("int5-g29", (3, 145), "native-int"),
        ("bitmask", (1, 1), "native-bitmask"),
        ("dense", (3, 5), "native-dense"),
    ):
        for dtype in DTYPES:
            assert choose(format, shape, "cpu", dtype, kernels).name == name
    for kernel, own in ((NativeIntKernel(), "int4-g32"), (NativeBitmaskKernel(), "bitmask"), (NativeDenseKernel(), "dense")):
        for format in ("int4-g32", "bitmask", "dense", "absent"):
            assert kernel.supports(format, (8, 64), "cpu", torch.float32) == (format == own)
            assert not kernel.supports(format, (8, 64), "cuda", torch.float32)
            assert not kernel.supports("int4-g48", (8, 64), "cpu", torch.float32)
            assert not kernel.supports(format, (8, 64), "cpu", torch.float16)
            assert not kernel.supports(format, (0, 64), "cpu", torch.float32)


def test_another_processor_runs_nothing(monkeypatch):
    monkeypatch.setattr(native, "this_machine", lambda: None)
    for kernel, format in ((NativeIntKernel(), "int4-g32"), (NativeBitmaskKernel(), "bitmask"), (NativeDenseKernel(), "dense")):
        assert not kernel.supports(format, (8, 64), "cpu", torch.float32)
        with pytest.raises(ValueError, match=f"{kernel.name} does not run on this processor"):
            kernel.pack(random_variant(format, (8, 64), generator()), torch.float32)


@pytest.mark.parametrize("machine", [engine(machine) for machine in dict.fromkeys((HERE, OTHERS[-1]))])
@pytest.mark.parametrize("kernel", [NativeIntKernel, NativeBitmaskKernel, NativeDenseKernel])
def test_native_kernels_conform(kernel, machine):
    formats = ("dense", "bitmask", *(f"int{bits}-g{group}" for bits in widths(machine) for group in (32, 48)))
    assert check_kernel(kernel(machine), formats=formats) >= 20
