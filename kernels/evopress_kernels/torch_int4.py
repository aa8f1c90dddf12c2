"""Kernel `torch-int4`: 2-, 3- and 4-bit weights through torch's packed 4-bit CPU operator. See nibbles.py for the operator itself.

Narrower codes are widened to 4 bits, so int2 and int3 run as fast as int4, not faster.
Shapes: R rows out, C columns in, G groups, T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from evopress.api import Kernel, Variant
from evopress.api.formats import parse_int_format, unpack_int
from evopress_kernels import nibbles


class TorchInt4Kernel(Kernel):
    """x Wᵀ for asymmetric groups of 32, 64, 128 or 256 columns; CPU; R divisible by 16, C by the group.

    Writing code' = code + 8 - 2^(bits-1) and zero' likewise, (code' - 8)·scale + (8 - zero')·scale is the weight: what the operator
    computes, with scale and (8 - zero')·scale rounded to bfloat16. That rounding is part of this kernel's error: at most 2⁻⁸ of each of
    the two terms. Above `nibbles.OP_TOKENS` tokens, and for float32 x, the exact scale and zero are used with a temporary dense weight in
    the type of x.

    packed: `codes` R×C/2 uint8, `scale_zero` G×R×2 bfloat16 (not for float32), `scale` R×G float16 (float32 where float16 loses),
    `zero` R×G uint8.
    """

    name: ClassVar[str] = "torch-int4"
    formats: ClassVar[tuple[str, ...]] = (r"int[2-4]-g(32|64|128|256)",)

    def supports(self, format: str, shape: tuple[int, int], device: str, dtype: torch.dtype) -> bool:
        """2 to 4 bits on CPU, R divisible by 16 and C by a group of 32, 64, 128 or 256."""
        found = parse_int_format(format)
        return found is not None and 2 <= found[0] <= 4 and nibbles.fits(shape, found[1], device)

    def pack(self, variant: Variant, dtype: torch.dtype) -> Mapping[str, Tensor]:
        """Widen to 4 bits, centre on 8 and reorder."""
        bits, group = _int_format(variant)
        codes_RC, scale_RG, zero_RG = unpack_int(variant.tensors, variant.site.shape, bits, group)
        shift = 8 - 2 ** (bits - 1)
        zero_RG = zero_RG + shift
        scale_zero_RG2 = torch.stack([scale_RG, (8.0 - zero_RG.to(torch.float32)) * scale_RG], dim=-1)
        parts = {"codes": nibbles.pack(codes_RC + shift), "scale": nibbles.narrow(scale_RG), "zero": zero_RG}
        return parts if dtype == torch.float32 else parts | {"scale_zero": scale_zero_RG2.transpose(0, 1).contiguous().to(dtype)}

    def run(self, x: Tensor, packed: Mapping[str, Tensor]) -> Tensor:
        """T×C to T×R."""
        if "scale_zero" in packed and x.shape[0] <= nibbles.OP_TOKENS:
            return nibbles.multiply(x, packed["codes"], packed["scale_zero"])
        codes_RC = nibbles.unpack(packed["codes"])
        return functional.linear(x, nibbles.dequantise(codes_RC, packed["scale"], packed["zero"], x.dtype))

    def read_bytes(self, packed: Mapping[str, Tensor], tokens: int) -> int:
        """The codes and one of the two forms of the scales."""
        return nibbles.read_bytes(packed, "scale_zero" in packed and tokens <= nibbles.OP_TOKENS)


def _int_format(variant: Variant) -> tuple[int, int]:
    found = parse_int_format(variant.format)
    if found is None:
        raise ValueError(f"format {variant.format!r} of {variant.site.name!r} is no integer format; ask supports() first")
    return found
