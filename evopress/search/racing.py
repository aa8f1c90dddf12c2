"""Racing: candidates against the incumbent on the same documents, more of them only while the order is open.

All looks but the last only screen: the best go on, and one that is worse than the incumbent on average goes no further. What is left after
them duels with the incumbent on documents that screening has not seen, so that having been chosen there counts for nothing. A duel ends
with the first part after which a sign-flip test on paired per-document differences (Fisher 1935; exact up to EXACT documents) is sure, or
the candidate is behind: under the null that it is no better, every difference is as likely with the other sign. The level is split over
the parts and the duelling candidates (Bonferroni), so the chance that a race accepts anything that is no better is at most `alpha`,
wherever it stops, as far as documents are independent (several windows of one source are less evidence than they count for). Not a search;
draws no candidates. Called by `guided` and `champion`.
"""

from __future__ import annotations

import random
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, log2

import numpy as np

from evopress.api import Ask, Genotype, Problem, Slice, Trial, UsageError

EXACT = 12
"""Documents up to which all sign patterns are counted; beyond, DRAWS random ones."""
DRAWS = 4096
PARTS = 2
"""Parts of a duel: it may end after each."""
Looks = tuple[tuple[int, int], ...]
"""(candidates looked at, tokens of the documents looked at so far) per look."""


@dataclass(frozen=True)
class Race:
    """winner: position of the accepted candidate, None when none was. difference: its mean difference in the duel; 0 without a winner."""

    winner: int | None
    difference: float = 0.0


def check_looks(looks: Sequence[Sequence[int]], option: str = "looks") -> Looks:
    """Validate looks given as (candidates, tokens) pairs. Raises UsageError."""
    allowed = f"Write (candidates, tokens) pairs with fewer candidates and more tokens each, e.g. {option}=8x1024|3x4096|1x8192."
    try:
        checked = tuple((int(keep), int(tokens)) for keep, tokens in looks)
    except (TypeError, ValueError) as error:
        raise UsageError(f"Option {option}={looks!r} is not a list of pairs of integers.", allowed) from error
    if not checked or any(keep < 1 or tokens < 2 for keep, tokens in checked):
        raise UsageError(f"Option {option}={looks!r} has no look, or one without candidates or tokens.", allowed)
    if any(later[0] > earlier[0] or later[1] <= earlier[1] for earlier, later in pairwise(checked)):
        raise UsageError(f"Option {option}={looks!r} does not narrow down on more and more tokens.", allowed)
    return checked


def check_alpha(alpha: float, option: str = "alpha") -> float:
    """Validate the chance that a race accepts what is no better; at 1 a single finalist wins by being ahead. Raises UsageError."""
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 <= alpha <= 1:
        raise UsageError(f"Option {option}={alpha!r} is not a chance.", "Write a number from 0 to 1.")
    return float(alpha)


class Deck:
    """Documents dealt one after the other, reshuffled when all were used: no document is seen twice before every other was seen once."""

    def __init__(self, problem: Problem, rng: random.Random) -> None:
        self._problem, self._rng = problem, rng
        self._left: list[int] = []

    def deal(self, tokens: int, taken: Sequence[int] = (), longest: int | None = None) -> Slice:
        """Documents of at least so many tokens in total, none of `taken`; fewer where no others are left.

        longest: tokens after which a document is cut; by default `tokens`. Raises UsageError when there is no document at all.
        """
        lengths, longest = self._problem.document_tokens, max(2, tokens) if longest is None else longest
        pieces: list[tuple[int, int]] = []
        used = set(taken)
        have, passed = 0, 0
        while have < tokens:
            if not self._left:
                self._left = [index for index, length in enumerate(lengths) if length > 1]
                self._rng.shuffle(self._left)
                passed += 1
                if passed > 2:  # once round the whole set, and nothing new
                    break
            index = self._left.pop()
            if index in used:
                continue
            used.add(index)
            pieces.append((index, min(lengths[index], longest)))
            have += pieces[-1][1]
        if not pieces:
            raise UsageError(
                f"The race asks for {tokens:,} more tokens, but has seen all documents of the search set.",
                "Lower the tokens of looks, or raise --search-tokens.",
            )
        return Slice(self._problem.token_set, tuple(pieces))


def check_documents(problem: Problem, looks: Looks, alpha: float) -> None:
    """Raise UsageError unless a race can accept something in any part of its duel, each look before it having a document."""
    documents, needed = sum(length > 1 for length in problem.document_tokens), len(looks) - 1 + PARTS * _part_documents(looks, alpha)
    if documents < needed:
        raise UsageError(
            f"A race at alpha {alpha} needs {needed} documents, and the search set has {documents}.",
            "Shorten --window, give more text, or raise alpha.",
        )


def _level(looks: Looks, alpha: float) -> float:
    return alpha / (PARTS * looks[-1][0])


def _part_documents(looks: Looks, alpha: float) -> int:
    # All n differences of one sign have a chance of 1/2ⁿ; with fewer documents a part could not accept anything.
    return max(1, ceil(log2(1 / max(_level(looks, alpha), 1e-9))))


def sign_flip(differences: Sequence[float], weights: Sequence[float], rng: random.Random) -> float:
    """One-sided p of "the weighted mean difference is below zero": the share of sign patterns with a sum as low, the given one included."""
    terms = np.asarray(differences, dtype=np.float64) * np.asarray(weights, dtype=np.float64)
    count = len(terms)
    if count <= EXACT:
        signs = 1 - 2 * ((np.arange(2**count)[:, None] >> np.arange(count)) & 1)
        sums = signs @ terms
        return float((sums <= terms.sum() + 1e-12 * np.abs(terms).sum()).mean())
    generator = np.random.default_rng(rng.getrandbits(64))
    sums = (1 - 2 * generator.integers(0, 2, size=(DRAWS, count))) @ terms
    return float((1 + (sums <= terms.sum()).sum()) / (1 + DRAWS))


def race(
    problem: Problem,
    rng: random.Random,
    deck: Deck,
    candidates: Sequence[Genotype],
    incumbent: Genotype,
    looks: Looks,
    alpha: float,
    generation: int,
) -> Generator[Ask, Sequence[Trial], Race]:
    """Race candidates (best guess first) against the incumbent; every question is about documents that the race has not seen."""
    values: list[list[float]] = [[] for _ in candidates]
    weights: list[list[int]] = [[] for _ in candidates]
    seen: list[int] = []

    def look(standing: Sequence[int], tokens: int, longest: int | None, stage: int) -> Generator[Ask, Sequence[Trial], list[int]]:
        """Measure on new documents; those that are ahead by all they were seen on since the last screening, best first."""
        slice_ = deck.deal(tokens, seen, longest)
        seen.extend(index for index, _ in slice_.documents)
        profiles = tuple(problem.space.profile(genotype) for genotype in (*(candidates[at] for at in standing), incumbent))
        trials = yield Ask(profiles, slice_, generation, stage)
        for at, trial in zip(standing, trials, strict=False):
            values[at] += [a - b for a, b in zip(trial.values, trials[-1].values, strict=True)]
            weights[at] += trial.weights
        means = {at: float(np.average(values[at], weights=weights[at])) for at in standing}
        return sorted((at for at in standing if means[at] < 0), key=lambda at: means[at])

    level, needed = _level(looks, alpha), _part_documents(looks, alpha)
    before = looks[-2][1] if len(looks) > 1 else 0
    standing, past = list(range(len(candidates))), 0
    for stage, (keep, tokens) in enumerate(looks[:-1], start=1):
        standing = yield from look(standing[:keep], tokens - past, None, stage)
        past = tokens
        if not standing:
            return Race(None)
    standing = standing[: looks[-1][0]]
    # Documents are cut only where the duel would not see enough of them to decide: what a candidate loses depends on the position.
    longest = max(2, (looks[-1][1] - before) // (PARTS * needed))
    for at in standing:
        values[at], weights[at] = [], []
    for part in range(PARTS):
        tokens = (looks[-1][1] - before) * (part + 1) // PARTS - (looks[-1][1] - before) * part // PARTS
        standing = yield from look(standing, tokens, longest, len(looks) + part)
        if not standing:
            return Race(None)
        if level >= 0.5 or sign_flip(values[standing[0]], weights[standing[0]], rng) <= level:  # ahead: a p of at most a half
            return Race(standing[0], float(np.average(values[standing[0]], weights=weights[standing[0]])))
    return Race(None)
