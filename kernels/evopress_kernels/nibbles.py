"""torch's packed 4-bit CPU weights: packing, the multiply, and the way back to codes. Shared by torch-int4 and torch-int4x2; not a kernel.

`aten::_convert_weight_to_int4pack_for_cpu` takes codes 0..15 and gives R×C/2 bytes; `aten::_weight_int4pack_mm_for_cpu` computes with the
weight (code - 8)·scale + zero, groups of 32, 64, 128 or 256 columns, R divisible by 16. Both names are private to torch, and the byte
order depends on the processor, so `byte_order` finds it out by trial, once; where it is unknown, `fits` says no and nothing runs here.

The multiply is quick for a few bfloat16 tokens only, and in float32 it is a scalar loop. Beyond `OP_TOKENS`, and in float32, the kernels
therefore unpack the codes into a temporary dense weight and multiply that; the weight in memory stays packed.

Shapes: R rows out, C columns in, G groups, T tokens, B blocks of rows, H half a block.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from evopress.api.formats import variant_bytes

GROUPS = (32, 64, 128, 256)
ROWS_MULTIPLE = 16
OP_TOKENS = 64
"""Up to so many bfloat16 tokens the packed multiply runs, beyond them unpack-then-multiply. `evopress kernels bench --format int4-g64
--tokens 64 --tokens 65` prints both sides of the border for this machine."""


class Order(NamedTuple):
    """torch's byte order: rows a block, and whether a byte holds rows j and H + j (halves) or rows 2j and 2j + 1 of its block."""

    rows: int
    halves: bool


_ORDERS = (Order(64, True), Order(32, True), Order(32, False))
"""With AVX-512, with AVX2, and elsewhere."""


def fits(shape: tuple[int, int], group: int, device: str) -> bool:
    """Does torch's 4-bit operator take this shape and group on this device, in a byte order that `unpack` can read?"""
    rows, columns = shape
    divisible = rows > 0 and rows % ROWS_MULTIPLE == 0 and columns > 0 and group in GROUPS and columns % group == 0
    return device == "cpu" and divisible and byte_order() is not None


@cache
def byte_order() -> Order | None:
    """torch's byte order on this processor, found by packing random codes and reading them back; None if unknown."""
    codes_RC = torch.randint(16, (64 + 48, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    packed = pack(codes_RC)
    return next((order for order in _ORDERS if torch.equal(unpack(packed, order), codes_RC)), None)


def pack(codes_RC: Tensor) -> Tensor:
    """Codes 0..15 to torch's bytes, R×C/2 uint8."""
    packed: Tensor = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes_RC.to(torch.int32).contiguous(), 1)
    return packed


def multiply(x_TC: Tensor, packed: Tensor, scale_zero_GR2: Tensor) -> Tensor:
    """x Wᵀ by the packed operator, W = (code - 8)·scale + zero; x and scale_zero share one type; T×R."""
    group = x_TC.shape[1] // scale_zero_GR2.shape[0]
    out: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(x_TC.contiguous(), packed, group, scale_zero_GR2)
    return out


def unpack(packed: Tensor, order: Order | None = None) -> Tensor:
    """Codes R×C uint8 of torch's bytes, which hold C×H bytes for every block of rows; rows left over form a last block of pairs."""
    order = byte_order() if order is None else order
    if order is None:
        raise RuntimeError(f"the byte order of packed 4-bit weights in torch {torch.__version__} is unknown here; ask fits() first")
    rows, columns = packed.shape[0], packed.shape[1] * 2
    full = rows // order.rows * order.rows
    flat, parts = packed.view(-1), []
    if full:
        parts.append(_rows(flat[: full * columns // 2].view(-1, columns, order.rows // 2), order.halves))
    if full < rows:
        parts.append(_rows(flat[full * columns // 2 :].view(1, columns, (rows - full) // 2), False))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _rows(packed_BCH: Tensor, halves: bool) -> Tensor:
    low, high = packed_BCH & 15, packed_BCH >> 4
    blocks, columns, half = packed_BCH.shape
    codes_BCb = torch.cat([low, high], dim=-1) if halves else torch.stack([low, high], dim=-1).view(blocks, columns, 2 * half)
    return codes_BCb.transpose(1, 2).reshape(blocks * 2 * half, columns)


def read_bytes(packed: Mapping[str, Tensor], operator: bool) -> int:
    """Bytes read: the codes, and `scale_zero` where the operator runs, else `scale` and `zero`."""
    keys = ("codes", "scale_zero") if operator else ("codes", "scale", "zero")
    return variant_bytes({key: packed[key] for key in keys})


def narrow(scale: Tensor) -> Tensor:
    """The scales in float16 where that loses nothing (methods usually store them so), else as they came."""
    half = scale.to(torch.float16)
    return half if torch.equal(half.to(scale.dtype), scale) else scale


def dequantise(codes_RC: Tensor, scale_RG: Tensor, zero_RG: Tensor, dtype: torch.dtype) -> Tensor:
    """(code - zero)·scale, computed in float32 and rounded once to `dtype`; R×C."""
    rows, columns = codes_RC.shape
    weight_RGg = codes_RC.to(torch.float32).view(rows, scale_RG.shape[1], -1)
    weight_RGg.sub_(zero_RG.unsqueeze(-1)).mul_(scale_RG.to(torch.float32).unsqueeze(-1))
    return weight_RGg.view(rows, columns).to(dtype)
