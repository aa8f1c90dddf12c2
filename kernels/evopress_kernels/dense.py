"""Kernel `dense`: torch's own linear layer in the type of the activations. What every other kernel is compared with."""

from __future__ import annotations

from typing import ClassVar

import torch

from evopress_kernels.decoded import DecodedKernel


class DenseKernel(DecodedKernel):
    """x Wᵀ with a weight that is dense already."""

    name: ClassVar[str] = "dense"
    formats: ClassVar[tuple[str, ...]] = ("dense",)

    def supports(self, format: str, shape: tuple[int, int], device: str, dtype: torch.dtype) -> bool:
        """Dense weights of any shape."""
        return format == "dense"
