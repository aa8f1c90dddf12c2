"""Kernels built on torch's own CPU operators: dense, absent, torch-int4, torch-int4x2, torch-int8, lowrank, dequantised.

Listed fastest first; `evopress.latency.runtime.choose` takes the first packed one that supports a format and shape. Called by the registry.

| kernel         | formats                      | shapes                                    | weight bits in memory |
|----------------|------------------------------|-------------------------------------------|-----------------------|
| `dense`        | `dense`                      | any                                       | 16 or 32              |
| `absent`       | `absent`                     | any                                       | 0                     |
| `torch-int4`   | `int2`-`int4`, `-g32…-g256`  | R divisible by 16, C by the group         | 4 + 7 or 9 bytes a group |
| `torch-int4x2` | `int5`-`int8`, `-g32…-g256`  | R divisible by 16, C by the group         | 8 + 11 or 13 bytes a group |
| `torch-int8`   | `int2`-`int8`, one group a row | C divisible by 16                       | 8 + 16 bytes a row    |
| `lowrank`      | `lowrank-r{k}`               | any                                       | 16 or 32 of both factors |
| `dequantised`  | all                          | any                                       | 16 or 32: no packed kernel |

Not used: `aten::_dyn_quant_matmul_4bit`, which also rounds the activations to 8 bits, so it does not compute x Wᵀ.
"""

from __future__ import annotations

from evopress.api import Kernel
from evopress.hooks.specs import hookimpl


@hookimpl
def evopress_kernels() -> list[type[Kernel]]:
    """The built-in kernels, fastest first."""
    from evopress_kernels.absent import AbsentKernel
    from evopress_kernels.dense import DenseKernel
    from evopress_kernels.dequantised import DequantisedKernel
    from evopress_kernels.lowrank import LowrankKernel
    from evopress_kernels.torch_int4 import TorchInt4Kernel
    from evopress_kernels.torch_int4x2 import TorchInt4x2Kernel
    from evopress_kernels.torch_int8 import TorchInt8Kernel

    return [DenseKernel, AbsentKernel, TorchInt4Kernel, TorchInt4x2Kernel, TorchInt8Kernel, LowrankKernel, DequantisedKernel]
