"""Magnitude pruning: the weights nearest to zero go, whatever their inputs. The baseline that reads no calibration data.

Not Wanda or SparseGPT: neither inputs nor compensation. Loaded through its entry point.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from evopress.api import Cost, Level, Method, Site, Statistics, Variant
from evopress.api.formats import bitmask_variant
from evopress.api.linalg import check_weight
from evopress.api.options import as_tuple, check_offered
from evopress.api.sparsity import SHARES, check_sparsity, smallest, sparsity_cost, sparsity_levels, zeros_at
from evopress.hooks.specs import hookimpl

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Magnitude(Method):
    """Sets the smallest weights of a site to zero, an exact number of them; among equals the first goes.

    sparsity: one or several shares of zeros in (0, 1). steps, step_weights: when steps is not 0, that many levels up and down around each
    share, each step worth step_weights zeros at every site. Raises UsageError for other values.
    """

    name: ClassVar[str] = "magnitude"

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
        """Prune at every level. Raises NumericalError for a weight that is not finite."""
        check_offered(self, site, levels)
        check_weight(self.name, site, weight)
        score_RC = weight.abs()
        for level in levels:
            yield bitmask_variant(site, level, weight, ~smallest(score_RC, zeros_at(site.shape, level)))


@hookimpl
def evopress_methods() -> Iterable[type[Method]]:
    """The method of this plugin."""
    return [Magnitude]
