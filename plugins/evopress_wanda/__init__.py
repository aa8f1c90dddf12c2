"""Wanda: A Simple and Effective Pruning Approach for Large Language Models (2023, arXiv 2306.11695). Loaded through its entry point.

Not SparseGPT: weights that stay are not changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from evopress.api import Cost, Level, Method, Site, Statistics, Variant
from evopress.api.formats import bitmask_variant
from evopress.api.linalg import check_weight, second_moment
from evopress.api.options import as_tuple, check_offered
from evopress.api.plugins import Need
from evopress.api.sparsity import SHARES, check_sparsity, shares_of, sparsity_cost, sparsity_levels, zeros_at
from evopress.hooks.specs import hookimpl

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Wanda(Method):
    """Prunes by |weight| times the norm of its input, comparing the weights of one output row.

    Departure from the paper: the number of zeros of the site is exact, so rows may differ by one. sparsity: one or several shares of zeros
    in (0, 1). steps, step_weights: when steps is not 0, that many levels up and down around each share, each step worth step_weights
    zeros at every site. Raises UsageError for other values.
    """

    name: ClassVar[str] = "wanda"
    paper: ClassVar[str] = "A Simple and Effective Pruning Approach for Large Language Models (2023, arXiv 2306.11695)"
    needs: ClassVar[frozenset[Need]] = frozenset({"second_moment"})

    sparsity: float | tuple[float, ...] = SHARES
    steps: int = 0
    step_weights: int = 16384

    def __post_init__(self) -> None:
        object.__setattr__(self, "sparsity", check_sparsity(self.name, self.sparsity, self.steps, self.step_weights))

    def levels(self, site: Site) -> Sequence[Level]:
        """One level a share, or a ladder of equal steps of weights."""
        return sparsity_levels(self.name, site.shape, as_tuple(self.sparsity), self.steps, self.step_weights)

    def cost(self, site: Site, level: Level) -> Cost:
        """Bit mask and non-zeros."""
        check_offered(self, site, [level])
        return sparsity_cost(site.shape, level)

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
