"""The local model of `guided`: around a profile, the loss is a sum of parabolas, one a site, in that site's own error.

At a linear site with error e = W_now - W_dense the loss holds ½ e'He. Its slope towards dense, which one backward pass gives for all sites
at once, is -e'He =: -s, and the levels of a site have errors of like shape, so that e'He grows with the layer error ρ = tr(eXe')/tr(WXW')
the bank has measured for each. Going from the present level to level l therefore changes the loss by

    ½ s (ρ(l) / ρ(now) - 1)  =  ½ k (ρ(l) - ρ(now)),    k = s / ρ(now).

A slope alone cannot rank levels: towards more bits and towards fewer it is negative alike, because both begin by undoing e. The factor k is
the site's own and changes slowly, so what different profiles told of it is added up. A dropped sublayer is no small error; what dropping it
changes is measured (`drops`). Pure arithmetic, no random draws; nothing is measured here. Called by `guided`.
"""

from __future__ import annotations

from collections.abc import Sequence

from evopress.api import DENSE, DROP
from evopress.search.ledger import Draft, Ledger

OWN = 0.8
"""Weight of a site's own factor against the mean of its role, which steadies factors read off few tokens."""
LEAST = 0.1
"""A factor below this share of its role's mean is noise: no site is free."""


class Parabolas:
    """Factors k of the linear sites, and measured changes of droppable genes.

    fading: share of what was learnt before that is kept when new slopes come in. drops: gene -> what its dropping changes, or changed;
    genes that were never measured are not in it.
    """

    def __init__(self, ledger: Ledger, errors: Sequence[Sequence[float]], fading: float) -> None:
        self.ledger, self.errors, self.fading = ledger, errors, fading
        sites = ledger.space.sites
        self.drops: dict[int, float] = {}
        self._slopes = [0.0] * len(sites)  # Σ s, old ones fading
        self._errors = [0.0] * len(sites)  # Σ ρ(now) over the same profiles
        self._last = [1.0] * len(sites)
        self._roles: dict[str, list[int]] = {}
        for position, site in enumerate(sites):
            if site.kind == "linear":
                self._roles.setdefault(site.role, []).append(position)

    def learn(self, draft: Draft, slopes: Sequence[float]) -> None:
        """Take in the slopes of a profile (`Trial.slopes`)."""
        for position, site in enumerate(self.ledger.space.sites):
            error = self.errors[position][draft.picks[position]]
            if site.kind == "linear" and error > 0 and not draft.dark[position]:
                self._slopes[position] = self.fading * self._slopes[position] - slopes[position]
                self._errors[position] = self.fading * self._errors[position] + error

    def factors(self) -> list[float]:
        """k per site: the site's own, drawn towards its role's and never below a share of it.

        Before anything is known 1 everywhere; where slopes tell nothing, as they were.
        """
        overall = self._ratio([position for members in self._roles.values() for position in members])
        if overall <= 0:  # nothing known yet, or noise alone: slopes of a compressed model towards dense are negative on the whole
            return self._last
        found = [overall] * len(self._slopes)
        for members in self._roles.values():
            common = max(self._ratio(members), LEAST * overall)
            for position in members:
                own = self._slopes[position] / self._errors[position] if self._errors[position] > 0 else common
                found[position] = max(OWN * own + (1 - OWN) * common, LEAST * common)
        self._last = found
        return found

    def changes(self, draft: Draft) -> list[tuple[float, ...]]:
        """Per site and level the change of the fitness if the site alone went there from the draft; a table for the knapsack."""
        space, factors = self.ledger.space, self.factors()
        table = []
        for position, (site, levels) in enumerate(zip(space.sites, space.levels, strict=True)):
            pick, errors = draft.picks[position], self.errors[position]
            if site.kind == "linear":
                table.append(tuple(0.5 * factors[position] * (error - errors[pick]) for error in errors))
            else:
                table.append((0.0,) * len(levels))
        for gene in self.ledger.containers:
            first = space.genes[gene][0]
            dropped = space.levels[first][draft.picks[first]] == DROP
            gain = self.drops.get(gene, self._guess(gene, factors, draft))
            away = DENSE if dropped else DROP
            table[first] = tuple((-gain if dropped else gain) if level == away else 0.0 for level in space.levels[first])
        return table

    def _guess(self, gene: int, factors: Sequence[float], draft: Draft) -> float:
        """What dropping a gene would change, before it was measured: its linear sites lose all of their output, an error of 1 each.

        Far too much for most; it only keeps what was never measured from looking free.
        """
        inside = [child for site in self.ledger.space.genes[gene] for child in self.ledger.below[site]]
        linear = [child for child in inside if self.ledger.space.sites[child].kind == "linear"]
        return sum(0.5 * factors[child] * (1 - self.errors[child][draft.picks[child]]) for child in linear)

    def _ratio(self, members: Sequence[int]) -> float:
        errors = sum(self._errors[position] for position in members)
        return sum(self._slopes[position] for position in members) / errors if errors > 0 else 0.0
