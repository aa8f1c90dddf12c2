"""Magnitude pruning: the weights nearest to zero go, whatever their inputs. The baseline that reads no calibration data.

Not Wanda or SparseGPT: neither inputs nor compensation. Loaded through its entry point.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from evopress.api import Level, Method, Site, Statistics, Variant
from evopress.api.formats import bitmask_variant
from evopress.api.level import Scalar
from evopress.api.linalg import check_weight
from evopress.api.options import check_offered
from evopress.api.sparsity import SparsityMethod, smallest, zeros_at
from evopress.hooks.specs import hookimpl

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Magnitude(SparsityMethod):
    """Sets the smallest weights of a site to zero, an exact number of them; among equals the first goes. Options: see `SparsityMethod`."""

    name: ClassVar[str] = "magnitude"

    def own_options(self) -> Mapping[str, Scalar]:
        """None."""
        return {}

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
