"""Kernel `dense`: torch's own linear layer in the type of the activations. What every other kernel is compared with.

Shapes: R rows out, C columns in, T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor
from torch.nn import functional

from evopress.api import Kernel, Variant
from evopress.api.formats import decode
from evopress_kernels.exact import exact


class DenseKernel(Kernel):
    """x Wᵀ by `torch.nn.functional.linear`. Any shape, any device.

    packed: `weight` R×C floating; `run` converts it to the type of x, so a caller that knows the type converts it once beforehand.
    """

    name: ClassVar[str] = "dense"
    formats: ClassVar[tuple[str, ...]] = ("dense",)

    def supports(self, format: str, shape: tuple[int, int], device: str) -> bool:
        """Dense weights of any shape."""
        return format == "dense"

    def pack(self, variant: Variant) -> Mapping[str, Tensor]:
        """Decode to a plain matrix."""
        return {"weight": decode(variant.format, variant.tensors, variant.site.shape)}

    def run(self, x: Tensor, packed: Mapping[str, Tensor]) -> Tensor:
        """T×C to T×R."""
        return functional.linear(x, packed["weight"].to(x.dtype))

    def reference(self, x: Tensor, variant: Variant) -> Tensor:
        """Exact, in float64."""
        return exact(x, variant)
