"""The weight formats: how a compressed weight lies in memory, byte by byte. What methods write and what the bank and the kernels read.

Formats, by name:

    dense          weight (R, C) float16
    absent         nothing; stands for zeros
    int{b}-g{n}    b-bit codes on an asymmetric grid per row and group of n consecutive columns, weight = (code - zero) * scale:
                   codes (R, ceil(C b / 8)) uint8, scales (R, G) float16, zeros (R, ceil(G b / 8)) uint8
    bitmask        mask (R, ceil(C / 8)) uint8, values (non-zeros,) float16 in row-major order
    sparse-2:4     two of every four consecutive columns, C divisible by 4: values (R, C / 2) float16, and their places in the four, lower
                   first, two bits each: index (R, ceil(C / 8)) uint8
    lowrank-r{k}   left (R, K) float16, right (K, C) float16, weight = left @ right
    gguf-{type}    a K-quant of llama.cpp, q2_k to q6_k, C divisible by 256: data (R, B) uint8, rows of its blocks as a GGUF file holds them

Bit streams are little-endian and tight within a row; every row starts on a byte. Knows no method and does no file access. Torch is imported
inside the functions, so that costs can be computed without it.

Shapes: R rows out, C columns in, G groups a row, B bytes a row, N values a row, K rank.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from evopress.api.cost import Cost
from evopress.api.errors import UsageError
from evopress.api.level import Level
from evopress.api.site import Site
from evopress.api.variant import Variant

if TYPE_CHECKING:
    from torch import Tensor

FORMATS = ("absent", "bitmask", "dense", "gguf-{type}", "int{bits}-g{group}", "lowrank-r{rank}", "sparse-2:4")
FLOAT16_MAX = 65504.0
FLOAT16_TINY = 2.0**-24
_LOWRANK = re.compile(r"lowrank-r([1-9]\d*)")
_INT = re.compile(r"int([1-8])-g([1-9]\d*)")
GGUF_BLOCKS = {"q2_k": 84, "q3_k": 110, "q4_k": 144, "q5_k": 176, "q6_k": 210}
"""Bytes of a block of `GGUF_COLUMNS` weights, by type."""
GGUF_COLUMNS = 256


def int_format(bits: int, group: int) -> str:
    """Name of the grouped integer format: `int3-g64`."""
    return f"int{bits}-g{group}"


def parse_int_format(format: str) -> tuple[int, int] | None:
    """(bits, group) of a grouped integer format, None for any other name."""
    match = _INT.fullmatch(format)
    return (int(match.group(1)), int(match.group(2))) if match else None


def parse_lowrank_format(format: str) -> int | None:
    """Rank of a low-rank format, None for any other name."""
    match = _LOWRANK.fullmatch(format)
    return int(match.group(1)) if match else None


def parse_gguf_format(format: str) -> str | None:
    """Type of a K-quant format, `q4_k` of `gguf-q4_k`; None for any other name."""
    type_name = format.removeprefix("gguf-")
    return type_name if type_name != format and type_name in GGUF_BLOCKS else None


def column_step(format: str) -> int:
    """The columns of a weight in this format are a multiple of this; 1 for names that are not built in."""
    grid = parse_int_format(format)
    if grid is not None:
        return grid[1]
    return GGUF_COLUMNS if parse_gguf_format(format) else 4 if format == "sparse-2:4" else 1


def fits_format(format: str, shape: tuple[int, int]) -> bool:
    """Can a weight of this shape (rows, columns) be written in this format? True for names that are not built in."""
    rank = parse_lowrank_format(format)
    return shape[1] % column_step(format) == 0 and (rank is None or rank <= min(shape))


def group_width(group: int, columns: int) -> int | None:
    """Columns a group at a site: all of them for -1; None where `group` does not divide the columns."""
    if group == -1:
        return columns
    return group if columns % group == 0 else None


def _packed_bytes(count: int, bits: int) -> int:
    return -(-count * bits // 8)


def int_cost(shape: tuple[int, int], bits: int, group: int) -> Cost:
    """Exact cost of a grouped integer weight: codes, scales and zeros, each row padded to whole bytes."""
    rows, columns = shape
    groups = columns // group
    return Cost(rows * (_packed_bytes(columns, bits) + 2 * groups + _packed_bytes(groups, bits)), rows * columns)


def bitmask_cost(shape: tuple[int, int], nonzeros: int) -> Cost:
    """Exact cost of a bit mask, each row padded to whole bytes, and float16 non-zeros; only these count as parameters."""
    rows, columns = shape
    return Cost(rows * _packed_bytes(columns, 1) + 2 * nonzeros, nonzeros)


def variant_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Bytes of all tensors together."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def pack_bits(values_RN: Tensor, bits: int) -> Tensor:
    """Pack `bits`-bit values (uint8, 1 to 8 bits) into a little-endian tight bit stream per row: (R, ceil(N bits / 8)) uint8."""
    import torch

    rows, count = values_RN.shape
    blocks = -(-count // 8)
    padded_RK8 = torch.nn.functional.pad(values_RN, (0, blocks * 8 - count)).view(rows, blocks, 8)
    packed_RKB = torch.zeros(rows, blocks, bits, dtype=torch.uint8)
    # Eight values fill `bits` bytes exactly, so one pass per position in the eight serves all of them at once.
    for position in range(8):
        byte, shift = divmod(position * bits, 8)
        packed_RKB[..., byte] |= padded_RK8[..., position] << shift
        if shift + bits > 8:
            packed_RKB[..., byte + 1] |= padded_RK8[..., position] >> (8 - shift)
    return packed_RKB.view(rows, blocks * bits)[:, : _packed_bytes(count, bits)].contiguous()


def unpack_bits(packed_RB: Tensor, bits: int, n: int) -> Tensor:
    """Inverse of `pack_bits`: the first `n` values of every row, (R, n) uint8."""
    import torch

    rows, blocks = packed_RB.shape[0], -(-n // 8)
    padded_RKB = torch.nn.functional.pad(packed_RB, (0, blocks * bits - packed_RB.shape[1])).view(rows, blocks, bits)
    values_RK8 = torch.empty(rows, blocks, 8, dtype=torch.uint8)
    mask = (1 << bits) - 1
    for position in range(8):
        byte, shift = divmod(position * bits, 8)
        value_RK = padded_RKB[..., byte] >> shift
        if shift + bits > 8:
            value_RK |= padded_RKB[..., byte + 1] << (8 - shift)
        torch.bitwise_and(value_RK, mask, out=values_RK8[..., position])
    return values_RK8.view(rows, blocks * 8)[:, :n].contiguous()


def minmax_grid(low: Tensor, high: Tensor, top: Tensor | int) -> tuple[Tensor, Tensor]:
    """Scale and zero of the asymmetric grid 0..top that spans [low, high] and contains 0, elementwise.

    The scale is already rounded to float16, so that quantising with it is what decoding undoes. A range of zero gets scale 1; one too
    small or too large for float16 gets the nearest scale that float16 can hold, and the weights are rounded or clipped to that grid.
    """
    low, high = low.clamp(max=0), high.clamp(min=0)
    scale = ((high - low) / top).clamp(FLOAT16_TINY, FLOAT16_MAX).half().to(low.dtype)
    scale = scale.where(high > low, scale.new_ones(()))
    zero = (-low / scale).round_()
    return scale, zero.clamp_(max=top) if isinstance(top, int) else zero.minimum(top)


def pack_int(codes_RC: Tensor, scale_RG: Tensor, zero_RG: Tensor, bits: int, group: int) -> dict[str, Tensor]:
    """Tensors of `int{bits}-g{group}`. codes and zeros hold integers in [0, 2^bits - 1]; scales are stored as float16."""
    import torch

    if codes_RC.shape[1] != scale_RG.shape[1] * group or scale_RG.shape != zero_RG.shape:
        raise UsageError(
            f"Codes of shape {tuple(codes_RC.shape)} do not fit scales {tuple(scale_RG.shape)} and zeros {tuple(zero_RG.shape)} "
            f"at group {group}.", "Give one scale and one zero per row and group."
        )  # fmt: skip
    return {
        "codes": pack_bits(codes_RC.to(torch.uint8), bits),
        "scales": scale_RG.to(torch.float16).contiguous(),
        "zeros": pack_bits(zero_RG.to(torch.uint8), bits),
    }


def unpack_int(tensors: Mapping[str, Tensor], shape: tuple[int, int], bits: int, group: int) -> tuple[Tensor, Tensor, Tensor]:
    """(codes_RC uint8, scale_RG float32, zero_RG uint8) of a grouped integer weight."""
    columns = shape[1]
    codes_RC = unpack_bits(tensors["codes"], bits, columns)
    return codes_RC, tensors["scales"].float(), unpack_bits(tensors["zeros"], bits, columns // group)


def pack_bitmask(weight_RC: Tensor, keep_RC: Tensor | None = None) -> dict[str, Tensor]:
    """Tensors of `bitmask`. keep_RC: the stored positions; a stored weight may be zero. Default: wherever the weight is not zero."""
    import torch

    keep_RC = weight_RC != 0 if keep_RC is None else keep_RC
    values = weight_RC[keep_RC].clamp(-FLOAT16_MAX, FLOAT16_MAX).to(torch.float16)
    return {"mask": pack_bits(keep_RC.to(torch.uint8), 1), "values": values}


def pack_two_of_four(weight_RC: Tensor, keep_RC: Tensor) -> dict[str, Tensor]:
    """Tensors of `sparse-2:4`. keep_RC: exactly two of every four consecutive columns of a row. Raises UsageError."""
    import torch

    rows, columns = weight_RC.shape
    if columns % 4 or not bool((keep_RC.view(rows, -1, 4).sum(-1) == 2).all()):
        raise UsageError(
            f"A mask of shape {tuple(keep_RC.shape)} does not keep two of every four columns.", "Keep the two largest of four."
        )
    values = weight_RC[keep_RC].clamp(-FLOAT16_MAX, FLOAT16_MAX).to(torch.float16).view(rows, columns // 2)
    place_RN = keep_RC.nonzero()[:, 1].view(rows, columns // 2) % 4
    return {"values": values, "index": pack_bits(place_RN.to(torch.uint8), 2)}


def unpack_two_of_four(tensors: Mapping[str, Tensor], shape: tuple[int, int]) -> Tensor:
    """Column (R, C / 2) int64 of every stored value of `sparse-2:4`."""
    import torch

    place_RN = unpack_bits(tensors["index"], 2, shape[1] // 2).long()
    return place_RN + 4 * (torch.arange(shape[1] // 2) // 2)


def decode(format: str, tensors: Mapping[str, Tensor], shape: tuple[int, int]) -> Tensor:
    """Dense float32 weight_RC of a variant's tensors. Raises UsageError for an unknown format."""
    import torch

    grid = parse_int_format(format)
    if grid is not None:
        bits, group = grid
        codes_RC, scale_RG, zero_RG = unpack_int(tensors, shape, bits, group)
        weight_RGn = codes_RC.view(shape[0], -1, group).float()
        return weight_RGn.sub_(zero_RG[..., None]).mul_(scale_RG[..., None]).view(shape)
    if format == "bitmask":
        keep_RC = unpack_bits(tensors["mask"], 1, shape[1]).view(torch.bool)
        return torch.zeros(shape).masked_scatter_(keep_RC, tensors["values"].float())
    if format == "sparse-2:4":
        return torch.zeros(shape).scatter_(1, unpack_two_of_four(tensors, shape), tensors["values"].float())
    if parse_lowrank_format(format) is not None:
        return tensors["left"].float() @ tensors["right"].float()
    if parse_gguf_format(format) is not None:
        return _decode_gguf(format, tensors["data"])
    if format == "dense":
        return tensors["weight"].to(torch.float32, copy=True)
    if format == "absent":
        return torch.zeros(shape)
    raise UsageError(f"Unknown weight format {format!r}.", f"Known: {', '.join(FORMATS)}, with 1 to 8 bits.")


def _decode_gguf(format: str, data_RB: Tensor) -> Tensor:
    import torch
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    return torch.from_numpy(dequantize(data_RB.numpy(), GGMLQuantizationType[str(parse_gguf_format(format)).upper()]))


def exact_product(x_TC: Tensor, variant: Variant) -> Tensor:
    """x Wᵀ in float64 with the weight the variant's format stands for, T×R: what a kernel's `reference` answers. Slow."""
    if variant.format == "absent":
        return x_TC.double().new_zeros(x_TC.shape[0], variant.site.shape[0])
    return x_TC.double() @ decode(variant.format, variant.tensors, variant.site.shape).double().T


def int_variant(site: Site, level: Level, codes_RC: Tensor, scale_RG: Tensor, zero_RG: Tensor, bits: int) -> Variant:
    """A variant in the grouped integer format; the group follows from the number of scales."""
    group = site.shape[1] // scale_RG.shape[1]
    tensors = pack_int(codes_RC, scale_RG, zero_RG, bits, group)
    return Variant(site, level, int_format(bits, group), tensors, Cost(variant_bytes(tensors), site.weights))


def bitmask_variant(site: Site, level: Level, weight_RC: Tensor, keep_RC: Tensor) -> Variant:
    """A variant in the bitmask format; its cost counts what is stored, not what was promised."""
    tensors = pack_bitmask(weight_RC, keep_RC)
    return Variant(site, level, "bitmask", tensors, Cost(variant_bytes(tensors), tensors["values"].numel()))
