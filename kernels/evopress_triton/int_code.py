"""The Triton code of `triton-int`: x Wᵀ straight from b-bit codes. No layout, no choice of block sizes: see int_layout.py and launch.py.

Importing it imports Triton. Called by triton_int.py.

A field of b bits becomes a float without a conversion: its bits go to the top of the mantissa of 1.0, which makes v = 1 + code / 2^b.
With a = scale · 2^b the weight (code - zero) · scale is a · v - (2^b + zero) · scale, all exact in float32 but the last rounding.

Shapes: R rows out, C columns in, T tokens, K chunks of 32 columns, G groups. Codes are K·b words × R, scales and zeros G×R.
"""

from __future__ import annotations

import triton
import triton.language as tl

from evopress_triton.common_code import multiply


@triton.jit
def _mantissa(bits, field):
    """1 + code / 2^b from a word that holds the code at the top of the mantissa, whatever its other bits."""
    return ((bits & field) | 0x3F800000).to(tl.float32, bitcast=True)


@triton.jit
def _shift(word, by: tl.constexpr):
    """A word moved right by so many bits, left where negative."""
    if by > 0:
        return word >> by
    elif by < 0:
        return word << (-by)
    else:
        return word


@triton.jit(do_not_specialize=["field", "chunks", "chunks_a_split"])
def int_decode(
    x_ptr, codes_ptr, scales_ptr, zeros_ptr, out_ptr, field, rows, columns, chunks, chunks_a_split,
    BITS: tl.constexpr, GROUP: tl.constexpr, EXACT: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """Multiply-add in float32: BLOCK_R rows of one token over `chunks_a_split` chunks.

    Program (row block, split, token); out is splits × T × R: float32 sums of the splits, or the answer where there is one split.
    EXACT: subtract the zero from every code, else from the sum of a chunk, which saves an instruction a weight and loses up to b bits
    of float32's 24.
    """
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    row_in = row < rows
    token = tl.program_id(2).to(tl.int64)
    chunks_a_group: tl.constexpr = (GROUP + 31) // 32
    unit: tl.constexpr = 1 << BITS
    top: tl.constexpr = 23 - BITS
    total = tl.zeros((BLOCK_R,), tl.float32)
    first = tl.program_id(1) * chunks_a_split
    for chunk in range(first, min(first + chunks_a_split, chunks)):
        group = chunk // chunks_a_group
        start = (chunk % chunks_a_group) * 32
        scale = tl.load(scales_ptr + group * rows + row, mask=row_in, other=0.0).to(tl.float32)
        zero = tl.load(zeros_ptr + group * rows + row, mask=row_in, other=0).to(tl.float32)
        one = 1.0 + zero * (1.0 / unit)
        words_ptr = codes_ptr + chunk * BITS * rows + row
        x_start = x_ptr + token * columns + group * GROUP + start
        part = tl.zeros((BLOCK_R,), tl.float32)
        x_sum = 0.0
        word = tl.load(words_ptr, mask=row_in, other=0).to(tl.uint32, bitcast=True)
        for k in tl.static_range(32):
            if (k * BITS) % 32 + BITS > 32:  # the field straddles two words
                head = word >> ((k * BITS) % 32)
                word = tl.load(words_ptr + ((k * BITS) // 32 + 1) * rows, mask=row_in, other=0).to(tl.uint32, bitcast=True)
                bits = (head | (word << (32 - (k * BITS) % 32))) << top
            else:
                if ((k * BITS) % 32 == 0) and (k > 0):
                    word = tl.load(words_ptr + ((k * BITS) // 32) * rows, mask=row_in, other=0).to(tl.uint32, bitcast=True)
                bits = _shift(word, (k * BITS) % 32 - top)
            value = _mantissa(bits, field)
            if GROUP % 32 == 0:
                x = tl.load(x_start + k).to(tl.float32)
            else:
                x = tl.load(x_start + k, mask=start + k < GROUP, other=0.0).to(tl.float32)
            if EXACT:
                part += x * (value - one)
            else:
                part += x * value
                x_sum += x
        if not EXACT:
            part -= x_sum * one
        total += part * (scale * unit)
    at = (tl.program_id(1) * tl.num_programs(2) + token) * rows + row
    tl.store(out_ptr + at, total.to(out_ptr.dtype.element_ty), mask=row_in)


@triton.jit(do_not_specialize=["field", "tokens", "chunks", "steps", "steps_a_split"])
def int_tiles(
    x_ptr, codes_ptr, scales_ptr, zeros_ptr, out_ptr, field, tokens, rows, chunks, steps, steps_a_split,
    BITS: tl.constexpr, CHUNKS: tl.constexpr, WIDE: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Matrix units: BLOCK_R rows × BLOCK_T tokens over `steps_a_split` steps of BLOCK_K chunks.

    x is reordered to T × steps × 32 × BLOCK_K, so that the k-th columns of the chunks of a step lie side by side.
    Program (token block, row block, split); out as in int_decode. Weights are rounded once, to the type of x; sums are float32.
    """
    token = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    token_in = token < tokens
    row = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    row_in = row < rows
    inside = tl.arange(0, BLOCK_K)
    unit: tl.constexpr = 1 << BITS
    top: tl.constexpr = 23 - BITS
    total = tl.zeros((BLOCK_R, BLOCK_T), tl.float32)
    first = tl.program_id(2) * steps_a_split
    for step in range(first, min(first + steps_a_split, steps)):
        chunk = step * BLOCK_K + inside
        both = (chunk < chunks)[None, :] & row_in[:, None]
        at = (chunk // CHUNKS)[None, :] * rows + row[:, None]
        scale = tl.load(scales_ptr + at, mask=both, other=0.0).to(tl.float32)
        zero = tl.load(zeros_ptr + at, mask=both, other=0).to(tl.float32)
        a, b = scale * unit, scale * (unit + zero)
        words_ptr = codes_ptr + (chunk * BITS)[None, :] * rows + row[:, None]
        x_step = x_ptr + (token.to(tl.int64) * steps + step)[None, :] * (32 * BLOCK_K) + inside[:, None]
        word = tl.load(words_ptr, mask=both, other=0).to(tl.uint32, bitcast=True)
        for k in tl.static_range(32):
            if (k * BITS) % 32 + BITS > 32:  # the field straddles two words
                head = word >> ((k * BITS) % 32)
                word = tl.load(words_ptr + ((k * BITS) // 32 + 1) * rows, mask=both, other=0).to(tl.uint32, bitcast=True)
                bits = (head | (word << (32 - (k * BITS) % 32))) << top
            else:
                if ((k * BITS) % 32 == 0) and (k > 0):
                    word = tl.load(words_ptr + ((k * BITS) // 32) * rows, mask=both, other=0).to(tl.uint32, bitcast=True)
                bits = _shift(word, (k * BITS) % 32 - top)
            weight = _mantissa(bits, field) * a - b
            x = tl.load(x_step + k * BLOCK_K, mask=token_in[None, :], other=0.0)
            total = multiply(total, weight.to(x.dtype), x, WIDE)
    at_out = (tl.program_id(2) * tokens + token.to(tl.int64))[None, :] * rows + row[:, None]
    tl.store(out_ptr + at_out, total.to(out_ptr.dtype.element_ty), mask=token_in[None, :] & row_in[:, None])
