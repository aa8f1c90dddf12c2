"""What the peers share: the NaN that their libraries lose. Not a kernel.

Shapes: C columns in, T tokens.
"""

from __future__ import annotations

from torch import Tensor


def not_finite(x_TC: Tensor) -> Tensor:
    """T×1: NaN where a token holds NaN or infinity, 0 elsewhere. Added to the result of a library that rounds NaN to an integer or
    skips the columns in which a weight is zero."""
    return (x_TC - x_TC).sum(-1, keepdim=True)
