"""Variant: a site at a level made real. Methods yield variants, the bank stores them, kernels pack them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from evopress.api.cost import Cost
from evopress.api.level import Level
from evopress.api.site import Site

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Variant:
    """Packed tensors of one site at one level.

    format: name of the weight format, e.g. `int3-g64`, `bitmask`, `dense`, `absent`; see `evopress.api.formats`.
    tensors: contiguous CPU tensors; their total size in bytes equals `cost.bytes`.
    """

    site: Site
    level: Level
    format: str
    tensors: Mapping[str, Tensor]
    cost: Cost


@dataclass(frozen=True, slots=True, eq=False)
class Statistics:
    """What calibration knows of the input of a linear site.

    second_moment: C×C float32, the mean over tokens of x xᵀ (None when no method asked for it).
    tokens: number of tokens averaged.
    """

    second_moment: Tensor | None = None
    tokens: int = 0
