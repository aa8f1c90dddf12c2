"""GPU kernels: triton-int, triton-bitmask (Triton), torch-2:4 (torch's semi-structured operators).

Listed fastest first. Without a GPU, or without Triton (extra `triton`), a kernel supports nothing and is passed over. Triton's interpreter
(environment TRITON_INTERPRET=1) runs the Triton kernels on the CPU, slowly: for tests. Nothing else here does. Called by the registry.

| kernel           | formats              | shapes                             | weight bits in memory            |
|------------------|----------------------|------------------------------------|----------------------------------|
| `torch-2:4`      | `sparse-2:4`         | R divisible by 32, C by 64, 16-bit x | 9                              |
| `triton-int`     | `int1`-`int8`        | any; groups of at least 32 columns | b + 24 bits a group, see int_layout |
| `triton-bitmask` | `bitmask`            | up to 65535 columns                | 1.25 + 16 a non-zero             |
"""

from __future__ import annotations

from evopress.api import Kernel
from evopress.hooks.specs import hookimpl


@hookimpl
def evopress_kernels() -> list[type[Kernel]]:
    """The GPU kernels."""
    from evopress_triton.torch_two_of_four import TorchTwoOfFourKernel
    from evopress_triton.triton_bitmask import TritonBitmaskKernel
    from evopress_triton.triton_int import TritonIntKernel

    return [TorchTwoOfFourKernel, TritonIntKernel, TritonBitmaskKernel]
