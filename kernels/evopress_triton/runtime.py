"""Where Triton code can run, and how a launch ends: the device check, the sum of splits, the order of x, the exact answer.

Called by the Triton kernels here. Imports Triton only inside functions. Shapes: R rows out, C columns in, T tokens, G groups, S splits.
"""

from __future__ import annotations

import importlib.util
import os
from contextlib import AbstractContextManager, nullcontext
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from evopress_triton.launch import COMPILER, TILE_UNITS

INTERPRETED_MULTIPROCESSORS = 2
"""What launches are planned for under the interpreter: few, but enough that some weights are split."""


def runs(device: str, dtype: torch.dtype) -> bool:
    """Can Triton code run on this kind of device, `cuda` or `cpu`, for activations of this type?"""
    if dtype not in (torch.bfloat16, torch.float16, torch.float32):
        return False
    return (device == "cuda" and _compiles()) or (device == "cpu" and interprets())


@cache
def _compiles() -> bool:
    return torch.cuda.is_available() and importlib.util.find_spec("triton") is not None and not interprets()


@cache
def interprets() -> bool:
    """Were the kernels decorated under TRITON_INTERPRET=1? Imports Triton only where the variable asks for its interpreter."""
    if not os.environ.get("TRITON_INTERPRET") or importlib.util.find_spec("triton") is None:
        return False
    from triton.runtime import JITFunction

    from evopress_triton.common_code import sum_splits

    return not isinstance(sum_splits, JITFunction)


@cache
def multiprocessors(device: torch.device) -> int:
    """Multiprocessors of a GPU; a small number under the interpreter."""
    if device.type != "cuda":
        return INTERPRETED_MULTIPROCESSORS
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def on(device: torch.device) -> AbstractContextManager[object]:
    """Launch on this device: Triton launches on the current one, wherever its arguments lie."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def outputs(x_TC: Tensor, rows: int, splits: int) -> Tensor:
    """Where a launch writes, S×T×R: the answer in the type of x where there is one split, else float32 sums of each."""
    return torch.empty(splits, x_TC.shape[0], rows, dtype=x_TC.dtype if splits == 1 else torch.float32, device=x_TC.device)


def finish(out_STR: Tensor, dtype: torch.dtype) -> Tensor:
    """Sum of the splits, always in the same order, T×R."""
    from evopress_triton.common_code import sum_splits

    splits, tokens, rows = out_STR.shape
    if splits == 1:
        return out_STR[0]
    result_TR = torch.empty(tokens, rows, dtype=dtype, device=out_STR.device)
    block = 512
    sum_splits[(-(-tokens * rows // block),)](out_STR, result_TR, tokens * rows, splits, BLOCK=block, num_warps=4, **COMPILER)
    return result_TR


def side_by_side(x_TC: Tensor, groups: int, unit: int, steps: int) -> Tensor:
    """x for the tile kernels, T × steps × unit × TILE_UNITS: column k of each of the TILE_UNITS units of a step, for every k of a unit.

    A unit is so many consecutive columns; groups are padded with zeros to whole units, and all of them to whole steps.
    """
    tokens, columns = x_TC.shape
    group = columns // groups
    wide = -(-group // unit) * unit
    x = functional.pad(x_TC.view(tokens, groups, group), (0, wide - group)).view(tokens, groups * wide)
    x = functional.pad(x, (0, steps * TILE_UNITS * unit - groups * wide))
    return x.view(tokens, steps, TILE_UNITS, unit).transpose(2, 3).contiguous()
