"""Dropping whole attention, MLP or block sublayers; the residual stream carries on. Loaded through its entry point.

Changes no weight: what absence means for the forward pass is the business of `evopress.models`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from evopress.api import DROP, ZERO, Cost, Level, Method, Site, SiteKind, Statistics, Variant, unknown
from evopress.api.options import as_tuple, check_offered
from evopress.hooks.specs import hookimpl

if TYPE_CHECKING:
    from torch import Tensor

_CONTAINERS: tuple[SiteKind, ...] = ("attention", "mlp", "block")


@dataclass(frozen=True)
class Drop(Method):
    """Removes a container site and everything in it.

    kinds: which containers may be removed: attention, mlp, block, or several. Raises UsageError for other values.
    """

    name: ClassVar[str] = "drop"

    # An option and, on an instance, exactly what `Method.kinds` means: the kinds of site this method applies to.
    kinds: SiteKind | tuple[SiteKind, ...] = _CONTAINERS  # type: ignore[assignment, misc]

    def __post_init__(self) -> None:
        kinds = as_tuple(self.kinds)
        for kind in kinds:
            if kind not in _CONTAINERS:
                raise unknown("kind", str(kind), _CONTAINERS, "option kinds of method 'drop'")
        object.__setattr__(self, "kinds", kinds)

    def levels(self, site: Site) -> Sequence[Level]:
        """`drop` at the kinds asked for."""
        return [DROP] if site.kind in self.kinds else []

    def cost(self, site: Site, level: Level) -> Cost:
        """Nothing is stored."""
        check_offered(self, site, [level])
        return ZERO

    def format(self, site: Site, level: Level) -> str:
        """Nothing."""
        return "absent"

    def compress(self, site: Site, weight: Tensor, stats: Statistics, levels: Sequence[Level]) -> Iterator[Variant]:
        """Yield the absent variant; the weight is not read."""
        check_offered(self, site, levels)
        for level in levels:
            yield Variant(site, level, "absent", {}, ZERO)


@hookimpl
def evopress_methods() -> Iterable[type[Method]]:
    """The method of this plugin."""
    return [Drop]
