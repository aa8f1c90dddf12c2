"""Kernel `triton-bitmask`: unstructured sparse weights on a GPU, expanded in registers. The code is in bitmask_code.py.

Shapes: R rows out, C columns in, T tokens, W words of 64 columns, N non-zeros.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from evopress.api import Kernel, Variant
from evopress_triton import runtime
from evopress_triton.bitmask_layout import MAX_COLUMNS, MAX_WEIGHTS, WORD, pack_mask
from evopress_triton.launch import COMPILER, plan

UNIT = 8
"""Columns a lane takes: one byte of the mask."""
UNIT_BITS = 72
"""Bits of memory a unit at half density: what launches are planned for. More or less density moves no result."""


class TritonBitmaskKernel(Kernel):
    """x Wᵀ for a bit mask and float16 values; any R, up to 65535 columns; bfloat16, float16 or float32 x.

    packed: `mask` R×W int64, `starts` R int32, `offsets` R×W int16 (a quarter bit a weight), `values` N float16.
    """

    name: ClassVar[str] = "triton-bitmask"
    formats: ClassVar[tuple[str, ...]] = ("bitmask",)
    needs: ClassVar[str] = "a CUDA GPU and Triton: pip install 'evopress[triton]'"
    libraries: ClassVar[tuple[str, ...]] = ("triton",)

    def supports(self, format: str, shape: tuple[int, int], device: str, dtype: torch.dtype) -> bool:
        """Bit masks whose rows and non-zeros the offsets can count, on a GPU."""
        rows, columns = shape
        return format == "bitmask" and columns <= MAX_COLUMNS and rows * columns <= MAX_WEIGHTS and runtime.runs(device, dtype)

    def pack(self, variant: Variant, dtype: torch.dtype) -> Mapping[str, Tensor]:
        """Widen the mask to words and count where their values begin; the values stay as they are."""
        return pack_mask(variant.tensors, variant.site.shape) | {"values": variant.tensors["values"].contiguous()}

    def run(self, x: Tensor, packed: Mapping[str, Tensor]) -> Tensor:
        """T×C to T×R."""
        from evopress_triton.bitmask_code import bitmask_decode, bitmask_tiles

        weight = packed["mask"], packed["starts"], packed["offsets"], packed["values"]
        (tokens, columns), (rows, words) = x.shape, packed["mask"].shape
        if not tokens:
            return x.new_empty(0, rows)
        way = plan(rows, words * WORD // UNIT, UNIT_BITS, tokens, runtime.multiprocessors(x.device), "units", x.dtype == torch.float32)
        row_blocks, token_blocks = -(-rows // way.block_rows), -(-tokens // way.block_tokens)
        out_STR = runtime.outputs(x, rows, way.splits)
        with runtime.on(x.device):
            if way.tiles:
                steps = -(-words * WORD // (UNIT * way.block_units))
                bitmask_tiles[token_blocks, row_blocks, way.splits](
                    runtime.side_by_side(x.contiguous(), 1, UNIT, steps), *weight, out_STR, tokens, rows, words, steps, way.steps,
                    WIDE=runtime.interprets(), BLOCK_T=way.block_tokens, BLOCK_R=way.block_rows, BLOCK_B=way.block_units,
                    num_warps=way.warps, **COMPILER,
                )  # fmt: skip
            else:
                bitmask_decode[row_blocks, way.splits, tokens](
                    x.contiguous(), *weight, out_STR, rows, columns, words, way.steps,
                    BLOCK_R=way.block_rows, BLOCK_B=way.block_units, num_warps=way.warps, **COMPILER,
                )  # fmt: skip
            return runtime.finish(out_STR, x.dtype)
