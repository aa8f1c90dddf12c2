"""Kernel `torch-2:4`: two-of-four sparse weights through torch's semi-structured operators, which use the sparse matrix units.

torch compresses with cuSPARSELt where it was built with it (all of torch's own Linux builds since 2.3; Hopper needs it), else with CUTLASS,
whose operator runs on compute capability 8 only. Both want a GPU to compress, so `pack` uses it and gives the compressed bytes back.
Shapes: R rows out, C columns in, T tokens.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import cache
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional
from torch.sparse import SparseSemiStructuredTensorCUSPARSELT, SparseSemiStructuredTensorCUTLASS

from evopress.api import Kernel, Variant
from evopress.api.formats import decode

ROWS_MULTIPLE = 32
COLUMNS_MULTIPLE = 64
"""What both back ends take in 16 bits: CUTLASS wants 32×64, cuSPARSELt 16×16. Tokens are padded to 8 by torch."""


class TorchTwoOfFourKernel(Kernel):
    """x Wᵀ on the sparse matrix units; bfloat16 or float16 x; R divisible by 32, C by 64; a GPU of compute capability 8.0 or more.

    Weights are rounded once to the type of x. Weights that are not stored are skipped: NaN or infinity in their columns of x does not
    reach the output.

    packed: `weight`, values and places as cuSPARSELt or CUTLASS lays them out; `places` of CUTLASS; `rows` R×0 uint8, the number of rows.
    """

    name: ClassVar[str] = "torch-2:4"
    formats: ClassVar[tuple[str, ...]] = ("sparse-2:4",)
    needs: ClassVar[str] = "a CUDA GPU of compute capability 8.0 or more"

    def supports(self, format: str, shape: tuple[int, int], device: str, dtype: torch.dtype) -> bool:
        """R divisible by 32, C by 64, 16-bit activations, on a GPU that has the operator."""
        rows, columns = shape
        fits = rows > 0 and columns > 0 and rows % ROWS_MULTIPLE == 0 and columns % COLUMNS_MULTIPLE == 0
        return format == "sparse-2:4" and fits and dtype in (torch.bfloat16, torch.float16) and device == "cuda" and _has_operator()

    def pack(self, variant: Variant, dtype: torch.dtype) -> Mapping[str, Tensor]:
        """Compress on the current GPU."""
        dense_RC = decode(variant.format, variant.tensors, variant.site.shape).to(dtype)
        kind = SparseSemiStructuredTensorCUSPARSELT if _has_cusparselt() else SparseSemiStructuredTensorCUTLASS
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torch calls the interface a prototype, once a process
            sparse = kind.from_dense(dense_RC.cuda())
        weight, places = sparse.packed, sparse.meta
        if weight is None:
            raise RuntimeError(f"torch {torch.__version__} compressed {variant.site.name!r} to nothing; ask supports() first")
        rows = torch.empty(variant.site.shape[0], 0, dtype=torch.uint8)
        return {"weight": weight.cpu(), "rows": rows} | ({} if places is None else {"places": places.cpu()})

    def run(self, x: Tensor, packed: Mapping[str, Tensor]) -> Tensor:
        """T×C to T×R."""
        shape = torch.Size((packed["rows"].shape[0], x.shape[1]))
        kind = SparseSemiStructuredTensorCUTLASS if "places" in packed else SparseSemiStructuredTensorCUSPARSELT
        weight = kind(shape, packed["weight"], packed.get("places"), None, None, None)
        return functional.linear(x.contiguous(), weight)


def _has_cusparselt() -> bool:
    return bool(torch.backends.cusparselt.is_available())


@cache
def _has_operator() -> bool:
    """cuSPARSELt from compute capability 8.0, CUTLASS on 8.x."""
    if not torch.cuda.is_available():
        return False
    major, _ = torch.cuda.get_device_capability()
    return major == 8 or (major > 8 and _has_cusparselt())
