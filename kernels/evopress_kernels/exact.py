"""The exact answer x Wᵀ in float64, shared by the kernels here as their `reference`. Not fast, and not a kernel.

Shapes: R rows out, C columns in, T tokens.
"""

from __future__ import annotations

from torch import Tensor

from evopress.api import Variant
from evopress.api.formats import decode


def exact(x_TC: Tensor, variant: Variant) -> Tensor:
    """x Wᵀ in float64 with the weight the variant's format stands for; T×R."""
    if variant.format == "absent":
        return x_TC.double().new_zeros(x_TC.shape[0], variant.site.shape[0])
    return x_TC.double() @ decode(variant.format, variant.tensors, variant.site.shape).double().T
