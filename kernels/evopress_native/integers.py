"""Kernel `native-int`: 1- to 8-bit grouped integer weights, multiplied by C that is generated for this machine. CPU.

The C is in integers.c, the layout in layout.py. Shapes: R rows out, C columns in, T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from evopress.api import Variant
from evopress.api.formats import fits_format, parse_int_format, unpack_int
from evopress_native.generate import integer_source
from evopress_native.layout import pack_integers
from evopress_native.machine import Machine
from evopress_native.native import BlockedKernel


class NativeIntKernel(BlockedKernel):
    """x Wᵀ for asymmetric groups of any size.

    For bfloat16, codes are multiplied with an exact bias, 2^b + code in AMX tiles and bfloat16 dot products and up to 2^(b + 8) + code in
    float32, and bias, zeros and scales applied to the sums in float32; for float32, (code - zero) is multiplied. The one rounding is that
    of the result; where the weight is unpacked for many tokens, it is rounded to the type of x as well.
    """

    name: ClassVar[str] = "native-int"
    formats: ClassVar[tuple[str, ...]] = (r"int[1-8]-g\d+",)

    def supports(self, format: str, shape: tuple[int, int], device: str, dtype: torch.dtype) -> bool:
        """Any width and any group that divides the columns, on the CPU."""
        return parse_int_format(format) is not None and fits_format(format, shape) and self.runs_here(shape, device, dtype)

    def pack(self, variant: Variant, dtype: torch.dtype) -> Mapping[str, Tensor]:
        """Interleave 16 rows."""
        grid = parse_int_format(variant.format)
        if grid is None:
            raise ValueError(f"format {variant.format!r} of {variant.site.name!r} is no integer format; ask supports() first")
        codes = unpack_int(variant.tensors, variant.site.shape, *grid)
        return self.packed_as(pack_integers(*codes, grid[0]), variant.site.shape, grid[0], dtype)

    def source(self, machine: Machine, kind: int, bfloat: bool) -> str:
        """kind: bits of a code."""
        return integer_source(machine, kind, bfloat)
