"""Kernel `native-dense`: dense weights as they lie in the model, at the speed of the memory. CPU.

For one token torch's own linear layer reads a bfloat16 weight slower than the memory gives it (`evopress kernels bench`), so a compressed
layer compared with that looks faster than compression makes it. The C is in dense.c. Shapes: R rows out, C columns in, T tokens.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from functools import cache
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from evopress.api import Variant
from evopress_native.generate import dense_source
from evopress_native.machine import Machine
from evopress_native.native import NativeKernel, threads_for
from evopress_native.toolchain import library

MOST_TOKENS = 8
"""For more, torch's own layer: then multiplying takes longer than reading."""


class NativeDenseKernel(NativeKernel):
    """x Wᵀ for up to `MOST_TOKENS` tokens; torch's linear layer for more.

    packed: `weight` R×C in the type of the activations; the variant's own where it has that type and lies row by row, so that a dense layer
    takes no more memory. A layer that keeps C×R (GPT-2's) is copied.
    """

    name: ClassVar[str] = "native-dense"
    formats: ClassVar[tuple[str, ...]] = ("dense",)

    def __init__(self, machine: Machine | None = None) -> None:
        super().__init__(machine)
        self._known: dict[torch.dtype, Callable[..., None]] = {}

    def supports(self, format: str, shape: tuple[int, int], device: str, dtype: torch.dtype) -> bool:
        """Any shape on the CPU."""
        return format == "dense" and self.runs_here(shape, device, dtype)

    def pack(self, variant: Variant, dtype: torch.dtype) -> Mapping[str, Tensor]:
        """The weight as it is, in the type of the activations; compiles what will run it."""
        self._function(dtype)
        return {"weight": variant.tensors["weight"].detach().to(dtype).contiguous()}

    def run(self, x: Tensor, packed: Mapping[str, Tensor]) -> Tensor:
        """T×C to T×R. Raises ValueError for another type or width than was packed for: the C would read what is not there."""
        weight = packed["weight"]
        (tokens, columns), rows = x.shape, weight.shape[0]
        if columns != weight.shape[1] or x.dtype != weight.dtype:
            raise ValueError(f"kernel {self.name} is packed for {weight.shape[1]} columns of {weight.dtype}, not {columns} of {x.dtype}")
        if tokens > MOST_TOKENS:
            return functional.linear(x, weight)
        x = x.contiguous()
        out = torch.empty(tokens, rows, dtype=x.dtype)
        multiply = self._known.get(x.dtype) or self._function(x.dtype)
        multiply(weight.data_ptr(), x.data_ptr(), out.data_ptr(), rows, columns, tokens, threads_for(rows * columns))
        return out

    def _function(self, dtype: torch.dtype) -> Callable[..., None]:
        machine = self.machine_here()
        self._known[dtype] = compiled(dense_source(machine, dtype == torch.bfloat16), machine)
        return self._known[dtype]


@cache
def compiled(source: str, machine: Machine) -> Callable[..., None]:
    """`run` of a source. Raises MissingDependency."""
    run = library(source, machine.flags).run
    run.argtypes = [*(ctypes.c_void_p,) * 3, *(ctypes.c_int64,) * 3, ctypes.c_int]
    run.restype = None
    return run
