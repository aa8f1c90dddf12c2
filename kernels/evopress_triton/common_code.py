"""The Triton code that the kernels share: a product of tiles, and the sum of splits. Importing it imports Triton."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def multiply(total, a, b, WIDE: tl.constexpr):
    """total + a·b in float32. WIDE: widen a and b first; the same, but for the interpreter, which multiplies the bits of bfloat16."""
    if WIDE:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, total, input_precision="ieee")


@triton.jit(do_not_specialize=["count", "splits"])
def sum_splits(parts_ptr, out_ptr, count, splits, BLOCK: tl.constexpr):
    """out = sum over splits of parts, splits × count float32, in order, so that the same input gives the same bits."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    parts_ptr += at
    for _ in range(0, splits):
        total += tl.load(parts_ptr, mask=at < count, other=0.0)
        parts_ptr += count
    tl.store(out_ptr + at, total.to(out_ptr.dtype.element_ty), mask=at < count)
