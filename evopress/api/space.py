"""Space: which levels every site may take, what they cost, which sites are linked, and what shadows what.

The searchers work on *genotypes*: one level index a gene, where a gene is a site or a group of linked sites. `profile` turns a genotype
into a Profile. Holds no weights and knows no method; built by `evopress.run` from sites and methods.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property

from evopress.api.cost import ZERO, Cost, dense_cost
from evopress.api.errors import UsageError
from evopress.api.level import ABSENT, DENSE, DROP, Level
from evopress.api.profile import Profile
from evopress.api.site import Site

Genotype = tuple[int, ...]
FIELDS = tuple(field.name for field in fields(Cost))


@dataclass(frozen=True)
class Space:
    """The search space.

    sites: model order, a parent before its children.
    levels: per site the levels it may take, cheapest first (by bytes, then parameters, then text).
    costs: per site and level the exact cost; a container's `dense` level costs its own parameters (norms, biases).
    fixed: cost of everything outside all sites (embeddings, final norm); always paid.
    links: groups of site indices that must share a level.
    """

    sites: tuple[Site, ...]
    levels: tuple[tuple[Level, ...], ...]
    costs: tuple[tuple[Cost, ...], ...]
    fixed: Cost = ZERO
    links: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        if not len(self.sites) == len(self.levels) == len(self.costs):
            raise ValueError("sites, levels and costs must have equal lengths")
        seen: set[str] = set()
        for site, levels, costs in zip(self.sites, self.levels, self.costs, strict=True):
            if site.parent is not None and site.parent not in seen:
                raise ValueError(f"site {site.name!r} stands before its parent {site.parent!r}")
            if site.name in seen or not levels or len(levels) != len(costs):
                raise ValueError(f"site {site.name!r} is repeated, or has no levels, or not one cost a level")
            seen.add(site.name)
        linked = [index for group in self.links for index in group]
        if len(linked) != len(set(linked)):
            raise ValueError("a site stands in two link groups")
        for group in self.links:
            if len({self.levels[index] for index in group}) > 1:
                names = ", ".join(self.sites[index].name for index in group)
                raise UsageError(f"Linked sites {names} do not take the same levels.", "Link only sites with the same options.")

    @cached_property
    def index(self) -> dict[str, int]:
        """Site name -> position."""
        return {site.name: position for position, site in enumerate(self.sites)}

    @cached_property
    def parents(self) -> tuple[int, ...]:
        """Position of each site's parent, -1 for none."""
        return tuple(-1 if site.parent is None else self.index[site.parent] for site in self.sites)

    @cached_property
    def genes(self) -> tuple[tuple[int, ...], ...]:
        """Groups of site positions that move together, in order of their first site; unlinked sites stand alone."""
        linked = {index for group in self.links for index in group}
        groups = [tuple(sorted(group)) for group in self.links] + [(i,) for i in range(len(self.sites)) if i not in linked]
        return tuple(sorted(groups))

    def choices(self, gene: int) -> tuple[Level, ...]:
        """Levels a gene may take."""
        return self.levels[self.genes[gene][0]]

    def spread(self, genotype: Sequence[int]) -> list[int]:
        """Level index per site of a genotype."""
        picks = [0] * len(self.sites)
        for gene, level in zip(self.genes, genotype, strict=True):
            for site in gene:
                picks[site] = level
        return picks

    def shadowed(self, picks: Sequence[int]) -> list[bool]:
        """Per site: does it stand under a dropped parent?"""
        hidden = [False] * len(self.sites)
        for position, parent in enumerate(self.parents):
            if parent >= 0:
                hidden[position] = hidden[parent] or self.levels[parent][picks[parent]] == DROP
        return hidden

    def profile(self, genotype: Sequence[int]) -> Profile:
        """The profile of a genotype; shadowed sites become `absent`."""
        picks = self.spread(genotype)
        hidden = self.shadowed(picks)
        return Profile(
            tuple(
                (site.name, ABSENT if hidden[position] else self.levels[position][picks[position]])
                for position, site in enumerate(self.sites)
            )
        )

    def genotype(self, profile: Profile) -> Genotype:
        """A genotype of a profile; the dearest level stands in for shadowed sites. Raises UsageError for foreign profiles."""
        genotype = []
        for gene in self.genes:
            found = {profile[self.sites[position].name] for position in gene} - {ABSENT}
            levels = self.levels[gene[0]]
            if len(found) > 1:
                raise UsageError(f"Linked sites of {self.sites[gene[0]].name!r} have different levels in the profile.")
            level = found.pop() if found else levels[-1]
            if level not in levels:
                known = ", ".join(map(str, levels))
                raise UsageError(f"Level {level} is not in the space at {self.sites[gene[0]].name!r}.", f"Allowed: {known}.")
            genotype.append(levels.index(level))
        return tuple(genotype)

    def cost(self, profile: Profile) -> Cost:
        """Exact cost of a profile, with `fixed`."""
        total = self.fixed
        for position, (_, level) in enumerate(profile):
            if level != ABSENT:
                total += self.costs[position][self.levels[position].index(level)]
        return total

    def cost_of(self, genotype: Sequence[int]) -> Cost:
        """Exact cost of a genotype, with `fixed`, without building the profile."""
        picks = self.spread(genotype)
        hidden = self.shadowed(picks)
        chosen = [self.costs[i][pick] for i, pick in enumerate(picks) if not hidden[i]]
        return Cost(*(getattr(self.fixed, field) + sum(getattr(cost, field) for cost in chosen) for field in FIELDS))

    @cached_property
    def cheapest(self) -> Cost:
        """Least of every field that any profile can take, each on its own (exact: a drop is taken where it is cheapest)."""
        return Cost(*(self._extreme(field, min) for field in FIELDS))

    @cached_property
    def dearest(self) -> Cost:
        """Most of every field that any profile can take, each on its own."""
        return Cost(*(self._extreme(field, max) for field in FIELDS))

    def _extreme(self, field: str, pick: Callable[[list[int]], int]) -> int:
        # Bottom-up over the tree of sites. Linked genes are treated site by site, which is exact as long as every linked site
        # prefers the same level; members share their level ladder, so a cheaper level is cheaper for each of them.
        below = [0] * len(self.sites)
        total = 0
        for position in reversed(range(len(self.sites))):
            options = [
                getattr(cost, field) + (0 if level == DROP else below[position])
                for level, cost in zip(self.levels[position], self.costs[position], strict=True)
            ]
            best = pick(options)
            if self.parents[position] >= 0:
                below[self.parents[position]] += best
            else:
                total += best
        return int(getattr(self.fixed, field)) + total

    @cached_property
    def weights(self) -> int:
        """Weights of all linear sites: the denominator of `bits` and `sparsity`."""
        return sum(site.weights for site in self.sites)

    @cached_property
    def base(self) -> Cost:
        """Cost of the dense model outside its linear weights: embeddings, norms, biases."""
        own = ZERO
        for position, site in enumerate(self.sites):
            if site.kind != "linear":
                own += self.costs[position][-1]
        return self.fixed + own

    @cached_property
    def dense(self) -> Cost:
        """Cost of the uncompressed model."""
        timed = [costs[levels.index(DENSE)] for levels, costs in zip(self.levels, self.costs, strict=True) if DENSE in levels]
        nanoseconds = self.fixed.nanoseconds + sum(cost.nanoseconds for cost in timed)
        return replace(self.base + dense_cost(self.weights), nanoseconds=nanoseconds)

    def bits(self, cost: Cost) -> float:
        """Mean stored bits a linear weight, metadata and padding included."""
        return 8 * (cost.bytes - self.base.bytes) / self.weights

    def sparsity(self, cost: Cost) -> float:
        """Share of the linear weights that is not stored."""
        return 1 - (cost.params - self.base.params) / self.weights


def order_levels(options: Mapping[Level, Cost]) -> tuple[tuple[Level, ...], tuple[Cost, ...]]:
    """Levels and costs of one site in the order a Space wants: cheapest first, and `drop` before a `dense` that holds nothing itself."""
    ranked = sorted(options.items(), key=lambda item: (item[1].bytes, item[1].params, item[0] != DROP, str(item[0])))
    return tuple(level for level, _ in ranked), tuple(cost for _, cost in ranked)
