"""Kernel `torch-int4x2`: 5- to 8-bit weights as two 4-bit halves through torch's packed 4-bit CPU operator.

torch has no grouped asymmetric 8-bit multiply on CPU; this is an exact mapping onto what it has. Narrower codes are widened to 8 bits.
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


class TorchInt4x2Kernel(Kernel):
    """x Wᵀ for asymmetric groups of 32, 64, 128 or 256 columns; CPU; R divisible by 16, C by the group.

    With code' = code + 128 - 2^(bits-1) = 16·high + low and zero' likewise, the weight is
    (high - 8)·16·scale + (136 - zero')·scale, plus (low - 8)·scale: two weights of the 4-bit operator, stacked as 2R rows so that it is
    called once. Scales and zeros are rounded to bfloat16, which is part of this kernel's error: at most 2⁻⁸ of each of the three terms.
    Above half of `nibbles.OP_TOKENS` tokens, and for float32 x, the exact scale and zero are used with a temporary dense weight in the
    type of x.

    packed: `codes` 2R×C/2 uint8, `scale_zero` G×2R×2 bfloat16 (not for float32), `scale` R×G float16 (float32 where float16 loses),
    `zero` R×G uint8.
    """

    name: ClassVar[str] = "torch-int4x2"
    formats: ClassVar[tuple[str, ...]] = (r"int[5-8]-g(32|64|128|256)",)

    def supports(self, format: str, shape: tuple[int, int], device: str, dtype: torch.dtype) -> bool:
        """5 to 8 bits on CPU, R divisible by 16 and C by a group of 32, 64, 128 or 256."""
        found = parse_int_format(format)
        return found is not None and 5 <= found[0] <= 8 and nibbles.fits(shape, found[1], device)

    def pack(self, variant: Variant, dtype: torch.dtype) -> Mapping[str, Tensor]:
        """Widen to 8 bits, centre on 128, split into halves and reorder."""
        found = parse_int_format(variant.format)
        if found is None:
            raise ValueError(f"format {variant.format!r} of {variant.site.name!r} is no integer format; ask supports() first")
        bits, group = found
        codes_RC, scale_RG, zero_RG = unpack_int(variant.tensors, variant.site.shape, bits, group)
        shift = 128 - 2 ** (bits - 1)
        codes_RC, zero_RG = codes_RC + shift, zero_RG + shift
        high_RG2 = torch.stack([16.0 * scale_RG, (136.0 - zero_RG.to(torch.float32)) * scale_RG], dim=-1)
        low_RG2 = torch.stack([scale_RG, torch.zeros_like(scale_RG)], dim=-1)
        codes = nibbles.pack(torch.cat([codes_RC >> 4, codes_RC & 15]))
        parts = {"codes": codes, "scale": nibbles.narrow(scale_RG), "zero": zero_RG}
        if dtype == torch.float32:
            return parts
        return parts | {"scale_zero": torch.cat([high_RG2, low_RG2]).transpose(0, 1).contiguous().to(dtype)}

    def run(self, x: Tensor, packed: Mapping[str, Tensor]) -> Tensor:
        """T×C to T×R."""
        rows = packed["zero"].shape[0]
        if "scale_zero" in packed and x.shape[0] <= nibbles.OP_TOKENS // 2:
            both = nibbles.multiply(x, packed["codes"], packed["scale_zero"])
            return both[:, :rows] + both[:, rows:]
        halves = nibbles.unpack(packed["codes"])
        codes_RC = (halves[:rows] << 4) | halves[rows:]
        return functional.linear(x, nibbles.dequantise(codes_RC, packed["scale"], packed["zero"], x.dtype))

    def read_bytes(self, packed: Mapping[str, Tensor], tokens: int) -> int:
        """The codes and one of the two forms of the scales."""
        return nibbles.read_bytes(packed, "scale_zero" in packed and tokens <= nibbles.OP_TOKENS // 2)
