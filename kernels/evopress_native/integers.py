"""Kernel `native-int`: 1- to 8-bit grouped integer weights, multiplied by C that is generated for this machine. CPU.

The C is in integers.c, the layout in layout.py. Above `OP_TOKENS` tokens the weight is unpacked, `CHUNK_BYTES` at a time, for a dense
multiply. Shapes: R rows out, C columns in, T tokens.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from functools import cache
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from evopress.api import Kernel, Variant
from evopress.api.formats import decode, parse_int_format, unpack_int, variant_bytes
from evopress_native.generate import integer_source
from evopress_native.layout import BLOCK, pack_integers
from evopress_native.machine import Machine, this_machine
from evopress_native.toolchain import compiler, library

OP_TOKENS = 10**6
CHUNK_BYTES = 8 * 2**20
LEAST_WEIGHTS = 2**16
"""A thread of its own is worth while from so many weights on."""


class NativeIntKernel(Kernel):
    """x Wᵀ for asymmetric groups of any size and any shape; bfloat16 and float32; Linux on x86-64 with AVX2 and a C compiler.

    With bfloat16 dot products or AMX, codes are multiplied as exact bfloat16 values 2^b + code and the zeros and scales applied to sums in
    float32; elsewhere, and for float32, (code - zero) is multiplied in float32. The one rounding is that of the result; above `OP_TOKENS`
    tokens the weight is rounded to the type of x as well.

    packed: `data` uint8 (see layout.py); `form` R×b×0 uint8, which only carries rows and bits.
    """

    name: ClassVar[str] = "native-int"
    formats: ClassVar[tuple[str, ...]] = (r"int[1-8]-g\d+",)

    def __init__(self, machine: Machine | None = None) -> None:
        self._machine = machine or this_machine()

    def supports(self, format: str, shape: tuple[int, int], device: str, dtype: torch.dtype) -> bool:
        """Any width, group and shape on the CPU."""
        fits = device == "cpu" and self._machine is not None and compiler() is not None and dtype in (torch.bfloat16, torch.float32)
        return fits and parse_int_format(format) is not None and min(shape) > 0

    def pack(self, variant: Variant, dtype: torch.dtype) -> Mapping[str, Tensor]:
        """Interleave 16 rows."""
        grid = parse_int_format(variant.format)
        if grid is None or self._machine is None:
            raise ValueError(f"format {variant.format!r} of {variant.site.name!r} does not run here; ask supports() first")
        codes = unpack_int(variant.tensors, variant.site.shape, *grid)
        functions(self._machine, grid[0], dtype)
        return {"data": pack_integers(*codes, grid[0]), "form": torch.empty(variant.site.shape[0], grid[0], 0, dtype=torch.uint8)}

    def run(self, x: Tensor, packed: Mapping[str, Tensor]) -> Tensor:
        """T×C to T×R."""
        assert self._machine is not None
        data, form = packed["data"], packed["form"]
        rows, bits = form.shape[0], form.shape[1]
        x, tokens = x.contiguous(), x.shape[0]
        multiply, unpack = functions(self._machine, bits, x.dtype)
        out = torch.empty(tokens, rows, dtype=x.dtype)
        threads = min(torch.get_num_threads(), max(1, rows * x.shape[1] // LEAST_WEIGHTS))
        if tokens <= OP_TOKENS:
            if multiply(data.data_ptr(), x.data_ptr(), out.data_ptr(), tokens, threads):
                raise MemoryError(f"no memory for {tokens} tokens of {x.shape[1]} columns")
            return out
        blocks, step = -(-rows // BLOCK), max(1, CHUNK_BYTES // (BLOCK * x.shape[1] * x.element_size()))
        chunk = torch.empty(min(rows, step * BLOCK), x.shape[1], dtype=x.dtype)
        for first in range(0, blocks, step):
            last = min(blocks, first + step)
            unpack(data.data_ptr(), chunk.data_ptr(), first, last, threads)
            some = slice(first * BLOCK, min(rows, last * BLOCK))
            out[:, some] = functional.linear(x, chunk[: some.stop - some.start])
        return out

    def read_bytes(self, packed: Mapping[str, Tensor], tokens: int) -> int:
        """All of it."""
        return variant_bytes(packed)

    def reference(self, x: Tensor, variant: Variant) -> Tensor:
        """Exact, in float64."""
        return x.double() @ decode(variant.format, variant.tensors, variant.site.shape).double().T


@cache
def functions(machine: Machine, bits: int, dtype: torch.dtype) -> tuple[Callable[..., int], Callable[..., None]]:
    """`run` and `unpack` of integers.c, compiled at first use. Raises MissingDependency."""
    made = library(integer_source(machine, bits, dtype == torch.bfloat16), machine.flags)
    if machine.tiles and dtype == torch.bfloat16 and made.tiles_allowed():
        raise RuntimeError("the kernel of this machine does not allow AMX tiles, though the processor has them")
    made.run.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int]
    made.run.restype = ctypes.c_int
    made.unpack.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int]
    made.unpack.restype = None
    return made.run, made.unpack
