"""Random variants of any built-in format and shape: material to check and time kernels with. Not a compression method.

Called by latency.bench and testing.kernels. Shapes: R rows out, C columns in, G groups, N blocks, B bytes a block.
"""

from __future__ import annotations

import torch

from evopress.api import Cost, Level, Site, UsageError, Variant
from evopress.api.formats import (
    FORMATS,
    GGUF_BLOCKS,
    GGUF_COLUMNS,
    int_variant,
    pack_bitmask,
    pack_two_of_four,
    parse_gguf_format,
    parse_int_format,
    parse_lowrank_format,
    variant_bytes,
)

GGUF_SCALES = {
    "q2_k": ((80, 0.064), (82, 0.096)),
    "q3_k": ((108, 0.023),),
    "q4_k": ((0, 0.0035), (2, 0.026)),
    "q5_k": ((0, 0.0017), (2, 0.026)),
    "q6_k": ((208, 0.00073),),
}
"""Where the float16 numbers of a K-quant's block lie, and how large they are for weights of rms about 1 when all other bits are random."""


def random_variant(format: str, shape: tuple[int, int], generator: torch.Generator, density: float = 0.5) -> Variant:
    """A variant of `format` with weights of rms about 1, every code and zero equally likely, a share `density` of a bitmask set.

    Raises UsageError for a format it does not know, or a group that does not divide the columns.
    """
    rows, columns = shape
    site, level = Site("sample", "linear", shape, 0, None), Level("random")
    grid = parse_int_format(format)
    if grid is not None:
        bits, group = grid
        if columns % group:
            raise UsageError(f"Format {format!r} does not fit {columns} columns.", f"The columns must be divisible by {group}.")
        codes_RC = torch.randint(2**bits, (rows, columns), generator=generator)
        zero_RG = torch.randint(2**bits, (rows, columns // group), generator=generator)
        scale_RG = (0.5 + torch.rand(rows, columns // group, generator=generator)) * 2.0 / 2**bits
        return int_variant(site, level, codes_RC, scale_RG.half().float(), zero_RG, bits)
    weight_RC = torch.randn(rows, columns, generator=generator)
    if format == "bitmask":
        tensors = pack_bitmask(weight_RC, torch.rand(rows, columns, generator=generator) < density)
        return Variant(site, level, format, tensors, Cost(variant_bytes(tensors), tensors["values"].numel()))
    if format == "sparse-2:4" and columns % 4 == 0:
        keep_RC = torch.zeros(rows, columns // 4, 4, dtype=torch.bool)
        keep_RC.scatter_(2, torch.rand(rows, columns // 4, 4, generator=generator).topk(2, dim=2).indices, True)
        tensors = pack_two_of_four(weight_RC, keep_RC.view(rows, columns))
        return Variant(site, level, format, tensors, Cost(variant_bytes(tensors), site.weights // 2))
    rank = parse_lowrank_format(format)
    if rank is not None:
        left_RK = torch.randn(rows, rank, generator=generator) / rank**0.5
        tensors = {"left": left_RK.half(), "right": torch.randn(rank, columns, generator=generator).half()}
        return Variant(site, level, format, tensors, Cost(variant_bytes(tensors), rank * (rows + columns)))
    type_name = parse_gguf_format(format)
    if type_name is not None:
        if columns % GGUF_COLUMNS:
            raise UsageError(f"Format {format!r} does not fit {columns} columns.", f"The columns must be divisible by {GGUF_COLUMNS}.")
        tensors = {"data": _random_blocks(type_name, rows, columns // GGUF_COLUMNS, generator)}
        return Variant(site, level, format, tensors, Cost(variant_bytes(tensors), site.weights))
    if format == "dense":
        tensors = {"weight": weight_RC.half()}
        return Variant(site, level, format, tensors, Cost(variant_bytes(tensors), site.weights))
    if format == "absent":
        return Variant(site, level, format, {}, Cost())
    raise UsageError(f"Unknown weight format {format!r}.", f"Known: {', '.join(FORMATS)}.")


def _random_blocks(type_name: str, rows: int, blocks: int, generator: torch.Generator) -> torch.Tensor:
    data_RNB = torch.randint(256, (rows, blocks, GGUF_BLOCKS[type_name]), generator=generator, dtype=torch.uint8)
    for place, size in GGUF_SCALES[type_name]:
        scale_RN1 = size * (0.5 + torch.rand(rows, blocks, 1, generator=generator))
        data_RNB[..., place : place + 2] = scale_RN1.half().view(torch.uint8)
    return data_RNB.view(rows, -1)
