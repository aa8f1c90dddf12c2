"""Kernel `dequantised`: decodes the weight once at load and multiplies densely. The last resort: no memory saved, no time saved.

Every report prints it as "no packed kernel: dequantised". Shapes: R rows out, C columns in, T tokens.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor
from torch.nn import functional

from evopress.api import Kernel, Variant
from evopress.api.formats import decode
from evopress_kernels.exact import exact


class DequantisedKernel(Kernel):
    """x Wᵀ with the decoded weight, for every format, shape and device.

    packed: `weight` R×C floating; `run` converts it to the type of x, so a caller that knows the type converts it once beforehand.
    """

    name: ClassVar[str] = "dequantised"
    formats: ClassVar[tuple[str, ...]] = ("dense", r"int[1-8]-g\d+", "bitmask")
    packed: ClassVar[bool] = False

    def supports(self, format: str, shape: tuple[int, int], device: str) -> bool:
        """Every format that `evopress.api.formats.decode` reads, but `absent`, which needs no weight."""
        return any(re.fullmatch(pattern, format) for pattern in self.formats)

    def pack(self, variant: Variant) -> Mapping[str, Tensor]:
        """Decode to a plain matrix."""
        return {"weight": decode(variant.format, variant.tensors, variant.site.shape)}

    def run(self, x: Tensor, packed: Mapping[str, Tensor]) -> Tensor:
        """T×C to T×R."""
        return functional.linear(x, packed["weight"].to(x.dtype))

    def reference(self, x: Tensor, variant: Variant) -> Tensor:
        """Exact, in float64."""
        return exact(x, variant)
