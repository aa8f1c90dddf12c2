"""Kernel `torch-csr`: bitmask weights as torch's compressed sparse rows. What torch itself offers for unstructured sparsity.

Shapes: R rows out, C columns in, T tokens, N stored weights.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import cache
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from evopress.api import Kernel, Variant
from evopress.api.formats import decode, unpack_bits
from evopress_peers.not_finite import not_finite

LEAST_TOKENS = 4
"""torch's sparse times dense multiply is three times slower for one to three dense columns than for four, so x is padded to four."""


class TorchCsrKernel(Kernel):
    """x Wᵀ by MKL's sparse multiply: sparse times vector for one token, sparse times dense for more. Any shape, CPU.

    The multiply takes float32 only, so bfloat16 x is converted in `run`. Column numbers are int32, which MKL takes as they are; int64 is
    converted at every call and takes twice as long. No fewer bytes than dense in bfloat16 until three quarters of the weights are gone.

    packed: `values` N float32, `columns` N int32, `starts` R+1 int32, `width` C×0 bytes, which only carries the number of columns.
    """

    name: ClassVar[str] = "torch-csr"
    peer: ClassVar[bool] = True
    formats: ClassVar[tuple[str, ...]] = ("bitmask",)

    def supports(self, format: str, shape: tuple[int, int], device: str, dtype: torch.dtype) -> bool:
        """Bitmask weights of any shape on the CPU, where torch has MKL."""
        return format == "bitmask" and device == "cpu" and torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]

    def pack(self, variant: Variant, dtype: torch.dtype) -> Mapping[str, Tensor]:
        """The mask as row starts and column numbers; a stored zero stays stored."""
        rows, columns = variant.site.shape
        keep_RC = unpack_bits(variant.tensors["mask"], 1, columns).view(torch.bool)
        return {
            "values": decode(variant.format, variant.tensors, (rows, columns))[keep_RC],
            "columns": keep_RC.nonzero()[:, 1].to(torch.int32),
            "starts": functional.pad(keep_RC.sum(1).cumsum(0), (1, 0)).to(torch.int32),
            "width": torch.empty(columns, 0, dtype=torch.uint8),
        }

    def run(self, x: Tensor, packed: Mapping[str, Tensor]) -> Tensor:
        """T×C to T×R."""
        _accept_beta()
        x_TC, tokens = x.to(torch.float32), x.shape[0]
        size = (packed["starts"].shape[0] - 1, packed["width"].shape[0])
        weight_RC = torch.sparse_csr_tensor(packed["starts"], packed["columns"], packed["values"], size, check_invariants=False)
        if tokens == 1:
            out_TR = torch.mv(weight_RC, x_TC[0])[None]
        else:
            padded_TC = functional.pad(x_TC, (0, 0, 0, max(0, LEAST_TOKENS - tokens)))
            out_TR = torch.mm(weight_RC, padded_TC.T.contiguous()).T[:tokens]
        return (out_TR + not_finite(x_TC)).to(x.dtype).contiguous()


@cache
def _accept_beta() -> None:
    """torch warns once a process that sparse rows are in beta; the first tensor is made here so that the warning is not shown."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        index = torch.zeros(2, dtype=torch.int32)
        torch.sparse_csr_tensor(index, index[:0], torch.zeros(0), (1, 1), check_invariants=False)
