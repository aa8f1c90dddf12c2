"""What the native kernels share: the machine they are for, and for weights packed in row blocks (layout.py) the call of the C, and
unpacking for a dense multiply where that is quicker.

No kernels of their own. Shapes: R rows out, C columns in, T tokens.
"""

from __future__ import annotations

import ctypes
from abc import abstractmethod
from collections.abc import Callable, Mapping
from functools import cache
from typing import ClassVar, final

import torch
from torch import Tensor
from torch.nn import functional

from evopress.api import Kernel
from evopress_native.layout import BLOCK
from evopress_native.machine import Machine, this_machine, tiles_allowed
from evopress_native.toolchain import accepts, compiler, library, missing_compiler
from evopress_native.toolchain import version as compiler_version

DTYPES = (torch.bfloat16, torch.float32)
UNPACK_TOKENS = 32
"""Above so many tokens a processor without AMX unpacks the weight for a dense multiply, `CHUNK_BYTES` at a time."""
CHUNK_BYTES = 8 * 2**20
LEAST_WEIGHTS = 2**16
"""A further thread is worth while for each so many weights."""


class NativeKernel(Kernel):
    """x Wᵀ by generated C. Any shape; bfloat16 and float32; Linux on x86-64 with AVX2, and a C compiler."""

    needs: ClassVar[str] = "install a C compiler (apt install gcc) or set CC; only for x86-64 with AVX2 under Linux"

    def __init__(self, machine: Machine | None = None) -> None:
        self._machine = machine

    @property
    def machine(self) -> Machine | None:
        """What the code is for: as given, else the best that processor, system and compiler agree on; None where there is none."""
        return self._machine or best_machine()

    @property
    def version(self) -> str:
        """Of the code here, and the compiler."""
        return f"{super().version} {compiler_version(compiler() or '')}"

    @final
    def machine_here(self) -> Machine:
        """The same, to compile for. Raises MissingDependency without a compiler, ValueError on another processor."""
        if compiler() is None:
            raise missing_compiler()
        machine = self.machine
        if machine is None:
            raise ValueError(f"kernel {self.name} does not run on this processor; ask supports() first")
        return machine

    @final
    def runs_here(self, shape: tuple[int, int], device: str, dtype: torch.dtype) -> bool:
        """Is there a processor, a compiler and a type for it?"""
        return device == "cpu" and min(shape) > 0 and dtype in DTYPES and compiler() is not None and self.machine is not None


class BlockedKernel(NativeKernel):
    """Weights packed in blocks of 16 rows.

    packed: `data` uint8 (see layout.py); `form` R×kind×C×0 in the type of the activations, which only carries shape, type and what the
    source is generated for.
    """

    def __init__(self, machine: Machine | None = None) -> None:
        super().__init__(machine)
        self._known: dict[tuple[int, torch.dtype], tuple[Callable[..., int], Callable[..., None], float]] = {}

    @abstractmethod
    def source(self, machine: Machine, kind: int, bfloat: bool) -> str:
        """C source of `run` and `unpack`."""

    @final
    def packed_as(self, data: Tensor, shape: tuple[int, int], kind: int, dtype: torch.dtype) -> Mapping[str, Tensor]:
        """The packed mapping; compiles what will run it, so that the first call is as quick as the next."""
        self._functions(kind, dtype)
        return {"data": data, "form": torch.empty(shape[0], kind, shape[1], 0, dtype=dtype)}

    @final
    def run(self, x: Tensor, packed: Mapping[str, Tensor]) -> Tensor:
        """T×C to T×R. Raises ValueError for another type or width than was packed for: the C would read what is not there."""
        data, form = packed["data"], packed["form"]
        x = x.contiguous()
        (rows, kind, columns, _), tokens, dtype = form.shape, x.shape[0], x.dtype
        if x.shape[1] != columns or dtype != form.dtype:
            raise ValueError(f"kernel {self.name} is packed for {columns} columns of {form.dtype}, not {x.shape[1]} of {dtype}")
        multiply, unpack, most = self._known.get((kind, dtype)) or self._functions(kind, dtype)
        out = torch.empty(tokens, rows, dtype=dtype)
        threads = threads_for(rows * columns)
        if tokens <= most:
            if multiply(data.data_ptr(), x.data_ptr(), out.data_ptr(), tokens, threads):
                raise MemoryError(f"no memory for {tokens} tokens of {columns} columns")
            return out
        blocks, step = -(-rows // BLOCK), max(1, CHUNK_BYTES // (BLOCK * columns * x.element_size()))
        chunk = torch.empty(min(rows, step * BLOCK), columns, dtype=dtype)
        for first in range(0, blocks, step):
            last = min(blocks, first + step)
            unpack(data.data_ptr(), chunk.data_ptr(), first, last, threads)
            some = slice(first * BLOCK, min(rows, last * BLOCK))
            out[:, some] = functional.linear(x, chunk[: some.stop - some.start])
        return out

    def _functions(self, kind: int, dtype: torch.dtype) -> tuple[Callable[..., int], Callable[..., None], float]:
        machine, bfloat = self.machine_here(), dtype == torch.bfloat16
        most = float("inf") if machine.tiles and bfloat else UNPACK_TOKENS
        self._known[kind, dtype] = (*compiled(self.source(machine, kind, bfloat), machine, bfloat), most)
        return self._known[kind, dtype]


def threads_for(weights: int) -> int:
    """How many of torch's threads a matrix of so many weights is worth."""
    return max(1, min(torch.get_num_threads(), weights // LEAST_WEIGHTS))


def best_machine() -> Machine | None:
    """This processor with the features that the compiler knows and the system allows."""
    machine = this_machine()
    while machine is not None and not (accepts(machine.flags) and (not machine.tiles or tiles_allowed())):
        machine = machine.lesser
    return machine


@cache
def compiled(source: str, machine: Machine, bfloat: bool) -> tuple[Callable[..., int], Callable[..., None]]:
    """`run` and `unpack` of a source. Raises MissingDependency."""
    made = library(source, machine.flags)
    if machine.tiles and bfloat and not tiles_allowed():
        raise RuntimeError("Linux does not allow AMX tiles in this process")
    made.run.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int]
    made.run.restype = ctypes.c_int
    made.unpack.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int]
    made.unpack.restype = None
    return made.run, made.unpack
