"""How `triton-bitmask` keeps a sparse weight: the format's own bits and values, and where the values of every 64 columns begin. No Triton.

Shapes: R rows out, C columns in, W words of 64 columns, N non-zeros.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from evopress.api.formats import unpack_bits

WORD = 64
"""Columns a word of the mask."""
MAX_COLUMNS = 65535
"""What a 16-bit offset within a row can count."""
MAX_WEIGHTS = 2**31 - 1
"""What a 32-bit offset into the values can count."""


def pack_mask(tensors: Mapping[str, Tensor], shape: tuple[int, int]) -> dict[str, Tensor]:
    """`mask` R×W int64, `starts` R int32 (first value of the row), `offsets` R×W int16 (values of the row before the word, unsigned)."""
    rows, columns = shape
    keep_RC = unpack_bits(tensors["mask"], 1, columns)
    words = -(-columns // WORD)
    mask = functional.pad(tensors["mask"], (0, 8 * words - tensors["mask"].shape[1])).view(torch.int64)
    count_RW = functional.pad(keep_RC, (0, words * WORD - columns)).view(rows, words, WORD).sum(-1, dtype=torch.int64)
    ends_R = count_RW.sum(1).cumsum(0)
    starts_R = ends_R - count_RW.sum(1)
    offsets_RW = count_RW.cumsum(1) - count_RW
    return {"mask": mask.contiguous(), "starts": starts_R.to(torch.int32), "offsets": offsets_RW.to(torch.int16)}
