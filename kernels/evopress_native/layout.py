"""Packed weights of the native kernels: one run of bytes that the C code reads front to back. Knows no C and runs nothing.

    64 bytes      header: rows, columns, group, padded group, groups, offset of scales, offset of zeros, 0, as int64
    codes         blocks of 16 rows; in a block, unit after unit along the columns (words.py); a word is 64 bytes: 16 rows, of each two
                  neighbouring columns of 16 bits. Every group is padded to a multiple of 32 columns with codes that meet an x of zero
    scales        float16, by block, group and row
    zeros         uint8, by block, group and row

Sixteen rows side by side are one vector register, so a row's sum stays in its lane and nothing is added across lanes; two columns a lane
is what bfloat16 dot products and AMX tiles take. Shapes: R rows out, C columns in, G groups, B blocks of 16 rows, P padded group.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from evopress.api.formats import pack_bits
from evopress_native.words import UNITS, pieces

BLOCK = 16
STEP = 32
"""Columns of one AMX step; groups are padded to multiples of it."""
HEADER = 64
LONGEST = 256
"""Columns that are summed before zeros and scales are applied; longer groups repeat theirs, so that sums stay small and exact enough."""


def pack_integers(codes_RC: Tensor, scale_RG: Tensor, zero_RG: Tensor, bits: int) -> Tensor:
    """Codes (uint8, below 2^bits), float scales that float16 holds and zeros (uint8) as one uint8 tensor."""
    rows, columns = codes_RC.shape
    split = _split(columns // scale_RG.shape[1])
    scale_RG, zero_RG = scale_RG.repeat_interleave(split, 1), zero_RG.repeat_interleave(split, 1)
    groups = scale_RG.shape[1]
    group = columns // groups
    padded, blocks = -(-group // STEP) * STEP, -(-rows // BLOCK)
    codes = _words(_blocked(codes_RC.view(rows, groups, group), blocks, padded), bits)
    scales = _by_block(scale_RG.to(torch.float16), blocks)
    zeros = _by_block(zero_RG, blocks)
    first = HEADER + codes.numel()
    second = first + scales.numel() * 2
    header = torch.tensor([rows, columns, group, padded, groups, first, second, 0])
    return torch.cat([header.view(torch.uint8), codes, scales.view(torch.uint8), zeros])


def _split(group: int) -> int:
    """Into how many equal groups of whole steps, at most `LONGEST` wide, a group is split; 1 where it cannot be."""
    return next((count for count in range(1, group // STEP + 1) if group % (count * STEP) == 0 and group // count <= LONGEST), 1)


def _blocked(codes_RGg: Tensor, blocks: int, padded: int) -> Tensor:
    """(B, 16, G·P): rows and groups padded with zero codes."""
    rows, groups, group = codes_RGg.shape
    return functional.pad(codes_RGg, (0, padded - group, 0, 0, 0, blocks * BLOCK - rows)).view(blocks, BLOCK, groups * padded)


def _words(codes_BrK: Tensor, bits: int) -> Tensor:
    """Bytes of the codes, unit by unit."""
    words, per_unit = UNITS[bits]
    blocks, rows, wide = codes_BrK.shape
    units = wide // (2 * per_unit)
    # block, unit, code of the unit, row, column of the pair
    split = codes_BrK.view(blocks, rows, units, per_unit, 2).permute(0, 2, 3, 1, 4).to(torch.int32)
    out = torch.zeros(blocks, units, words, rows, 2, dtype=torch.int32)
    for code, found in enumerate(pieces(bits)):
        for piece in found:
            out[:, :, piece.word] |= ((split[:, :, code] >> piece.at) & ((1 << piece.bits) - 1)) << piece.low
    return (out - (out >> 15 << 16)).to(torch.int16).view(-1).view(torch.uint8)


def _by_block(values_RG: Tensor, blocks: int) -> Tensor:
    """(B, G, 16) flat, rows padded with zeros."""
    rows, groups = values_RG.shape
    return functional.pad(values_RG, (0, 0, 0, blocks * BLOCK - rows)).view(blocks, BLOCK, groups).transpose(1, 2).reshape(-1)


def pack_bitmask(weight_RC: Tensor, keep_RC: Tensor, pairs: bool) -> Tensor:
    """Kept weights (float16) as one uint8 tensor.

    64 bytes      header; group is the columns, padded to a multiple of 32
    masks         by block of 16 rows and pair of columns: 32 bits. pairs: row after row, two columns each; else the one column's rows,
                  then the other's
    values        in the order of the bits: bfloat16 if pairs, else float16; 64 bytes of room at the end, since vectors are loaded whole
    starts        int64 a block: its first value
    """
    rows, columns = weight_RC.shape
    padded, blocks = -(-columns // STEP) * STEP, -(-rows // BLOCK)
    order = (0, 2, 1, 3) if pairs else (0, 2, 3, 1)

    def ordered(values_RC: Tensor) -> Tensor:
        full = functional.pad(values_RC, (0, padded - columns, 0, blocks * BLOCK - rows))
        return full.view(blocks, BLOCK, padded // 2, 2).permute(order).reshape(blocks, -1)

    keep = ordered(keep_RC)
    values = ordered(weight_RC)[keep].to(torch.bfloat16 if pairs else torch.float16)
    masks = pack_bits(keep.view(-1, 32).to(torch.uint8), 1).view(-1)
    counts = keep.sum(1)
    starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)[:-1]])
    room = -(values.numel() * 2 + 64) % 8 + 64
    first = HEADER + masks.numel()
    second = first + values.numel() * 2 + room
    header = torch.tensor([rows, columns, columns, padded, 1, first, second, 0])
    parts = (header, masks, values, torch.zeros(room, dtype=torch.uint8), starts)
    return torch.cat([part.view(torch.uint8) for part in parts])
