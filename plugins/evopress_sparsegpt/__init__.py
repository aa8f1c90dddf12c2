"""The SparseGPT method: options, levels and costs. The algorithm is in `solver.py`. Loaded through its entry point."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from evopress.api import Cost, Level, Method, Site, Statistics, Variant
from evopress.api.formats import bitmask_variant
from evopress.api.level import Scalar
from evopress.api.linalg import check_weight, second_moment
from evopress.api.options import as_tuple, check_int, check_offered, check_share
from evopress.api.plugins import Need
from evopress.api.sparsity import SHARES, check_sparsity, sparsity_cost, sparsity_levels, zeros_at
from evopress.hooks.specs import hookimpl

if TYPE_CHECKING:
    from torch import Tensor

_DAMP, _BLOCK = 0.01, 128


@dataclass(frozen=True)
class SparseGpt(Method):
    """Prunes column by column and lets the later columns make up for the error.

    sparsity: one or several shares of zeros in (0, 1). steps, step_weights: when steps is not 0, that many levels up and down around each
    share, each step worth step_weights zeros at every site. damp: share of the mean diagonal added to the second moment. block: columns
    whose weights are compared with each other. Raises UsageError for other values.
    """

    name: ClassVar[str] = "sparsegpt"
    paper: ClassVar[str] = "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot (2023, arXiv 2301.00774)"
    needs: ClassVar[frozenset[Need]] = frozenset({"second_moment"})

    sparsity: float | tuple[float, ...] = SHARES
    steps: int = 0
    step_weights: int = 16384
    damp: float = _DAMP
    block: int = _BLOCK

    def __post_init__(self) -> None:
        object.__setattr__(self, "sparsity", check_sparsity(self.name, self.sparsity, self.steps, self.step_weights))
        check_share(self.name, "damp", self.damp)
        check_int(self.name, "block", self.block, 1)

    def levels(self, site: Site) -> Sequence[Level]:
        """One level a share, or a ladder of equal steps of weights; other options are named where they are not the default."""
        extra: dict[str, Scalar] = {"damp": self.damp} if self.damp != _DAMP else {}
        extra |= {"block": self.block} if self.block != _BLOCK else {}
        return sparsity_levels(self.name, site.shape, as_tuple(self.sparsity), self.steps, self.step_weights, **extra)

    def cost(self, site: Site, level: Level) -> Cost:
        """Bit mask and non-zeros."""
        check_offered(self, site, [level])
        return sparsity_cost(site.shape, level)

    def compress(self, site: Site, weight: Tensor, stats: Statistics, levels: Sequence[Level]) -> Iterator[Variant]:
        """Solve all levels with one factorisation. Raises NumericalError naming the site."""
        from evopress_sparsegpt.solver import prune

        check_offered(self, site, levels)
        check_weight(self.name, site, weight)
        hessian_CC = second_moment(self.name, site, stats)
        zeros = [zeros_at(site.shape, level) for level in levels]
        solved = prune(weight, hessian_CC, zeros, self.damp, self.block, site.name)
        for level, (pruned_RC, keep_RC) in zip(levels, solved, strict=True):
            yield bitmask_variant(site, level, pruned_RC, keep_RC)


@hookimpl
def evopress_methods() -> Iterable[type[Method]]:
    """The method of this plugin."""
    return [SparseGpt]
