"""Kernel `triton-int`: b-bit weights on a GPU, read as packed bits. The code is in int_code.py, the layout in int_layout.py.

Shapes: R rows out, C columns in, G groups, T tokens, K chunks of 32 columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from evopress.api import Kernel, Variant
from evopress.api.formats import parse_int_format, unpack_int
from evopress_triton import runtime
from evopress_triton.int_layout import CHUNK, chunks, pack_codes
from evopress_triton.launch import COMPILER, plan


class TritonIntKernel(Kernel):
    """x Wᵀ for asymmetric 1- to 8-bit codes in groups of at least 32 columns; any R and C; bfloat16, float16 or float32 x.

    Up to `launch.DECODE_TOKENS` tokens, and for any number with float32 x, products and sums are float32 and the weights exact. Else
    tiles of the matrix units take weights rounded once to the type of x, and sum in float32.

    packed: `codes` K·b×R int32, `scales` G×R float16, `zeros` G×R uint8.
    """

    name: ClassVar[str] = "triton-int"
    formats: ClassVar[tuple[str, ...]] = (r"int[1-8]-g\d+",)
    needs: ClassVar[str] = "a CUDA GPU and Triton: pip install 'evopress[triton]'"
    libraries: ClassVar[tuple[str, ...]] = ("triton",)

    def supports(self, format: str, shape: tuple[int, int], device: str, dtype: torch.dtype) -> bool:
        """1 to 8 bits, groups of at least 32 columns (smaller ones would be padded to twice their size), on a GPU."""
        found = parse_int_format(format)
        return found is not None and found[1] >= CHUNK and shape[1] % found[1] == 0 and runtime.runs(device, dtype)

    def pack(self, variant: Variant, dtype: torch.dtype) -> Mapping[str, Tensor]:
        """Reorder the codes, transpose the scales and zeros."""
        found = parse_int_format(variant.format)
        if found is None:
            raise ValueError(f"format {variant.format!r} of {variant.site.name!r} is no integer format; ask supports() first")
        bits, group = found
        codes_RC, scale_RG, zero_RG = unpack_int(variant.tensors, variant.site.shape, bits, group)
        scales = scale_RG.to(torch.float16).T.contiguous()
        return {"codes": pack_codes(codes_RC, bits, group), "scales": scales, "zeros": zero_RG.T.contiguous()}

    def run(self, x: Tensor, packed: Mapping[str, Tensor]) -> Tensor:
        """T×C to T×R."""
        from evopress_triton.int_code import int_decode, int_tiles

        codes, scales, zeros = packed["codes"], packed["scales"], packed["zeros"]
        (tokens, columns), (groups, rows) = x.shape, scales.shape
        if not tokens:
            return x.new_empty(0, rows)
        group = columns // groups
        count = chunks(columns, group)
        bits = codes.shape[0] // count
        field = ((1 << bits) - 1) << (23 - bits)
        way = plan(rows, count, CHUNK * bits, tokens, runtime.multiprocessors(x.device), "rows", x.dtype == torch.float32)
        row_blocks, token_blocks = -(-rows // way.block_rows), -(-tokens // way.block_tokens)
        out_STR = runtime.outputs(x, rows, way.splits)
        with runtime.on(x.device):
            if way.tiles:
                steps = -(-count // way.block_units)
                int_tiles[token_blocks, row_blocks, way.splits](
                    runtime.side_by_side(x.contiguous(), groups, CHUNK, steps), codes, scales, zeros, out_STR,
                    field, tokens, rows, count, steps, way.steps, BITS=bits, CHUNKS=count // groups,
                    WIDE=runtime.interprets(), BLOCK_T=way.block_tokens, BLOCK_R=way.block_rows, BLOCK_K=way.block_units,
                    num_warps=way.warps, **COMPILER,
                )  # fmt: skip
            else:
                int_decode[row_blocks, way.splits, tokens](
                    x.contiguous(), codes, scales, zeros, out_STR, field, rows, columns, count, way.steps,
                    BITS=bits, GROUP=group, EXACT=x.dtype == torch.float32, BLOCK_R=way.block_rows,
                    num_warps=way.warps, **COMPILER,
                )  # fmt: skip
            return runtime.finish(out_STR, x.dtype)
