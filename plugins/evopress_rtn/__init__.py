"""Round to nearest on a grid per row and group of columns: the baseline that reads no calibration data.

Not GPTQ: no weight makes up for the error of another. Loaded through its entry point.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from evopress.api import Cost, Level, Method, Site, Statistics, Variant
from evopress.api.formats import group_width, int_cost, int_format, int_variant, minmax_grid
from evopress.api.linalg import check_weight
from evopress.api.options import as_tuple, check_int, check_offered
from evopress.hooks.specs import hookimpl

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Rtn(Method):
    """Rounds every weight to the nearest point of the min/max grid of its group.

    bits: one or several of 2 to 8. group: consecutive columns that share a grid, -1 for the whole row; a site whose columns it does not
    divide gets no level. Raises UsageError for other values.
    """

    name: ClassVar[str] = "rtn"

    bits: int | tuple[int, ...] = (2, 3, 4, 5, 6, 8)
    group: int = 64

    def __post_init__(self) -> None:
        object.__setattr__(self, "bits", tuple(check_int(self.name, "bits", bits, 2, 8) for bits in as_tuple(self.bits)))
        check_int(self.name, "group", self.group, 1, also=(-1,))

    def levels(self, site: Site) -> Sequence[Level]:
        """One level a bit width."""
        if group_width(self.group, site.shape[1]) is None:
            return []
        return [Level.of(self.name, bits=bits, group=self.group) for bits in as_tuple(self.bits)]

    def cost(self, site: Site, level: Level) -> Cost:
        """Codes, scales and zeros."""
        check_offered(self, site, [level])
        return int_cost(site.shape, level.option("bits"), group_width(self.group, site.shape[1]) or 1)

    def format(self, site: Site, level: Level) -> str:
        """Grouped integers."""
        return int_format(level.option("bits"), group_width(self.group, site.shape[1]) or 1)

    def compress(self, site: Site, weight: Tensor, stats: Statistics, levels: Sequence[Level]) -> Iterator[Variant]:
        """Round at every level. Raises NumericalError for a weight that is not finite."""
        check_offered(self, site, levels)
        check_weight(self.name, site, weight)
        weight_RGn = weight.view(site.shape[0], -1, group_width(self.group, site.shape[1]) or 1)
        low_RG, high_RG = weight_RGn.amin(2), weight_RGn.amax(2)
        for level in levels:
            top = 2 ** level.option("bits") - 1
            scale_RG, zero_RG = minmax_grid(low_RG, high_RG, top)
            codes_RGn = (weight_RGn / scale_RG[..., None]).round_().add_(zero_RG[..., None]).clamp_(0, top)
            yield int_variant(site, level, codes_RGn.view(site.shape), scale_RG, zero_RG, level.option("bits"))


@hookimpl
def evopress_methods() -> Iterable[type[Method]]:
    """The method of this plugin."""
    return [Rtn]
