"""Kernel `torch-int8`: weights with one scale and zero a row through torch's packed 8-bit CPU operator.

torch's operator is symmetric with one scale a row; the zero is brought back exactly as a rank-one term. Groups smaller than a row have no
such mapping and go to torch-int4 or torch-int4x2. Shapes: R rows out, C columns in, T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from evopress.api import Kernel, Variant
from evopress.api.formats import parse_int_format, unpack_int, variant_bytes

COLUMNS_MULTIPLE = 16
"""The bfloat16 operator reads 16 columns at a time without a bound check: other widths read foreign memory, so they are refused."""
OP_TOKENS = 8
"""Up to so many bfloat16 tokens the operator runs, beyond them convert-then-multiply. `evopress kernels bench --shape 576x576
--format int8-g576 --tokens 8 --tokens 9` prints both sides of the border for this machine."""


class TorchInt8Kernel(Kernel):
    """x Wᵀ for asymmetric 2- to 8-bit codes with one group a row; CPU; C divisible by 16, any R.

    (code - zero)·scale = (code - m)·scale + (m - zero)·scale with m = 2^(bits-1): the first term is the operator with int8 codes, the
    second is the sum of x times a vector. Above `OP_TOKENS` tokens, and for float32 x, the int8 codes are converted to the type of x
    (exact) for a dense multiply, and the result is scaled. bfloat16 rounding (2⁻⁸) of scale and of the first product is part of this
    kernel's error.

    packed: `codes` R×C int8, `scale` R float32, `scale_bf16` R bfloat16, `offset` R float32.
    """

    name: ClassVar[str] = "torch-int8"
    formats: ClassVar[tuple[str, ...]] = (r"int[2-8]-g\d+",)

    def supports(self, format: str, shape: tuple[int, int], device: str, dtype: torch.dtype) -> bool:
        """One group a row, on CPU, C divisible by 16."""
        found = parse_int_format(format)
        rows, columns = shape
        if found is None or found[0] < 2 or found[1] != columns:
            return False
        return device == "cpu" and rows > 0 and columns % COLUMNS_MULTIPLE == 0

    def pack(self, variant: Variant, dtype: torch.dtype) -> Mapping[str, Tensor]:
        """Centre the codes on zero as int8."""
        found = parse_int_format(variant.format)
        if found is None:
            raise ValueError(f"format {variant.format!r} of {variant.site.name!r} is no integer format; ask supports() first")
        codes_RC, scale_R1, zero_R1 = unpack_int(variant.tensors, variant.site.shape, *found)
        middle, scale_R = 2 ** (found[0] - 1), scale_R1.reshape(-1).to(torch.float32)
        return {
            "codes": (codes_RC.to(torch.int16) - middle).to(torch.int8).contiguous(),
            "scale": scale_R,
            "scale_bf16": scale_R.to(torch.bfloat16),
            "offset": (middle - zero_R1.reshape(-1).to(torch.float32)) * scale_R,
        }

    def run(self, x: Tensor, packed: Mapping[str, Tensor]) -> Tensor:
        """T×C to T×R."""
        if x.dtype == torch.bfloat16 and x.shape[0] <= OP_TOKENS:
            out_TR = torch.ops.aten._weight_int8pack_mm(x.contiguous(), packed["codes"], packed["scale_bf16"]).to(torch.float32)
        else:
            out_TR = functional.linear(x, packed["codes"].to(x.dtype)).to(torch.float32) * packed["scale"]
        return torch.addr(out_TR, x.sum(-1, dtype=torch.float32), packed["offset"]).to(x.dtype)

    def read_bytes(self, packed: Mapping[str, Tensor], tokens: int) -> int:
        """All of it; `scale_bf16` and `scale` stand for each other."""
        return variant_bytes(packed) - packed["scale_bf16"].numel() * 2
