"""A surrogate of the fitness: from levels to a score and its uncertainty, learnt from few trials on different slices. Numpy only.

A Gaussian process (the posterior of a ridge regression, in dual form) whose features come in groups, from coarse to fine: the summed
layer error; its sums per role; per role and depth, with neighbouring depths blended in; the error of every gene; one-hot levels; and how
many drops stand beside each other, in all and per depth, because drops come in runs. The coarse ones generalise over sites and levels
after a handful of trials, the fine ones take over as trials come in. To their linear kernel, centred on the trials, `interactions` adds a
Gaussian one: sites interact in any number, and a trial tells most of what is near it. Trials of one slice share an unknown offset with a
wide prior, so that only differences on common documents count. How groups, interactions and noise are weighed against each other is chosen
from a small grid by the likelihood of the trials.

Idea: EQ-Net (2023), arXiv 2308.03213, learns accuracy from a quantisation code by an MLP on stored rows and lets evolution use it;
departure: a kernel, because hundreds of rows are few for an MLP and because it tells its own uncertainty. Measures nothing, draws nothing.
Called by `predictor` and `screening`.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product

import numpy as np
from numpy.typing import NDArray

from evopress.api import Genotype
from evopress.search.ledger import Ledger

Floats = NDArray[np.float64]

MIXES: tuple[dict[str, float], ...] = (
    {"runs": 1.0, "beside": 1.0, "total": 4.0, "roles": 2.0, "near": 1.5, "sums": 1.0, "ones": 0.5},
    {"runs": 1.0, "beside": 1.0, "total": 1.0, "roles": 1.0, "near": 1.0, "sums": 1.0, "ones": 1.0},
    {"runs": 1.0, "beside": 1.0, "total": 0.25, "roles": 0.5, "near": 0.75, "sums": 1.0, "ones": 2.0},
)
"""Weights of the groups of features."""
NEAR = 1.5
"""Depths over which neighbours are alike: standard deviation of the blend."""
INTERACTIONS: tuple[tuple[float, float], ...] = ((0.0, 1.0), *product((1.0, 10.0), (1.0, 1.5, 2.5)))
"""Variance of the interactions, in units of the linear part's, and the distance over which they change, in units of the trials' spread."""
NOISES = (1e-3, 1e-2, 0.1, 0.3, 1.0, 3.0)
"""Variance of the noise of an average trial, in units of the prior variance of the fitness."""
CHOOSING = 200
"""Newest trials by which it is chosen how groups, interactions and noise are weighed; all trials then teach."""
OFFSET = 100.0
"""Variance of the offset of a slice, in the same units."""


@dataclass(frozen=True)
class _Fit:
    """What `predict` needs. centre, sizes: per group of features. alpha: dual weights. root: inverse of the Cholesky factor."""

    centre: Mapping[str, Floats]
    sizes: Mapping[str, float]
    features: Floats
    interaction: tuple[float, float]
    alpha: Floats
    root: Floats
    variance: float
    offset: float


class Surrogate:
    """Predicts the fitness of genotypes.

    ledger: of the problem. errors: layer errors per site and level; without them drops, blended over depths, and one-hot levels remain.
    interactions: whether they may be learnt.
    """

    def __init__(self, ledger: Ledger, errors: Sequence[Sequence[float]] = (), interactions: bool = True) -> None:
        self.ledger, self.errors = ledger, errors
        self.interactions = INTERACTIONS if interactions else INTERACTIONS[:1]
        space = ledger.space
        self._roles: dict[str, int] = {}
        self._role_of = [
            self._roles.setdefault(site.role if site.kind == "linear" else site.kind, len(self._roles)) for site in space.sites
        ]
        sizes = [len(space.choices(gene)) for gene in range(len(space.genes))]
        depths = np.array([site.depth for site in space.sites], dtype=np.float64)
        alike = _alike(depths, depths)
        # site -> role × depth: a site counts in its own role, by how near it stands.
        self._blend = np.stack(
            [np.where((np.array(self._role_of) == role)[:, None], alike, 0.0) for role in range(len(self._roles))], axis=1
        )
        self._pairs, self._pair_kinds, self._pair_blend = self._beside(depths)
        self._first = np.concatenate(([0], np.cumsum(sizes)))
        self._gene_of = np.array([gene for _, gene in sorted((site, gene) for gene, sites in enumerate(space.genes) for site in sites)])
        widest = max(map(len, space.levels), default=0)
        self._drops = np.array([[*row, *[False] * (widest - len(row))] for row in ledger.is_drop])
        self._table = np.array([[*row, *[0.0] * (widest - len(row))] for row in errors])
        self._fit: _Fit | None = None

    def _beside(self, depths: Floats) -> tuple[NDArray[np.int64], Floats, Floats]:
        """Pairs of droppable sites that stand beside each other: of one kind at depths in a row, or of two kinds at one depth.

        Their positions (pairs × 2), which kinds they are of (pairs × kinds of pair), and the same blended over depths.
        """
        space, role_of = self.ledger.space, self._role_of
        droppable = [site for site, row in enumerate(self.ledger.is_drop) if any(row)]
        pairs = [(a, b) for a, b in combinations(droppable, 2) if space.sites[b].depth - space.sites[a].depth == (role_of[a] == role_of[b])]
        kinds: dict[tuple[int, int], int] = {}
        own = [kinds.setdefault((role_of[a], role_of[b]), len(kinds)) for a, b in pairs]
        which = np.eye(max(len(kinds), 1))[np.array(own, dtype=np.int64)]
        alike = _alike(np.array([(depths[a] + depths[b]) / 2 for a, b in pairs]), depths)
        return np.array(pairs, dtype=np.int64).reshape(-1, 2), which, which[:, :, None] * alike[:, None, :]

    def features(self, genotypes: Sequence[Genotype]) -> dict[str, Floats]:
        """Groups of features; one row a genotype. Sites that do not run have none."""
        space = self.ledger.space
        levels = np.array(genotypes, dtype=np.int64).reshape(len(genotypes), len(space.genes))
        rows = np.arange(len(genotypes))
        running = np.ones((len(genotypes), len(space.sites)), dtype=bool)
        ones = np.zeros((len(genotypes), int(self._first[-1])))
        sums = np.zeros((len(genotypes), len(space.genes)))
        roles = np.zeros((len(genotypes), len(self._roles)))
        harm = np.zeros((len(genotypes), len(space.sites)))
        gone = np.zeros_like(harm)
        for site, (gene, parent) in enumerate(zip(self._gene_of.tolist(), space.parents, strict=True)):
            if parent >= 0:
                running[:, site] = running[:, parent] & ~self._drops[parent, levels[:, self._gene_of[parent]]]
            gone[:, site] = harm[:, site] = self._drops[site, levels[:, gene]] * running[:, site]
            ones[rows, self._first[gene] + levels[:, gene]] += running[:, site] / len(space.genes[gene])
            if self.errors:
                error = self._table[site, levels[:, gene]] * running[:, site]
                harm[:, site] += error
                sums[:, gene] += error
                roles[:, self._role_of[site]] += error
        found = {"total": roles.sum(axis=1, keepdims=True), "roles": roles} if self.errors else {}
        found["near"] = np.tensordot(harm, self._blend, axes=1).reshape(len(genotypes), -1)
        found |= {"sums": sums, "ones": ones} if self.errors else {"ones": ones}
        if len(self._pairs):
            both = gone[:, self._pairs[:, 0]] * gone[:, self._pairs[:, 1]]
            found |= {"runs": both @ self._pair_kinds, "beside": np.tensordot(both, self._pair_blend, axes=1).reshape(len(genotypes), -1)}
        return found

    def fit(
        self,
        genotypes: Sequence[Genotype],
        values: Sequence[float],
        weights: Sequence[float] = (),
        slices: Sequence[Hashable] = (),
    ) -> None:
        """Learn from trials.

        weights: how much each counts, e.g. its tokens; the variance of its noise is inverse to it. slices: which trials share documents;
        none given: all do.
        """
        groups = self.features(genotypes)
        centre = {name: group.mean(axis=0) for name, group in groups.items()}
        target = np.asarray(values, dtype=np.float64)
        mean = float(target.mean())
        heavy = np.asarray(weights, dtype=np.float64) if len(weights) else np.ones(len(target))
        noise = heavy.mean() / heavy
        labels = list(slices) if len(slices) else [0] * len(target)
        found = {label: at for at, label in enumerate(dict.fromkeys(labels))}
        numbers = np.array([found[label] for label in labels])
        shared = OFFSET * (numbers[:, None] == numbers[None, :])
        last = slice(-CHOOSING, None)
        best: tuple[float, float, tuple[float, float], Floats, dict[str, float]] | None = None
        for mix, interaction in product(MIXES, self.interactions):
            sizes = _sizes(groups, centre, mix)
            features = _joined(groups, centre, sizes)
            kernel = _kernel(features[last], features[last], interaction) + shared[last, last]
            for level in NOISES:
                likelihood = _likelihood(kernel + np.diag(level * noise[last]), target[last] - mean)
                if best is None or likelihood > best[0] + 1e-9:
                    best = likelihood, level, interaction, features, sizes
        assert best is not None
        _, level, interaction, features, sizes = best
        root = np.linalg.inv(np.linalg.cholesky(_kernel(features, features, interaction) + shared + np.diag(level * noise)))
        white = root @ (target - mean)
        alpha = root.T @ white
        variance = max(float(white @ white) / len(target), 1e-300)
        offset = mean + OFFSET * float(np.mean([alpha[numbers == at].sum() for at in found.values()]))
        self._fit = _Fit(centre, sizes, features, interaction, alpha, root, variance, offset)

    def predict(self, genotypes: Sequence[Genotype]) -> tuple[Floats, Floats]:
        """Predicted fitness on an average slice, and its standard deviation (of the fitness itself, without noise and offset).

        Before anything was learnt: zeros and ones.
        """
        known = self._fit
        if known is None:
            return np.zeros(len(genotypes)), np.ones(len(genotypes))
        features = _joined(self.features(genotypes), known.centre, known.sizes)
        cross = _kernel(features, known.features, known.interaction)
        own = (features**2).sum(axis=1) + known.interaction[0]
        spread = own - ((cross @ known.root.T) ** 2).sum(axis=1)
        return known.offset + cross @ known.alpha, np.sqrt(known.variance * np.maximum(spread, 0.0))


def _alike(places: Floats, depths: Floats) -> Floats:
    """How near each place, a depth or one between two, stands to every depth of the model: places × depths, 1 at the same depth."""
    near: Floats = np.exp(-(((places[:, None] - np.arange(max(depths) + 1)) / NEAR) ** 2) / 2)
    return near


def _likelihood(kernel: Floats, target: Floats) -> float:
    """Logarithm of the likelihood of centred values, up to a constant, at the variance that suits them best."""
    lower = np.linalg.cholesky(kernel)
    variance = max(float(target @ np.linalg.solve(kernel, target)) / len(target), 1e-300)
    return -0.5 * len(target) * float(np.log(variance)) - float(np.log(np.diag(lower)).sum())


def _kernel(left: Floats, right: Floats, interaction: tuple[float, float]) -> Floats:
    """A linear kernel plus a Gaussian one of the given variance and length."""
    products: Floats = left @ right.T
    variance, length = interaction
    if not variance:
        return products
    squares: Floats = (left**2).sum(axis=1)[:, None] + (right**2).sum(axis=1) - 2 * products
    near: Floats = np.exp(-np.maximum(squares, 0) / (2 * length**2))
    return products + variance * near


def _sizes(groups: Mapping[str, Floats], centre: Mapping[str, Floats], mix: Mapping[str, float]) -> dict[str, float]:
    """What to divide each group by, so that it has its share of a prior variance of 1 over the trials; constant groups stay as they are."""
    spreads = {name: float(((group - centre[name]) ** 2).sum(axis=1).mean()) for name, group in groups.items()}
    whole = sum(mix[name] for name in groups)
    return {name: (spread / (mix[name] / whole)) ** 0.5 if spread else 1.0 for name, spread in spreads.items()}


def _joined(groups: Mapping[str, Floats], centre: Mapping[str, Floats], sizes: Mapping[str, float]) -> Floats:
    """All features side by side, centred and scaled."""
    return np.concatenate([(group - centre[name]) / sizes[name] for name, group in groups.items()], axis=1)
