"""What sparsity methods share: their options, levels with an exact number of zeros, and exact selection of the smallest scores.

A level is `name(sparsity=0.6)`, or `name(sparsity=0.6,step=-2,weights=16384)`: the same share moved by a number of steps, each worth the
same number of weights at every site, so that a step up here and a step down there keep the total (EvoPress, 2410.14649, section on
unstructured sparsity). Prunes nothing itself. Called by method plugins.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, final

from evopress.api.cost import Cost
from evopress.api.formats import bitmask_cost
from evopress.api.level import Level, Scalar
from evopress.api.options import as_tuple, check_int, check_offered, check_share
from evopress.api.plugins import Method
from evopress.api.site import Site

if TYPE_CHECKING:
    from torch import Tensor

SHARES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)


@dataclass(frozen=True)
class SparsityMethod(Method):
    """A method whose levels are shares of zeros, stored as bit mask and non-zeros. A subclass adds `compress` and options of its own.

    sparsity: one or several shares of zeros in (0, 1). steps, step_weights: when steps is not 0, that many levels up and down around each
    share, each step worth step_weights zeros at every site. Raises UsageError for other values.
    """

    sparsity: float | tuple[float, ...] = SHARES
    steps: int = 0
    step_weights: int = 16384

    def __post_init__(self) -> None:
        check_int(self.name, "steps", self.steps, 0)
        check_int(self.name, "step_weights", self.step_weights, 1)
        shares = tuple(check_share(self.name, "sparsity", share) for share in as_tuple(self.sparsity))
        object.__setattr__(self, "sparsity", shares)
        self.own_options()

    @abstractmethod
    def own_options(self) -> Mapping[str, Scalar]:
        """Options of the subclass that are not at their default, as its levels name them. Raises UsageError for values not allowed."""

    @final
    def levels(self, site: Site) -> Sequence[Level]:
        """One level a share, or a ladder of equal steps of weights; the subclass's own options are named where they are not the default."""
        return sparsity_levels(self.name, site.shape, as_tuple(self.sparsity), self.steps, self.step_weights, **self.own_options())

    @final
    def cost(self, site: Site, level: Level) -> Cost:
        """Bit mask and non-zeros."""
        check_offered(self, site, [level])
        return sparsity_cost(site.shape, level)

    @final
    def format(self, site: Site, level: Level) -> str:
        """A bit mask and the values it keeps."""
        return "bitmask"


def sparsity_levels(
    method: str, shape: tuple[int, int], shares: Sequence[float], steps: int, step_weights: int, **extra: Scalar
) -> list[Level]:
    """Levels at a site, `steps` up and down around each share, without those that would need fewer than no or more than all zeros."""
    if not steps:
        return [Level.of(method, sparsity=share, **extra) for share in shares]
    around = [
        Level.of(method, sparsity=share, step=step, weights=step_weights, **extra) for share in shares for step in range(-steps, steps + 1)
    ]
    return [level for level in around if 0 <= zeros_at(shape, level) <= shape[0] * shape[1]]


def zeros_at(shape: tuple[int, int], level: Level) -> int:
    """Exact number of zeros of a sparsity level at a site: round(share N) + step weights."""
    options = dict(level.options)
    return round(float(options["sparsity"]) * shape[0] * shape[1]) + int(options.get("step", 0)) * int(options.get("weights", 0))


def sparsity_cost(shape: tuple[int, int], level: Level) -> Cost:
    """Exact cost of a sparsity level in the bitmask format."""
    return bitmask_cost(shape, shape[0] * shape[1] - zeros_at(shape, level))


def shares_of(total: int, parts: int) -> list[int]:
    """Split `total` over `parts` as evenly as integers can be, larger shares spread out; adds up exactly."""
    edges = [total * part // parts for part in range(parts + 1)]
    return [high - low for low, high in pairwise(edges)]


def smallest(scores: Tensor, count: int) -> Tensor:
    """Mask of exactly `count` smallest scores, of any shape; among equal scores the lower flat index is taken."""
    import torch

    flat = scores.reshape(-1)
    if count == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    threshold = flat.kthvalue(count).values
    mask = flat < threshold
    ties = (flat == threshold).nonzero().flatten()
    mask[ties[: count - int(mask.sum())]] = True
    return mask.view(scores.shape)
