"""Trial and Slice: a measured profile, and the exact tokens it was measured on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from evopress.api.cost import Cost
from evopress.api.profile import Profile


@dataclass(frozen=True)
class Slice:
    """Documents of one token set, each with the number of leading tokens that is used. Same slice, same tokens, same order.

    documents: (index in the token set, tokens used) pairs.
    token_set: digest of the token set.
    """

    token_set: str
    documents: tuple[tuple[int, int], ...]

    @property
    def tokens(self) -> int:
        """Total tokens."""
        return sum(tokens for _, tokens in self.documents)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of token set and documents, hexadecimal."""
        text = self.token_set + ";" + ",".join(f"{index}:{tokens}" for index, tokens in self.documents)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Trial:
    """A profile measured on a slice with one fitness. Lower is better.

    values: per-document fitness, a mean over the positions of that document, in the order of the slice.
    weights: scored positions per document.
    seconds: wall time of the measurement. cached: it was read from the store, not taken again.
    slopes: where they were asked for, the first-order change of the fitness if one site alone were dense again (linear sites) or dropped
        (sublayers and blocks): one a site of the space, in the unit of the fitness. 0 at dense linear sites, and where nothing is known:
        at dropped sites and below them.
    """

    profile: Profile
    slice: Slice
    values: tuple[float, ...]
    weights: tuple[int, ...]
    cost: Cost
    seconds: float
    cached: bool = False
    slopes: tuple[float, ...] = ()

    @cached_property
    def fitness(self) -> float:
        """Position-weighted mean of the per-document values."""
        return weighted_mean(self.values, self.weights)


def weighted_mean(values: Sequence[float], weights: Sequence[int]) -> float:
    """Mean of `values` weighted by `weights`."""
    return sum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights)
