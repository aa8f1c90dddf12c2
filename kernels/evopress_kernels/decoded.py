"""What `dense` and `dequantised` share: a plain matrix, decoded once, and torch's own linear layer. Not a kernel of its own.

Shapes: R rows out, C columns in, T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor
from torch.nn import functional

from evopress.api import Kernel, Variant
from evopress.api.formats import decode


class DecodedKernel(Kernel):
    """x Wᵀ by `torch.nn.functional.linear`. Any shape, any device; a subclass says which formats.

    packed: `weight` R×C in the type of the activations.
    """

    @final
    def pack(self, variant: Variant, dtype: torch.dtype) -> Mapping[str, Tensor]:
        """Decode to a plain matrix."""
        return {"weight": decode(variant.format, variant.tensors, variant.site.shape).to(dtype)}

    @final
    def run(self, x: Tensor, packed: Mapping[str, Tensor]) -> Tensor:
        """T×C to T×R."""
        return functional.linear(x, packed["weight"])
