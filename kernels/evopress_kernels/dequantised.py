"""Kernel `dequantised`: decodes the weight once at load and multiplies densely. The last resort: no memory saved, no time saved.

Every report prints it as "no packed kernel: dequantised".
"""

from __future__ import annotations

import re
from typing import ClassVar

import torch

from evopress_kernels.decoded import DecodedKernel


class DequantisedKernel(DecodedKernel):
    """x Wᵀ with the decoded weight, for every format, shape and device."""

    name: ClassVar[str] = "dequantised"
    formats: ClassVar[tuple[str, ...]] = ("dense", r"int[1-8]-g\d+", "bitmask", "sparse-2:4", r"lowrank-r\d+", r"gguf-q[2-6]_k")
    packed: ClassVar[bool] = False

    def supports(self, format: str, shape: tuple[int, int], device: str, dtype: torch.dtype) -> bool:
        """Every format that `evopress.api.formats.decode` reads, but `absent`, which needs no weight."""
        return any(re.fullmatch(pattern, format) for pattern in self.formats)
