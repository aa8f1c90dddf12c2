"""Kernels of our own for x86-64: C that is generated for the processor at hand, compiled at first use and kept.

| kernel           | formats       | shapes | activations       | weight bits in memory                                             |
|------------------|---------------|--------|-------------------|-------------------------------------------------------------------|
| `native-int`     | `int1`-`int8` | any    | bfloat16, float32 | those of the format, zeros in bytes, rows to 16, groups to 32     |
| `native-bitmask` | `bitmask`     | any    | bfloat16, float32 | those of the format, rows to 16, columns to 32                    |
| `native-dense`   | `dense`       | any    | bfloat16, float32 | 16 or 32, in place                                                |

In the spirit of QIGen (2307.03738): the generator knows vector width, bfloat16 dot products, AMX and caches (machine.py), and writes the
unpacking of every bit width (words.py) into loops that stand as C (integers.c, bitmask.c, dense.c). Codes are widened to
the activations' type and never multiplied as integers (VNNI), since that would round the activations. Without a C compiler, or on another
processor, these kernels support nothing, `evopress kernels list` says so, and torch's run. Called by the registry.
"""

from __future__ import annotations

from evopress.api import Kernel
from evopress.hooks.specs import hookimpl


@hookimpl
def evopress_kernels() -> list[type[Kernel]]:
    """The native kernels."""
    from evopress_native.bitmask import NativeBitmaskKernel
    from evopress_native.dense import NativeDenseKernel
    from evopress_native.integers import NativeIntKernel

    return [NativeIntKernel, NativeBitmaskKernel, NativeDenseKernel]
