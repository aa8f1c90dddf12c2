"""Kernel `absent`: a weight that is not there gives zeros. Called for linear sites that a profile removes one by one.

A dropped attention, MLP or block does not come here: the runtime skips it altogether. Shapes: R rows out, C columns in, T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from evopress.api import Kernel, Variant


class AbsentKernel(Kernel):
    """Zeros, whatever x holds. Any shape, any device. packed: `rows` R×0 bytes, which only carries the number of rows."""

    name: ClassVar[str] = "absent"
    formats: ClassVar[tuple[str, ...]] = ("absent",)

    def supports(self, format: str, shape: tuple[int, int], device: str, dtype: torch.dtype) -> bool:
        """Absent weights of any shape."""
        return format == "absent"

    def pack(self, variant: Variant, dtype: torch.dtype) -> Mapping[str, Tensor]:
        """Keep the number of rows."""
        return {"rows": torch.empty(variant.site.shape[0], 0, dtype=torch.uint8)}

    def run(self, x: Tensor, packed: Mapping[str, Tensor]) -> Tensor:
        """T×C to T×R zeros."""
        return x.new_zeros(x.shape[0], packed["rows"].shape[0])

    def read_bytes(self, packed: Mapping[str, Tensor], tokens: int) -> int:
        """Nothing."""
        return 0
