"""Kernel `native-bitmask`: unstructured sparse weights, expanded in registers by C that is generated for this machine. CPU.

The C is in bitmask.c, the layout in layout.py. In the spirit of Fast Sparse ConvNets (1911.09723): only what is not zero is read, here with
one bit a weight instead of an index. Shapes: R rows out, C columns in, T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from evopress.api import Variant
from evopress.api.formats import unpack_bits
from evopress_native.generate import bitmask_source
from evopress_native.layout import pack_bitmask
from evopress_native.machine import Machine
from evopress_native.native import BlockedKernel


class NativeBitmaskKernel(BlockedKernel):
    """x Wᵀ for any mask.

    With bfloat16 dot products or AMX the values are rounded to bfloat16; elsewhere, and for float32, they stay float16 and are multiplied
    in float32.
    """

    name: ClassVar[str] = "native-bitmask"
    formats: ClassVar[tuple[str, ...]] = ("bitmask",)

    def supports(self, format: str, shape: tuple[int, int], device: str, dtype: torch.dtype) -> bool:
        """Any mask and shape on the CPU."""
        return format == "bitmask" and self.runs_here(shape, device, dtype)

    def pack(self, variant: Variant, dtype: torch.dtype) -> Mapping[str, Tensor]:
        """Interleave 16 rows."""
        rows, columns = variant.site.shape
        keep_RC = unpack_bits(variant.tensors["mask"], 1, columns).view(torch.bool)
        weight_RC = torch.zeros(rows, columns, dtype=torch.float16).masked_scatter_(keep_RC, variant.tensors["values"])
        pairs = dtype == torch.bfloat16 and self.machine is not None and self.machine.dot
        return self.packed_as(pack_bitmask(weight_RC, keep_RC, pairs), (rows, columns), 1, dtype)

    def source(self, machine: Machine, kind: int, bfloat: bool) -> str:
        """kind: always 1."""
        return bitmask_source(machine, bfloat)
