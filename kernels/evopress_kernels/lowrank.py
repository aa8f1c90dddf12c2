"""Kernel `lowrank`: two thin multiplies instead of one wide one. Shapes: R rows out, C columns in, K rank, T tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from evopress.api import Kernel, Variant
from evopress.api.formats import parse_lowrank_format


class LowrankKernel(Kernel):
    """(x rightᵀ) leftᵀ. Any shape, any device; fewer bytes and operations than dense where K (R + C) is less than R C.

    In bfloat16 the factors and the product between the two multiplies are rounded to bfloat16: that is part of this kernel's error.

    packed: `left` R×K and `right` K×C in the type of the activations.
    """

    name: ClassVar[str] = "lowrank"
    formats: ClassVar[tuple[str, ...]] = (r"lowrank-r\d+",)

    def supports(self, format: str, shape: tuple[int, int], device: str, dtype: torch.dtype) -> bool:
        """Every rank and shape."""
        return parse_lowrank_format(format) is not None

    def pack(self, variant: Variant, dtype: torch.dtype) -> Mapping[str, Tensor]:
        """The factors as they are, in the type of the activations."""
        return {name: variant.tensors[name].to(dtype, copy=True) for name in ("left", "right")}

    def run(self, x: Tensor, packed: Mapping[str, Tensor]) -> Tensor:
        """T×C to T×R."""
        return functional.linear(functional.linear(x, packed["right"]), packed["left"])
