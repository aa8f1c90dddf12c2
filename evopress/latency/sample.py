"""Random variants of any built-in format and shape: material to check and time kernels with. Not a compression method.

Called by latency.bench and testing.kernels. Shapes: R rows out, C columns in, G groups.
"""

from __future__ import annotations

import torch

from evopress.api import Cost, Level, Site, UsageError, Variant
from evopress.api.formats import FORMATS, int_variant, pack_bitmask, parse_int_format, variant_bytes


def random_variant(format: str, shape: tuple[int, int], generator: torch.Generator) -> Variant:
    """A variant of `format` with weights of rms about 1, every code and zero equally likely, half the bitmask set.

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
        tensors = pack_bitmask(weight_RC, torch.rand(rows, columns, generator=generator) < 0.5)
        return Variant(site, level, format, tensors, Cost(variant_bytes(tensors), tensors["values"].numel()))
    if format == "dense":
        tensors = {"weight": weight_RC.half()}
        return Variant(site, level, format, tensors, Cost(variant_bytes(tensors), site.weights))
    if format == "absent":
        return Variant(site, level, format, {}, Cost())
    raise UsageError(f"Unknown weight format {format!r}.", f"Known: {', '.join(FORMATS)}.")
