"""What the peers share: the exact answer x Wᵀ in float64, and the NaN that their libraries lose. Not a kernel.

Shapes: R rows out, C columns in, T tokens.
"""

from __future__ import annotations

from torch import Tensor

from evopress.api import Variant
from evopress.api.formats import decode


def exact(x_TC: Tensor, variant: Variant) -> Tensor:
    """x Wᵀ in float64 with the weight the variant's format stands for; T×R."""
    return x_TC.double() @ decode(variant.format, variant.tensors, variant.site.shape).double().T


def not_finite(x_TC: Tensor) -> Tensor:
    """T×1: NaN where a token holds NaN or infinity, 0 elsewhere. Added to the result of a library that rounds NaN to an integer or
    skips the columns in which a weight is zero."""
    return (x_TC - x_TC).sum(-1, keepdim=True)
