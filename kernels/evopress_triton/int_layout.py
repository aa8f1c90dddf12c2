"""How `triton-int` keeps b-bit codes: the layout, written and read back with torch on the CPU. No Triton.

A row's columns are cut into chunks of 32, every group beginning a chunk; the 32 codes of a chunk are a tight little-endian stream of b
32-bit words, so 3, 5 and 6 bits waste nothing. Words lie row after row for each of them (words × R), so that neighbouring lanes, which
hold neighbouring rows, read neighbouring words. The waste is what is left of a group's last chunk: none where the group is a multiple of
32, at most 31 columns otherwise.

Shapes: R rows out, C columns in, G groups, P columns of a padded group, K chunks.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from evopress.api.formats import pack_bits, unpack_bits

CHUNK = 32
"""Columns a chunk."""


def pack_codes(codes_RC: Tensor, bits: int, group: int) -> Tensor:
    """Codes 0..2^bits - 1 to words, (K·bits) × R int32."""
    rows, columns = codes_RC.shape
    padded_RGP = functional.pad(codes_RC.view(rows, columns // group, group), (0, -group % CHUNK))
    words_RK = pack_bits(padded_RGP.reshape(rows, -1), bits).view(torch.int32)
    return words_RK.T.contiguous()


def unpack_codes(words_KR: Tensor, bits: int, group: int, columns: int) -> Tensor:
    """Inverse of `pack_codes`: R×C uint8."""
    rows, groups = words_KR.shape[1], columns // group
    padded = -(-group // CHUNK) * CHUNK
    codes_RP = unpack_bits(words_KR.T.contiguous().view(torch.uint8), bits, groups * padded)
    return codes_RP.view(rows, groups, padded)[..., :group].reshape(rows, columns)


def chunks(columns: int, group: int) -> int:
    """Chunks a row."""
    return columns // group * -(-group // CHUNK)
