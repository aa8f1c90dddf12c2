"""Wanda: A Simple and Effective Pruning Approach for Large Language Models (2023, arXiv 2306.11695). Loaded through its entry point.

Not SparseGPT: weights that stay are not changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from evopress.api import Level, Method, Site, Statistics, Variant
from evopress.api.formats import bitmask_variant
from evopress.api.level import Scalar
from evopress.api.linalg import check_weight, second_moment
from evopress.api.options import check_offered
from evopress.api.plugins import Need
from evopress.api.sparsity import SparsityMethod, shares_of, zeros_at
from evopress.hooks.specs import hookimpl

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Wanda(SparsityMethod):
    """Prunes by |weight| times the norm of its input, comparing the weights of one output row.

    Departure from the paper: the number of zeros of the site is exact, so rows may differ by one. Options: see `SparsityMethod`.
    """

    name: ClassVar[str] = "wanda"
    paper: ClassVar[str] = "A Simple and Effective Pruning Approach for Large Language Models (2023, arXiv 2306.11695)"
    needs: ClassVar[frozenset[Need]] = frozenset({"second_moment"})

    def own_options(self) -> Mapping[str, Scalar]:
        """None."""
        return {}

    def compress(self, site: Site, weight: Tensor, stats: Statistics, levels: Sequence[Level]) -> Iterator[Variant]:
        """Rank each row once (equation 1) and prune at every level. Raises NumericalError for numbers that are not finite."""
        check_offered(self, site, levels)
        check_weight(self.name, site, weight)
        score_RC = weight.abs() * second_moment(self.name, site, stats).diagonal().clamp(min=0).sqrt()
        rank_RC = score_RC.argsort(dim=1, stable=True).argsort(dim=1)
        for level in levels:
            zeros_R1 = rank_RC.new_tensor(shares_of(zeros_at(site.shape, level), site.shape[0]))[:, None]
            yield bitmask_variant(site, level, weight, rank_RC >= zeros_R1)


@hookimpl
def evopress_methods() -> Iterable[type[Method]]:
    """The method of this plugin."""
    return [Wanda]
