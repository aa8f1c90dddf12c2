"""The SparseGPT method: options, levels and costs. The algorithm is in `solver.py`. Loaded through its entry point."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from evopress.api import Level, Method, Site, Statistics, Variant
from evopress.api.formats import bitmask_variant
from evopress.api.level import Scalar
from evopress.api.linalg import check_weight, second_moment
from evopress.api.options import check_int, check_offered, check_share
from evopress.api.plugins import Need
from evopress.api.sparsity import SparsityMethod, zeros_at
from evopress.hooks.specs import hookimpl

if TYPE_CHECKING:
    from torch import Tensor

_DAMP, _BLOCK = 0.01, 128


@dataclass(frozen=True)
class SparseGpt(SparsityMethod):
    """Prunes column by column and lets the later columns make up for the error.

    damp: share of the mean diagonal added to the second moment. block: columns whose weights are compared with each other. The other
    options: see `SparsityMethod`. Raises UsageError for other values.
    """

    name: ClassVar[str] = "sparsegpt"
    paper: ClassVar[str] = "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot (2023, arXiv 2301.00774)"
    needs: ClassVar[frozenset[Need]] = frozenset({"second_moment"})

    damp: float = _DAMP
    block: int = _BLOCK

    def own_options(self) -> Mapping[str, Scalar]:
        """damp and block."""
        own: dict[str, tuple[Scalar, Scalar]] = {
            "damp": (check_share(self.name, "damp", self.damp), _DAMP),
            "block": (check_int(self.name, "block", self.block, 1), _BLOCK),
        }
        return {option: value for option, (value, default) in own.items() if value != default}

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
