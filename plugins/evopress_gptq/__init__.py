"""The GPTQ method: options, levels and costs. The algorithm is in `solver.py`. Loaded through its entry point."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from evopress.api import Cost, Level, Method, Site, Statistics, Variant
from evopress.api.formats import group_width, int_cost, int_format, int_variant
from evopress.api.level import Scalar
from evopress.api.linalg import check_weight, second_moment
from evopress.api.options import as_tuple, check_flag, check_int, check_offered, check_share
from evopress.api.plugins import Need
from evopress.hooks.specs import hookimpl

if TYPE_CHECKING:
    from torch import Tensor

_DAMP = 0.01


@dataclass(frozen=True)
class Gptq(Method):
    """Rounds column by column and lets the later columns make up for the error.

    bits: one or several of 2 to 8. group: consecutive columns that share a grid, -1 for the whole row; a site whose columns it does not
    divide gets no level. damp: share of the mean diagonal added to the second moment. act_order: solve columns of large inputs first;
    groups and stored columns keep their original order. Raises UsageError for other values.
    """

    name: ClassVar[str] = "gptq"
    paper: ClassVar[str] = "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers (2022, arXiv 2210.17323)"
    needs: ClassVar[frozenset[Need]] = frozenset({"second_moment"})

    bits: int | tuple[int, ...] = (2, 3, 4, 5)
    group: int = 64
    damp: float = _DAMP
    act_order: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "bits", tuple(check_int(self.name, "bits", bits, 2, 8) for bits in as_tuple(self.bits)))
        check_int(self.name, "group", self.group, 1, also=(-1,))
        check_share(self.name, "damp", self.damp)
        check_flag(self.name, "act_order", self.act_order)

    def levels(self, site: Site) -> Sequence[Level]:
        """One level a bit width; options that change the numbers are named where they are not the default."""
        if group_width(self.group, site.shape[1]) is None:
            return []
        extra: dict[str, Scalar] = {"damp": self.damp} if self.damp != _DAMP else {}
        extra |= {"act_order": True} if self.act_order else {}
        return [Level.of(self.name, bits=bits, group=self.group, **extra) for bits in as_tuple(self.bits)]

    def cost(self, site: Site, level: Level) -> Cost:
        """Codes, scales and zeros."""
        check_offered(self, site, [level])
        return int_cost(site.shape, level.option("bits"), group_width(self.group, site.shape[1]) or 1)

    def format(self, site: Site, level: Level) -> str:
        """Grouped integers."""
        return int_format(level.option("bits"), group_width(self.group, site.shape[1]) or 1)

    def compress(self, site: Site, weight: Tensor, stats: Statistics, levels: Sequence[Level]) -> Iterator[Variant]:
        """Solve all levels with one factorisation and one sweep. Raises NumericalError naming the site."""
        from evopress_gptq.solver import quantise

        check_offered(self, site, levels)
        check_weight(self.name, site, weight)
        hessian_CC = second_moment(self.name, site, stats)
        bits, group = [level.option("bits") for level in levels], group_width(self.group, site.shape[1]) or 1
        solved = quantise(weight, hessian_CC, bits, group, self.damp, self.act_order, site.name)
        for level, codes_RC, scale_RG, zero_RG in zip(levels, *solved, strict=True):
            yield int_variant(site, level, codes_RC, scale_RG, zero_RG, level.option("bits"))


@hookimpl
def evopress_methods() -> Iterable[type[Method]]:
    """The method of this plugin."""
    return [Gptq]
