"""GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers (2022, arXiv 2210.17323), Algorithm 1.

Pure functions, in the order of the paper. Departures: all bit widths of a site are solved together (L), the grid is asymmetric min/max
with a float16 scale, and with activation order the groups stay those of the original columns ("static groups"), so that a stored group
is always consecutive columns.

Shapes: R rows out, C columns in, G groups a row, n columns a group, L levels (bit widths). The solver works on transposed weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from evopress.api.formats import minmax_grid
from evopress.api.linalg import dead_columns, inverse_factor, sweep

MAX_ELEMENTS = 2**25
"""Rows are solved in chunks of at most this many weights a level: rows do not depend on each other, and memory stays flat."""

Quantised = tuple[Tensor, Tensor, Tensor]


def quantise(weight_RC: Tensor, hessian_CC: Tensor, bits: Sequence[int], group: int, damp: float, act_order: bool, name: str) -> Quantised:
    """(codes_LRC uint8, scale_LRG, zero_LRG) for every bit width, columns in their original order. Raises NumericalError naming `name`."""
    rows, columns = weight_RC.shape
    order_C = torch.arange(columns)
    if act_order:
        order_C = hessian_CC.diagonal().argsort(descending=True, stable=True)
        hessian_CC = hessian_CC[order_C][:, order_C]
    factor_CC = inverse_factor(hessian_CC, damp, name)
    dead_C = dead_columns(hessian_CC)
    chunk = max(1, MAX_ELEMENTS // columns)
    parts = [
        _solve(weight_RC[start : start + chunk], factor_CC, dead_C, order_C, bits, group, act_order) for start in range(0, rows, chunk)
    ]
    codes_LRC, scale_LRG, zero_LRG = (torch.cat(part, dim=1) for part in zip(*parts, strict=True))
    return codes_LRC, scale_LRG, zero_LRG


def _solve(
    weight_RC: Tensor, factor_CC: Tensor, dead_C: Tensor, order_C: Tensor, bits: Sequence[int], group: int, static: bool
) -> Quantised:
    rows, columns = weight_RC.shape
    levels, groups = len(bits), columns // group
    top_L1 = torch.tensor([[2**width - 1] for width in bits], dtype=weight_RC.dtype)
    work_CR = weight_RC.T[order_C].contiguous()
    work_CR[dead_C] = 0
    scale_LGR, zero_LGR = work_CR.new_empty(levels, groups, rows), work_CR.new_empty(levels, groups, rows)
    codes_LCR = torch.empty(levels, columns, rows, dtype=torch.uint8)
    group_of = (order_C // group).tolist()

    def grid(index: int, columns_LnR: Tensor) -> None:
        scale_LGR[:, index], zero_LGR[:, index] = minmax_grid(columns_LnR.amin(1), columns_LnR.amax(1), top_L1)

    def begin(start: int, columns_LnR: Tensor) -> None:
        # Original order: the grid sees the weights as earlier columns have moved them. Static groups were set before.
        if not static:
            grid(start // group, columns_LnR)

    def settle(column: int, weight_LR: Tensor) -> Tensor:
        scale_LR, zero_LR = scale_LGR[:, group_of[column]], zero_LGR[:, group_of[column]]
        step_LR = (weight_LR / scale_LR).round_()
        step_LR = torch.clamp(step_LR, -zero_LR, top_L1 - zero_LR)
        codes_LCR[:, column] = step_LR + zero_LR
        return step_LR.mul_(scale_LR)

    if static:
        original_CR = torch.empty_like(work_CR)
        original_CR[order_C] = work_CR
        for index in range(groups):
            grid(index, original_CR[None, index * group : (index + 1) * group])
    sweep(work_CR.repeat(levels, 1, 1), factor_CC, columns if static else group, begin, settle)
    # Back to the original columns: what is stored must not depend on the order of the solve.
    codes_LCR = codes_LCR[:, order_C.argsort()]
    return codes_LCR.transpose(1, 2), scale_LGR.transpose(1, 2), zero_LGR.transpose(1, 2)
