"""SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot (2023, arXiv 2301.00774), Algorithm 1, unstructured.

Pure functions, in the order of the paper. Departures: the number of zeros of a site is exact (the paper prunes a share of each block),
split over the blocks in proportion to their columns; several sparsities are solved together (L).

Shapes: R rows out, C columns in, B columns of a block, L levels (sparsities). The solver works on transposed weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from evopress.api.linalg import dead_columns, inverse_factor, sweep
from evopress.api.sparsity import smallest

MAX_ELEMENTS = 2**27
"""Levels are solved in chunks of at most this many weights together; a block's mask compares all rows, so rows cannot be split."""


def prune(
    weight_RC: Tensor, hessian_CC: Tensor, zeros: Sequence[int], damp: float, block: int, name: str
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (weight_RC, keep_RC) per number of zeros, each with exactly that many. Raises NumericalError naming `name`."""
    factor_CC = inverse_factor(hessian_CC, damp, name)
    dense_CR = weight_RC.T.clone(memory_format=torch.contiguous_format)
    dense_CR[dead_columns(hessian_CC)] = 0
    chunk = max(1, MAX_ELEMENTS // dense_CR.numel())
    for start in range(0, len(zeros), chunk):
        yield from _solve(dense_CR, factor_CC, zeros[start : start + chunk], block)


def _solve(dense_CR: Tensor, factor_CC: Tensor, zeros: Sequence[int], block: int) -> Iterator[tuple[Tensor, Tensor]]:
    columns = len(dense_CR)
    pruned_LCR = dense_CR.new_empty(len(zeros), *dense_CR.shape)
    keep_LCR = torch.empty_like(pruned_LCR, dtype=torch.bool)
    diagonal_C = factor_CC.diagonal()

    def begin(start: int, columns_LBR: Tensor) -> None:
        # Saliency w² / [H⁻¹]_jj with H the second moment of the columns not yet settled: U_jj² is that entry when j is next.
        width = columns_LBR.shape[1]
        end = start + width
        for level, (total, columns_BR) in enumerate(zip(zeros, columns_LBR, strict=True)):
            count = total * end // columns - total * start // columns
            saliency_BR = (columns_BR / diagonal_C[start:end, None]).square_()
            keep_LCR[level, start:end] = ~smallest(saliency_BR, count)

    def settle(column: int, weight_LR: Tensor) -> Tensor:
        pruned_LR = weight_LR * keep_LCR[:, column]
        pruned_LCR[:, column] = pruned_LR
        return pruned_LR

    sweep(dense_CR.repeat(len(zeros), 1, 1), factor_CC, block, begin, settle)
    for pruned_CR, keep_CR in zip(pruned_LCR, keep_LCR, strict=True):
        yield pruned_CR.T, keep_CR.T
