"""The Triton code of `triton-bitmask`: x Wᵀ from a bit mask and the values under it. No layout, no choice of block sizes.

Importing it imports Triton. Called by triton_bitmask.py.

A lane takes one byte of the mask, 8 columns: the bits before it in its word, counted, and the word's offset say where its values begin;
then it walks its 8 columns, one value further where the bit is set. Neighbouring lanes take neighbouring bytes, so their values are
neighbours too. A column without a value counts as zero times x, so that NaN and infinity in x spread as in the dense product.

Shapes: R rows out, C columns in, T tokens, B bytes of mask a row, W words of 64 columns.
"""

from __future__ import annotations

import triton
import triton.language as tl

from evopress_triton.common_code import multiply


@triton.jit
def _popcount(bits):
    """Number of set bits of uint64; the compiler knows this idiom as one instruction."""
    bits -= (bits >> 1) & 0x5555555555555555
    bits = (bits & 0x3333333333333333) + ((bits >> 2) & 0x3333333333333333)
    bits = (bits + (bits >> 4)) & 0x0F0F0F0F0F0F0F0F
    return ((bits * 0x0101010101010101) >> 56).to(tl.int32)


@triton.jit
def _open(mask_ptr, starts_ptr, offsets_ptr, row, row_in, byte, byte_in, words):
    """The mask byte and the place of its first value, for rows × bytes."""
    both = row_in[:, None] & byte_in[None, :]
    at = row.to(tl.int64)[:, None] * words + (byte // 8)[None, :]
    word = tl.load(mask_ptr + at, mask=both, other=0).to(tl.uint64, bitcast=True)
    shift = (byte % 8 * 8).to(tl.uint64)[None, :]
    before = word & ((tl.full((1, 1), 1, tl.uint64) << shift) - 1)
    offset = tl.load(offsets_ptr + at, mask=both, other=0).to(tl.int32) & 0xFFFF
    start = tl.load(starts_ptr + row, mask=row_in, other=0)
    return ((word >> shift) & 0xFF).to(tl.int32), start[:, None] + offset + _popcount(before)


@triton.jit(do_not_specialize=["words", "steps_a_split"])
def bitmask_decode(
    x_ptr, mask_ptr, starts_ptr, offsets_ptr, values_ptr, out_ptr, rows, columns, words, steps_a_split,
    BLOCK_R: tl.constexpr, BLOCK_B: tl.constexpr,
):  # fmt: skip
    """Multiply-add in float32: BLOCK_R rows of one token over `steps_a_split` steps of BLOCK_B bytes.

    Program (row block, split, token); out is splits × T × R: float32 sums of the splits, or the answer where there is one split.
    """
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    row_in = row < rows
    token = tl.program_id(2).to(tl.int64)
    total = tl.zeros((BLOCK_R, BLOCK_B), tl.float32)
    first = tl.program_id(1) * steps_a_split
    for step in range(first, first + steps_a_split):
        byte = step * BLOCK_B + tl.arange(0, BLOCK_B)
        bits, at = _open(mask_ptr, starts_ptr, offsets_ptr, row, row_in, byte, byte < words * 8, words)
        for k in tl.static_range(8):
            bit = (bits >> k) & 1
            value = tl.load(values_ptr + at, mask=bit != 0, other=0.0).to(tl.float32)
            x = tl.load(x_ptr + token * columns + byte * 8 + k, mask=byte * 8 + k < columns, other=0.0).to(tl.float32)
            total += value * x[None, :]
            at += bit
    out = tl.sum(total, axis=1)
    tl.store(out_ptr + (tl.program_id(1) * tl.num_programs(2) + token) * rows + row, out.to(out_ptr.dtype.element_ty), mask=row_in)


@triton.jit(do_not_specialize=["tokens", "words", "steps", "steps_a_split"])
def bitmask_tiles(
    x_ptr, mask_ptr, starts_ptr, offsets_ptr, values_ptr, out_ptr, tokens, rows, words, steps, steps_a_split,
    WIDE: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_B: tl.constexpr,
):  # fmt: skip
    """Matrix units: BLOCK_R rows × BLOCK_T tokens over `steps_a_split` steps of BLOCK_B bytes. Values are rounded to the type of x.

    x is reordered to T × steps × 8 × BLOCK_B. Program (token block, row block, split); out as in bitmask_decode.
    """
    token = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    token_in = token < tokens
    row = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    row_in = row < rows
    inside = tl.arange(0, BLOCK_B)
    total = tl.zeros((BLOCK_R, BLOCK_T), tl.float32)
    first = tl.program_id(2) * steps_a_split
    for step in range(first, min(first + steps_a_split, steps)):
        byte = step * BLOCK_B + inside
        bits, at = _open(mask_ptr, starts_ptr, offsets_ptr, row, row_in, byte, byte < words * 8, words)
        x_step = x_ptr + (token.to(tl.int64) * steps + step)[None, :] * (8 * BLOCK_B) + inside[:, None]
        for k in tl.static_range(8):
            bit = (bits >> k) & 1
            value = tl.load(values_ptr + at, mask=bit != 0, other=0.0)
            x = tl.load(x_step + k * BLOCK_B, mask=token_in[None, :], other=0.0)
            total = multiply(total, value.to(x.dtype), x, WIDE)
            at += bit
    at_out = (tl.program_id(2) * tokens + token.to(tl.int64))[None, :] * rows + row[:, None]
    tl.store(out_ptr + at_out, total.to(out_ptr.dtype.element_ty), mask=token_in[None, :] & row_in[:, None])
